"""Optimizers and learning-rate schedules by name, and the groups of parameters that they learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from emqdeploy.quant.activations import ActivationQuantizer
from emqdeploy.quant.families.base import WeightQuantizer
from emqdeploy.quant.layers import QuantLayer
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.registry import Registry
from emqdeploy.training.muon import Muon
from emqdeploy.training.scales import GROUPS, Scales, factors_of

WARM_UP = 0.15
"""Share of all steps over which the learning rate rises, by default."""

ParameterGroups = list[dict[str, Any]]


@dataclass(frozen=True)
class OptimizerChoice:
    """An optimizer by name.

    Attributes:
        make: ``(parameter groups, learning rate, momentum) -> optimizer``.
        rate: peak learning rate for fresh weights.
        momentum: where none is given.
    """

    make: Callable[[ParameterGroups, float, float], Optimizer]
    rate: float
    momentum: float = 0.9

    def __call__(self, groups: ParameterGroups, learning_rate: float, momentum: float) -> Optimizer:
        """Makes the optimizer."""
        return self.make(groups, learning_rate, momentum)


OPTIMIZERS: Registry[OptimizerChoice] = Registry("optimizer")


class Schedule(Protocol):
    """How the learning rate changes over a run."""

    def __call__(self, share: float, warm_up: float = WARM_UP) -> float:
        """The factor of the peak rate where ``share`` of all steps is over; it rises over the first ``warm_up``."""


SCHEDULES: Registry[Schedule] = Registry("schedule")


def sgd(groups: ParameterGroups, learning_rate: float, momentum: float) -> Optimizer:
    """Stochastic gradient descent with Nesterov momentum."""
    optimizer = torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=momentum > 0, fused=True)
    if momentum > 0:
        # A buffer of zeros is what the first gradient would make anyway; torch's fused step refuses parameters of which
        # some have one and some, whose first gradient comes later, have none.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def adam(groups: ParameterGroups, learning_rate: float, momentum: float) -> Optimizer:
    """Adam, as Any-Precision's recipes use it; ``momentum`` is its first decay."""
    return torch.optim.Adam(groups, lr=learning_rate, betas=(momentum, 0.999), fused=True)


def adamw(groups: ParameterGroups, learning_rate: float, momentum: float) -> Optimizer:
    """AdamW, the usual choice for transformers; ``momentum`` is its first decay."""
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(momentum, 0.999), fused=True)


OPTIMIZERS.register("sgd")(OptimizerChoice(sgd, 0.1))
OPTIMIZERS.register("adam")(OptimizerChoice(adam, 1e-3))
OPTIMIZERS.register("adamw")(OptimizerChoice(adamw, 1e-3))
OPTIMIZERS.register("muon")(OptimizerChoice(Muon, 0.1, 0.6))


def parameter_groups(network: MultiBitNetwork, weight_decay: float, scales: Scales = ()) -> ParameterGroups:
    """Everything that a network learns, in groups for an optimizer; those without parameters are left out.

    Args:
        network: to be trained.
        weight_decay: of the weights of quantized layers; nothing else decays.
        scales: factors of the learning rate.

    Returns:
        groups with ``name`` (one of `GROUPS`), ``weight_decay`` and ``lr_scale``, the weights first. ``matrices`` says
        whether `Muon` may orthogonalize the updates: of layers whose outputs all read all inputs, except for the last
        layer. ``keeps_norm`` says whether a normalization behind the layer makes the size of its weights meaningless.
    """
    factors = factors_of(scales)
    kinds = _kinds(network)
    matrix: dict[int, bool] = {}
    layers = network.layers
    for name, layer in layers.items():
        if _is_matrix(layer) and name != list(layers)[-1]:
            matrix[id(layer.weight)] = name in network.norm_of
    decayed = {id(layer.weight) for layer in layers.values()}
    groups: dict[tuple[int, bool, bool, float], dict[str, Any]] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            key = id(parameter)
            kind, decay = kinds.get(key, "weights"), weight_decay if key in decayed else 0.0
            place = (GROUPS.index(kind), key not in matrix, not matrix.get(key, False), -decay)
            flags = {"matrices": key in matrix, "keeps_norm": matrix.get(key, False)}
            rest = {"name": kind, "weight_decay": decay, "lr_scale": factors.get(kind, 1.0), **flags}
            groups.setdefault(place, {"params": [], **rest})["params"].append(parameter)
    return [groups[place] for place in sorted(groups)]


def _is_matrix(layer: QuantLayer) -> bool:
    """Whether weights ``(C, ...)`` map one space to another: neither depthwise nor a single row or column."""
    return getattr(layer, "groups", 1) == 1 and min(len(layer.weight), layer.fan_in) > 1


def _kinds(network: MultiBitNetwork) -> dict[int, str]:
    """The kind of every parameter that is no weight, by its identity."""
    kinds: dict[int, str] = {}
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, ActivationQuantizer):
                kinds[id(parameter)] = "clips"
            elif isinstance(module, WeightQuantizer):
                kinds[id(parameter)] = "quantizer"
            elif isinstance(module, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)):
                kinds[id(parameter)] = "norms"
            elif name.endswith("bias"):
                kinds[id(parameter)] = "biases"
    return kinds


def _warmed_up(share: float, warm_up: float, decay: Callable[[float], float]) -> float:
    """Rises linearly to 1, then falls as ``decay`` says of the share of the rest; never quite to 0."""
    return max(share / warm_up if share < warm_up else decay((share - warm_up) / (1 - warm_up)), 1e-3)


@SCHEDULES.register("cosine")
def cosine(share: float, warm_up: float = WARM_UP) -> float:
    """Linear warm-up, then a cosine to zero."""
    return _warmed_up(share, warm_up, lambda rest: 0.5 + 0.5 * math.cos(math.pi * rest))


@SCHEDULES.register("linear")
def linear(share: float, warm_up: float = WARM_UP) -> float:
    """Linear warm-up, then straight to zero."""
    return _warmed_up(share, warm_up, lambda rest: 1 - rest)


@SCHEDULES.register("step")
def step(share: float, warm_up: float = WARM_UP) -> float:
    """Linear warm-up, then a tenth at 50, 75 and 90 percent of the run (Any-Precision's recipes)."""
    return _warmed_up(share, warm_up, lambda _: 0.1 ** sum(share >= mark for mark in (0.5, 0.75, 0.9)))


@SCHEDULES.register("constant")
def constant(share: float, warm_up: float = WARM_UP) -> float:
    """Linear warm-up, then no change."""
    return _warmed_up(share, warm_up, lambda _: 1.0)
