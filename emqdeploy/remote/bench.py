"""A bench on another machine: copy, run there, bring the result back, leave nothing behind."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import msgspec

from emqdeploy.errors import EmqError, plain_text
from emqdeploy.files import LARGEST_TEXT
from emqdeploy.graph.tensorrt_flavours import MODULES
from emqdeploy.measuring.result import check_result
from emqdeploy.measuring.settings import BenchSettings
from emqdeploy.measuring.workbench import Stop, stop_on_signals
from emqdeploy.progress import Report, silent
from emqdeploy.remote.connection import FAILED, Connection, last_line, pump
from emqdeploy.remote.parcel import Parcel, job, pack
from emqdeploy.remote.place import Place
from emqdeploy.runtimes.base import find_adapter

BEAT_S = 2.0
"""Between two signs of life; the guard waits for many of them."""

OLDEST_PYTHON = (3, 10)
"""What travels runs on JetPack 6, whose TensorRT belongs to Python 3.10; installing emqdeploy needs a newer one."""

_REMEMBERED = 100
"""Lines of a device's progress that are kept."""


class Probe(msgspec.Struct):
    """What `emqdeploy.remote.probe` prints."""

    python: tuple[int, int, int]
    executable: str
    machine: str
    modules: list[str]
    folder: str
    free_bytes: int


_FIND_INSTALLED = """
for file in "$(command -v emqdeploy)" "$HOME/.local/bin/emqdeploy"; do
    if [ -f "$file" ]; then head -n 1 "$file"; exit 0; fi
done
"""


def bench_there(settings: BenchSettings, place: Place, report: Report = silent) -> dict[str, Any]:
    """Measures on a host and returns the result as if it had been measured here.

    Args:
        settings: what to measure; paths are of this machine.
        place: the host, and the way to it; the result tells nothing of it.
        report: receives progress, also the device's own.

    Raises:
        EmqError: the host does not answer or lacks something, the connection broke, or the bench there failed.
    """
    host = place.host or ""
    settings.check()
    report("packing the network and its test images")
    parcel = pack(settings)
    report(f"connecting to {host}")
    with Connection(host, place.ssh) as connection:
        python = place.host_python or _installed_python(connection) or "python3"
        found = _probe(connection, python)
        parcel.files |= job(parcel.settings, found["executable"])
        try:
            check(host, found, parcel)
            report(f"{host}: {found['machine']}, Python {'.'.join(map(str, found['python']))} ({found['executable']})")
            _copy(connection, parcel, found["folder"], report)
        except BaseException:
            with contextlib.suppress(EmqError):
                connection.run(f"rm -rf {shlex.quote(found['folder'])}")
            raise
        result = _run(connection, found, report)
    plain = settings.to_dict()
    result["source"]["path"] = settings.path or result["source"]["path"]
    return result | {"settings": plain, "command": settings.command(), "notes": result["notes"] + parcel.notes}


def _installed_python(connection: Connection) -> str | None:
    """The interpreter of an emqdeploy that is installed there, from its command's first line: it has what is needed."""
    first = connection.run("sh -s", _FIND_INSTALLED.encode()).strip()
    return first.removeprefix("#!").strip() if first.startswith("#!/") and " " not in first else None


def _probe(connection: Connection, python: str) -> dict[str, Any]:
    script = Path(__file__).with_name("probe.py").read_bytes()
    try:
        said = connection.run(f"exec {shlex.quote(python)} -", script)
        answer = msgspec.json.decode(said.strip().rpartition("\n")[2], type=Probe)
        if any(plain_text(word) != word for word in (answer.executable, answer.machine, answer.folder)):
            raise ValueError("a path with control characters")
    except ValueError:
        raise EmqError(
            f"{connection.host} does not answer as a device should: its {python} said {said.strip()[:80]!r};"
            " check what its shell prints at login"
        ) from None
    except EmqError as error:
        if "lost" in str(error):
            raise
        raise EmqError(f"{error}; emqdeploy needs Python there, name one with --host-python") from None
    return msgspec.structs.asdict(answer)


def check(host: str, found: dict[str, Any], parcel: Parcel) -> None:
    """Raises unless the device can run the bench.

    Args:
        host: as ssh knows it.
        found: what `emqdeploy.remote.probe` said.
        parcel: what is to travel.
    """
    version = ".".join(map(str, found["python"]))
    if tuple(found["python"][:2]) < OLDEST_PYTHON:
        needed = ".".join(map(str, OLDEST_PYTHON))
        raise EmqError(
            f"{host} has Python {version}, emqdeploy needs {needed} or newer; install one there and name it with"
            " --host-python"
        )
    missing = [name for name in ("numpy", "msgspec") if name not in found["modules"]]
    libraries = [_libraries(name) for name in parcel.settings.runtimes or ("onnxruntime", "tensorrt", "openvino")]
    if not any(set(names) & set(found["modules"]) for names in libraries):
        missing.append(libraries[0][0])
    if missing:
        raise EmqError(
            f"{host} lacks {' and '.join(missing)} for {found['executable']}; run there:"
            f" {found['executable']} -m pip install {' '.join(missing)}"
        )
    if found["free_bytes"] < 2 * parcel.size_bytes:
        raise EmqError(
            f"{host} has {found['free_bytes'] / 1e6:.0f} MB free in {Path(found['folder']).parent}, the bench needs"
            f" {2 * parcel.size_bytes / 1e6:.0f} MB; free some space there"
        )


def _libraries(runtime: str) -> list[str]:
    """Python modules of which a runtime needs one: either TensorRT will do for engines."""
    adapter = find_adapter(runtime)
    return [MODULES[target] for target in adapter.targets if target in MODULES] or [adapter.library]


def _copy(connection: Connection, parcel: Parcel, folder: str, report: Report) -> None:
    total = parcel.size_bytes
    report(f"copying {total / 1e6:.1f} MB")
    shown = 0

    def progress(sent: int) -> None:
        nonlocal shown
        quarter = 4 * sent // max(total, 1)
        if total > 4e6 and shown < quarter < 4:
            shown = quarter
            report(f"copied {25 * quarter} %")

    process = connection.start(
        f"exec tar -xf - -C {shlex.quote(folder)}", stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stderr is not None
    with contextlib.suppress(BrokenPipeError):
        parcel.send(process.stdin.write, progress)
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    said: deque[str] = deque(maxlen=_REMEMBERED)
    pump(process.stderr, said.append, process.kill)
    if process.wait() == FAILED:
        raise connection.lost("\n".join(said))
    if process.returncode != 0:
        raise EmqError(f"{connection.host} could not unpack the files: {last_line(chr(10).join(said))}")


def _run(connection: Connection, found: dict[str, Any], report: Report) -> dict[str, Any]:
    """Starts the guard, keeps it alive, passes a Ctrl-C on as a wish to stop, and returns what the bench printed."""
    command = f"exec {shlex.quote(found['executable'])} -I {shlex.quote(found['folder'] + '/guard.py')}"
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = connection.start(command, **pipes)
    said: deque[str] = deque(maxlen=_REMEMBERED)
    errors: deque[str] = deque(maxlen=1)
    printed: deque[str] = deque(maxlen=1)

    def hear(line: str) -> None:
        said.append(line)
        if line.startswith("error: "):
            errors.append(line.removeprefix("error: "))
        else:
            report(line)

    streams = ((process.stderr, hear), (process.stdout, printed.append))
    flooded = threading.Event()

    def give_up() -> None:
        flooded.set()
        process.kill()

    threads = [threading.Thread(target=pump, args=(*stream, give_up), daemon=True) for stream in streams]
    for thread in threads:
        thread.start()
    stop = Stop()
    with stop_on_signals(stop):
        _keep_alive(process, stop, report)
    for thread in threads:
        thread.join()
    if flooded.is_set():
        most = LARGEST_TEXT >> 20
        raise EmqError(f"{connection.host} sent more than {most} MiB, which no bench does; check that machine")
    if process.returncode == FAILED:
        raise connection.lost("")
    if errors:
        raise EmqError(f"on {connection.host}: {errors[-1]}")
    try:
        return read_answer(connection.host, printed[-1])
    except IndexError:
        last = said[-1] if said else f"exit code {process.returncode}"
        raise EmqError(f"the bench on {connection.host} failed: {last}") from None


def read_answer(host: str, line: str) -> dict[str, Any]:
    """Checks what a device sent as a file would be checked; its words come out as plain text.

    Raises:
        EmqError: it is no result.
    """
    try:
        result: dict[str, Any] = _plain(json.loads(line))
        return check_result(Path("answer"), result)
    except (ValueError, RecursionError, EmqError):
        raise EmqError(
            f"{host} answered with something that is no result of a bench ({plain_text(line[:60])!r}); run it again, or"
            " check what that machine is"
        ) from None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {plain_text(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return plain_text(value) if isinstance(value, str) else value


def _keep_alive(process: subprocess.Popen[bytes], stop: Stop, report: Report) -> None:
    """Writes to the guard until it is done; a closed pipe means that it is gone, which its exit code explains."""
    assert process.stdin is not None
    asked, beat = False, 0.0
    while process.poll() is None:
        words = b""
        if stop() and not asked:
            report("asking the device to stop and to send what it has")
            asked, words = True, b"stop\n"
        elif time.monotonic() - beat >= BEAT_S:
            beat, words = time.monotonic(), b"alive\n"
        if words:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(words)
                process.stdin.flush()
        time.sleep(0.05)
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
