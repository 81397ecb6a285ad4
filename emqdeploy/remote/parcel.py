"""What travels to the device: the network, its test images, the guard, and this package itself.

The package always travels, so that both sides are the same version, installed or not.
"""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import emqdeploy
from emqdeploy.errors import EmqError
from emqdeploy.format.bundle import MANIFEST_FILE, Bundle, is_bundle
from emqdeploy.format.card import Card
from emqdeploy.measuring.settings import BenchSettings
from emqdeploy.processes import archive_command
from emqdeploy.runtimes.source import describe, find_network
from emqdeploy.runtimes.test_images import find_test_set, limited, save_test_set

IMAGE_BUDGET = 64 << 20
"""Bytes of test images that go along; of a larger test set as many as fit, evenly spread."""

PACKAGE = "emqdeploy.zip"
_CHUNK = 1 << 18


@dataclass
class Parcel:
    """Files by the name that they have on the device, and the settings that fit them."""

    settings: BenchSettings
    files: dict[str, Path | bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        """Bytes to send."""
        return sum(len(one) if isinstance(one, bytes) else one.stat().st_size for one in self.files.values())

    def send(self, write: Callable[[bytes], Any], progress: Callable[[int], None]) -> None:
        """Writes a tar archive; ``progress`` receives the bytes sent so far."""
        sent = 0

        class Counted(io.RawIOBase):
            def writable(self) -> bool:
                return True

            def write(self, data: Any) -> int:
                nonlocal sent
                block = memoryview(data)
                for start in range(0, len(block), _CHUNK):
                    write(bytes(block[start : start + _CHUNK]))
                    sent += len(block[start : start + _CHUNK])
                    progress(sent)
                return len(block)

        with tarfile.open(fileobj=Counted(), mode="w|", bufsize=_CHUNK) as archive:
            for name, content in self.files.items():
                data = content if isinstance(content, bytes) else content.read_bytes()
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(data), 0o600
                archive.addfile(entry, io.BytesIO(data))


def pack(settings: BenchSettings) -> Parcel:
    """Collects what a bench needs; reading the network here finds a bad path before anything is copied."""
    path = find_network(settings.path)
    card, _ = describe(path)
    parcel = Parcel(settings)
    if is_bundle(path):
        bundle = Bundle.open(path)
        names = {MANIFEST_FILE, *bundle.files, *(artefact.file for artefact in bundle.artefacts)}
        parcel.files |= {f"network/{name}": bundle.path / name for name in sorted(names)}
        parcel.settings = replace(parcel.settings, path="network")
    else:
        parcel.files[f"network{path.suffix}"] = path
        parcel.settings = replace(parcel.settings, path=f"network{path.suffix}")
    if Path(settings.trace).is_file():
        parcel.files["trace.txt"] = Path(settings.trace)
        parcel.settings = replace(parcel.settings, trace="trace.txt")
    _pack_images(parcel, settings, card, path)
    return parcel


def _pack_images(parcel: Parcel, settings: BenchSettings, card: Card, path: Path) -> None:
    """Test images go along, so that the device needs neither the data set nor a decoder for it."""
    try:
        test = limited(find_test_set(card, settings.data, settings.data_dir, path), settings.limit)
    except EmqError as error:
        if settings.data is not None:
            raise
        parcel.notes.append(f"no test images went along: {error}")
        return
    fitting = limited(test, max(1, IMAGE_BUDGET // max(1, int(test.split.images[:1].nbytes))))
    if len(fitting.split) < len(test.split):
        parcel.notes.append(f"accuracy is measured on {len(fitting.split)} of {len(test.split)} test images")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "test.npz"
        save_test_set(file, fitting)
        parcel.files["test.npz"] = file.read_bytes()
    whole = settings.comparable and fitting.whole
    parcel.settings = replace(parcel.settings, data="test.npz", data_dir=None, limit=None, whole_test_set=whole)


def package() -> bytes:
    """This package as a zip that Python imports from: source files only, no dependency in it."""
    root = Path(emqdeploy.__file__).parent
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(root.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                archive.write(file, f"emqdeploy/{file.relative_to(root).as_posix()}")
    return buffer.getvalue()


def job(settings: BenchSettings, python: str) -> dict[str, Path | bytes]:
    """The files that start it: this package, settings, the guard and what it is to run."""
    command = archive_command(python, PACKAGE, "emqdeploy.measuring", "settings.json")
    return {
        PACKAGE: package(),
        "settings.json": json.dumps(settings.to_dict()).encode(),
        "job.json": json.dumps({"command": command}).encode(),
        "guard.py": Path(__file__).with_name("guard.py"),
    }
