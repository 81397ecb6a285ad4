"""Using a network here: its accuracy on a test set, and the class of one image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emqdeploy.data import Preprocessing, Split
from emqdeploy.grid import Floats
from emqdeploy.runtimes.source import dataset_of, open_source

BATCH = 64


def measured_accuracy(
    network: Callable[[Floats], Floats],
    split: Split,
    preprocessing: Preprocessing,
    stop: Callable[[], bool] = lambda: False,
) -> float | None:
    """Percent of a split that a network classifies correctly; None when it was stopped on the way."""
    correct = 0
    for start in range(0, len(split), BATCH):
        if stop():
            return None
        images = preprocessing.normalize(split.images[start : start + BATCH])
        correct += int((network(images).argmax(1) == split.labels[start : start + BATCH]).sum())
    return 100.0 * correct / len(split)


def evaluate(
    path: Path | None, bits: Sequence[int] | None, runtime: str, data_dir: Path | None, threads: int | None = None
) -> dict[str, Any]:
    """Accuracy on the test set in a runtime, per bit-width."""
    source = open_source(path, bits, runtime, threads)
    dataset = dataset_of(source.metadata, data_dir)
    widths = list(bits or source.runtime.available_bits)
    accuracy = {}
    for width in widths:
        source.runtime.set_bits(width)
        accuracy[str(width)] = measured_accuracy(source.runtime, dataset.test, source.preprocessing)
    return {
        "checkpoint": str(source.path),
        "runtime": source.runtime.name,
        "data": dataset.name,
        "images": len(dataset.test),
        "trained_bits": source.metadata.get("trained_bits", widths),
        "method": source.metadata.get("recipe", {}).get("method", "training"),
        "accuracy": accuracy,
    }


def predict(path: Path | None, image: Path, bits: int | None, top: int = 5) -> dict[str, Any]:
    """Classifies one image file."""
    source = open_source(path, None if bits is None else (bits,))
    if bits is not None:
        source.runtime.set_bits(bits)
    logits = source.runtime(source.preprocessing.load_image(image))[0].astype(np.float64)
    odds = np.exp(logits - logits.max())
    odds /= odds.sum()
    best = np.argsort(-odds)[:top]
    classes = source.metadata["classes"]
    return {
        "image": str(image),
        "checkpoint": str(source.path),
        "bits": source.runtime.bits,
        "class": classes[int(best[0])],
        "predictions": [{"class": classes[int(index)], "probability": float(odds[index])} for index in best],
    }
