"""Classify what a camera sees, on a device, with a bundle and nothing else: no torch, no data set.

    python camera_loop.py bundle 0                  # the first camera; needs OpenCV
    python camera_loop.py bundle film.mp4           # a video; needs OpenCV
    python camera_loop.py bundle photos --bits 4    # a folder of pictures, where there is no camera

Every frame goes from the camera's uint8 array to a class in two lines. The bit-width changes while the loop runs, as an
application would do it when its battery is low: here, after every 30 frames.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import emqdeploy


def frames(source: str) -> Iterator[tuple[Any, str]]:
    """Yields frames, uint8 (H, W, 3), with the order of their channels."""
    if Path(source).is_dir():
        from PIL import Image

        for file in sorted(Path(source).rglob("*")):
            if file.suffix.lower() in (".png", ".jpg", ".jpeg", ".bmp"):
                yield np.asarray(Image.open(file).convert("RGB")), "rgb"
        return
    try:
        import cv2
    except ImportError:
        raise SystemExit("a camera or a video needs OpenCV: pip install opencv-python-headless") from None
    camera = cv2.VideoCapture(int(source) if source.isdigit() else source)
    if not camera.isOpened():
        raise SystemExit(f"{source} does not open; name a camera by its number, a video file or a folder of pictures")
    while True:
        there, frame = camera.read()
        if not there:  # the video is over, or the camera was unplugged
            return
        yield frame, "bgr"


def main() -> None:
    """Prints a line for every frame, and what the loop achieved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("source")
    parser.add_argument("--bits", default="2,8", help="children to switch between")
    parser.add_argument("--frames", type=int, default=None, help="stop after so many")
    given = parser.parse_args()
    taken, count = 0.0, 0
    with emqdeploy.load(given.bundle, given.bits) as network:
        children = itertools.cycle(network.children if given.bits == "all" else given.bits.split(","))
        classes = network.classes
        for frame, order in itertools.islice(frames(given.source), given.frames):
            if count % 30 == 0:
                network.use(next(children))
            started = time.perf_counter()
            logits = network.run(network.preprocess(frame, order))[0]
            taken, count = taken + time.perf_counter() - started, count + 1
            print(f"{count:5d}  {network.child!s:8s}  {classes[int(logits.argmax())]}")
    if count == 0:
        raise SystemExit(f"{given.source} has no frame that can be read")
    print(f"{count} frames, {1000 * taken / count:.2f} ms each, reading them not counted")


if __name__ == "__main__":
    main()
