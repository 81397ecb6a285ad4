"""A moving average of everything that is learned, which is often better than the weights that end a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class MovingAverage:
    """An exponential moving average of tensors, beside them on their device.

    After ``n`` updates the decay is ``min(decay, (1 + n) / (10 + n))`` (TensorFlow's rule), so that the weights that
    training began with are soon forgotten.

    Args:
        tensors: learned ones and statistics by name, the very tensors that training changes in place; those that hold
            no floating-point numbers are left alone.
        decay: share that the average keeps in an update, 0 to 1.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        floating = {name: tensor.detach() for name, tensor in tensors.items() if tensor.is_floating_point()}
        self.names = list(floating)
        self.live = list(floating.values())
        self.average = [tensor.clone() for tensor in self.live]

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards what the tensors are now; called after every update of the weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.average, self.live, 1 - decay)
        self.updates += 1

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside the block the tensors hold the average, and behind it again what they held before."""
        with torch.no_grad():
            held = [tensor.clone() for tensor in self.live]
            torch._foreach_copy_(self.live, self.average)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.live, held)

    def state(self) -> dict[str, Any]:
        """What continuing exactly needs."""
        return {"average": dict(zip(self.names, self.average, strict=True)), "updates": self.updates}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        for name, average in zip(self.names, self.average, strict=True):
            average.copy_(state["average"][name])
        self.updates = state["updates"]
