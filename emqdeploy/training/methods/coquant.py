"""CoQuant (arXiv 2103.01435): narrow children learn from the wider one that teaches best, and borrow blocks of it.

All children see the same batch, the widest first. A narrower child runs with some of its blocks at the widths of its
teacher, fewer and fewer as training goes on (dynamic block swapping), and learns from the labels and from what the
teacher said. The teacher is the wider child with the smallest loss of late (adaptive selection). The abstract and
quoted figures could be read; the measure of a teacher, a block (layers with the same name before the last dot) and the
course of the share are reconstructed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emqdeploy.errors import UsageError
from emqdeploy.format.child import FLOAT, Child, in_order
from emqdeploy.options import option
from emqdeploy.training.methods.base import METHODS, Setting
from emqdeploy.training.methods.planned import Planned, PlannedOptions, plan_option
from emqdeploy.training.settings import SCHEDULE, CommonOptions, one_of
from emqdeploy.training.steps import Step

STREAM = 0xC0C0
"""The number of the random stream of swapped blocks."""

PURE = 0.2
"""Share of the run, at its end, in which no block is swapped, so that what is deployed is what trained last."""

BORROWING = "-borrowing"
"""Behind the name of a child that has blocks of its teacher."""

_MEMORY = 0.98


@dataclass(frozen=True)
class CoQuantOptions(PlannedOptions):
    """Who teaches, how much, and how many blocks are borrowed."""

    name = "coquant"
    step_plan: str = plan_option("joint")
    teacher: str = option(
        "adaptive",
        "Which wider child teaches: adaptive (the one with the smallest recent loss), next or top.",
        panel=SCHEDULE,
        parse=one_of("teacher", "adaptive", "next", "top"),
    )
    teacher_weight: float = option(0.5, "Share of the teacher's output in the target, 0 to 1.", panel=SCHEDULE, least=0)
    swap: float = option(
        0.5,
        "Share of its blocks that a child borrows from its teacher at first, 0 to 1; it falls to 0.",
        panel=SCHEDULE,
        least=0,
    )

    def __post_init__(self) -> None:
        """Checks that teacher and student see the same images."""
        super().__post_init__()
        for flag, share in (("teacher-weight", self.teacher_weight), ("swap", self.swap)):
            if share > 1:
                raise UsageError(f"--{flag} is {share}; allowed: 0 to 1")
        if self.step_plan not in ("joint", "sequential"):
            raise UsageError(
                f"--step-plan {self.step_plan} does not show a child what its teacher saw just before; with --method"
                " coquant use joint or sequential"
            )

    def check(self, common: CommonOptions) -> None:
        """Raises where there is nobody to teach."""
        super().check(common)
        if len([child for child in common.trained if child != FLOAT]) < 2:
            raise UsageError("--method coquant needs two or more children; for example --bits 8,4,2")


@METHODS.register("coquant")
class CoQuant(Planned):
    """Trains all children on every batch, each by its teacher and partly with its blocks."""

    Options = CoQuantOptions
    options: CoQuantOptions

    def __init__(self, options: CoQuantOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        self.children = in_order(child for child in setting.network.trained if child != FLOAT)
        self.recent = torch.zeros(len(self.children), device=setting.source.labels.device)
        self.teachers = self._next_wider()
        self.said: dict[str, Tensor] = {}

    def _next_wider(self) -> dict[Child, Child]:
        return dict(zip(self.children, self.children[1:], strict=False))

    def begin_epoch(self, epoch: int) -> None:
        """Chooses the teachers of the epoch."""
        super().begin_epoch(epoch)
        if self.options.teacher == "top":
            self.teachers = dict.fromkeys(self.children[:-1], self.children[-1])
        elif self.options.teacher == "adaptive" and bool((self.recent > 0).all()):
            losses = dict(zip(self.children, self.recent.tolist(), strict=True))
            for place, child in enumerate(self.children[:-1]):
                # Of equals the nearest: a student follows best whoever is most like it.
                self.teachers[child] = min(self.children[place + 1 :], key=losses.__getitem__)

    def plan(self, epoch: int) -> Sequence[Step]:
        """The steps of the plan, with blocks of the teachers in every child but the widest."""
        common, blocks = self.setting.common, self._blocks()
        random = np.random.default_rng([common.seed, epoch, STREAM])
        share = self.options.swap * max(0.0, 1 - epoch / (common.epochs * (1 - PURE)))

        def borrowed(child: Child) -> Child:
            teacher = self.teachers.get(child)
            taken = [block for block in blocks if random.random() < share] if teacher is not None else []
            if teacher is None or not taken:
                return child
            weights = {layer: (teacher if block in taken else child) for block in blocks for layer in blocks[block]}
            return Child(
                f"{child.name}{BORROWING}",
                {layer: owner.weights.of(layer) for layer, owner in weights.items()},
                {layer: owner.activations.of(layer) for layer, owner in weights.items()},
            )

        return [Step(tuple(map(borrowed, step.children)), step.indices) for step in super().plan(epoch)]

    def _blocks(self) -> dict[str, list[str]]:
        """The switchable layers by the module around them."""
        found: dict[str, list[str]] = {}
        for layer in self.setting.network.switchable:
            found.setdefault(layer.rpartition(".")[0] or layer, []).append(layer)
        return found

    def losses(self, child: Child, logits: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Cross-entropy with the labels, mixed with what the teacher said of the same images."""
        losses = super().losses(child, logits, labels, indices)
        named = {known.name: known for known in self.children}
        student = named.get(child.name.removesuffix(BORROWING))
        if student is None:  # the float network
            return losses
        place = self.children.index(student)
        mean = losses.detach().mean()
        self.recent[place] = torch.where(self.recent[place] > 0, self.recent[place].lerp(mean, 1 - _MEMORY), mean)
        self.said[student.name] = logits.detach().softmax(1)
        teacher = self.teachers.get(student)
        if teacher is None:
            return losses
        soft = -(self.said[teacher.name] * logits.log_softmax(1)).sum(1)
        return torch.lerp(losses, soft, self.options.teacher_weight)

    def state(self) -> dict[str, Any]:
        """Losses of late and the teachers as well."""
        teachers = {child.name: teacher.name for child, teacher in self.teachers.items()}
        return {**super().state(), "recent": self.recent, "teachers": teachers}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        super().restore(state)
        self.recent.copy_(state["recent"])
        named = {child.name: child for child in self.children}
        self.teachers = {named[child]: named[teacher] for child, teacher in state["teachers"].items()}
