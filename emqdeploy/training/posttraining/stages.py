"""What turns a trained float network into a multi-bit one without training: equalization, statistics, biases.

Each stage offers several ways by name; `emqdeploy.training.posttraining.quantize` runs them in order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from emqdeploy.format.child import FLOAT, MASTER_BITS, Child
from emqdeploy.format.frozen import FrozenNetwork
from emqdeploy.progress import Report, paced, silent
from emqdeploy.quant.deploy import deployed_reference
from emqdeploy.quant.families.base import EqualizedQuantizer, PinnedQuantizer
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.quant.watching import hooked
from emqdeploy.registry import Registry
from emqdeploy.training.memory import return_freed_memory
from emqdeploy.training.norms import plain_averages, run_all

EQUALIZED_PEAK = 2.0**-6
"""Largest weight of an equalized channel: `tanh` is straight there to 1e-4, so codes are evenly spaced in weight."""

FEW_IMAGES = 64
"""That are enough for one number a layer or a child."""


def few_of(batches: Sequence[Tensor]) -> Sequence[Tensor]:
    """As many batches as make up `FEW_IMAGES`."""
    before = accumulate(map(len, batches), initial=0)
    return [batch for batch, seen in zip(batches, before, strict=False) if seen < FEW_IMAGES]


Equalization = Callable[[MultiBitNetwork], None]
EQUALIZATIONS: Registry[Equalization] = Registry("equalization")

Statistics = Callable[[MultiBitNetwork, list[Tensor], Sequence[Child], Report], None]
"""``(network, batches of normalised images, children, report)``; sets the normalization statistics of each child."""

STATISTICS: Registry[Statistics] = Registry("statistics")


@EQUALIZATIONS.register("none")
def keep_weights(network: MultiBitNetwork) -> None:
    """Quantizes the weights as they are: channels of small weights use few of the layer's levels."""


@EQUALIZATIONS.register("peak")
def equalize_peaks(network: MultiBitNetwork) -> None:
    """Quantizes every channel as if its largest weight were the same, so that each uses all levels.

    A layer that has 8 bits at every child shares its codes with none that is narrower, and is rounded plainly.

    Only what the codes stand for is scaled. Scaling the weights themselves, and statistics or the next layer with them,
    would have to undo it in float32, and twice where parameters are shared.
    """
    for name, layer in network.layers.items():
        if layer.pinned or isinstance(layer.quantizer, EqualizedQuantizer):
            continue
        if all(child.weights.of(name) == MASTER_BITS for child in network.known):
            layer.quantizer = PinnedQuantizer(layer.quantizer.limit)
        else:
            layer.quantizer = EqualizedQuantizer(layer.quantizer, layer.weight, EQUALIZED_PEAK)


@STATISTICS.register("float")
def keep_statistics(
    network: MultiBitNetwork, batches: list[Tensor], children: Sequence[Child], report: Report = silent
) -> None:
    """Serves every child with the statistics of the float network."""
    for norm in network.norms.values():
        norm.forget()


@STATISTICS.register("bits")
def estimate(
    network: MultiBitNetwork, batches: list[Tensor], children: Sequence[Child], report: Report = silent
) -> None:
    """Estimates the statistics of each child on the images alone."""
    for child in paced(children, "statistics of children", report):
        found = _batch_statistics(network, batches, child)
        for norm, (mean, var) in zip(network.norms.values(), found, strict=True):
            norm.keep(child, mean, var)


@STATISTICS.register("matched")
def match_float(
    network: MultiBitNetwork, batches: list[Tensor], children: Sequence[Child], report: Report = silent
) -> None:
    """Moves the float network's statistics by what quantization changes on the same images.

    ``mean_b = mean + (m_b - m_32)``, ``var_b = var v_b / v_32`` with ``m``, ``v`` over the images and the epsilon in
    every variance: what a small sample gets wrong about the data cancels, and the statistics of a whole training run
    are kept.
    """
    reference = _batch_statistics(network, batches, FLOAT)
    for child in paced(children, "statistics of children", report):
        moved = _batch_statistics(network, batches, child)
        for norm, (mean, var), (float_mean, float_var) in zip(network.norms.values(), moved, reference, strict=True):
            ratio = (var + norm.eps) / (float_var + norm.eps)
            var = ((norm.running_var + norm.eps) * ratio - norm.eps).clamp(min=0)
            norm.keep(child, norm.running_mean + mean - float_mean, var)


@torch.no_grad()
def _batch_statistics(network: MultiBitNetwork, batches: list[Tensor], child: Child) -> list[tuple[Tensor, Tensor]]:
    """Mean and variance ``(C,)`` that enter each normalization while all of them normalize with batch statistics."""
    network.eval()
    norms = list(network.norms.values())
    before = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
    with plain_averages(network):
        run_all(network, batches, (child,))
    found = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
    for norm, (mean, var) in zip(norms, before, strict=True):
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
    return found


BiasCorrection = Callable[[MultiBitNetwork, FrozenNetwork, list[Tensor], Report], FrozenNetwork]
BIAS_CORRECTIONS: Registry[BiasCorrection] = Registry("bias correction")


@BIAS_CORRECTIONS.register("none")
def keep_biases(
    network: MultiBitNetwork, frozen: FrozenNetwork, batches: list[Tensor], report: Report = silent
) -> FrozenNetwork:
    """Deploys the biases as they are."""
    return frozen


@BIAS_CORRECTIONS.register("mean")
@torch.no_grad()
def correct_means(
    network: MultiBitNetwork, frozen: FrozenNetwork, batches: list[Tensor], report: Report = silent
) -> FrozenNetwork:
    """Gives every output channel of every layer the mean that it has in the float network (arXiv 1906.04721, sec. 4.2).

    The layers are corrected in the order in which they run, all in one pass: what a layer lacks is added to its output
    before the next one reads it.

    A child that this takes further from the float network, as the first images tell, keeps its biases. Some networks
    make much of an exact zero, as of padding whose keys are normalized, and a corrected zero is none.
    """
    biases = {name: dict(layer.biases) for name, layer in frozen.layers.items()}
    floats = [_float_means(network, images) for images in batches]
    twins = frozen.twins()
    for child in paced([*dict.fromkeys(twins.values())], "biases of children", report):
        return_freed_memory()
        deployed = deployed_reference(network, frozen, child).to(batches[0].device)
        total = {name: torch.zeros(len(layer.biases[child])) for name, layer in frozen.layers.items()}
        before = after = 0.0
        compared = len(few_of(batches))
        for place, (images, (wanted, logits)) in enumerate(zip(batches, floats, strict=True)):
            shifts, corrected = _run_shifted(deployed, network.layers, images, wanted)
            for name, shift in shifts.items():
                total[name] += shift.cpu()
            if place < compared:
                before += float((deployed(images) - logits).square().sum())
                after += float((corrected - logits).square().sum())
        if after > before:
            continue
        for name, shift in total.items():
            corrected_bias = biases[name][child] + (shift / len(batches)).numpy()
            biases[name] |= {twin: corrected_bias for twin, first in twins.items() if first == child}
    layers = {name: replace(layer, biases=biases[name]) for name, layer in frozen.layers.items()}
    return replace(frozen, layers=layers)


def _channel_means(output: Tensor, layer: nn.Module) -> Tensor:
    """Mean of each output channel, shaped to be added to it: ``(N, C, H, W)`` of a convolution, else ``(..., C)``."""
    convolution = isinstance(layer, nn.Conv2d)
    axes = (0, *range(2, output.dim())) if convolution else tuple(range(output.dim() - 1))
    return output.mean(axes, keepdim=True)[0]


def _float_means(network: MultiBitNetwork, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What every layer of the float network gives on average, its normalization included; and the logits."""
    means: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            means[name] = _channel_means(output, network.layers[name])

        return hook

    network.eval()
    ends = {name: network.graph.get_submodule(network.norm_of.get(name, name)) for name in network.layers}
    with hooked({module: note(name) for name, module in ends.items()}), network.at(FLOAT):
        return means, network(images)


def _run_shifted(
    deployed: nn.Module, layers: Mapping[str, nn.Module], images: Tensor, wanted: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], Tensor]:
    """Runs the deployed network, each layer's output shifted to the wanted means; the shifts ``(C,)`` and logits."""
    shifts: dict[str, Tensor] = {}

    def shift(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            difference = wanted[name] - _channel_means(output, layers[name])
            shifts[name] = difference.reshape(-1)
            return output + difference

        return hook

    with hooked({deployed.get_submodule(name): shift(name) for name in wanted}):
        return shifts, deployed(images)
