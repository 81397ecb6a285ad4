"""What a person names as a source of pictures: files, folders, videos, a camera."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from emqdeploy.data.images import SUFFIXES
from emqdeploy.errors import UsageError
from emqdeploy.progress import Report
from emqdeploy.serving.arrival import Arrival
from emqdeploy.serving.folder import arrivals, unknown_folders
from emqdeploy.serving.video import frames, is_camera, is_video


def pictures(
    sources: Sequence[str], classes: Sequence[str], watch: bool, repeat: bool, stop: Callable[[], bool], report: Report
) -> Iterator[Arrival | None]:
    """Yields the pictures of all sources, one source after the other.

    Args:
        sources: files and folders of images, videos, the number of a camera.
        classes: names that make a folder a label.
        watch: wait for new files in the folder; None is yielded where there are none at the moment.
        repeat: begin again at the end.
        stop: says whether to end.
        report: receives what there is to say.

    Raises:
        UsageError: a source is none of these, or holds no image.
        EmqError: as `emqdeploy.serving.video.frames`.
    """
    _check(sources, watch)
    for source in sources:
        _say_unlabelled(Path(source), classes, report)
    while True:
        for source in sources:
            path = Path(source)
            if path.is_dir():
                yield from arrivals(path, classes, watch, stop)
            elif path.suffix.lower() in SUFFIXES:
                yield Arrival(source)
            else:
                yield from frames(source, stop, report)
            if stop():
                return
        if not repeat:
            return


def _check(sources: Sequence[str], watch: bool) -> None:
    """Raises before anything is classified."""
    if not sources:
        raise UsageError("there is nothing to classify; name images, a folder, a video or a camera with --source")
    for source in sources:
        path = Path(source)
        if path.is_dir():
            continue
        if watch:
            raise UsageError(f"--watch waits for files in a folder, and {source} is none; leave it out")
        if is_camera(source) or is_video(source):
            continue
        if path.suffix.lower() not in SUFFIXES:
            kind = "not an image, a video or a folder" if path.exists() else "not there"
            raise UsageError(f"{source} is {kind}; name images, a folder, a video, or the number of a camera")
        if not path.exists():
            raise UsageError(f"there is no image {source}; check the path")
    if watch and len(sources) > 1:
        raise UsageError("--watch waits in one folder; name one source")


def _say_unlabelled(folder: Path, classes: Sequence[str], report: Report) -> None:
    unknown = unknown_folders(folder, classes) if folder.is_dir() else []
    if unknown:
        named = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        report(f"{named}: no class of this network has that name, so these images count as unlabelled")
