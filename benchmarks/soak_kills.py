"""Commands that are killed at a random moment and run again: they end as if nothing had happened.

Most kills come at the n-th step on a file of the command's own folder, between any two writes in turn; the others after
a random time. A server has everything imported and forks each command, through the command line's own ``main``; so a
kill and what follows it cost a second, not ten. One command of eight starts from nothing, as a shell starts it, and so
does the one that tells how an undisturbed one ends. One of four is killed once more as it goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from emqdeploy.processes import python_command

_DATA = Path(__file__).parent.parent / "tests" / "data"
_MEMORY_DISK = Path("/dev/shm")
_PATIENCE_S = 600.0
"""On the clock, which on a busy machine is many times what a command takes."""
_STEPS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}
_EXPORT = "export net.emq --bits 2,8 --out bundle"
_VOLATILE = {"seconds", "samples_per_second", "t_s", "latency_ms", "read_ms", "memory_bytes", "cost"}
"""What differs between two runs that do the same."""


@dataclass(frozen=True)
class Command:
    """What is killed and run again.

    Attributes:
        arguments: of ``emqdeploy``, in a folder that `prepare` filled.
        prepare: makes what the command starts from.
        again: the arguments after a kill; None where the folder says that it is done already.
    """

    arguments: str
    prepare: Callable[[Path], None]
    again: Callable[[str, Path], str | None] = lambda arguments, _: arguments


def _checkpoint(folder: Path) -> None:
    shutil.copy(_DATA / "format3.emq", folder / "net.emq")


def _float_weights(folder: Path) -> None:
    import torch

    from emqdeploy.models import create_model

    torch.manual_seed(0)
    torch.save(create_model("resnet8", 10, 1, 8).state_dict(), folder / "float.pt")


def _other_bundle(folder: Path) -> None:
    """A bundle that holds other files by the same names."""
    _checkpoint(folder)
    _forked(folder, _EXPORT.split())
    manifest = json.loads((folder / "bundle" / "manifest.json").read_text())
    for artefact in manifest["artefacts"]:
        data = f"an older {artefact['file']}".encode()
        (folder / "bundle" / artefact["file"]).write_bytes(data)
        artefact |= {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    (folder / "bundle" / "manifest.json").write_text(json.dumps(manifest))


def _bundle_and_pictures(folder: Path) -> None:
    from PIL import Image

    _checkpoint(folder)
    _forked(folder, _EXPORT.split())
    (folder / "pictures").mkdir()
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")


def _resumed_bench(arguments: str, folder: Path) -> str | None:
    """As a user would: what is there already is kept."""
    if (folder / "bench.json.partial").exists():
        return "bench bundle --resume bench.json"
    return None if (folder / "bench.json").exists() else arguments


def _unless_done(arguments: str, folder: Path) -> str | None:
    return None if (folder / "out" / "model.emq").exists() else arguments


_BENCH = "bench bundle --samples 8 --scenario single,switch --switches 8 --energy none --out bench.json"
_QUANTIZE = (  # weights that have learned nothing, so that it decides as they do
    "quantize float.pt --data digits --model resnet8 --bits 4,8 --images 64 --out out --unlabelled --accept-difference"
)
_RUN = "run bundle --source pictures --bits 8 --threads 1 --energy none --log run.jsonl --json"
COMMANDS = {
    "kill-train": Command(
        "train --out out --resume auto --epochs 3 --limit 80 --batch-size 16 --bits 2,8 --threads 1",
        lambda folder: None,
    ),
    "kill-quantize": Command(
        _QUANTIZE,
        _float_weights,
        _unless_done,
    ),
    "kill-export": Command(_EXPORT, _checkpoint),
    "kill-export-again": Command(_EXPORT, _other_bundle),
    "kill-bench": Command(_BENCH, _bundle_and_pictures, _resumed_bench),
    "kill-run": Command(_RUN, _bundle_and_pictures),
}
GOALS = dict(zip(COMMANDS, (80, 80, 270, 270, 120, 200), strict=True))
"""The most of those that take the least."""


def sit(kind: str, first: int, count: int, found: Path) -> Counter[str]:
    """Starts a command ``count`` times, kills it and runs it again.

    Args:
        kind: a name in `COMMANDS`.
        first: number of the first one, which seeds the dice.
        count: how many.
        found: folder for what was lost.

    Returns:
        how often it was ``killed`` (it ``ended`` before, now and then), how many of these kills met a command that was
        started ``anew``, and how often all was ``right`` in the end or something was ``lost``.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        counts, said = pool.submit(_serve, kind, first, count).result()
    if said:
        found.mkdir(parents=True, exist_ok=True)
        (found / f"{kind}-{first}.txt").write_text("\n".join(said) + "\n", errors="replace")
    return counts


def _serve(kind: str, first: int, count: int) -> tuple[Counter[str], list[str]]:
    """The server: rehearses the command, then kills it again and again."""
    command, counts, said = COMMANDS[kind], Counter[str](), []
    with tempfile.TemporaryDirectory(dir=_MEMORY_DISK if _MEMORY_DISK.is_dir() else None) as place:
        template, folder = Path(place) / "template", Path(place) / "folder"
        template.mkdir()
        _import_all(kind, Path(place))
        command.prepare(template)
        taken_s, steps = {}, 0
        for anew in (False, True):
            _fill(folder, template)
            began = time.monotonic()
            code, made, output = _forked(folder, command.arguments.split(), anew=anew)
            taken_s[anew], steps = time.monotonic() - began, max(made, steps)
            if code != 0:
                raise RuntimeError(f"{command.arguments}: {output}")
        expected = facts(folder)
        for number in range(first, first + count):
            dice = random.Random(f"{kind} {number}")
            _fill(folder, template)
            again: str | None = command.arguments
            moments, problems = [], []
            for _ in range(1 if dice.randrange(4) else 2):
                if again is None:
                    break
                moments.append(_moment(dice, steps, taken_s))
                code, _, output = _forked(folder, again.split(), **moments[-1])
                counts["killed" if code == -signal.SIGKILL else "ended"] += 1
                counts["anew"] += code == -signal.SIGKILL and "anew" in moments[-1]
                problems += [] if code in (0, -signal.SIGKILL) else [f"before the kill: exit code {code}: {output}"]
                again = command.again(command.arguments, folder)
            if again is not None:
                code, _, output = _forked(folder, again.split())
                problems += [] if code == 0 else [f"{again}: exit code {code}: {output}"]
            after = facts(folder)
            changed = [name for name in expected | after if expected.get(name) != after.get(name)]
            problems += [f"{name}: {after.get(name)} in place of {expected.get(name)}" for name in changed]
            counts["lost" if problems else "right"] += 1
            said += [f"number {number}, {moments}: {one}" for one in problems]
    return counts, said


def _fill(folder: Path, template: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template, folder)


def _moment(dice: random.Random, steps: int, taken_s: dict[bool, float]) -> dict[str, Any]:
    """When a command is killed, and whether it starts from nothing: arguments of `_forked`."""
    if not dice.randrange(8):
        return {"anew": True, "after_s": dice.uniform(0, taken_s[True])}
    return {"step": dice.randrange(steps)} if dice.randrange(3) else {"after_s": dice.uniform(0, taken_s[False])}


def _import_all(kind: str, place: Path) -> None:
    """Imports what the command imports, which a first run in another process tells."""
    rehearsal = place / "rehearsal"
    rehearsal.mkdir()
    COMMANDS[kind].prepare(rehearsal)
    names = place / "modules"
    _forked(rehearsal, COMMANDS[kind].arguments.split(), modules=names)
    for name in names.read_text().split():
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    if "torch" in sys.modules:
        import torch  # its exporter reads its own library on first use

        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            torch.onnx.export(torch.nn.Linear(1, 1), (torch.zeros(1, 1),), dynamo=True)


def _forked(
    folder: Path,
    arguments: list[str],
    step: int | None = None,
    after_s: float | None = None,
    modules: Path | None = None,
    anew: bool = False,
) -> tuple[int, int, str]:
    """Runs a command in a forked process.

    Args:
        folder: it works there.
        arguments: of the command line.
        step: it kills itself before this step on a file of the folder.
        after_s: it is killed after so many seconds.
        modules: where to write what it imported.
        anew: it starts from nothing, in a Python of its own.

    Returns:
        exit code, steps on files, and what it said.
    """
    output, steps = folder.with_name(f"{folder.name}.output"), folder.with_name(f"{folder.name}.steps")
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            os.chdir(folder)
            handle = os.open(output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            for stream in (1, 2):
                os.dup2(handle, stream)
            if anew:
                command = python_command("emqdeploy", *arguments)
                os.execv(command[0], command)
            code = _commanded(folder, arguments, step, steps)
            if modules is not None:
                modules.write_text("\n".join(sys.modules))
            os._exit(code)
        finally:
            os._exit(70)
    code = _ended(child, after_s)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what measured for it
    return code, int(steps.read_text()) if code == 0 and not anew else 0, output.read_text(errors="replace")[-2000:]


def _commanded(folder: Path, arguments: list[str], step: int | None, steps: Path) -> int:
    from emqdeploy import cli

    inside, seen = str(folder), 0

    def watch(event: str, given: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in _STEPS or not given or not isinstance(given[0], (str, bytes, os.PathLike)):
            return
        path = os.path.abspath(os.fsdecode(given[0]))
        if path.startswith(inside):
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    sys.addaudithook(watch)
    try:
        cli.main(arguments)
    except SystemExit as ended:
        sys.stdout.flush()
        sys.stderr.flush()
        steps.write_text(str(seen))
        return ended.code if isinstance(ended.code, int) else 1
    return 0


def _ended(child: int, after_s: float | None) -> int:
    """Waits for a process, and kills it after a time."""
    due = time.monotonic() + (_PATIENCE_S if after_s is None else after_s)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= due:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


def facts(folder: Path) -> dict[str, str]:
    """What every file of a folder holds, without what takes another time each time; strays stand out by their names."""
    return {str(path.relative_to(folder)): _fact(path) for path in sorted(folder.rglob("*"))}


def _fact(path: Path) -> str:
    if path.is_dir():
        return "a directory"
    data = path.read_bytes()
    if path.name == "state.pt":
        return "is there"
    try:
        if path.name == "bench.json":
            return _bench_facts(json.loads(data))
        if path.suffix in (".json", ".jsonl"):
            parts = data.splitlines() if path.suffix == ".jsonl" else [data]
            return json.dumps([_steady(json.loads(part)) for part in parts])
        if path.suffix == ".emq":
            return _emq_facts(data)
    except ValueError:
        pass  # half a file is a fact too
    return hashlib.sha256(data).hexdigest()


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _steady(one) for key, one in value.items() if key not in _VOLATILE}
    return [_steady(one) for one in value] if isinstance(value, list) else value


def _emq_facts(data: bytes) -> str:
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8:end])["__metadata__"]["emqdeploy"])
    return json.dumps(_steady(header)) + hashlib.sha256(data[end:]).hexdigest()


def _bench_facts(result: dict[str, Any]) -> str:
    rows = [[row["label"], row.get("accuracy"), len(row["samples_ms"] or ())] for row in result["rows"]]
    return json.dumps([rows, sorted(result["scenarios"]), len(result["switches"]), result["complete"]])
