"""Damaged files by the thousand: each is refused in one sentence or accepted, and nothing else ever happens.

``python -m benchmarks.soak --minutes 10`` goes on where the last sitting ended (``--state``); ``--kind emq --count
2000`` reads so many of one kind. Input number ``n`` of a kind is always the same. Readers run in a process of their own
under a limit of memory; one that dies is counted and the next input goes on in a new one.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mutations import as_json, as_report, damaged_bytes, damaged_emq, damaged_json, resealed
from emqdeploy.errors import EmqError

DATA = Path(__file__).parent.parent / "tests" / "data"
SLOW_S = 5.0
MEMORY = 4 << 30
_CHUNK = 500
_PATIENCE_S = 120.0
_COUNTED = ("accepted", "refused", "foreign", "slow", "crashed")


@dataclass(frozen=True)
class Kind:
    """One kind of file: how the n-th damaged one is made, and what reads it."""

    make: Callable[[random.Random], bytes]
    read: Callable[[bytes, Path], object]


def _emq(dice: random.Random) -> bytes:
    data = (DATA / "format3.emq").read_bytes()
    return damaged_bytes(data, dice) if dice.random() < 0.2 else damaged_emq(data, dice)


def _read_emq(data: bytes, folder: Path) -> object:
    from emqdeploy.format.emq import load_checkpoint, places_in, read_card

    path = folder / "one.emq"
    path.write_bytes(data)
    checkpoint = load_checkpoint(path)
    read_card(path)
    places_in(path)
    child = checkpoint.network.children[0]
    return load_checkpoint(path, child), [checkpoint.network.initializers(one) for one in checkpoint.network.children]


def _manifest(dice: random.Random) -> bytes:
    data = (DATA / "schema2" / "manifest.json").read_bytes()
    return damaged_bytes(data, dice) if dice.random() < 0.2 else as_json(damaged_json(json.loads(data), dice))


def _read_manifest(data: bytes, folder: Path) -> object:
    from emqdeploy.format.bundle import Bundle

    for one in (DATA / "schema2").iterdir():
        if not (folder / one.name).exists():
            (folder / one.name).write_bytes(one.read_bytes())
    (folder / "manifest.json").write_bytes(data)
    bundle = Bundle.open(folder)
    for artefact in bundle.artefacts:
        bundle.file_of(artefact)
        bundle.children_of(artefact)
        artefact.to_dict()
    return bundle.checkpoint_path, bundle.find("onnx"), bundle.exported


def _sealed(dice: random.Random) -> bytes:
    data = (DATA / "schema2" / "model-mixed.onnx").read_bytes()
    return damaged_bytes(data, dice) if dice.random() < 0.1 else resealed(data, dice)


def _read_sealed(data: bytes, folder: Path) -> object:
    from emqdeploy.runtimes.onnx_file import OnnxFileRuntime, read_sealed

    path = folder / "one.onnx"
    path.write_bytes(data)
    about = read_sealed(path)
    if data[-1] % 8 or len(about.children) != 1:
        return about
    with OnnxFileRuntime(path, threads=1) as runtime:
        return runtime.run(np.zeros((1, *about.card.input_shape), np.float32))


def _result(dice: random.Random) -> bytes:
    data = (DATA / "bench.json").read_bytes()
    return damaged_bytes(data, dice) if dice.random() < 0.2 else as_json(damaged_json(json.loads(data), dice))


def _read_result(data: bytes, folder: Path) -> object:
    return _compared(data, folder / "one.json")


def _compared(data: bytes, path: Path) -> object:
    from emqdeploy.measuring.settings import BenchSettings
    from emqdeploy.report.html.compare import render
    from emqdeploy.workflows.results import compare_files, read_result, replay_settings

    path.write_bytes(data)
    read_result(path)
    if len(data) % 8:  # comparing takes a hundred times as long as reading
        return None
    render(compare_files(path, DATA / "bench.json"))
    return replay_settings(path, BenchSettings(), set())


def _report(dice: random.Random) -> bytes:
    values = json.loads((DATA / "bench.json").read_bytes())
    if dice.random() < 0.3:
        return damaged_bytes(as_report(values), dice)
    return as_report(damaged_json(values, dice))


def _read_report(data: bytes, folder: Path) -> object:
    return _compared(data, folder / "one.html")


def _picture(dice: random.Random) -> bytes:
    from PIL import Image

    image = Image.fromarray(np.arange(3 * 24 * 20, dtype=np.uint32).astype(np.uint8).reshape(24, 20, 3))
    held = io.BytesIO()
    image.save(held, dice.choice(("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")))
    return damaged_bytes(held.getvalue(), dice)


def _read_picture(data: bytes, folder: Path) -> object:
    from emqdeploy.data.images import read_image

    path = folder / "one.png"
    path.write_bytes(data)
    return read_image(path, 3, 16, 16)


def _read_answer(data: bytes, folder: Path) -> object:
    from emqdeploy.remote.bench import read_answer
    from emqdeploy.report.html.page import render

    return render(read_answer("device", data.decode(errors="replace")))


KINDS = {
    "emq": Kind(_emq, _read_emq),
    "manifest": Kind(_manifest, _read_manifest),
    "sealed": Kind(_sealed, _read_sealed),
    "result": Kind(_result, _read_result),
    "report": Kind(_report, _read_report),
    "picture": Kind(_picture, _read_picture),
    "answer": Kind(_result, _read_answer),
}


def made(kind: str, number: int) -> bytes:
    """The n-th damaged input of a kind."""
    return KINDS[kind].make(random.Random(f"{kind} {number}"))


def outcome(kind: str, data: bytes, folder: Path) -> tuple[str, str]:
    """Reads one input: ``accepted``, ``refused`` or ``foreign``, and what was said."""
    try:
        KINDS[kind].read(data, folder)
    except EmqError as error:
        said = str(error)
        clean = "\n" not in said and all(ord(letter) >= 32 for letter in said)
        return ("refused", said) if clean else ("foreign", f"more than a sentence: {said!r}")
    except Exception:
        return "foreign", traceback.format_exc()
    return "accepted", ""


def _work(kind: str, first: int, count: int, progress: Path) -> None:
    """Reads inputs one by one and notes each before it is read; prints what came of them."""
    # Libraries are loaded before the limit counts.
    with tempfile.TemporaryDirectory() as folder:
        outcome(kind, made(kind, 0), Path(folder))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        for number in range(first, first + count):
            data = made(kind, number)
            progress.write_text(str(number))
            began = time.monotonic()
            result, said = outcome(kind, data, Path(folder))
            if time.monotonic() - began > SLOW_S:
                result, said = "slow", f"{time.monotonic() - began:.1f} s"
            print(json.dumps([number, result, said if result in ("foreign", "slow") else ""]), flush=True)


def sitting(kind: str, first: int, count: int, found: Path) -> Counter[str]:
    """Reads ``count`` inputs of a kind from number ``first`` on, in processes of their own.

    Args:
        kind: a name in `KINDS`.
        first: number of the first input.
        count: how many.
        found: folder for inputs that showed a fault.
    """
    counts: Counter[str] = Counter()
    end = first + count
    with tempfile.TemporaryDirectory() as folder:
        progress = Path(folder) / "progress"
        while first < end:
            command = [
                sys.executable,
                "-m",
                "benchmarks.soak",
                "--work",
                kind,
                str(first),
                str(end - first),
                str(progress),
            ]
            environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
            worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
            alarm = _Alarm(worker)
            assert worker.stdout is not None
            for line in worker.stdout:
                alarm.put_off()
                number, result, said = json.loads(line)
                counts[result] += 1
                first = number + 1
                if said:
                    _keep(found, kind, number, result, said)
            alarm.stop()
            if worker.wait() != 0 and first < end:
                first = max(first, int(progress.read_text()) if progress.exists() else first)
                counts["slow" if alarm.rang else "crashed"] += 1
                _keep(found, kind, first, "crashed", f"exit code {worker.returncode}")
                first += 1
    return counts


class _Alarm:
    """Ends a worker that has said nothing for long."""

    def __init__(self, worker: subprocess.Popen[str]) -> None:
        self.rang = False
        self._worker = worker
        signal.signal(signal.SIGALRM, self._ring)
        self.put_off()

    def put_off(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE_S)

    def stop(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _ring(self, *_: Any) -> None:
        self.rang = True
        self._worker.kill()


def _keep(found: Path, kind: str, number: int, result: str, said: str) -> None:
    found.mkdir(parents=True, exist_ok=True)
    (found / f"{kind}-{number}").write_bytes(made(kind, number))
    (found / f"{kind}-{number}.txt").write_text(f"{result}\n{said}\n")


def _soak(kinds: list[str], minutes: float, count: int | None, state: Path) -> int:
    """Goes through the kinds in turn until the time is over; returns how many faults all sittings saw."""
    totals: dict[str, dict[str, int]] = json.loads(state.read_text()) if state.exists() else {}
    until, left = time.monotonic() + 60 * minutes, dict.fromkeys(kinds, count)
    while any(rest != 0 for rest in left.values()) and (count is not None or time.monotonic() < until):
        for kind in kinds:
            rest = left[kind]
            take = _CHUNK if rest is None else min(rest, _CHUNK)
            if not take or (count is None and time.monotonic() >= until):
                continue
            held = totals.setdefault(kind, dict.fromkeys(("inputs", *_COUNTED), 0))
            counts = sitting(kind, held["inputs"], take, state.with_name("found"))
            for name in _COUNTED:
                held[name] += counts[name]
            held["inputs"] += take
            left[kind] = None if rest is None else rest - take
            state.write_text(json.dumps(totals, indent=1))
            print(kind, " ".join(f"{name} {value}" for name, value in held.items()), flush=True)
    return sum(held[name] for held in totals.values() for name in ("foreign", "slow", "crashed"))


def main() -> None:
    """The command line."""
    if sys.argv[1:2] == ["--work"]:
        kind, first, count, progress = sys.argv[2:]
        _work(kind, int(first), int(count), Path(progress))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="only this kind; may be repeated")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long, unless --count says how many")
    parser.add_argument("--count", type=int, help="inputs of each kind")
    parser.add_argument("--state", type=Path, default=Path("soak/state.json"), help="where the counters stand")
    given = parser.parse_args()
    given.state.parent.mkdir(parents=True, exist_ok=True)
    sys.exit(1 if _soak(given.kind or list(KINDS), given.minutes, given.count, given.state) else 0)


if __name__ == "__main__":
    main()
