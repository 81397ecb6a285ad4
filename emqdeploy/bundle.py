"""The bundle: one directory with everything exported from a checkpoint, and the manifest that says what each file is.

``manifest.json`` (schema 1) names every artefact with its hash, the runtime and device it was built for, and per layer
three different things: the bits of its weight grid, the type it is stored as, the type it is computed as. Reading a
bundle needs neither torch nor a runtime.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from emqdeploy.errors import EmqError, UsageError

MANIFEST_FILE = "manifest.json"
SCHEMA = 1

VERIFIED = "verified"
NOT_RUN = "built, not run here"

ROLES = ("width", "selector", "baseline")
"""What an artefact is for: one bit-width, all of them behind an input ``bits``, or something to compare with."""

_CAUSED_BY_CONTENT = (LookupError, TypeError, ValueError, AttributeError, RecursionError)
"""What a manifest whose content is not ours makes reading raise."""


@dataclass(frozen=True)
class Artefact:
    """One exported file.

    Attributes:
        id: unique in its bundle, for example ``onnx-w4`` or ``tensorrt-rtx-w4-sm86``.
        bits: the bit-widths that it answers for, ascending; empty for a baseline.
        target: ``onnx``, ``tensorrt``, ``tensorrt-rtx``, ``tensorrt-onnx`` or ``openvino``.
        flavour: what kind of it: ``int8``, ``packed``, ``master`` (storage), ``if``, ``derive`` (selectors),
            ``float32``, ``static-int8`` (baselines).
        role: one of `ROLES`.
        file: relative to the bundle, with forward slashes.
        shared: other files of the bundle that it needs, relative likewise.
        sha256: of ``file``.
        size_bytes: of ``file``, without what it shares.
        layers: per layer ``{"name", "grid_bits", "stored_as", "computed_as"}``.
        float_ops: operators that compute in float and have no weights of a layer, by type and count.
        built_for: ``{"runtime", "version", "device", ...}``: where it may be loaded; empty where anywhere.
        parity: how it compared with the integer reference; empty where it was not compared.
        cost: what this form costs in its runtime, measured, or ``{"why": ...}`` where that was not possible.
        status: `VERIFIED` or `NOT_RUN`.
    """

    id: str
    bits: tuple[int, ...]
    target: str
    flavour: str
    role: str
    file: str
    sha256: str
    size_bytes: int
    status: str
    shared: tuple[str, ...] = ()
    layers: tuple[dict[str, Any], ...] = ()
    float_ops: dict[str, int] = field(default_factory=dict)
    built_for: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)

    @property
    def stored_as(self) -> str:
        """The type in which most layers are stored."""
        return _most_common(self.layers, "stored_as")

    @property
    def integer_layers(self) -> int:
        """How many layers run as integer kernels."""
        return sum(layer["computed_as"] == "int8" for layer in self.layers)

    @property
    def computed_as(self) -> str:
        """The type in which the layers are computed; says how many where they differ."""
        common = _most_common(self.layers, "computed_as")
        same = sum(layer["computed_as"] == common for layer in self.layers)
        return common if same == len(self.layers) else f"{common} ({same} of {len(self.layers)} layers)"

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, as they stand in the manifest."""
        return asdict(self) | {"bits": list(self.bits), "shared": list(self.shared), "layers": list(self.layers)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Artefact:
        """Reads what `to_dict` wrote; raises `ValueError` or `TypeError` for anything else."""
        known = {entry.name for entry in fields(cls)}
        lists = {name: tuple(values[name]) for name in ("bits", "shared", "layers")}
        artefact = cls(**{key: value for key, value in values.items() if key in known} | lists)
        if artefact.role not in ROLES:
            raise ValueError(f"role {artefact.role!r}")
        return artefact


@dataclass(frozen=True)
class Bundle:
    """An opened bundle.

    Attributes:
        path: its directory.
        artefacts: every artefact, in the order in which they were exported.
        files: files that artefacts share, with ``sha256`` and ``size_bytes``; the checkpoint is one of them.
        model: name of the network.
        classes: class names, by index.
        preprocessing: as `Preprocessing.to_dict`.
        input: ``{"name", "shape": [C, H, W], "dtype"}``; the batch dimension stands before the shape.
        data: the data set that the network was trained on, ``{"name", "image_size"}``.
        accuracy: percent of the test set per bit-width, as measured after training.
        trained_bits: the bit-widths that training visited.
        checkpoint: the ``.emq`` in the bundle, relative, or None.
    """

    path: Path
    artefacts: tuple[Artefact, ...]
    files: dict[str, dict[str, Any]]
    model: str
    classes: tuple[str, ...]
    preprocessing: dict[str, Any]
    input: dict[str, Any]
    data: dict[str, Any]
    accuracy: dict[int, float]
    trained_bits: tuple[int, ...]
    checkpoint: str | None

    @property
    def selectors(self) -> tuple[Artefact, ...]:
        """The artefacts that take the bit-width as an input."""
        return tuple(artefact for artefact in self.artefacts if artefact.role == "selector")

    @property
    def baselines(self) -> tuple[Artefact, ...]:
        """The artefacts to compare with: float32, and a runtime's own int8 of it."""
        return tuple(artefact for artefact in self.artefacts if artefact.role == "baseline")

    @property
    def about(self) -> dict[str, Any]:
        """What the manifest says about the network, as `BundleWriter` takes it."""
        return {
            "model": self.model,
            "classes": list(self.classes),
            "preprocessing": self.preprocessing,
            "input": self.input,
            "data": self.data,
            "accuracy": {str(bits): percent for bits, percent in self.accuracy.items()},
            "trained_bits": list(self.trained_bits),
        }

    @property
    def checkpoint_path(self) -> Path | None:
        """The ``.emq`` in the bundle; it checks its own hashes when it is loaded."""
        return None if self.checkpoint is None else self.path / self.checkpoint

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Reads and checks the manifest; hashes are checked when an artefact is used (`file_of`).

        Args:
            path: the bundle's directory, or its ``manifest.json``.

        Raises:
            EmqError: there is no manifest, it is damaged or of an unknown schema, it names a file that is missing, has
                another size or lies outside the bundle.
        """
        directory = Path(path)
        if directory.name == MANIFEST_FILE:
            directory = directory.parent
        values = _read_manifest(directory)
        manifest = directory / MANIFEST_FILE
        try:
            artefacts = tuple(Artefact.from_dict(entry) for entry in values["artefacts"])
            bundle = cls(
                path=directory,
                artefacts=artefacts,
                files={str(name): dict(record) for name, record in values["files"].items()},
                model=str(values["model"]),
                classes=tuple(values["classes"]),
                preprocessing=dict(values["preprocessing"]),
                input=dict(values["input"]),
                data=dict(values["data"]),
                accuracy={int(bits): float(percent) for bits, percent in values["accuracy"].items()},
                trained_bits=tuple(values["trained_bits"]),
                checkpoint=values["checkpoint"],
            )
            if len({artefact.id for artefact in artefacts}) != len(artefacts):
                raise ValueError("two artefacts have the same id")
            records = [(artefact.file, artefact.size_bytes) for artefact in artefacts]
            records += [(name, record["size_bytes"]) for name, record in bundle.files.items()]
            named = {name for artefact in artefacts for name in artefact.shared} | {bundle.checkpoint} - {None}
            if named - set(bundle.files):
                raise ValueError(f"no record of {sorted(map(str, named - set(bundle.files)))[0]}")
            for name, size in records:
                _check_file(directory, name, size)
        except _CAUSED_BY_CONTENT as error:
            raise EmqError(f"{manifest} is damaged ({error}); export again") from error
        return bundle

    def file_of(self, artefact: Artefact) -> Path:
        """Returns the path of an artefact's file once it and what it shares match their hashes."""
        _check_hash(self.path, artefact.file, artefact.sha256)
        for name in artefact.shared:
            _check_hash(self.path, name, self.files[name]["sha256"])
        return self.path / artefact.file

    def find(self, target: str, bits: int | None = None, role: str = "width", flavour: str | None = None) -> Artefact:
        """Returns the newest artefact of a target that serves a bit-width.

        Raises:
            UsageError: there is none; the message lists what the bundle holds and how to add what is missing.
        """
        for artefact in reversed(self.artefacts):
            fits = artefact.target == target and artefact.role == role and flavour in (None, artefact.flavour)
            if fits and (bits is None or bits in artefact.bits):
                return artefact
        wanted = f"{target} {role}" + (f" at {bits} bits" if bits is not None else "")
        held = ", ".join(artefact.id for artefact in self.artefacts) or "nothing"
        raise UsageError(f"{self.path} holds no {wanted}; it holds {held}; add it with: emqdeploy export --target")


_BLOCK = 1 << 20


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(_BLOCK):
            digest.update(block)
        return digest.hexdigest()


def _most_common(layers: tuple[dict[str, Any], ...], key: str) -> str:
    return Counter(layer[key] for layer in layers).most_common(1)[0][0] if layers else "float32"


def _read_manifest(directory: Path) -> dict[str, Any]:
    manifest = directory / MANIFEST_FILE
    try:
        values = json.loads(manifest.read_text(encoding="utf-8"))
    except OSError as error:
        raise EmqError(
            f"{directory} is no bundle: {MANIFEST_FILE} cannot be read ({error.strerror}); name the directory that"
            " emqdeploy export wrote"
        ) from error
    except (ValueError, RecursionError) as error:
        raise EmqError(f"{manifest} is damaged ({error}); export again") from error
    schema = values.get("schema") if isinstance(values, dict) else None
    if schema != SCHEMA:
        raise EmqError(
            f"{manifest} has schema {schema!r}, this emqdeploy reads {SCHEMA}; update emqdeploy or export again"
        )
    result: dict[str, Any] = values
    return result


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
    try:
        actual = sha256(path)
    except OSError as error:
        raise EmqError(f"cannot read {path}: {error.strerror}; export again") from error
    if actual != expected:
        raise EmqError(f"{path} was altered: it does not match its hash in the bundle's manifest; export again")
