"""Writing a bundle: artefacts enter one by one, each whole or not at all, and two exports never mix."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from emqdeploy import __version__
from emqdeploy.errors import EmqError, UsageError, cannot_write, writable_dir
from emqdeploy.files import atomic_write_bytes, flush
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
from emqdeploy.locks import locked
from emqdeploy.progress import Report, silent

_STAGING = ".unproven-"
"""How directories begin that hold what is not proven yet."""


class BundleWriter:
    """Adds artefacts to a bundle, each whole or not at all; what the bundle held before stays.

    Use it as a context manager: it holds a lock, so that two exports never mix in one directory. At no moment does the
    manifest name a file of other content: it forgets what is about to change, the files reach the disk, and only then
    it names them. A manifest that names what is not there, which other programs may leave, is put right at the start.

    Args:
        directory: the bundle; created where it does not exist.
        card: what the manifest says about the network.
        children: every child of the network.
        report: receives a line for every artefact that had to be dropped.
    """

    def __init__(self, directory: Path, card: Card, children: Sequence[Child], report: Report = silent) -> None:
        self.directory = directory
        self._card = card
        self._children = tuple(children)
        self._artefacts: dict[str, Artefact] = {}
        self._files: dict[str, SharedFile] = {}
        self._checkpoint: str | None = None
        self._bound_to: str | None = None
        self._describes_another = False
        self._report = report
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> BundleWriter:
        created = not self.directory.exists()
        writable_dir(self.directory)
        with self._stack:
            busy = f"another export is writing to {self.directory}; wait for it or choose another --out"
            self._stack.enter_context(locked(self.directory, busy))
            if (self.directory / MANIFEST_FILE).exists():
                self._take_over(Bundle.read(self.directory))
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

    def _take_over(self, held: Bundle) -> None:
        """Keeps what the bundle holds, but for what is not there any more or was altered."""
        self._artefacts = {artefact.id: artefact for artefact in held.artefacts}
        self._files, self._checkpoint = dict(held.files), held.checkpoint
        if held.checkpoint is not None:
            self._bound_to = held.files[held.checkpoint].sha256
        elif held.artefacts:  # a damaged checkpoint was dropped, or never copied: only what it said is left
            self._describes_another = (held.card, held.children) != (self._card, self._children)
        wrong: dict[str, str] = {}
        for name in held.records:
            try:
                held.check(name)
            except EmqError as error:
                wrong[name] = str(error)
        for artefact in held.artefacts:
            reasons = [wrong[name] for name in (artefact.file, *artefact.shared) if name in wrong]
            if reasons:
                self._report(f"{artefact.id} leaves the bundle: {reasons[0]}")
        mine = self._card, self._children
        self._card, self._children = held.card, held.children  # whether the other ones belong here is not known yet
        self._forget(wrong)
        self._card, self._children = mine

    def _remove_if_empty(self) -> None:
        with contextlib.suppress(OSError):
            self.directory.rmdir()

    def stage_checkpoint(self, path: Path) -> Path:
        """Lends the checkpoint below `staging`; it enters the bundle with the first artefact.

        Raises:
            UsageError: the bundle holds artefacts of another checkpoint.
        """
        if self._describes_another or self._bound_to not in (None, sha256(path)):
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
        files = dict(companions or {})
        if self._checkpoint is not None and self._checkpoint not in self._files:
            files[self._checkpoint] = self._copy_of_checkpoint()
        shared = {place: _record(path) for place, path in files.items()}
        own = _record(staged)
        artefact = Artefact(file=name, sha256=own.sha256, size_bytes=own.size_bytes, **about)
        self._forget(place for place, record in (shared | {name: own}).items() if self._says_other(place, record))
        for place, path in (files | {name: staged}).items():
            self._place(path, place)
        self._files |= shared
        self._artefacts.pop(artefact.id, None)
        self._artefacts[artefact.id] = artefact
        self._write()
        return artefact

    def keep(self, staged: Path, name: str) -> None:
        """Moves a file to its place that goes with the bundle, though no artefact needs it."""
        record = _record(staged)
        self._forget([name] if self._says_other(name, record) else [])
        self._place(staged, name)
        self._files[name] = record
        self._write()

    def amend(self, id_: str, **changes: Any) -> None:
        """Changes what the manifest says about an artefact, once more is known of it."""
        self._artefacts[id_] = msgspec.structs.replace(self._artefacts[id_], **changes)
        self._write()

    def _copy_of_checkpoint(self) -> Path:
        """The staged checkpoint again: its place in `staging` is read until the export ends."""
        staged = self.staging / str(self._checkpoint)
        copy = staged.with_name(f"{staged.name}.copy")
        try:
            shutil.copyfile(staged, copy)
        except OSError as error:
            raise cannot_write(self.directory / staged.name, error) from error
        return copy

    def _says_other(self, place: str, record: SharedFile) -> bool:
        """Whether the manifest names a file at a place, with other content than it is about to have."""
        said = [SharedFile(one.sha256, one.size_bytes) for one in self._artefacts.values() if one.file == place]
        return any(one != record for one in [*said, self._files.get(place, record)])

    def _forget(self, places: Iterable[str]) -> None:
        """Has the manifest name these files, and artefacts that need them, no more."""
        gone = set(places)
        if not gone:
            return
        self._files = {name: record for name, record in self._files.items() if name not in gone}
        self._artefacts = {
            id_: one for id_, one in self._artefacts.items() if gone.isdisjoint((one.file, *one.shared))
        }  # fmt: skip
        self._write()

    def _place(self, staged: Path, name: str) -> None:
        """Moves a file to its place; it is on the disk, under its name, before the manifest says so."""
        target = self.directory / name
        try:
            flush(staged)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged, target)
            with contextlib.suppress(OSError):  # some file systems cannot flush directories
                for folder in (target.parent, *target.parent.parents):
                    flush(folder)
                    if folder == self.directory:
                        break
        except OSError as error:
            raise cannot_write(target, error) from error

    def _write(self) -> None:
        manifest = Manifest(
            schema=SCHEMA,
            emqdeploy=__version__,
            card=self._card,
            children=record_children(self._children),
            input=InputTensor(INPUT, self._card.input_shape),
            checkpoint=self._checkpoint if self._checkpoint in self._files else None,
            files=self._files,
            artefacts=tuple(self._artefacts.values()),
        )
        text = msgspec.json.format(encode(manifest), indent=2)
        atomic_write_bytes(self.directory / MANIFEST_FILE, text + b"\n")


def _record(path: Path) -> SharedFile:
    return SharedFile(sha256(path), path.stat().st_size)


def open_or_repair(path: Path, report: Report) -> Bundle:
    """Opens a bundle to add to it; one whose files are not what its manifest says loses those artefacts first."""
    try:
        return Bundle.open(path)
    except EmqError:
        held = Bundle.read(path)
        with BundleWriter(held.path, held.card, held.children, report):
            return Bundle.open(path)
