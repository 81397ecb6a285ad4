"""Names of data sets: those that are registered, and paths, which say by what lies there which of them is meant."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from emqdeploy.errors import UsageError
from emqdeploy.registry import Registry, UnknownNameError

if TYPE_CHECKING:
    from emqdeploy.data.loading import Dataset

TABLES = (".csv", ".tsv")
"""Suffixes of a table of paths and labels."""

SAVED = ("dataset_dict.json", "state.json")
"""What lies in a folder that Hugging Face's ``save_to_disk`` made."""


@dataclass(frozen=True)
class DataRequest:
    """What a loader is asked for; ``argument`` is what follows the colon of the name."""

    kind: str
    argument: str
    data_dir: Path | None

    @property
    def place(self) -> Path | None:
        """The folder that was named; ``data_dir`` wins, because a name may come from a file of another machine."""
        return self.data_dir or (Path(self.argument).expanduser() if self.argument else None)

    def refuse_path(self) -> None:
        """Raises where a data set in a known place is given a path."""
        if self.argument:
            raise UsageError(f"{self.kind} takes no path; leave it out, or say where its files lie with --data-dir")


DATASETS: Registry[Callable[[DataRequest], Dataset]] = Registry("data set")

_OF_FOLDERS = ("imagefolder", "imagenet", "tinyimagenet", "unlabelled")
"""Kinds whose argument is a folder, in whose place another may be named."""

_OF_PATTERNS = ("wds", "wds-partial")
"""Kinds whose argument is a pattern of paths, below the folder that may be named."""


def named(name: str) -> str:
    """The name of a data set by which it is registered, of a path too.

    Args:
        name: As a person writes it.

    Raises:
        UsageError: It is neither registered nor the path of something that can be read.
    """
    kind = name.partition(":")[0]
    if kind in DATASETS:
        return name
    path = Path(name).expanduser()
    if path.is_dir():
        saved = any((path / sign).is_file() for sign in SAVED)
        return f"{'huggingface' if saved else 'imagefolder'}:{name}"
    if path.is_file():
        if path.suffix.lower() in TABLES:
            return f"csv:{name}"
        raise UsageError(
            f"{name} is one file; name a folder of pictures, or a {' or '.join(TABLES)} of paths and labels"
        )
    if os.sep in name or name.startswith((".", "~")) or path.suffix.lower() in TABLES:
        raise UsageError(f"there is no file or folder {name} (looked in {Path.cwd()}); check the path")
    try:
        DATASETS[kind]
    except UnknownNameError as error:
        raise UsageError(f"{error}; and there is no folder of that name in {Path.cwd()}") from error
    raise AssertionError("it was not registered a moment ago")


def located(name: str, data_dir: Path | None) -> str:
    """The name of a data set with its path, where it has one, such that it holds in any working directory.

    Args:
        name: As a person writes it.
        data_dir: The folder where its files lie; it takes the place of a folder in the name.
    """
    kind, colon, path = named(name).partition(":")
    if not path:
        return kind + colon
    if kind in _OF_FOLDERS:
        return f"{kind}:{os.path.abspath(data_dir or os.path.expanduser(path))}"
    if kind in _OF_PATTERNS:
        return f"{kind}:{os.path.abspath(os.path.join(data_dir or '', os.path.expanduser(path)))}"
    on_disk = os.path.abspath(os.path.expanduser(path))
    return f"{kind}:{on_disk}" if os.path.exists(on_disk) else f"{kind}:{path}"
