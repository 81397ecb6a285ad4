"""The bundle: one directory with everything exported from a checkpoint, and the manifest that says what each file is.

``manifest.json`` (schema 2) holds the network's card and children, and names every artefact with its hash, the runtime
and device it was built for, and per layer three different things: the bits of its weight grid, the type it is stored
as, the way it is computed. Reading a bundle needs neither torch nor a runtime.
"""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

import msgspec

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.files import LARGEST_MODEL, LARGEST_TEXT, open_regular, read_bytes
from emqdeploy.format.card import (
    Card,
    ChildRecord,
    Digest,
    Name,
    Record,
    Size,
    Text,
    check_card,
    damaged,
    decode,
    read_children,
)
from emqdeploy.format.child import Child, ChildLike, find_child, in_order
from emqdeploy.format.precision import LayerPrecision, computed_as, stored_as

MANIFEST_FILE = "manifest.json"
SCHEMA = 2

VERIFIED = "verified"
NOT_RUN = "built, not run here"

CHILD: Final = "child"
SELECTOR: Final = "selector"
BASELINE: Final = "baseline"
Role = Literal["child", "selector", "baseline"]
"""What an artefact is for: one child, several behind an input ``bits``, or something to compare with."""

INPUT = "images"
"""Name of the input of every graph."""

_REMEDY = "export again"


class Artefact(Record, frozen=True, kw_only=True):
    """One exported file.

    Attributes:
        id: unique in its bundle, for example ``onnx-w4`` or ``tensorrt-rtx-w4-sm86``.
        children: names of the children that it answers for; empty for a baseline.
        target: ``onnx``, ``tensorrt``, ``tensorrt-rtx``, ``tensorrt-onnx`` or ``openvino``.
        flavour: what kind of it: ``int8``, ``packed``, ``master`` (storage), ``if``, ``native`` (selectors),
            ``float32``, ``static-int8`` (baselines).
        role: see `Role`.
        file: relative to the bundle, with forward slashes.
        sha256: of ``file``.
        size_bytes: of ``file``, without what it shares.
        status: `VERIFIED` or `NOT_RUN`.
        shared: other files of the bundle that it needs, relative likewise.
        layers: every layer at its widest child.
        float_ops: operators that compute in float and have no weights of a layer, by type and count.
        built_for: ``{"runtime", "version", "device", ...}``: where it may be loaded; empty where anywhere.
        parity: how it compared with the integer reference; empty where it was not compared.
        cost: what this form costs in its runtime, measured, or ``{"why": ...}`` where that was not possible.
    """

    id: Name
    children: tuple[Name, ...]
    target: Name
    flavour: Name
    role: Role
    file: Name
    sha256: Digest
    size_bytes: Size
    status: Text
    shared: tuple[Name, ...] = ()
    layers: tuple[LayerPrecision, ...] = ()
    float_ops: dict[Text, int] = msgspec.field(default_factory=dict)
    built_for: dict[Text, Any] = msgspec.field(default_factory=dict)
    parity: dict[Text, Any] = msgspec.field(default_factory=dict)
    cost: dict[Text, Any] = msgspec.field(default_factory=dict)

    @property
    def stored_as(self) -> str:
        """The type in which most layers are stored."""
        return stored_as(self.layers)

    @property
    def integer_layers(self) -> int:
        """How many layers run as integer kernels."""
        return sum(layer.integer is True for layer in self.layers)

    @property
    def computed_as(self) -> str:
        """How the layers are computed; says of how many where they differ."""
        return computed_as(self.layers)

    def serves(self, child: Child) -> bool:
        """Whether it answers for a child."""
        return child.name in self.children

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, as they stand in the manifest."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values


class SharedFile(Record, frozen=True):
    """A file that artefacts need; the checkpoint is one of them."""

    sha256: Digest
    size_bytes: Size


class InputTensor(Record, frozen=True):
    """The graphs' input; the batch dimension stands before the shape."""

    name: Name
    shape: tuple[int, ...]
    dtype: Text = "float32"


class Manifest(Record, frozen=True, kw_only=True):
    """What ``manifest.json`` holds."""

    schema: int
    emqdeploy: Text
    card: Card
    children: tuple[ChildRecord, ...]
    input: InputTensor
    checkpoint: Name | None
    files: dict[Name, SharedFile]
    artefacts: tuple[Artefact, ...]


class _Schema(msgspec.Struct):
    schema: Any = None


@dataclass(frozen=True)
class Bundle:
    """An opened bundle.

    Attributes:
        path: its directory.
        card: what it says about its network.
        children: every child of its network, exported or not.
        artefacts: every artefact, in the order in which they were exported.
        files: files that artefacts share.
        checkpoint: the ``.emq`` in the bundle, relative, or None.
    """

    path: Path
    card: Card
    children: tuple[Child, ...]
    artefacts: tuple[Artefact, ...]
    files: dict[str, SharedFile]
    checkpoint: str | None

    @property
    def baselines(self) -> tuple[Artefact, ...]:
        """The artefacts to compare with: float32, and a runtime's own int8 of it."""
        return tuple(artefact for artefact in self.artefacts if artefact.role == BASELINE)

    @property
    def exported(self) -> tuple[Child, ...]:
        """The children that some artefact serves, ascending."""
        return in_order(child for child in self.children if any(one.serves(child) for one in self.artefacts))

    @functools.cached_property
    def checkpoint_path(self) -> Path | None:
        """The ``.emq`` in the bundle, once it matches its hash in the manifest."""
        if self.checkpoint is None:
            return None
        _check_hash(self.path, self.checkpoint, self.files[self.checkpoint].sha256)
        return self.path / self.checkpoint

    def children_of(self, artefact: Artefact) -> tuple[Child, ...]:
        """The children that an artefact answers for, ascending."""
        return in_order(child for child in self.children if artefact.serves(child))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Reads and checks the manifest; hashes are checked when an artefact is used (`file_of`).

        Args:
            path: the bundle's directory, or its ``manifest.json``.

        Raises:
            EmqError: there is no manifest, it is damaged or of an unknown schema, it names a file that is missing, has
                another size or lies outside the bundle.
        """
        bundle = cls.read(path)
        for name, record in bundle.records.items():
            _check_file(bundle.path, name, record.size_bytes)
        return bundle

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Bundle:
        """Reads the manifest alone, whatever became of the files that it names; `check` looks at them."""
        directory = Path(path)
        if directory.name == MANIFEST_FILE:
            directory = directory.parent
        manifest = _read_manifest(directory)
        try:
            children = read_children(manifest.children)
            check_card(manifest.card, children)
            _check_names(manifest, children)
        except ValueError as error:
            raise damaged(directory / MANIFEST_FILE, error, _REMEDY) from error
        return cls(directory, manifest.card, children, manifest.artefacts, manifest.files, manifest.checkpoint)

    @property
    def records(self) -> dict[str, SharedFile]:
        """Hash and size of every file that the manifest names, by its place."""
        return self.files | {one.file: SharedFile(one.sha256, one.size_bytes) for one in self.artefacts}

    def check(self, name: str) -> None:
        """Raises unless a file lies in the bundle and is what the manifest says."""
        record = self.records[name]
        _check_file(self.path, name, record.size_bytes)
        _check_hash(self.path, name, record.sha256)

    def file_of(self, artefact: Artefact) -> Path:
        """Returns the path of an artefact's file once it and what it shares match their hashes."""
        _check_hash(self.path, artefact.file, artefact.sha256)
        for name in artefact.shared:
            _check_hash(self.path, name, self.files[name].sha256)
        return self.path / artefact.file

    def content_of(self, artefact: Artefact) -> bytes:
        """Returns an artefact's file, whose bytes match its hash."""
        return _read_checked(self.path, artefact.file, artefact.sha256)

    def shared_content(self, name: str) -> bytes:
        """Returns a file that artefacts share, likewise."""
        return _read_checked(self.path, name, self.files[name].sha256)

    def find(
        self, target: str, child: ChildLike | None = None, role: str = CHILD, flavour: str | None = None
    ) -> Artefact:
        """Returns the newest artefact of a target that serves a child.

        Raises:
            UsageError: there is none; the message lists what the bundle holds and how to add what is missing.
        """
        wanted = None if child is None else find_child(self.children, child)
        for artefact in reversed(self.artefacts):
            fits = artefact.target == target and artefact.role == role and flavour in (None, artefact.flavour)
            if fits and (wanted is None or artefact.serves(wanted)):
                return artefact
        what = f"{target} {role}" + (f" at {wanted}" if wanted is not None else "")
        held = ", ".join(artefact.id for artefact in self.artefacts) or "nothing"
        raise UsageError(f"{self.path} holds no {what}; it holds {held}; add it with: emqdeploy export --target")


def is_bundle(path: Path) -> bool:
    """Whether a path names a bundle: its directory or its manifest."""
    return path.name == MANIFEST_FILE or (path / MANIFEST_FILE).exists()


_BLOCK = 1 << 20


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    return _sha256(open_regular(path, "name an existing file"))


def _sha256(descriptor: int) -> str:
    with open(descriptor, "rb", buffering=0) as file:
        digest = hashlib.sha256()
        while block := file.read(_BLOCK):
            digest.update(block)
        return digest.hexdigest()


def _check_names(manifest: Manifest, children: tuple[Child, ...]) -> None:
    """Raises `ValueError` for names that stand for nothing, or for two things."""
    ids = [artefact.id for artefact in manifest.artefacts]
    if len(set(ids)) < len(ids):
        raise ValueError("two artefacts have the same id")
    known = {child.name for child in children}
    for artefact in manifest.artefacts:
        strange = sorted(set(artefact.children) - known)
        if strange:
            raise ValueError(f"artefact {artefact.id!r} names child {strange[0]!r}, which the bundle does not have")
        if (artefact.role == BASELINE) != (not artefact.children):
            raise ValueError(f"artefact {artefact.id!r} is a {artefact.role} with {len(artefact.children)} children")
    needed = {name for artefact in manifest.artefacts for name in artefact.shared}
    missing = sorted((needed | {manifest.checkpoint or ""}) - {""} - set(manifest.files))
    if missing:
        raise ValueError(f"no record of {missing[0]}")


def _read_manifest(directory: Path) -> Manifest:
    manifest = directory / MANIFEST_FILE
    try:
        data = read_bytes(manifest, LARGEST_TEXT, "name the directory that emqdeploy export wrote", directory)
    except EmqError as error:
        raise EmqError(f"{directory} is no bundle: {error}") from error
    try:
        schema = decode(_Schema, data).schema
        if schema == SCHEMA:
            return decode(Manifest, data)
    except ValueError as error:
        raise damaged(manifest, error, _REMEDY) from error
    raise EmqError(f"{manifest} has schema {schema!r}, this emqdeploy reads {SCHEMA}; update emqdeploy or export again")


def _check_file(directory: Path, name: str, size_bytes: int) -> None:
    """Raises unless the file lies in the bundle and has its size."""
    relative = PurePosixPath(name)
    path = directory / relative
    if relative.is_absolute() or ".." in relative.parts or not path.resolve().is_relative_to(directory.resolve()):
        raise EmqError(f"{directory / MANIFEST_FILE} names {name!r}, which lies outside the bundle; export again")
    if not path.is_file():
        raise EmqError(f"{path} is missing, though the bundle's manifest names it; export again")
    actual = path.stat().st_size
    if actual != size_bytes:
        raise EmqError(f"{path} was altered or truncated: it has {actual} of {size_bytes} bytes; export again")


def _check_hash(directory: Path, name: str, expected: str) -> None:
    path = directory / name
    if _sha256(open_regular(path, _REMEDY, directory)) != expected:
        raise _altered(path)


def _read_checked(directory: Path, name: str, expected: str) -> bytes:
    path = directory / name
    data = read_bytes(path, LARGEST_MODEL, _REMEDY, directory)
    if hashlib.sha256(data).hexdigest() != expected:
        raise _altered(path)
    return data


def _altered(path: Path) -> EmqError:
    return EmqError(f"{path} was altered: it does not match its hash in the bundle's manifest; {_REMEDY}")
