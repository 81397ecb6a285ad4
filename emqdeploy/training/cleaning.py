"""What is done about wrong labels: the network's own earlier predictions say which ones to believe.

Temporal self-ensemble (arXiv 2207.10354): a network learns right labels first and wrong ones by heart later, so an
average of what it said of an image over the course of training shows which label does not fit. Reconstructed from the
abstract: the paper sums losses over snapshots of the weights and compares transformed images; here the average is
exponential and over all passes, and the children, which share their weights, are members of the ensemble too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emqdeploy.registry import Registry

DECAY = 0.7
"""Share of the average that a further pass over an image leaves as it was."""

START = 0.2
"""Share of a run after which labels are judged: before, nothing is known; much later, wrong ones are known by heart."""

_ROUNDS = 40
_LEAST_VARIANCE = 1e-4


class Cleaning:
    """Believes every label; the base of the others.

    Args:
        labels: of the training images, ``(N,)``, on the device of the training.
        classes: outputs of the network.
    """

    remembers = False
    """Whether it wants to be told what was said of every image."""

    def __init__(self, labels: Tensor, classes: int) -> None:
        self.labels = labels
        self.classes = classes

    def start_epoch(self, share: float) -> None:
        """Called before each epoch; ``share`` of all epochs is over."""

    def judge(self) -> None:
        """Decides now which labels to believe."""

    def losses(self, losses: Tensor, logits: Tensor, indices: Tensor) -> Tensor:
        """Loss per image ``(B,)``, given that of the labels."""
        return losses

    def remember(self, indices: Tensor, logits: Tensor) -> None:
        """Called after each step with the logits of the whole batch, where it ``remembers``."""

    def believed(self) -> NDArray[np.bool_] | None:
        """Which labels are believed ``(N,)``; None where all are."""
        return None

    def verdicts(self) -> dict[str, Tensor]:
        """What is known of every image, to be kept with the run; empty where nothing is."""
        return {}

    def state(self) -> dict[str, Any]:
        """What continuing exactly needs."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""


CLEANINGS: Registry[type[Cleaning]] = Registry("way of cleaning labels")
CLEANINGS.register("none")(Cleaning)


@CLEANINGS.register("ensemble")
class SelfEnsemble(Cleaning):
    """An image whose label the ensemble does not share, and that is among those of large loss, has a soft target.

    That target is what the ensemble says of it. An image takes two bytes per class and three more.
    """

    remembers = True

    def __init__(self, labels: Tensor, classes: int) -> None:
        super().__init__(labels, classes)
        self.average = torch.zeros(len(labels), classes, dtype=torch.float16, device=labels.device)
        self.times = torch.zeros(len(labels), dtype=torch.int16, device=labels.device)
        self.clean = torch.ones(len(labels), dtype=torch.bool, device=labels.device)

    def start_epoch(self, share: float) -> None:
        """Judges, once enough has been said."""
        if share >= START:
            self.judge()

    def judge(self) -> None:
        """Splits the losses of the ensemble in two; what has never been seen is believed."""
        odds, seen = self._odds(), self.times > 0
        if bool(seen.any()):
            loss = -odds.gather(1, self.labels[:, None]).squeeze(1).clamp(min=1e-4).log()
            low = torch.ones_like(seen)
            low[seen] = torch.from_numpy(lower_part(loss[seen].cpu().double().numpy())).to(low.device)
            self.clean.copy_(low | (odds.argmax(1) == self.labels) | ~seen)

    def losses(self, losses: Tensor, logits: Tensor, indices: Tensor) -> Tensor:
        """Cross-entropy with what the ensemble says where the label is not believed."""
        soft = -(self._odds(indices) * logits.log_softmax(1)).sum(1)
        return torch.where(self.clean[indices], losses, soft)

    def remember(self, indices: Tensor, logits: Tensor) -> None:
        """Averages what was said with what was said before."""
        said = logits.softmax(1).float()
        self.average[indices] = torch.lerp(said, self.average[indices].float(), DECAY).half()
        self.times[indices] += 1

    def _odds(self, indices: Tensor | None = None) -> Tensor:
        """The ensemble's probabilities ``(N, classes)``, or of some images; zeros where nothing was said."""
        average = (self.average if indices is None else self.average[indices]).float()
        total: Tensor = average.sum(1, keepdim=True)  # the average began at zero
        return average / total.clamp(min=1e-6)

    def believed(self) -> NDArray[np.bool_]:
        """Which labels are believed."""
        found: NDArray[np.bool_] = self.clean.cpu().numpy()
        return found

    def verdicts(self) -> dict[str, Tensor]:
        """The given label, the ensemble's probability of it and its own decision, and whether the label is believed."""
        odds = self._odds()
        given = odds.gather(1, self.labels[:, None]).squeeze(1)
        found = {"given": self.labels, "odds": given, "decided": odds.argmax(1), "believed": self.clean.to(torch.uint8)}
        return {name: tensor.cpu() for name, tensor in found.items()}

    def state(self) -> dict[str, Any]:
        """The average, how often it was added to, and the judgement."""
        return {"average": self.average, "times": self.times, "clean": self.clean}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        for name in ("average", "times", "clean"):
            getattr(self, name).copy_(state[name])


def lower_part(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of the values ``(N,)`` more probably belong to the lower of two normal distributions, fitted to all.

    Expectation and maximization from the ends of the range (as for losses in DivideMix, arXiv 2002.07394); all of
    them, where there is but one value.
    """
    low, high = values.min(), values.max()
    if not high > low:
        return np.ones(len(values), bool)
    x = (values - low) / (high - low)
    means, variances, shares = np.array([0.0, 1.0]), np.array([0.05, 0.05]), np.array([0.5, 0.5])
    odds = np.zeros((2, len(x)))
    for _ in range(_ROUNDS):
        density = -0.5 * (x - means[:, None]) ** 2 / variances[:, None] - 0.5 * np.log(variances)[:, None]
        density += np.log(np.maximum(shares, 1e-12))[:, None]
        odds = np.exp(density - density.max(0))
        odds /= odds.sum(0)
        count = np.maximum(odds.sum(1), 1e-12)
        means = (odds * x).sum(1) / count
        variances = np.maximum((odds * (x - means[:, None]) ** 2).sum(1) / count, _LEAST_VARIANCE)
        shares = count / len(x)
    # Below the lower mean the wider distribution may have more density again, which means nothing here.
    return np.asarray((odds[int(means.argmin())] > 0.5) | (x <= means.min()))
