"""Normalizations back behind the convolutions that an exporter folded them into.

Quantization moves the statistics of a normalization for every child, so that each channel keeps its mean and spread;
where an exporter has folded it into the layer before, there is nothing to move. A normalization whose gain and shift
are the very statistics that it divides by changes no value, and brings that back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from emqdeploy.format.card import convert
from emqdeploy.models.described import DescribedNetwork, Description, Step, plain

_NORMS = ("BatchNorm1d", "BatchNorm2d", "LayerNorm")
_SUFFIX = "_norm"
_EPSILON = 1e-5  # of the mean variance of a layer's channels


@torch.inference_mode()
def with_norms(
    description: dict[str, Any], state: dict[str, Tensor], batches: Sequence[Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Puts a normalization behind every convolution that has none; the network stays the same function.

    Args:
        description: of a network.
        state: its tensors.
        batches: normalised images ``(N, C, H, W)``, whose means and variances the normalizations get.

    Returns:
        The description and the tensors of the new network.
    """
    given = convert(Description, description)
    readers: dict[str, list[str]] = {}
    for step in given.steps:
        for name in step.inputs:
            readers.setdefault(name, []).append(step.kind)
    names = [
        step.name
        for step in given.steps
        if step.kind == "Conv2d" and readers.get(step.name) and not set(readers[step.name]) & set(_NORMS)
    ]
    found = _statistics(description, state, batches, names)
    steps, state = [], dict(state)
    renamed: dict[str, str] = {}
    for step in given.steps:
        steps.append(msgspec.structs.replace(step, inputs=tuple(renamed.get(name, name) for name in step.inputs)))
        if step.name in found:
            mean, var = found[step.name]
            renamed[step.name] = name = step.name + _SUFFIX
            epsilon = max(_EPSILON * float(var.mean()), 1e-12)
            steps.append(Step("BatchNorm2d", name, (step.name,), {"num_features": len(mean), "eps": epsilon}))
            tensors = {"weight": (var + epsilon).sqrt(), "bias": mean, "running_mean": mean, "running_var": var}
            tensors["num_batches_tracked"] = torch.tensor(0)
            state |= {f"{name}.{leaf}": tensor.clone() for leaf, tensor in tensors.items()}
    return plain(Description(tuple(steps), given.tensors)), state


def _statistics(
    description: dict[str, Any], state: dict[str, Tensor], batches: Sequence[Tensor], names: Sequence[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of every channel of what some convolutions give, but for those that give one pixel."""
    network = DescribedNetwork(description)
    network.load_state_dict(state)
    sums: dict[str, list[Tensor]] = {name: [] for name in names}

    def note(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if output.shape[2:] != (1, 1):  # an image alone says little of what is pooled
                var, mean = torch.var_mean(output, (0, 2, 3), correction=0)
                sums[name].append(torch.stack([mean, mean.square() + var]))

        return hook

    for name in names:
        network.get_submodule(name).register_forward_hook(note(name))
    network.eval()
    for images in batches:
        network(images)
    means = {name: torch.stack(parts).double().mean(0) for name, parts in sums.items() if parts}
    return {
        name: (mean.float(), (square - mean.square()).clamp(min=0).float()) for name, (mean, square) in means.items()
    }
