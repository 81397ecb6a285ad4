"""What methods that learn the widths of one child share: a search for part of the run, then training at its result."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from emqdeploy.errors import UsageError
from emqdeploy.format.child import FLOAT, Child, in_order
from emqdeploy.options import option
from emqdeploy.training.methods.base import NetworkPlan, Setting
from emqdeploy.training.methods.planned import Planned, PlannedOptions
from emqdeploy.training.settings import CommonOptions
from emqdeploy.training.steps import Step
from emqdeploy.training.targets import PANEL, check_switchable

LEARNED = "learned"
"""Name of the child while its widths are learned, and where they differ between layers for good."""


def start_of(common: CommonOptions) -> Child:
    """The child whose widths come down: the widest of a run that has one."""
    return in_order(child for child in common.trained if child != FLOAT)[-1]


@dataclass(frozen=True)
class LearnedOptions(PlannedOptions):
    """How far widths come down, and how long they may."""

    least_bits: int = option(2, "Narrowest width to learn.", panel=PANEL, least=1)
    search_share: float = option(0.5, "Share of the run after which all widths stay fixed.", panel=PANEL, least=0)

    def check(self, common: CommonOptions) -> None:
        """Raises where there is no child, or one that has to learn from others."""
        super().check(common)
        if all(child == FLOAT for child in common.trained):
            raise UsageError(f"--method {self.name} needs a child to begin with, for example --bits 8")
        if not self.search_share < 1:
            raise UsageError(f"--search-share is {self.search_share}; allowed: 0 up to, not including, 1")
        if self.distill != "none":
            raise UsageError(
                f"--distill {self.distill} needs several children, --method {self.name} trains one; leave it out"
            )


class LearnsWidths(Planned):
    """Trains one child while its widths are found, and at those. `search` and `describe` are every method's own."""

    options: LearnedOptions
    competes = False

    def __init__(self, options: LearnedOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        check_switchable(setting.network.switchable)
        steps = sum(map(self.length, range(setting.common.epochs)))
        self.search_steps = round(options.search_share * (1 - options.float_first) * steps)
        self.steps = 0
        self.settled = False

    @classmethod
    def networks(cls, options: Any, common: CommonOptions) -> list[NetworkPlan]:
        """One network of one child, which begins with the widest widths."""
        start = start_of(common)
        return [NetworkPlan("", (Child(LEARNED, start.weights, start.activations),), ())]

    @property
    def child(self) -> Child:
        """The one that trains, as it is now."""
        return self.setting.network.quantized[0]

    @abstractmethod
    def search(self, planned: Step) -> None:
        """Moves the widths before a step of the child, or settles them; not called once they are `settled`."""

    @abstractmethod
    def describe(self) -> str:
        """What was learned, in words."""

    def next_step(self, planned: Step) -> Step:
        """Lets the widths move, and trains the child at those that it has."""
        planned = super().next_step(planned)
        if planned.children == (FLOAT,):
            return planned
        if not self.settled:
            self.search(planned)
        self.steps += 1
        return planned._replace(children=(self.child,))

    def phase(self, epoch: int) -> str:
        """``search`` while widths move."""
        return super().phase(epoch) if self.settled or super().phase(epoch) == "float" else "search"

    def ready(self, epoch: int) -> bool:
        """Not before the child is what it will be."""
        return self.settled and super().ready(epoch)

    def finish(self, console: Console) -> int:
        """Names the child by its widths where all layers have the same."""
        found = self.child
        if found.uniform:
            self.setting.network.redefine(found, Child.of(found.bits, found.activations.default))
        console.print(f"learned {self.describe()}", highlight=False, soft_wrap=True)
        return 0

    def state(self) -> dict[str, Any]:
        """The widths as well."""
        own = {"steps": self.steps, "settled": self.settled, "child": self.child.to_dict()}
        return {**super().state(), **own}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        super().restore(state)
        self.steps, self.settled = state["steps"], state["settled"]
        self.setting.network.redefine(self.child, Child.from_dict(state["child"]))


def by_layer(widths: Mapping[str, int]) -> int | dict[str, int]:
    """Widths by layer, or one for all where they are equal."""
    found = set(widths.values())
    return found.pop() if len(found) == 1 else dict(widths)
