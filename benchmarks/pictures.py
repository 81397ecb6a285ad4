"""Pictures to try networks on: a folder as `imagefolder` reads it, of photos, or of smooth pictures drawn at random."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from emqdeploy.data.images import SUFFIXES

PIXELS = 96

CLASSES = 10

MORE = "more"
"""Folder of the pictures that are only compared on."""


@dataclass(frozen=True)
class Counts:
    """How many pictures calibrate, prove the export in exact arithmetic, and are compared on besides."""

    train: int = 120
    test: int = 20
    more: int = 100

    @property
    def total(self) -> int:
        """All of them."""
        return self.train + self.test + self.more


def make_pictures(folder: Path, photos: Path | None = None, counts: Counts | None = None) -> Path:
    """Fills ``train`` and ``test``, with a folder for each class, and ``more``; returns the folder.

    Args:
        folder: an empty one.
        photos: image files to take, mixed into classes at random; smooth random pictures where it is None.
        counts: how many; `Counts` where it is None.
    """
    random, counts = np.random.default_rng(0), counts or Counts()
    files = sorted(path for path in photos.iterdir() if path.suffix.lower() in SUFFIXES) if photos else []
    if photos and len(files) < counts.total:
        sys.exit(f"{photos} holds {len(files)} images; {counts.total} are needed")
    order = random.permutation(len(files))
    for index in range(counts.total):
        split = "train" if index < counts.train else "test"
        place = folder / (MORE if index >= counts.train + counts.test else f"{split}/class{index % CLASSES}")
        place.mkdir(parents=True, exist_ok=True)
        picture = Image.open(files[order[index]]).convert("RGB") if files else _smooth(random)
        picture.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC).save(place / f"{index:03}.png")
    return folder


def _smooth(random: np.random.Generator) -> Image.Image:
    """Colours that change slowly, with finer ones of less contrast over them, as in photos."""
    total = np.zeros((PIXELS, PIXELS, 3))
    for cells, share in ((3, 1.0), (8, 0.6), (24, 0.35), (PIXELS, 0.1)):
        coarse = Image.fromarray(random.integers(0, 256, (cells, cells, 3)).astype(np.uint8))
        total += share * (np.asarray(coarse.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC), float) - 128)
    brightness, contrast = random.uniform(70, 180), random.uniform(0.4, 1.2)
    return Image.fromarray(np.clip(brightness + contrast * total, 0, 255).astype(np.uint8))
