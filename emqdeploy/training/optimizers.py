"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.registry import Registry

WARM_UP = 0.05
"""Share of all steps over which the learning rate rises."""

ParameterGroups = list[dict[str, Any]]

OPTIMIZERS: Registry[Callable[[ParameterGroups, float, float], Optimizer]] = Registry("optimizer")
"""``(parameter groups, learning rate, momentum) -> optimizer``."""

SCHEDULES: Registry[Callable[[float], float]] = Registry("schedule")
"""``share of all steps behind us -> factor of the peak learning rate``."""


@OPTIMIZERS.register("sgd")
def sgd(groups: ParameterGroups, learning_rate: float, momentum: float) -> Optimizer:
    """Stochastic gradient descent with Nesterov momentum."""
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=momentum > 0, fused=True)


@OPTIMIZERS.register("adam")
def adam(groups: ParameterGroups, learning_rate: float, momentum: float) -> Optimizer:
    """Adam, as Any-Precision's recipes use it; ``momentum`` is its first decay."""
    return torch.optim.Adam(groups, lr=learning_rate, betas=(momentum, 0.999), fused=True)


@OPTIMIZERS.register("adamw")
def adamw(groups: ParameterGroups, learning_rate: float, momentum: float) -> Optimizer:
    """AdamW, the usual choice for transformers; ``momentum`` is its first decay."""
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(momentum, 0.999), fused=True)


def parameter_groups(network: MultiBitNetwork, weight_decay: float) -> ParameterGroups:
    """Weights of layers decay; gains, shifts, biases, clips and what quantizers learn do not."""
    decayed = {id(layer.weight) for layer in network.layers.values()}
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in learned if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in learned if id(p) not in decayed], "weight_decay": 0.0},
    ]


def _warmed_up(share: float, decay: Callable[[float], float]) -> float:
    return share / WARM_UP if share < WARM_UP else decay((share - WARM_UP) / (1 - WARM_UP))


@SCHEDULES.register("cosine")
def cosine(share: float) -> float:
    """Linear warm-up, then a cosine to zero."""
    return max(_warmed_up(share, lambda rest: 0.5 + 0.5 * math.cos(math.pi * rest)), 1e-3)


@SCHEDULES.register("step")
def step(share: float) -> float:
    """Linear warm-up, then a tenth at 50, 75 and 90 percent of the run (Any-Precision's recipes)."""
    return max(_warmed_up(share, lambda _: 0.1 ** sum(share >= mark for mark in (0.5, 0.75, 0.9))), 1e-3)


@SCHEDULES.register("constant")
def constant(share: float) -> float:
    """Linear warm-up, then no change."""
    return max(_warmed_up(share, lambda _: 1.0), 1e-3)
