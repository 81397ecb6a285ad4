"""Where a bench runs: what only the person at the command line says, and what no result carries."""

from __future__ import annotations

from dataclasses import dataclass

from emqdeploy.options import option


@dataclass(frozen=True)
class Place:
    """A machine and the way to it.

    Attributes:
        host: as ssh knows it; None is this machine.
        ssh: the ssh command.
        host_python: the Python of the host.
    """

    host: str | None = option(None, "Machine to measure on over ssh, for example user@192.168.55.1.")
    ssh: str = option("ssh", "The ssh command, with its options.")
    host_python: str | None = option(None, "The host's Python; its python3 by default.")
