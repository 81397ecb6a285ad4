"""The kinds of damaged files: how one is made, and what reads it."""

from __future__ import annotations

import functools
import io
import json
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mutations import (
    as_json,
    as_report,
    damaged_bytes,
    damaged_emq,
    damaged_json,
    damaged_skeleton,
    damaged_xml,
    resealed,
)
from emqdeploy.errors import EmqError
from emqdeploy.runtimes.native_library import library

DATA = Path(__file__).parent.parent / "tests" / "data"


@dataclass(frozen=True)
class FileKind:
    """One kind of file: how a damaged one is made, and what reads it."""

    make: Callable[[random.Random], bytes]
    read: Callable[[bytes, Path], object]
    needs: Callable[[], object] = lambda: None
    """Raises where something is not installed without which nothing of this kind can be read."""


def _rarely(data: bytes, every: int) -> bool:
    """Whether to do also what takes a hundred times as long as reading."""
    return zlib.crc32(data) % every == 0


@functools.cache
def _seed(name: str) -> bytes:
    return (DATA / name).read_bytes()


def _emq(dice: random.Random) -> bytes:
    data = _seed("format3.emq")
    return damaged_bytes(data, dice) if dice.random() < 0.2 else damaged_emq(data, dice)


def _native(dice: random.Random) -> bytes:
    data = _seed("branches.emq")
    return damaged_emq(data, dice) if dice.random() < 0.3 else damaged_skeleton(data, dice)


def _read_emq(data: bytes, folder: Path) -> object:
    from emqdeploy.format.emq import load_checkpoint, places_in, read_card
    from emqdeploy.runtimes.adapters.native_runtime import NativeRuntime
    from emqdeploy.runtimes.native_library import library_path

    path = folder / "one.emq"
    path.write_bytes(data)
    checkpoint = load_checkpoint(path)
    read_card(path)
    places_in(path)
    child = checkpoint.network.children[0]
    load_checkpoint(path, child)
    for one in checkpoint.network.children:
        checkpoint.network.initializers(one)
    if library_path() is not None:
        with NativeRuntime(checkpoint, threads=1) as runtime:
            image = np.ones((1, *checkpoint.card.input_shape), np.float32)
            return [runtime.run(image, one) for one in runtime.children]
    return None


def _opened(dice: random.Random) -> bytes:
    """One in ten is the manifest of a bundle, which begins with another letter."""
    if dice.random() < 0.1:
        return b"m" + _manifest(dice)
    data = _seed(dice.choice(("format3.emq", "branches.emq")))
    kind = dice.random()
    if kind < 0.2:
        return b"e" + damaged_bytes(data, dice)
    return b"e" + (damaged_emq(data, dice) if kind < 0.6 else damaged_skeleton(data, dice))


def _tables(dice: random.Random) -> bytes:
    """A file of format 4, whose codes stand for numbers of a table."""
    data = _seed("format4.emq")
    return b"e" + (damaged_bytes(data, dice) if dice.random() < 0.2 else damaged_emq(data, dice))


def _read_opened(data: bytes, folder: Path) -> object:
    """In C, which refuses what Python refuses, and answers as Python where both accept."""
    from benchmarks.native_file import opened
    from emqdeploy.format.emq import load_checkpoint
    from emqdeploy.runtimes.adapters.native_runtime import NativeRuntime

    if data[:1] == b"m":
        _bundle(data[1:], folder)
        path, source = DATA / "format3.emq", folder
    else:
        path = source = folder / "one.emq"
        path.write_bytes(data[1:])
    with opened(source if zlib.crc32(data) % 2 or source is folder else data[1:]) as network:
        try:
            checkpoint = load_checkpoint(path)
        except EmqError as error:
            raise AssertionError(f"Python refuses it: {error}") from error
        image = np.ones((1, *checkpoint.card.input_shape), np.float32)
        with NativeRuntime(checkpoint, threads=1) as runtime:
            for number, child in enumerate(checkpoint.network.children):  # in the order of the file, as C counts
                np.testing.assert_array_equal(network.run(number, image), runtime.run(image, child))
    return None


def _manifest(dice: random.Random) -> bytes:
    data = _seed("schema2/manifest.json")
    return damaged_bytes(data, dice) if dice.random() < 0.2 else as_json(damaged_json(json.loads(data), dice))


def _bundle(manifest: bytes, folder: Path) -> None:
    for one in (DATA / "schema2").iterdir():
        if not (folder / one.name).exists():
            (folder / one.name).write_bytes(one.read_bytes())
    (folder / "manifest.json").write_bytes(manifest)


def _read_manifest(data: bytes, folder: Path) -> object:
    from emqdeploy.format.bundle import Bundle

    _bundle(data, folder)
    bundle = Bundle.open(folder)
    for artefact in bundle.artefacts:
        bundle.file_of(artefact)
        bundle.children_of(artefact)
        artefact.to_dict()
    return bundle.checkpoint_path, bundle.find("onnx"), bundle.exported


def _sealed(dice: random.Random) -> bytes:
    data = _seed("schema2/model-mixed.onnx")
    return damaged_bytes(data, dice) if dice.random() < 0.1 else resealed(data, dice)


def _read_sealed(data: bytes, folder: Path) -> object:
    from emqdeploy.runtimes.onnx_file import OnnxFileRuntime, read_sealed

    path = folder / "one.onnx"
    path.write_bytes(data)
    about = read_sealed(path)
    if len(about.children) != 1 or not _rarely(data, 16):
        return about
    with OnnxFileRuntime(path, threads=1) as runtime:
        return runtime.run(np.zeros((1, *about.card.input_shape), np.float32))


def _ir(dice: random.Random) -> bytes:
    xml, weights = _seed("ir/model.xml"), _seed("ir/model.bin")
    kind = dice.random()
    if kind < 0.15:
        xml = damaged_bytes(xml, dice)
    elif kind < 0.85:
        xml = damaged_xml(xml, dice)
    if kind > 0.75:
        weights = damaged_bytes(weights, dice)
    return len(xml).to_bytes(8, "little") + xml + weights


@functools.cache
def _card() -> Any:
    from emqdeploy.format.emq import read_card

    return read_card(DATA / "format3.emq")[0]


def _read_ir(data: bytes, folder: Path) -> object:
    from emqdeploy.format.ir import read_ir

    end, card = 8 + int.from_bytes(data[:8], "little"), _card()
    found = read_ir(data[8:end], data[end:], card, "model.xml")
    if not _rarely(data, 64):
        return found
    import openvino

    try:
        core = openvino.Core()
        model = core.compile_model(core.read_model(found.xml, found.weights), "CPU")
        return model([np.zeros((1, *card.input_shape), np.float32)])
    except RuntimeError:  # OpenVINO's own refusal, of which the adapter makes a sentence
        return None


@functools.cache
def _bench() -> bytes:
    """A result with short lists of numbers: they are all alike, and long ones hide the rest from the dice."""

    def short(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: short(one) for key, one in value.items()}
        if isinstance(value, list):
            return [short(one) for one in (value if value and isinstance(value[0], (dict, str)) else value[:6])]
        return value

    values = short(json.loads(_seed("bench.json")))
    values["switches"] = values["switches"][:8]
    return json.dumps(values).encode()


def _result(dice: random.Random) -> bytes:
    return damaged_bytes(_bench(), dice) if dice.random() < 0.2 else as_json(damaged_json(json.loads(_bench()), dice))


def _read_result(data: bytes, folder: Path) -> object:
    return _compared(data, folder / "one.json")


def _compared(data: bytes, path: Path) -> object:
    from emqdeploy.measuring.settings import BenchSettings
    from emqdeploy.report.html.compare import render
    from emqdeploy.workflows.results import compare_files, read_result, replay_settings

    path.write_bytes(data)
    read_result(path)
    if _rarely(data, 256):
        render(compare_files(path, DATA / "bench.json"))
    return replay_settings(path, BenchSettings(path=path), {"path"}) if _rarely(data, 8) else None


def _report(dice: random.Random) -> bytes:
    values = json.loads(_bench())
    if dice.random() < 0.3:
        return damaged_bytes(as_report(values), dice)
    return as_report(damaged_json(values, dice))


def _read_report(data: bytes, folder: Path) -> object:
    return _compared(data, folder / "one.html")


@functools.cache
def _pictures() -> tuple[bytes, ...]:
    from PIL import Image

    image = Image.fromarray(np.arange(3 * 12 * 10, dtype=np.uint32).astype(np.uint8).reshape(12, 10, 3))
    found = []
    for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"):
        held = io.BytesIO()
        image.save(held, kind)
        found.append(held.getvalue())
    return tuple(found)


def _picture(dice: random.Random) -> bytes:
    return damaged_bytes(dice.choice(_pictures()), dice)


def _read_picture(data: bytes, folder: Path) -> object:
    from emqdeploy.data import Preprocessing

    path = folder / "one.png"
    path.write_bytes(data)
    return Preprocessing(3, 16, 16, (0.5,) * 3, (0.25,) * 3).read(path)


def _read_answer(data: bytes, folder: Path) -> object:
    from emqdeploy.remote.bench import read_answer
    from emqdeploy.report.html.page import render

    answer = read_answer("device", data.decode(errors="replace"))
    return render(answer) if _rarely(data, 16) else answer


FILES = {
    "emq": FileKind(_emq, _read_emq),
    "native": FileKind(_native, _read_emq),
    "opened": FileKind(_opened, _read_opened, library),
    "tables": FileKind(_tables, _read_opened, library),
    "manifest": FileKind(_manifest, _read_manifest),
    "sealed": FileKind(_sealed, _read_sealed),
    "ir": FileKind(_ir, _read_ir),
    "result": FileKind(_result, _read_result),
    "report": FileKind(_report, _read_report),
    "picture": FileKind(_picture, _read_picture),
    "answer": FileKind(_result, _read_answer),
}
