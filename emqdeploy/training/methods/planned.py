"""What most methods share: a step plan by name over all images, and distillation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emqdeploy.errors import UsageError
from emqdeploy.format.child import FLOAT, Child, in_order
from emqdeploy.options import option
from emqdeploy.training.cleaning import CLEANINGS
from emqdeploy.training.clips import start_clips
from emqdeploy.training.distillation import DISTILLATIONS, Distillation
from emqdeploy.training.methods.base import Method, MethodOptions, Setting
from emqdeploy.training.settings import LABELS, SCHEDULE, CommonOptions, entry
from emqdeploy.training.steps import STEP_PLANS, Epoch, Indices, Step

plan_option, distill_option = (
    partial(option, text=text, panel=SCHEDULE, parse=entry(registry))
    for text, registry in (
        ("Order of updates: interleaved, joint, sequential, sandwich, progressive, mixed or rotating.", STEP_PLANS),
        ("How children learn from one another: none, soft, recursive or cached.", DISTILLATIONS),
    )
)
"""Options whose default is the method's."""


@dataclass(frozen=True)
class PlannedOptions(MethodOptions):
    """A step plan and a distillation."""

    step_plan: str = plan_option("interleaved")
    distill: str = distill_option("none")
    distill_weight: float = option(
        1.0, "Share of the teaching child's output in the target, 0 to 1.", panel=SCHEDULE, least=0
    )
    distill_from: float = option(
        0.0,
        "Share of the run after which --distill begins; before that, children learn from labels alone.",
        panel=SCHEDULE,
        least=0,
    )
    clean: str = option(
        "none",
        "How to treat wrong labels: none, or ensemble (earlier outputs of the network decide which labels to believe).",
        panel=LABELS,
        parse=entry(CLEANINGS),
    )
    float_first: float = option(
        None,
        "Share of the run in which the float network trains alone first, in cheaper steps and for a better start; by"
        " default 0.6 with emqnet on all images from fresh weights, else 0.",
        panel=SCHEDULE,
        least=0,
    )

    def __post_init__(self) -> None:
        """Checks that the plan gives what the distillation needs."""
        super().__post_init__()
        if self.distill_weight > 1:
            raise UsageError(f"--distill-weight is {self.distill_weight}; allowed: 0 to 1")
        if not self.distill_from < 1:
            raise UsageError(f"--distill-from is {self.distill_from}; allowed: 0 up to, not including, 1")
        if self.distill_from and self.distill == "none":
            raise UsageError("--distill-from says when --distill begins; add --distill cached, soft or recursive")
        if self.float_first is not None and not 0 <= self.float_first < 1:
            raise UsageError(f"--float-first is {self.float_first}; allowed: 0 up to, not including, 1")
        if DISTILLATIONS[self.distill].needs_one_batch and not STEP_PLANS[self.step_plan].one_batch:
            raise UsageError(
                f"--distill {self.distill} needs all children on the same batch, which --step-plan {self.step_plan}"
                " does not give; use --step-plan joint or sequential, or --distill cached"
            )

    def check(self, common: CommonOptions) -> None:
        """Settles how long the float network trains alone, where that was not given."""
        super().check(common)
        if common.mixup and (self.clean != "none" or DISTILLATIONS[self.distill].remembers):
            other = f"--clean {self.clean}" if self.clean != "none" else f"--distill {self.distill}"
            raise UsageError(f"{other} goes by what was said of single images, and --mixup shows sums; leave one out")
        if self.float_first is None:
            object.__setattr__(self, "float_first", self.usual_float_first(common))

    def usual_float_first(self, common: CommonOptions) -> float:
        """The share of a run that the float network has where none is given."""
        return 0.0


class Planned(Method):
    """Trains every child on all images, as a step plan says."""

    options: PlannedOptions

    def __init__(self, options: PlannedOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        source, network = setting.source, setting.network
        self.everything = {child: np.arange(len(source)) for child in network.trained}
        self.float_alone = options.float_first > 0
        about = (len(source), setting.classes, in_order(network.trained)[-1], options.distill_weight)
        smoothing = setting.common.label_smoothing
        self.distillation = DISTILLATIONS[options.distill](*about, source.labels.device, smoothing)
        self.cleaning = CLEANINGS[options.clean](source.labels, setting.classes)
        self.share = 0.0

    def subsets(self, epoch: int) -> Mapping[Child, Indices]:
        """The images of every child in an epoch that begins."""
        return self.everything

    def sizes(self, epoch: int) -> Mapping[Child, Indices]:
        """Subsets of the right size in any epoch, to count steps ahead of time."""
        return self.everything

    def step_plan(self, epoch: int) -> str:
        """Name of the plan of an epoch."""
        return self.options.step_plan

    def length(self, epoch: int) -> int:
        """Steps of an epoch.

        Raises:
            UsageError: in the last epoch, where the float network leaves none to the children.
        """
        steps, epochs = self._steps(epoch, self.sizes(epoch)), self.setting.common.epochs
        if epoch == epochs - 1 and self.options.float_first and all(step.children == (FLOAT,) for step in steps):
            raise UsageError(
                f"--float-first {self.options.float_first} leaves the children no step in {epochs} epochs of"
                f" {len(self.setting.source):,} images; use a smaller share or more --epochs"
            )
        return len(steps)

    def plan(self, epoch: int) -> Sequence[Step]:
        """The steps of an epoch."""
        return self._steps(epoch, self.subsets(epoch))

    def _steps(self, epoch: int, subsets: Mapping[Child, Indices]) -> list[Step]:
        common, network = self.setting.common, self.setting.network
        layers = tuple(network.switchable)
        plan = STEP_PLANS[self.step_plan(epoch)]
        steps = plan.plan(
            Epoch(subsets, common.batch_size, common.seed, epoch, common.epochs, layers, common.shuffle_block)
        )
        alone = round(self._float_share(epoch) * len(steps))
        # Steps on one batch stay together, because a child may learn from what another said of it.
        while 0 < alone < len(steps) and steps[alone].indices is steps[alone - 1].indices:
            alone += 1
        return [Step((FLOAT,), step.indices) for step in steps[:alone]] + steps[alone:]

    def _float_share(self, epoch: int) -> float:
        """The share of an epoch that belongs to the float network."""
        return min(max(self.options.float_first * self.setting.common.epochs - epoch, 0.0), 1.0)

    def next_step(self, planned: Step) -> Step:
        """Hands over to the children where that is in the middle of an epoch."""
        if planned.children != (FLOAT,):
            self._hand_over()
        return planned

    def _hand_over(self) -> None:
        """Once, before the children's first step: clips and norms start from what the float network has become."""
        if self.float_alone:
            for norm in self.setting.network.norms.values():
                norm.start_from_float()
            few = np.arange(min(4 * self.setting.common.batch_size, len(self.setting.source)))
            start_clips(self.setting.network, self.setting.source.plain(few), self.setting.common.clips)
            self.float_alone = False

    def phase(self, epoch: int) -> str:
        """``float`` while the float network trains alone."""
        return "float" if self._float_share(epoch) == 1 else super().phase(epoch)

    def ready(self, epoch: int) -> bool:
        """Not before the children had steps."""
        return self._float_share(epoch) < 1

    def begin_epoch(self, epoch: int) -> None:
        """Hands over to the children where that is between epochs, and tells the distillation."""
        if self._float_share(epoch) == 0:
            self._hand_over()
        self.share = epoch / self.setting.common.epochs
        self.distillation.start_epoch(self.share)
        self.cleaning.start_epoch(self.share)
        self.setting.run.save_verdicts(self.cleaning.verdicts())

    def losses(self, child: Child, logits: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Loss per image, of the labels and of what other children said; before those train, of the labels alone."""
        alone = (child == FLOAT and FLOAT not in self.everything) or self.share < self.options.distill_from
        of_labels = partial(Distillation.losses, self.distillation) if alone else self.distillation.losses
        return self.cleaning.losses(of_labels(child, logits, labels, indices), logits, indices)

    def remembers(self, epoch: int) -> bool:
        """Whether the distillation or the cleaning does."""
        return self.distillation.remembers or self.cleaning.remembers

    def remember(self, child: Child, indices: Indices, logits: Tensor, features: Tensor | None) -> None:
        """Passes on what a batch said."""
        places = torch.from_numpy(indices).to(logits.device)
        self.distillation.remember(child, places, logits)
        self.cleaning.remember(places, logits)

    def state(self) -> dict[str, Any]:
        """What distillation and cleaning remember."""
        remembered = {"distillation": self.distillation.state(), "cleaning": self.cleaning.state()}
        return {**remembered, "float_alone": self.float_alone, "share": self.share}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.distillation.restore(state["distillation"])
        self.cleaning.restore(state["cleaning"])
        self.float_alone, self.share = state["float_alone"], state["share"]
