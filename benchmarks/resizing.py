"""How far OpenCV's ways to make a picture smaller are from the one that networks are trained with.

    python -m benchmarks.resizing PHOTOS

Every photo is resized from its own size, and from twice and four times that as a camera has it, by Pillow (what the
project's networks see), by our numpy, and by OpenCV; the table is the mean and the largest difference in steps of 256.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from emqdeploy.data.images import open_image
from emqdeploy.data.resampling import resampled

TARGET = 224
WAYS = {"INTER_AREA": cv2.INTER_AREA, "INTER_LINEAR": cv2.INTER_LINEAR, "INTER_CUBIC": cv2.INTER_CUBIC}


def differences(frame: np.ndarray) -> dict[str, np.ndarray]:
    """By way: the absolute differences from Pillow's bilinear resizing, in steps."""
    height, width = frame.shape[:2]
    wanted = np.asarray(Image.fromarray(frame).resize((TARGET, TARGET), Image.Resampling.BILINEAR)).astype(int)
    ours = resampled(frame, (0, 0, width, height), (TARGET, TARGET), "bilinear").transpose(1, 2, 0)
    found = {"ours, in numpy": ours}
    found |= {name: cv2.resize(frame, (TARGET, TARGET), interpolation=way) for name, way in WAYS.items()}
    return {name: np.abs(pixels - wanted) for name, pixels in found.items()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    photos = sorted(parser.parse_args().photos.glob("*.jpg"))
    print(f"{len(photos)} photos to {TARGET} x {TARGET}: mean and largest difference in steps of 256")
    for larger in (1, 2, 4):
        means: dict[str, list[float]] = {}
        most: dict[str, int] = {}
        for photo in photos:
            picture = open_image(photo, 3)
            size = (larger * picture.width, larger * picture.height)
            frame = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
            for name, steps in differences(frame).items():
                means.setdefault(name, []).append(float(steps.mean()))
                most[name] = max(most.get(name, 0), int(steps.max()))
        shown = "; ".join(f"{name} {np.mean(values):.2f}, {most[name]}" for name, values in means.items())
        print(f"{larger} x the photo's size: {shown}")


if __name__ == "__main__":
    main()
