"""Where numbers that are not finite come from, asked once training has seen one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from emqdeploy.quant.layers import SITES
from emqdeploy.quant.network import MultiBitNetwork


def name_of_nonfinite(network: MultiBitNetwork) -> str | None:
    """What is not finite, for a sentence: ``weight of fc``, ``gradient of stage1.0.bn1.bias``; None where nothing is.

    Weights come before gradients, because a loss that is not finite makes every gradient so. Among several it is the
    one nearest to the output: there the backward pass began that spoiled those before it. Waits for the device.
    """
    learned = _from_output(network)
    for name, parameter in learned.items():
        if not _finite(parameter):
            module, _, tensor = name.removeprefix(SITES).rpartition(".")
            return f"{tensor} of {module}" if module else tensor
    for name, parameter in learned.items():
        if parameter.grad is not None and not _finite(parameter.grad):
            return f"gradient of {name.removeprefix(SITES)}"
    return None


def _from_output(network: MultiBitNetwork) -> dict[str, nn.Parameter]:
    """The parameters by name, the last to be used in a forward pass first."""
    graph, found = network.graph, dict[str, nn.Parameter]()
    for node in reversed(graph.graph.nodes):
        if node.op == "call_module":
            name = str(node.target)
            found |= dict(graph.get_submodule(name).named_parameters(prefix=name))
    return found | dict(graph.named_parameters())


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
