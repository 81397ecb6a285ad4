"""One ssh connection that everything goes through: a question to the user (a password, a new host key) comes once."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

from emqdeploy.errors import EmqError, UsageError, plain_text
from emqdeploy.files import LARGEST_TEXT

CONNECT_S = 15
"""How long a host may take to answer."""

ALIVE_S, ALIVE_COUNT = 5, 3
"""Signs of life: so often, and so many may be missed before the connection counts as lost."""

_NOTES = ("Warning: Permanently added", "mux_client", "Control socket")

ANSWER = 1 << 20
"""Bytes that a host may say to a short command."""

FAILED = 255
"""ssh's own exit code; others are the remote command's."""


class Connection:
    """A connection to a host, as the user's ssh makes it.

    Args:
        host: ``user@address`` or any name that the user's ssh configuration knows.
        ssh: the ssh command, with options where they are needed.
    """

    def __init__(self, host: str, ssh: str = "ssh") -> None:
        if not host or host.startswith("-") or any(character.isspace() for character in host):
            raise UsageError(f"--host is {host!r}; name it as ssh would, for example user@192.168.55.1")
        self.host = host
        try:
            self._ssh = shlex.split(ssh)
        except ValueError as error:
            raise UsageError(f"--ssh is {ssh!r}, which cannot be read ({error}); for example 'ssh -p 2222'") from error
        if not self._ssh or shutil.which(self._ssh[0]) is None:
            program = (self._ssh or [ssh])[0]
            raise EmqError(f"there is no program {program!r}; install an ssh client or name it with --ssh")

    def __enter__(self) -> Connection:
        # Short on purpose: a socket's path may have some hundred characters, temporary directories can be long.
        self._folder = Path(tempfile.mkdtemp(prefix="emq-", dir="/tmp" if Path("/tmp").is_dir() else None))
        self._socket = f"ControlPath={self._folder}/s"
        options = [
            *("-o", "ControlMaster=yes", "-o", self._socket, "-o", "ControlPersist=30"),
            *("-o", f"ConnectTimeout={CONNECT_S}"),
            *("-o", f"ServerAliveInterval={ALIVE_S}", "-o", f"ServerAliveCountMax={ALIVE_COUNT}"),
        ]
        with (self._folder / "said").open("w+b") as said:
            # Its errors go to a file, for the connection in the background would hold a pipe open.
            code = subprocess.run([*self._ssh, *options, "-fN", self.host], stderr=said, check=False).returncode
            if code != 0:
                said.seek(0)
                reason = last_line(said.read(ANSWER).decode(errors="replace")) or f"exit code {code}"
                self._forget()
                raise EmqError(f"cannot connect to {self.host}: {reason}; check that this works: ssh {self.host}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            subprocess.run([*self._ssh, "-o", self._socket, "-O", "exit", self.host], capture_output=True, check=False)
        self._forget()

    def start(self, command: str, **streams: Any) -> subprocess.Popen[bytes]:
        """Starts a command there; a Ctrl-C here does not reach it."""
        options = ["-o", "ControlMaster=no", "-o", self._socket, "-o", "BatchMode=yes", "-T"]
        return subprocess.Popen([*self._ssh, *options, self.host, command], start_new_session=True, **streams)

    def run(self, command: str, said: bytes = b"") -> str:
        """Runs a short command there, gives it ``said`` on standard input, and returns what it printed.

        Raises:
            EmqError: the connection broke, or the command failed.
        """
        streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = self.start(command, **streams)
        out: list[str] = []
        err: list[str] = []
        heard = [(process.stdout, out.append), (process.stderr, err.append)]
        threads = [threading.Thread(target=pump, args=(*one, process.kill, ANSWER), daemon=True) for one in heard]
        for thread in threads:
            thread.start()
        with contextlib.suppress(BrokenPipeError):
            cast(IO[bytes], process.stdin).write(said)
        with contextlib.suppress(BrokenPipeError):
            cast(IO[bytes], process.stdin).close()
        for thread in threads:
            thread.join()
        if process.wait() == FAILED:
            raise self.lost("\n".join(err))
        if process.returncode != 0:
            reason = last_line("\n".join(err)) or f"exit code {process.returncode}"
            raise EmqError(f"{self.host} answers: {reason}")
        return "\n".join(out)

    def lost(self, said: str = "") -> EmqError:
        """The sentence for a broken connection."""
        reason = last_line(said)
        detail = f" ({reason})" if reason else ""
        return EmqError(
            f"the connection to {self.host} was lost{detail}; what ran there ends by itself within 30 s, run it again"
        )

    def _forget(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def last_line(text: str) -> str:
    """The last line that says something; ssh's own notes about its shared connection do not."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(_NOTES)]
    return plain_text((told or lines or [""])[-1].rstrip("."))


def pump(stream: IO[bytes], into: Any, give_up: Callable[[], object], most: int = LARGEST_TEXT) -> None:
    """Hands every line of a stream on, as plain text, until it ends.

    Args:
        stream: what a device says.
        into: receives each line.
        give_up: called once where there are more than ``most`` bytes; the rest is not read.
        most: bytes in all.
    """
    left = most
    while line := stream.readline(left + 1):
        left -= len(line)
        if left < 0:
            give_up()
            return
        into(plain_text(line.decode(errors="replace").rstrip()))
