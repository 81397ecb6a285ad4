"""Images of a folder, those that are there and those that keep arriving, with the class that their folder names."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from emqdeploy.data.images import SUFFIXES
from emqdeploy.errors import UsageError
from emqdeploy.serving.arrival import Arrival

POLL_S = 0.1
"""Between two looks for new files."""

SETTLED_S = 0.4
"""A new file counts when it has not been written to for so long."""


def arrivals(folder: Path, classes: Sequence[str], watch: bool, stop: Callable[[], bool]) -> Iterator[Arrival | None]:
    """Yields the images of a folder and its folders, in alphabetical order, then in order of arrival.

    A file that is still being written is left for a later look.

    Args:
        folder: what to read.
        classes: names that make a folder a label.
        watch: go on and wait for new files; None is yielded where there are none at the moment.
        stop: says whether to end.

    Raises:
        UsageError: there is no such folder, or it holds no image and nothing is waited for.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; name one that holds images, as they are or in folders per class")
    index = {name: number for number, name in enumerate(classes)}
    found = [path for path in images_in(folder) if not watch or _settled(path)]
    if not found and not watch:
        kinds = ", ".join(sorted(SUFFIXES))
        raise UsageError(f"{folder} holds no images ({kinds}); add some, or wait for them with --watch")
    for path in found:
        if stop():
            return
        yield Arrival(str(path), _label(path, folder, index))
    seen = set(found)
    while watch and not stop():
        ready = [path for path in images_in(folder) if path not in seen and _settled(path)]
        seen.update(ready)
        for path in ready:
            yield Arrival(str(path), _label(path, folder, index))
        if not ready:
            yield None
            time.sleep(POLL_S)


def unknown_folders(folder: Path, classes: Sequence[str]) -> list[str]:
    """Names of folders with images that are no class: their images count as unlabelled."""
    index = {name: number for number, name in enumerate(classes)}
    unlabelled = (path for path in images_in(folder) if _label(path, folder, index) is None)
    return sorted({path.parent.name for path in unlabelled} - {folder.name})


def _label(path: Path, folder: Path, index: Mapping[str, int]) -> int | None:
    """The class of the nearest folder that is named like one; inside a class may be folders of sessions or cameras."""
    above = [folder.name, *path.relative_to(folder).parts[:-1]]
    return next((index[name] for name in reversed(above) if name in index), None)


def images_in(folder: Path) -> list[Path]:
    """The images of a folder and its folders, in alphabetical order."""
    return sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.name[0] != "." and path.is_file()
    )


def _settled(path: Path) -> bool:
    try:
        state = path.stat()
    except OSError:
        return False
    return state.st_size > 0 and time.time() - state.st_mtime >= SETTLED_S
