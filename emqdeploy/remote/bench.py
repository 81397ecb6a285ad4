"""A bench on another machine: copy, run there, bring the result back, leave nothing behind."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from emqdeploy.errors import EmqError
from emqdeploy.graph.tensorrt_flavours import MODULES
from emqdeploy.measuring.settings import BenchSettings
from emqdeploy.measuring.workbench import Stop, stop_on_signals
from emqdeploy.progress import Report, silent
from emqdeploy.remote.connection import FAILED, Connection, pump
from emqdeploy.remote.parcel import Parcel, job, pack
from emqdeploy.runtimes.base import find_adapter

BEAT_S = 2.0
"""Between two signs of life; the guard waits for many of them."""

OLDEST_PYTHON = (3, 10)
"""What travels runs on JetPack 6, whose TensorRT belongs to Python 3.10; installing emqdeploy needs a newer one."""

_FIND_INSTALLED = """
for file in "$(command -v emqdeploy)" "$HOME/.local/bin/emqdeploy"; do
    if [ -f "$file" ]; then head -n 1 "$file"; exit 0; fi
done
"""


def bench_there(settings: BenchSettings, report: Report = silent) -> dict[str, Any]:
    """Measures on the host that the settings name and returns the result as if it had been measured here.

    Args:
        settings: what to measure; paths are of this machine, ``host`` is as ssh knows it.
        report: receives progress, also the device's own.

    Raises:
        EmqError: the host does not answer or lacks something, the connection broke, or the bench there failed.
    """
    host = settings.host or ""
    settings.check()
    report("packing the network and its test images")
    parcel = pack(settings)
    report(f"connecting to {host}")
    with Connection(host, settings.ssh) as connection:
        python = settings.host_python or _installed_python(connection) or "python3"
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
    result["environment"]["host"] = host
    return result | {"settings": plain, "command": settings.command(), "notes": result["notes"] + parcel.notes}


def _installed_python(connection: Connection) -> str | None:
    """The interpreter of an emqdeploy that is installed there, from its command's first line: it has what is needed."""
    first = connection.run("sh -s", _FIND_INSTALLED.encode()).strip()
    return first.removeprefix("#!").strip() if first.startswith("#!/") and " " not in first else None


def _probe(connection: Connection, python: str) -> dict[str, Any]:
    script = Path(__file__).with_name("probe.py").read_bytes()
    try:
        said = connection.run(f"exec {shlex.quote(python)} -", script)
        found: dict[str, Any] = json.loads(said.strip().rpartition("\n")[2])
    except ValueError:
        raise EmqError(
            f"{connection.host} does not answer as a device should: its {python} said {said.strip()[:80]!r};"
            " check what its shell prints at login"
        ) from None
    except EmqError as error:
        if "lost" in str(error):
            raise
        raise EmqError(f"{error}; emqdeploy needs Python there, name one with --host-python") from None
    return found


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
    said = process.stderr.read().decode(errors="replace")
    if process.wait() == FAILED:
        raise connection.lost(said)
    if process.returncode != 0:
        raise EmqError(f"{connection.host} could not unpack the files: {said.strip().rpartition(chr(10))[2]}")


def _run(connection: Connection, found: dict[str, Any], report: Report) -> dict[str, Any]:
    """Starts the guard, keeps it alive, passes a Ctrl-C on as a wish to stop, and returns what the bench printed."""
    command = f"exec {shlex.quote(found['executable'])} {shlex.quote(found['folder'] + '/guard.py')}"
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = connection.start(command, **pipes)
    said: list[str] = []
    printed: list[str] = []

    def hear(line: str) -> None:
        said.append(line)
        if not line.startswith("error: "):
            report(line)

    streams = ((process.stderr, hear), (process.stdout, printed.append))
    threads = [threading.Thread(target=pump, args=stream, daemon=True) for stream in streams]
    for thread in threads:
        thread.start()
    stop = Stop()
    with stop_on_signals(stop):
        _keep_alive(process, stop, report)
    for thread in threads:
        thread.join()
    if process.returncode == FAILED:
        raise connection.lost("")
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    if errors:
        raise EmqError(f"on {connection.host}: {errors[-1]}")
    try:
        result: dict[str, Any] = json.loads(printed[-1])
    except (IndexError, ValueError):
        last = said[-1] if said else f"exit code {process.returncode}"
        raise EmqError(f"the bench on {connection.host} failed: {last}") from None
    return result


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
