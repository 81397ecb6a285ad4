"""The most suspicious labels of a run that looked at them (``train --clean ensemble``), with their images."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emqdeploy.errors import EmqError, UsageError, require
from emqdeploy.format.runs import find_checkpoint

LARGEST = 4 << 30
"""Bytes of what a run says of its labels; a file that has more is refused."""

THUMBNAIL = 96
"""Pixels of a thumbnail's longer side; small images are enlarged by whole factors."""


def labels(path: Path | None, count: int) -> dict[str, Any]:
    """Finds the labels that the ensemble believes least.

    Args:
        path: the run; None takes the latest.
        count: how many to list.

    Returns:
        counts of images, of those whose label is not believed, and per suspicious image its place among the training
        images, both classes, the ensemble's probability of the label, and a thumbnail as a data address; for a run with
        ``--flip-labels`` also how many of the doubted labels were wrong, and how many of the wrong ones were doubted.

    Raises:
        EmqError: the run did not look at its labels, or its data set is not at hand or another one now.
    """
    require("torch", "train")
    import safetensors.numpy

    from emqdeploy.files import read_bytes
    from emqdeploy.training.material import training_data
    from emqdeploy.training.recipes import stored_config
    from emqdeploy.training.run import LABELS_FILE

    run = path if path is not None and path.is_dir() else find_checkpoint(path).parent
    if not (run / LABELS_FILE).is_file():
        raise UsageError(f"{run} did not look at its labels; train with --clean ensemble")
    try:
        held = safetensors.numpy.load(read_bytes(run / LABELS_FILE, LARGEST, "train again"))
        given, odds, decided, believed = (held[name] for name in ("given", "odds", "decided", "believed"))
    except (KeyError, safetensors.SafetensorError) as error:
        raise EmqError(f"{run / LABELS_FILE} is damaged; train again") from error
    config = stored_config(run)
    dataset, train, _ = training_data(config)
    if not np.array_equal(train.labels, given):
        raise EmqError(f"the labels of {dataset.name} are not those that {run} was trained on; put its own data back")
    fits = {odds.shape, decided.shape, believed.shape} == {given.shape} and decided.dtype.kind == "i"
    if not fits or not ((decided >= 0) & (decided < len(dataset.classes)) & np.isfinite(odds)).all():
        raise EmqError(f"{run / LABELS_FILE} is damaged; train again")
    order = np.lexsort((odds, believed))[:count]
    doubted = believed == 0
    images = train.images[np.sort(order)]
    thumbnails = dict(zip(np.sort(order).tolist(), map(_thumbnail, images), strict=True))
    result: dict[str, Any] = {
        "run": str(run),
        "data": dataset.name,
        "images": len(given),
        "doubted": int(doubted.sum()),
        "suspects": [
            {
                "image": int(place),
                "label": dataset.classes[given[place]],
                "ensemble": dataset.classes[decided[place]],
                "odds": round(float(odds[place]), 4),
                "believed": bool(believed[place]),
                "thumbnail": thumbnails[int(place)],
            }
            for place in order
        ],
        "precision": None,
        "recall": None,
    }
    if config.flip_labels:
        right = training_data(replace(config, flip_labels=0.0))[1].labels
        wrong = right != given
        found = int((doubted & wrong).sum())
        result["precision"] = round(100 * found / max(int(doubted.sum()), 1), 2)
        result["recall"] = round(100 * found / max(int(wrong.sum()), 1), 2)
    return result


def _thumbnail(image: NDArray[np.uint8]) -> str:
    """A picture ``(C, H, W)`` as a data address."""
    from PIL import Image

    pixels = np.moveaxis(image, 0, -1)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    factor = THUMBNAIL / max(picture.size)
    factor = max(int(factor), 1) if factor >= 1 else factor
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    buffer = io.BytesIO()
    picture.resize(size, Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.BILINEAR).save(buffer, "png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
