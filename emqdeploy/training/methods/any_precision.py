"""Any-Precision DNNs (arXiv 1911.07346): all children on every batch, each learns from the next higher one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console

from emqdeploy.errors import UsageError
from emqdeploy.options import option
from emqdeploy.training.calibration import calibrate
from emqdeploy.training.methods.base import METHODS, NetworkPlan
from emqdeploy.training.methods.planned import Planned, PlannedOptions, distill_option, plan_option
from emqdeploy.training.settings import NORMALIZATION, CommonOptions

CALIBRATION_RATE = 0.1
"""Learning rate of the last stage, as a share of the run's."""


@dataclass(frozen=True)
class AnyPrecisionOptions(PlannedOptions):
    """Joint steps and recursive distillation by default."""

    name = "any-precision"
    step_plan: str = plan_option("joint")
    distill: str = distill_option("recursive")
    calibrate_epochs: int = option(
        0, "Epochs at the end that train only the private norms of unseen children.", panel=NORMALIZATION, least=0
    )

    def check(self, common: CommonOptions) -> None:
        """Only private norms can be calibrated."""
        super().check(common)
        if self.calibrate_epochs and common.norm != "private":
            raise UsageError(f"--calibrate-epochs trains private norms; --norm is {common.norm}, use private")


@METHODS.register("any-precision")
class AnyPrecision(Planned):
    """Trains together, then calibrates the norms of children that training never visited."""

    Options = AnyPrecisionOptions
    options: AnyPrecisionOptions

    @classmethod
    def networks(cls, options: Any, common: CommonOptions) -> list[NetworkPlan]:
        """Calibration gives the children between too, where the quantizer can."""
        if options.calibrate_epochs and common.quantizer.between:
            return [NetworkPlan("", common.trained, common.between)]
        return super().networks(options, common)

    def finish(self, console: Console) -> int:
        """Trains the norms of the unseen children, and nothing else."""
        common, network = self.setting.common, self.setting.network
        unseen = tuple(child for child in network.known if child not in network.trained)
        if not unseen or not self.options.calibrate_epochs:
            return 0
        console.print(f"calibrating the norms of {', '.join(child.name for child in unseen)} bits", highlight=False)
        rate = CALIBRATION_RATE * common.learning_rate
        epochs = self.options.calibrate_epochs
        return calibrate(network, self.setting.source, unseen, epochs, rate, common)
