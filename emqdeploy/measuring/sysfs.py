"""Reading the small files in which Linux tells about itself; another root stands in for a device that is not here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ROOT_VARIABLE = "EMQDEPLOY_SYSFS"
"""Environment variable: a directory that stands in for ``/`` when sensors and device files are read."""


@dataclass(frozen=True)
class Tree:
    """A file system whose files may be missing, unreadable or nonsense at any time; then a read gives None."""

    root: Path

    def path(self, relative: str) -> Path:
        """Returns the place of a file below the root."""
        return self.root / relative.lstrip("/")

    def text(self, relative: str | Path) -> str | None:
        """Returns what a file says, without white space or the zero byte that ends device-tree strings."""
        path = relative if isinstance(relative, Path) else self.path(relative)
        try:
            return path.read_text(errors="replace").strip("\0 \t\r\n")
        except OSError:
            return None

    def number(self, relative: str | Path) -> float | None:
        """Returns the number in a file."""
        try:
            return float(self.text(relative) or "")
        except ValueError:
            return None

    def glob(self, pattern: str) -> list[Path]:
        """Returns the paths that match below the root, sorted, numbers by value: ``hwmon10`` after ``hwmon9``."""
        return sorted(self.root.glob(pattern.lstrip("/")), key=lambda path: (len(str(path)), str(path)))


def system_tree() -> Tree:
    """The root of this machine, or what ``EMQDEPLOY_SYSFS`` names instead."""
    return Tree(Path(os.environ.get(ROOT_VARIABLE) or "/"))
