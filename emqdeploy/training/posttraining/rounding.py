"""The weights that training starts from, rounded as `emqdeploy quantize` does: what a run has to be better than."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from torch import Tensor, nn

from emqdeploy.format.frozen import FrozenNetwork
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.deploy import deployed_reference
from emqdeploy.quant.insertion import InsertionConfig
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.training.batches import ImageSource
from emqdeploy.training.evaluate import accuracies
from emqdeploy.training.fidelity import build_both
from emqdeploy.training.posttraining.config import QuantizeConfig
from emqdeploy.training.posttraining.quantize import calibrate


@dataclass(frozen=True)
class Rounded:
    """A float network and what rounding makes of it.

    Attributes:
        spec: of the network.
        model: in float, untouched.
        network: with quantizers.
        frozen: the numbers that deploy it.
        accuracy: percent of the validation images, mean over the children that training visits, as they are deployed.
    """

    spec: NetworkSpec
    model: nn.Module
    network: MultiBitNetwork
    frozen: FrozenNetwork
    accuracy: float


def rounded(
    spec: NetworkSpec, load: Callable[[nn.Module], object], batches: list[Tensor], validation: ImageSource
) -> Rounded:
    """Rounds the weights that training starts from, in seconds.

    Args:
        spec: the network that is trained, with its children. Of how quantizers are inserted only the layers that stay
            at 8 bits or in float and the levels count: the rest is as `emqdeploy quantize` has it.
        load: puts the weights into a fresh model.
        batches: normalised training images.
        validation: measures.
    """
    said = spec.insertion
    insertion = InsertionConfig(keep_8bit=said.keep_8bit, keep_float=said.keep_float, levels=said.levels)
    spec = replace(spec, insertion=insertion)
    model, network = build_both(spec, load, users_code=True)
    device = batches[0].device
    model.to(device).eval()
    network.to(device).eval()
    frozen = calibrate(network, batches, QuantizeConfig(Path(), spec.model, "", reconstruction="none"))
    deployed = {child: deployed_reference(network, frozen, child).to(device) for child in spec.trained}
    return Rounded(spec, model, network, frozen, fmean(accuracies(deployed, validation).values()))
