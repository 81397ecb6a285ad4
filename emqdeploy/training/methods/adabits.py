"""AdaBits (CVPR 2020): all children on every batch, labels only."""

from __future__ import annotations

from dataclasses import dataclass

from emqdeploy.training.methods.base import METHODS
from emqdeploy.training.methods.planned import Planned, PlannedOptions, plan_option


@dataclass(frozen=True)
class AdaBitsOptions(PlannedOptions):
    """Joint steps by default."""

    name = "adabits"
    step_plan: str = plan_option("joint")


@METHODS.register("adabits")
class AdaBits(Planned):
    """Its private norms, rescaled weights and clips per width are options of norm and quantizer: see its recipe."""

    Options = AdaBitsOptions

    @property
    def apart(self) -> bool:
        """Where nothing is kept of single images."""
        return not self.remembers(0)
