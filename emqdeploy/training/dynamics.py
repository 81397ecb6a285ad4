"""What training remembers of every image: the one record that all importance scores are computed from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from emqdeploy.errors import UsageError
from emqdeploy.format.child import Child

SHARED = "all"
"""The record that every child writes to where they share one; no child has this name."""

WINDOW = 30
"""Epochs that are remembered at most; TDDS looks back as far."""


@dataclass(frozen=True)
class Record:
    """What a score sees of one child, or of all of them where they share a record.

    Attributes:
        softmax: ``(epochs, N, classes)`` float16, the latest epoch last.
        features: penultimate features of the latest epoch ``(N, D)`` float16, where the score asks for them.
        labels: ``(N,)``.
        random: for scores that draw.
    """

    softmax: NDArray[np.float16]
    features: NDArray[np.float16] | None
    labels: NDArray[np.int64]
    random: np.random.Generator


class Dynamics:
    """Softmax of every training image, per record and epoch, float16.

    Costs ``records * epochs * N * classes * 2`` bytes: 48 MB for Fashion-MNIST, four children and ten epochs.

    Args:
        keys: one record per key: names of children, or `SHARED` alone where all of them write to one record.
        images: number of training images.
        classes: number of classes.
        window: epochs to remember; older ones are dropped.
        features: length of the feature vectors to keep too, 0 for none.
    """

    def __init__(self, keys: tuple[str, ...], images: int, classes: int, window: int, features: int = 0) -> None:
        self.window = min(window, WINDOW)
        self.softmax = {key: np.zeros((0, images, classes), np.float16) for key in keys}
        self.features = {key: np.zeros((images, features), np.float16) for key in keys} if features else {}

    def open_epoch(self) -> None:
        """Starts an epoch; an image that it does not visit keeps what was known of it before."""
        for key, rows in self.softmax.items():
            latest = rows[-1:] if len(rows) else np.full((1, *rows.shape[1:]), 1 / rows.shape[2], np.float16)
            self.softmax[key] = np.concatenate([rows, latest])[-self.window :]

    def record(self, child: Child, indices: NDArray[np.int64], logits: Tensor, features: Tensor | None) -> None:
        """Keeps what a forward pass said of the images ``indices``: logits ``(B, classes)``, features ``(B, D)``."""
        key = self.key(child)
        self.softmax[key][-1, indices] = logits.detach().float().softmax(1).cpu().numpy()
        if features is not None and key in self.features:
            self.features[key][indices] = features.detach().float().cpu().numpy()

    def key(self, child: Child) -> str:
        """The record that a child writes to."""
        return child.name if child.name in self.softmax else SHARED

    def view(self, child: Child, labels: NDArray[np.int64], random: np.random.Generator) -> Record:
        """A child's record as a score sees it."""
        key = self.key(child)
        return Record(self.softmax[key], self.features.get(key), labels, random)

    def state(self) -> dict[str, Any]:
        """Plain tensors, for saving."""
        return {
            name: {key: torch.from_numpy(array.copy()) for key, array in arrays.items()}
            for name, arrays in (("softmax", self.softmax), ("features", self.features))
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`.

        Raises:
            UsageError: the record is of other children or of another number of images.
        """
        saved = {key: tensor.numpy() for key, tensor in state["softmax"].items()}
        if saved.keys() != self.softmax.keys():
            found, wanted = (", ".join(keys) for keys in (saved, self.softmax))
            raise UsageError(f"the saved scores are of records {found}, this run needs {wanted}; score anew")
        for key, rows in saved.items():
            if rows.shape[1:] != self.softmax[key].shape[1:]:
                (had, classes), (have, wanted_classes) = rows.shape[1:], self.softmax[key].shape[1:]
                raise UsageError(
                    f"the saved scores are of {had} images and {classes} classes, this run has {have} and"
                    f" {wanted_classes}; use the same data and limit, or score anew"
                )
        self.softmax = saved
        self.features = {key: tensor.numpy() for key, tensor in state["features"].items()}


class FeatureTap:
    """Reads the input of a network's last linear layer as it runs: the penultimate features."""

    def __init__(self, last: nn.Linear) -> None:
        self.latest: Tensor | None = None
        self.handle = last.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        self.latest = inputs[0].detach()
