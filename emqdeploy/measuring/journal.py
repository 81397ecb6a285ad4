"""What a bench has measured so far, beside the file that it will write: a killed bench is continued from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.measuring.result import load_result, save_result
from emqdeploy.measuring.rows import BenchRow, rows_of

_SAME = ("machine", "cpu", "cores", "packages")
"""What must not have changed between two halves of one result."""


class Journal:
    """A result that is not finished, in ``OUT.partial``; it is rewritten after every scenario, and has the whole of it.

    Args:
        out: where the finished result goes.
    """

    def __init__(self, out: Path) -> None:
        self.path = out.with_name(f"{out.name}.partial")
        self._out = out
        self._earlier: dict[str, Any] | None = None

    def resume(self) -> Path:
        """Has the next bench go on from what is there; returns the file, whose settings are to be repeated.

        Raises:
            UsageError: there is nothing to go on with.
            EmqError: it is damaged.
        """
        if not self.path.exists():
            raise UsageError(
                f"nothing to resume: there is no {self.path}, which a bench with --out {self._out} leaves when it is"
                " interrupted after a scenario; measure again"
            )
        self._earlier = load_result(self.path)
        return self.path

    def begin(self, result: dict[str, Any], rows: list[BenchRow]) -> None:
        """Puts the scenarios that an earlier bench finished into a new result and its rows, if it is to be resumed.

        Raises:
            EmqError: the network, the machine or its software is another one now.
        """
        earlier = self._earlier
        if earlier is None:
            self.end()  # of another bench, which this one replaces
            return
        held = rows_of(earlier)
        network = earlier["source"].get("sha256") == result["source"].get("sha256")
        if not network or [row.label for row in held] != [row.label for row in rows]:
            raise EmqError(f"{self.path} was measured of another network or other children; measure again")
        changed = [name for name in _SAME if earlier["environment"].get(name) != result["environment"].get(name)]
        if changed:
            raise EmqError(f"{self.path} was measured with another {' and '.join(changed)}; measure again")
        rows[:] = held
        done = {name: one for name, one in earlier["scenarios"].items() if "failed" not in one}
        missing = [name for name in result["settings"]["scenarios"] if name not in done]
        result |= {"scenarios": done, "switches": earlier["switches"], "started": earlier["started"]}
        result["environment"]["before"] = earlier["environment"].get("before")
        kept = ", ".join(done) or "nothing"
        result["notes"] = [
            *dict.fromkeys([*earlier["notes"], *result["notes"]]),
            f"resumed after an interruption: {kept} measured before it, {', '.join(missing) or 'no scenario'} after it",
        ]

    def keep(self, result: dict[str, Any], rows: list[BenchRow]) -> None:
        """Writes what is finished."""
        save_result(self.path, result | {"rows": [row.to_dict() for row in rows]})

    def end(self) -> None:
        """Removes the journal: the result is written, or nobody wants it."""
        self.path.unlink(missing_ok=True)
