"""A real sshd on the loopback address, with a key and a configuration of its own."""

from __future__ import annotations

import getpass
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/sbin")


@dataclass(frozen=True)
class Device:
    """A host that answers.

    Attributes:
        ssh: the command that reaches it as ``device``.
        stop: ends the server and everything that hangs on it, as if the cable was pulled.
        temporary: where its temporary directories appear.
    """

    ssh: str
    stop: Callable[[], None]
    temporary: Path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def start_device(tmp_path: Path) -> Iterator[Callable[..., Device]]:
    """Starts the server; environment variables go to every command that runs there."""
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("needs an ssh client and server; install openssh-client and openssh-server")
    servers: list[subprocess.Popen[bytes]] = []

    def start(**environment: str) -> Device:
        port, temporary = _free_port(), tmp_path / "tmp"
        temporary.mkdir()
        for name in ("host", "user"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
            subprocess.run(command, check=True)
        host_key = (tmp_path / "host.pub").read_text()
        (tmp_path / "known").write_text(f"[127.0.0.1]:{port} {host_key}")
        shutil.copy(tmp_path / "user.pub", tmp_path / "authorized")
        variables = " ".join(f"{key}={value}" for key, value in {**environment, "TMPDIR": str(temporary)}.items())
        (tmp_path / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/authorized\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\nStrictModes no\n"
            f"UsePAM no\nPidFile none\nSetEnv {variables}\n"
        )
        (tmp_path / "ssh_config").write_text(
            f"Host device\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n"
            f"  IdentityFile {tmp_path}/user\n  IdentitiesOnly yes\n  UserKnownHostsFile {tmp_path}/known\n"
        )
        # The privilege separation directory of a server that was never started as a service.
        Path("/run/sshd").mkdir(exist_ok=True) if getpass.getuser() == "root" else None
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(tmp_path / "sshd_config")], stderr=subprocess.DEVNULL)
        servers.append(server)
        while not _listens(port):
            assert server.poll() is None, "the ssh server ended"
            time.sleep(0.05)
        return Device(f"ssh -F {tmp_path}/ssh_config", lambda: _pull_the_cable(server), temporary)

    yield start
    for server in servers:
        _pull_the_cable(server)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _pull_the_cable(server: subprocess.Popen[bytes]) -> None:
    """Ends the server and its connections (its children), but not what runs behind them."""
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(server.pid)], capture_output=True, text=True, check=False
    )
    server.kill()
    server.wait()
    for child in children.stdout.split():
        subprocess.run(["kill", "-9", child], check=False, capture_output=True)
