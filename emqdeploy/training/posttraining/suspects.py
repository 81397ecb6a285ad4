"""Why a float model decides so badly: other ways to see the images, and other orders of the classes, tried on a few."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor, nn

from emqdeploy.data import Dataset
from emqdeploy.format.tasks import CLASSIFICATION
from emqdeploy.graph.fidelity import spread
from emqdeploy.training.batches import ImageSource
from emqdeploy.training.posttraining.judging import Decisions, share

_STATISTICS = {
    "0.485,0.456,0.406": ((0.485, 0.456, 0.406), "0.229,0.224,0.225", (0.229, 0.224, 0.225)),
    "0.5": ((0.5,), "0.5", (0.5,)),
    "0": ((0.0,), "1", (1.0,)),
    "0 ": ((0.0,), "0.00392157", (1 / 255,)),
}
"""Means and standard deviations that networks are usually trained with, as options and as numbers."""


@torch.inference_mode()
def what_would_help(model: nn.Module, dataset: Dataset, source: ImageSource, batch: int) -> str | None:
    """The option with which a model decides far more of a few test images rightly; None where none of those tried does.

    Args:
        model: in evaluation mode.
        dataset: whose test images are tried, and how they are seen now.
        source: its test images.
        batch: how many at once.
    """
    places = spread(len(source))
    images, labels = source.plain(places), np.asarray(dataset.test.labels)[places]
    decided = _decide(model, images, batch)
    least_better = share(int((decided == labels).sum()), len(labels))[1]
    found = {option: _decide(model, seen, batch) for option, seen in _seen_otherwise(images, dataset).items()}
    right = {f"with {option}": int((one == labels).sum()) for option, one in found.items()}
    right["with its classes in another order"] = _in_another_order(decided, labels)
    best = max(right, key=right.__getitem__)
    if share(right[best], len(labels))[0] <= least_better:
        return None
    return f"{best} it decides {right[best]} of {len(labels)} rightly"


def _seen_otherwise(images: Tensor, dataset: Dataset) -> dict[str, Tensor]:
    """The images as other options show them."""
    pixels = dataset.preprocessing
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (pixels.mean, pixels.std))
    plain, found = images * std + mean, {}
    orders = (False, True) if images.shape[1] == 3 else (False,)
    for (shown, (mean_, shown_std, std_)), turned in itertools.product(_STATISTICS.items(), orders):
        if len(mean_) in (1, images.shape[1]):
            other, scale = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (mean_, std_))
            seen = ((plain.flip(1) if turned else plain) - other) / scale
            found[f"--mean {shown.strip()} --std {shown_std}" + _turned(pixels.channel_order, turned)] = seen
    if len(orders) == 2:
        found[_turned(pixels.channel_order, True).strip()] = images.flip(1)
    return found


def _turned(order: str, turned: bool) -> str:
    return f" --channel-order {'rgb' if order == 'bgr' else 'bgr'}" if turned else ""


def _decide(model: nn.Module, images: Tensor, batch: int) -> Decisions:
    parts = [CLASSIFICATION.decide(model(part)).numpy() for part in images.split(batch)]
    return np.concatenate(parts)


def _in_another_order(decided: Decisions, labels: Decisions) -> int:
    """Images decided rightly if every class were called what most of its images are; no two may be called the same."""
    size = int(max(decided.max(), labels.max())) + 1
    seen = np.zeros((size, size), np.int64)
    np.add.at(seen, (decided, labels), 1)
    names = seen.argmax(1)[seen.sum(1) > 0]
    return int(seen.max(1).sum()) if len(set(names)) == len(names) else 0
