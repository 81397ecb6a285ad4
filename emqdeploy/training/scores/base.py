"""What a score is: per image, sums and latest values of what the network said, and an importance computed from them.

Gradient-based scores need no extra backward pass: for cross-entropy the gradient at the logits is ``softmax - onehot``.
No score keeps what was said itself: the softmax of 1.28 million images of 1,000 classes over 30 epochs would be 77 GB
for each child in float16, the sums of any score here are at most `MOST_BYTES` per image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emqdeploy.errors import UsageError
from emqdeploy.registry import Registry

Importance = NDArray[np.float64]

MOST_BYTES = 40
"""What a score keeps of an image and child at most."""


class Size(NamedTuple):
    """How much there is to score.

    Attributes:
        images: training images.
        classes: outputs of the network.
        width: length of the penultimate features, 0 where the score does not ask for them.
    """

    images: int
    classes: int
    width: int = 0


@dataclass(frozen=True)
class Said:
    """What a forward pass said of a batch of distinct images.

    Attributes:
        indices: of the images, ``(B,)``.
        softmax: ``(B, classes)`` float32.
        labels: ``(B,)``.
        features: input of the last layer ``(B, width)`` float32, where the score asks for it.
    """

    indices: NDArray[np.int64]
    softmax: NDArray[np.float32]
    labels: NDArray[np.int64]
    features: NDArray[np.float32] | None = None

    def errors(self) -> NDArray[np.float32]:
        """``||softmax - onehot||_2`` of each image, ``(B,)``."""
        errors = self.softmax.copy()
        errors[np.arange(len(errors)), self.labels] -= 1
        norms: NDArray[np.float32] = np.linalg.norm(errors, axis=1)
        return norms


class Score(ABC):
    """A score of the training images; one object per record. Every array among its attributes is saved with a run.

    Args:
        size: how much there is to score.
    """

    needs_features: ClassVar[bool] = False
    """Whether it asks for penultimate features."""

    epochs: ClassVar[int] = 1
    """Times that it has to see every image at least."""

    of_course: ClassVar[bool] = False
    """Whether it is of the course of training, of which a network that stands still says nothing."""

    def __init__(self, size: Size) -> None:
        self.size = size

    def open_epoch(self) -> None:
        """Told before every epoch, and before every pass of a probe."""

    @abstractmethod
    def update(self, said: Said) -> None:
        """Takes in what a forward pass said."""

    @abstractmethod
    def importance(self, random: np.random.Generator) -> Importance:
        """Importance of every image ``(N,)``, at least 0; higher is more important.

        Args:
            random: for scores that draw.
        """

    def state(self) -> dict[str, Tensor]:
        """Plain tensors, for saving."""
        return {name: torch.from_numpy(array.copy()) for name, array in self._arrays().items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state`.

        Raises:
            UsageError: it is of another score, or of other images.
        """
        own = self._arrays()
        given = {name: tensor.numpy() for name, tensor in state.items()}
        if {name: array.shape for name, array in given.items()} != {name: array.shape for name, array in own.items()}:
            raise UsageError("the saved scores are of other images or classes; use the same data, or score anew")
        for name, array in given.items():
            setattr(self, name, array.astype(own[name].dtype))

    def _arrays(self) -> dict[str, NDArray[np.generic]]:
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}


SCORES: Registry[type[Score]] = Registry("score")


class MeanScore(Score):
    """The mean of a number over all times that an image was seen; 6 bytes per image."""

    def __init__(self, size: Size) -> None:
        super().__init__(size)
        self.total = np.zeros(size.images, np.float32)
        self.times = np.zeros(size.images, np.int16)

    @abstractmethod
    def of(self, said: Said) -> NDArray[np.float32]:
        """The number of each image, ``(B,)``."""

    def update(self, said: Said) -> None:
        """Adds the numbers."""
        self.total[said.indices] += self.of(said)
        self.times[said.indices] += 1

    def importance(self, random: np.random.Generator) -> Importance:
        """The means; an image that was never seen has that of the others."""
        seen = self.times > 0
        means = self.total.astype(np.float64) / np.maximum(self.times, 1)
        return np.where(seen, means, means[seen].mean() if seen.any() else 1.0)
