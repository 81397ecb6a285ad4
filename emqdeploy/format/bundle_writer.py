"""Writing a bundle: artefacts enter one by one, each whole or not at all, and two exports never mix."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from emqdeploy import __version__
from emqdeploy.errors import EmqError, UsageError, cannot_write, writable_dir
from emqdeploy.files import atomic_path, atomic_write_bytes
from emqdeploy.format.bundle import (
    INPUT,
    MANIFEST_FILE,
    SCHEMA,
    Artefact,
    Bundle,
    InputTensor,
    Manifest,
    SharedFile,
    sha256,
)
from emqdeploy.format.card import Card, encode, record_children
from emqdeploy.format.child import Child

_STAGING = ".unproven-"
"""How directories begin that hold what is not proven yet."""


class BundleWriter:
    """Adds artefacts to a bundle, each whole or not at all; what the bundle held before stays.

    Use it as a context manager: it holds a lock, so that two exports never mix in one directory.

    Args:
        directory: the bundle; created where it does not exist.
        card: what the manifest says about the network.
        children: every child of the network.
    """

    def __init__(self, directory: Path, card: Card, children: Sequence[Child]) -> None:
        self.directory = directory
        self._card = card
        self._children = tuple(children)
        self._artefacts: dict[str, Artefact] = {}
        self._files: dict[str, SharedFile] = {}
        self._checkpoint: str | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> BundleWriter:
        created = not self.directory.exists()
        writable_dir(self.directory)
        with self._stack:
            self._stack.enter_context(_locked(self.directory))
            if (self.directory / MANIFEST_FILE).exists():
                held = Bundle.open(self.directory)
                self._artefacts = {artefact.id: artefact for artefact in held.artefacts}
                self._files, self._checkpoint = dict(held.files), held.checkpoint
            if created:
                # An export that fails before its first artefact leaves no empty directory behind.
                self._stack.callback(self._remove_if_empty)
            for left in self.directory.glob(f"{_STAGING}*"):
                shutil.rmtree(left, ignore_errors=True)  # of an export that was killed: the lock says that none runs
            staging = tempfile.TemporaryDirectory(dir=self.directory, prefix=_STAGING)
            self.staging = Path(self._stack.enter_context(staging))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """Gives the lock back and removes what was never proven."""
        self._stack.close()

    def _remove_if_empty(self) -> None:
        with contextlib.suppress(OSError):
            self.directory.rmdir()

    def stage_checkpoint(self, path: Path) -> Path:
        """Lends the checkpoint below `staging`; it enters the bundle with the first artefact.

        Raises:
            UsageError: the bundle holds artefacts of another checkpoint.
        """
        held = self._files.get(self._checkpoint or "")
        if held is not None and held.sha256 != sha256(path):
            raise UsageError(
                f"{self.directory} is the bundle of another checkpoint than {path}; choose another --out or remove it"
            )
        self._checkpoint = self._checkpoint or path.name
        staged = self.staging / self._checkpoint
        try:
            shutil.copyfile(path, staged)
        except OSError as error:
            raise cannot_write(staged, error) from error
        return staged

    def add(self, staged: Path, name: str, companions: Mapping[str, Path] | None = None, **about: Any) -> Artefact:
        """Moves a proven file to its place and records it; an artefact of the same id is replaced.

        Args:
            staged: the file, below `staging`.
            name: its place in the bundle.
            companions: staged files that it needs, by their place in the bundle.
            **about: the fields of `Artefact` that do not follow from the file.
        """
        about["shared"] = (*about.get("shared", ()), *(companions or {}))
        artefact = Artefact(file=name, sha256=sha256(staged), size_bytes=staged.stat().st_size, **about)
        if self._checkpoint is not None and self._checkpoint not in self._files:
            self._place(self.staging / self._checkpoint, self._checkpoint, keep=True)
        for place, path in (companions or {}).items():
            self._place(path, place)
        self._move(staged, name)
        self._artefacts.pop(artefact.id, None)
        self._artefacts[artefact.id] = artefact
        self._write()
        return artefact

    def amend(self, id_: str, **changes: Any) -> None:
        """Changes what the manifest says about an artefact, once more is known of it."""
        self._artefacts[id_] = msgspec.structs.replace(self._artefacts[id_], **changes)
        self._write()

    def _place(self, staged: Path, name: str, keep: bool = False) -> None:
        record = SharedFile(sha256(staged), staged.stat().st_size)
        if keep:
            with atomic_path(self.directory / name) as temporary:
                shutil.copyfile(staged, temporary)
        else:
            self._move(staged, name)
        self._files[name] = record

    def _move(self, staged: Path, name: str) -> None:
        target = self.directory / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged, target)
        except OSError as error:
            raise cannot_write(target, error) from error

    def _write(self) -> None:
        manifest = Manifest(
            schema=SCHEMA,
            emqdeploy=__version__,
            card=self._card,
            children=record_children(self._children),
            input=InputTensor(INPUT, self._card.input_shape),
            checkpoint=self._checkpoint,
            files=self._files,
            artefacts=tuple(self._artefacts.values()),
        )
        text = msgspec.json.format(encode(manifest), indent=2)
        atomic_write_bytes(self.directory / MANIFEST_FILE, text + b"\n")


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Holds the directory for one export; the operating system drops the lock however the process ends."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise EmqError(f"another export is writing to {directory}; wait for it or choose another --out") from error
    finally:
        os.close(handle)
