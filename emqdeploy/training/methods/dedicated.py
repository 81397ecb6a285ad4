"""A network of its own for every child: the upper bound in cost that everything else is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from emqdeploy.training.methods.base import METHODS, NetworkPlan
from emqdeploy.training.methods.emqnet import EMQNet, EMQNetOptions
from emqdeploy.training.settings import CommonOptions


@dataclass(frozen=True)
class DedicatedOptions(EMQNetOptions):
    """The same for each network."""

    name = "dedicated"


@METHODS.register("dedicated")
class Dedicated(EMQNet):
    """Trains one child per network."""

    Options = DedicatedOptions

    @classmethod
    def networks(cls, options: Any, common: CommonOptions) -> list[NetworkPlan]:
        """One per child, each in a folder of its own where there are several."""
        children = common.trained
        return [NetworkPlan(f"w{child.name}" if len(children) > 1 else "", (child,), ()) for child in children]
