"""What a child learns from: the labels, or also what another child said."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from emqdeploy.format.child import Child
from emqdeploy.format.tasks import CLASSIFICATION
from emqdeploy.registry import Registry


class Distillation:
    """Labels only; the base of the others.

    Args:
        images: number of training images.
        classes: number of classes.
        top: the highest trained child, which always learns from the labels.
        weight: share of the other child's opinion in the target, 0 to 1.
        device: of the training.
        smoothing: share of the labels' target that all classes have alike (Szegedy et al., arXiv 1512.00567); what
            another child said stays as it is.
    """

    needs_one_batch = False
    """Whether it needs several children on the same batch."""

    remembers = False
    """Whether it wants to be told what was said of every image."""

    def __init__(
        self, images: int, classes: int, top: Child, weight: float, device: torch.device, smoothing: float = 0.0
    ) -> None:
        self.classes = classes
        self.top = top
        self.weight = weight
        self.smoothing = smoothing

    def start_epoch(self, share: float) -> None:
        """Called before each epoch; ``share`` of all epochs is over."""

    def losses(self, child: Child, logits: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Loss per image ``(B,)`` of logits ``(B, classes)``."""
        losses: Tensor = CLASSIFICATION.losses(logits, labels)
        if self.smoothing:
            losses = torch.lerp(losses, -logits.log_softmax(1).mean(1), self.smoothing)
        return losses

    def remember(self, child: Child, indices: Tensor, logits: Tensor) -> None:
        """Called after each step with the logits of the whole batch, where it ``remembers``."""

    def state(self) -> dict[str, Any]:
        """What continuing exactly needs."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""


DISTILLATIONS: Registry[type[Distillation]] = Registry("distillation")
DISTILLATIONS.register("none")(Distillation)


def _soft_losses(logits: Tensor, odds: Tensor) -> Tensor:
    return -(odds * logits.log_softmax(1)).sum(1)


@DISTILLATIONS.register("soft")
class SoftDistillation(Distillation):
    """Every lower child learns from the top child's softmax on the same batch."""

    needs_one_batch = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.teacher: Tensor | None = None

    def losses(self, child: Child, logits: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Cross-entropy with the labels for the top child, mixed with the teacher's softmax for the others."""
        hard = super().losses(child, logits, labels, indices)
        if child == self.top:
            self.teacher = logits.detach().softmax(1)
            return hard
        assert self.teacher is not None
        return self.weight * _soft_losses(logits, self.teacher) + (1 - self.weight) * hard


@DISTILLATIONS.register("recursive")
class RecursiveDistillation(SoftDistillation):
    """Every child learns from the next higher one on the same batch (Any-Precision DNNs, arXiv 1911.07346)."""

    def losses(self, child: Child, logits: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """As `SoftDistillation`, then hands its own softmax down."""
        losses = super().losses(child, logits, labels, indices)
        self.teacher = logits.detach().softmax(1)
        return losses


@DISTILLATIONS.register("cached")
class CachedDistillation(Distillation):
    """Learns from what the top child said of the same image an epoch ago (PS-KD, arXiv 2006.12000, across children).

    It needs no common batch, so it fits coresets: an image that the top child has not seen yet is learned from its
    label. The cache's share in the target rises linearly over the epochs, as in the paper.
    """

    remembers = True

    def __init__(
        self, images: int, classes: int, top: Child, weight: float, device: torch.device, smoothing: float = 0.0
    ) -> None:
        super().__init__(images, classes, top, weight, device, smoothing)
        self.cache = torch.zeros(images, classes, dtype=torch.float16, device=device)
        self.written = torch.zeros_like(self.cache)
        self.share = 0.0

    def start_epoch(self, share: float) -> None:
        """The last epoch's softmax becomes the target of this one."""
        self.share = self.weight * share
        seen = self.written.any(1, keepdim=True)
        self.cache = torch.where(seen, self.written, self.cache)
        self.written.zero_()

    def losses(self, child: Child, logits: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Cross-entropy with the labels, mixed with the cached softmax where there is one."""
        hard = super().losses(child, logits, labels, indices)
        cached = self.cache[indices].float()
        share = self.share * cached.any(1)
        return (1 - share) * hard + share * _soft_losses(logits, cached)

    def remember(self, child: Child, indices: Tensor, logits: Tensor) -> None:
        """Keeps what the top child said."""
        if child == self.top:
            self.written[indices] = logits.softmax(1).half()

    def state(self) -> dict[str, Any]:
        """The cache and what was written in this epoch."""
        return {"cache": self.cache, "written": self.written, "share": self.share}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.cache, self.written, self.share = state["cache"], state["written"], state["share"]
