"""Pictures of a video file or a camera, by OpenCV."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from emqdeploy.errors import EmqError, require
from emqdeploy.progress import Report
from emqdeploy.serving.arrival import Arrival, SourceEnded

SUFFIXES = frozenset(
    (".avi", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")
)
"""What names a video file."""


def is_camera(source: str) -> bool:
    """Whether a person means a camera: by its number, or by its device file."""
    return source.isdecimal() or source.startswith("/dev/video")


def is_video(source: str) -> bool:
    """Whether a person means a video file."""
    return Path(source).suffix.lower() in SUFFIXES


def frames(source: str, stop: Callable[[], bool], report: Report) -> Iterator[Arrival]:
    """Yields the pictures of a video file, or of a camera until somebody stops it.

    Args:
        source: a path, or the number of a camera.
        stop: says whether to end.
        report: receives the sentence at the end of a file.

    Raises:
        EmqError: OpenCV is missing, or there is no such camera or video.
        SourceEnded: a camera gives no more pictures.
    """
    camera = is_camera(source)
    capture = _opened(source, camera)
    count = 0
    try:
        while not stop():
            there, frame = capture.read()
            if not there:
                break
            count += 1
            yield Arrival(f"{source} picture {count}", frame=frame)
        else:
            return
        whole = int(capture.get(_cv2().CAP_PROP_FRAME_COUNT))
    finally:
        capture.release()
    if camera:
        raise SourceEnded(f"camera {source} gives no more pictures after {count}; connect it again, and start anew")
    if not count:
        raise EmqError(f"{source} holds no picture that can be read; name another video")
    lost = f" of {whole}, the rest cannot be read" if count < whole else ""
    report(f"{source} ended after {count} pictures{lost}")


def _cv2() -> Any:
    return require("cv2", "video")


def _opened(source: str, camera: bool) -> Any:
    cv2 = _cv2()
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what it would print by itself, the sentences below say
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    if not camera and not Path(source).is_file():
        raise EmqError(f"there is no video {source}; check the path")
    capture = cv2.VideoCapture(int(source) if source.isdecimal() else source)
    if not capture.isOpened():
        capture.release()
        if camera:
            raise EmqError(f"there is no camera {source}, or another program has it; see: ls /dev/video*")
        raise EmqError(f"{source} cannot be read as a video; name another, or convert it to MP4")
    return capture
