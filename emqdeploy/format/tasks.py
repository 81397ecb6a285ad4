"""Tasks: what a network's output means: how it becomes a decision, how decisions are judged, what training lowers.

Every function takes numpy arrays and torch tensors alike, except for the loss, which is torch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from emqdeploy.errors import require
from emqdeploy.registry import Registry


class Task(Protocol):
    """What depends on a network's task."""

    output: str
    """Name of the graph's output."""

    metric: str
    """What `score` is called."""

    def decide(self, output: Any) -> Any:
        """The decision per image, ``(N,)``, for outputs ``(N, ...)``."""

    def correct(self, output: Any, labels: Any) -> int:
        """How many images are decided correctly."""

    def margin(self, output: NDArray[Any]) -> NDArray[Any]:
        """How far each decision is from the next best one, as a share of the range of all outputs, ``(N,)``."""

    def losses(self, output: Any, labels: Any) -> Any:
        """The training loss per image, ``(N,)``."""


TASKS: Registry[Task] = Registry("task")


class Classification:
    """One class per image: the largest logit."""

    output = "logits"
    metric = "accuracy"

    def decide(self, output: Any) -> Any:
        """Index of the largest logit."""
        return output.argmax(1)

    def correct(self, output: Any, labels: Any) -> int:
        """Images whose largest logit is that of their class."""
        return int((self.decide(output) == labels).sum())

    def margin(self, output: NDArray[Any]) -> NDArray[Any]:
        """The gap between the two largest logits over the range of all logits; 1 where there is one class."""
        if output.shape[1] < 2:
            return np.ones(len(output), output.dtype)
        top = np.partition(output, -2, axis=1)
        return (top[:, -1] - top[:, -2]) / max(float(np.ptp(output)), 1e-12)

    def losses(self, output: Any, labels: Any) -> Any:
        """Cross-entropy."""
        functional = require("torch.nn.functional", "train")
        return functional.cross_entropy(output, labels, reduction="none")

    def odds(self, output: NDArray[Any]) -> NDArray[Any]:
        """Probability of every class, for one image's logits ``(classes,)``."""
        shifted = np.exp(output.astype(np.float64) - output.max())
        return shifted / shifted.sum()

    def ranking(self, output: NDArray[Any], classes: Sequence[str], top: int) -> list[dict[str, Any]]:
        """The most probable classes of one image, best first."""
        odds = self.odds(output)
        best = np.argsort(-odds)[:top]
        return [{"class": classes[int(index)], "probability": float(odds[index])} for index in best]


CLASSIFICATION = Classification()
"""The one task there is."""

TASKS.register("classification")(CLASSIFICATION)
