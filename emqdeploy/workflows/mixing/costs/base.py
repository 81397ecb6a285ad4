"""What a cost model is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from emqdeploy.format.child import Child
from emqdeploy.format.emq import Checkpoint
from emqdeploy.registry import Registry
from emqdeploy.training.mixing.descent import Costs


@dataclass(frozen=True)
class Subject:
    """A network to be mixed.

    Attributes:
        checkpoint: all of it.
        start: the child that mixes start from.
        macs: multiplications of each layer for one image.
        sites: the tensor that quantizes what a layer gives, None where that stays in float.
        threads: of a measurement; None takes every core.
    """

    checkpoint: Checkpoint
    start: Child
    macs: Mapping[str, int]
    sites: Mapping[str, str | None]
    threads: int | None = None


class CostModel(ABC):
    """One kind of budget.

    Attributes:
        units: how a person may write a value, and what each unit is in the model's own.
    """

    units: ClassVar[Mapping[str, float]]

    @abstractmethod
    def costs(self, subject: Subject, widths: Mapping[str, tuple[int, ...]]) -> Costs:
        """The costs of every layer at the widths that it is offered.

        Raises:
            EmqError: it cannot be told here.
        """

    @abstractmethod
    def shown(self, value: float) -> str:
        """A value for people."""


COSTS: Registry[type[CostModel]] = Registry("budget")
