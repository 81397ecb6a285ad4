"""Muon: the momentum of each weight matrix, made orthogonal, is its update.

Jordan et al., "Muon: an optimizer for hidden layers in neural networks", kellerjordan.github.io/posts/muon, 2024. An
orthogonal update moves all directions of a matrix at one speed, where plain momentum follows the few that the gradient
favours. That matrices keep their norm, as well as the momentum and the number of iterations, is taken from the code of
airbench (the same author, arXiv 2404.00498), which trains small convolutional networks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the odd quintic that takes singular values towards 1 fastest near 0 (Jordan et al.)."""

STEPS = 3
"""Newton-Schulz iterations: an update need not be orthogonal to the last digit."""

REST_MOMENTUM = 0.9
"""Momentum of everything that is no matrix."""

TINY = 1e-7


class Muon(Optimizer):
    """Muon for the groups with ``matrices``, stochastic gradient descent with Nesterov momentum for the others.

    The learning rate of a matrix is relative: a step of 0.1 moves it by a tenth of its norm. A matrix of a group that
    ``keeps_norm`` is scaled back to the norm that it began with after every step; a batch normalization behind it makes
    its norm meaningless, and a growing one would only slow the matrix down. Weight decay would do nothing there; the
    other matrices shrink by it (decoupled), the rest decays as in `torch.optim.SGD`.

    Nothing is read back from the device. A parameter may get its first gradient at any step.

    Args:
        groups: parameters, with ``matrices`` and ``keeps_norm`` where they are not False.
        lr: learning rate.
        momentum: of the matrices.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "matrices": False, "keeps_norm": False})
        for group in self.param_groups:
            group.setdefault("momentum", momentum if group["matrices"] else REST_MOMENTUM)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            learned = [parameter for parameter in group["params"] if parameter.grad is not None]
            if learned and group["matrices"]:
                self._turn(learned, group)
            elif learned:
                self._descend(learned, group)
        return loss

    def _descend(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        torch._foreach_add_(parameters, self._ahead(parameters, gradients, group["momentum"]), alpha=-group["lr"])

    def _turn(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        ahead = self._ahead(parameters, gradients, group["momentum"])
        norms = self._first_norms(parameters)
        rate = group["lr"]
        if group["weight_decay"] and not group["keeps_norm"]:
            torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        for place, parameter in enumerate(parameters):
            alike[len(parameter), parameter[0].numel()].append(place)
        updates = list(parameters)
        for shape, places in alike.items():
            turned = orthogonalized(torch.stack([ahead[place].reshape(shape) for place in places]))
            turned = turned * (torch.stack([norms[place] for place in places]) / math.sqrt(min(shape)))[:, None, None]
            for place, update in zip(places, turned, strict=True):
                updates[place] = update.reshape(parameters[place].shape)
        torch._foreach_add_(parameters, updates, alpha=-rate)
        if group["keeps_norm"]:
            now = torch._foreach_norm(parameters)
            torch._foreach_clamp_min_(now, TINY)
            torch._foreach_mul_(parameters, torch._foreach_div(norms, now))

    def _ahead(self, parameters: list[Tensor], gradients: list[Tensor], momentum: float) -> list[Tensor]:
        """Nesterov's direction: the gradient and, once more, the sum that it has joined."""
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        sums = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_mul_(sums, momentum)
        torch._foreach_add_(sums, gradients)
        return list(torch._foreach_add(gradients, sums, alpha=momentum))

    def _first_norms(self, parameters: list[Tensor]) -> list[Tensor]:
        """The norm that each matrix began with; that of torch's usual start where it began with zeros."""
        for parameter in parameters:
            state = self.state[parameter]
            if "norm" not in state:
                norm = torch.linalg.vector_norm(parameter)
                state["norm"] = torch.where(norm > 0, norm, math.sqrt(len(parameter) / 3))
        return [self.state[parameter]["norm"] for parameter in parameters]


def orthogonalized(matrices: Tensor) -> Tensor:
    """The orthogonal matrices nearest to some ``(N, rows, columns)``, roughly: singular values come out near 1.

    The Newton-Schulz iteration ``X <- a X + (b A + c A A) X`` with ``A = X X^T`` costs a few batched products and no
    decomposition; on a GPU they are computed in bfloat16, which they tolerate.
    """
    a, b, c = NEWTON_SCHULZ
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide / (torch.linalg.matrix_norm(wide, keepdim=True) + TINY)
    if x.is_cuda:
        x = x.bfloat16()
    for _ in range(STEPS):
        squares = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(squares, squares, squares, beta=b, alpha=c), x, beta=a)
    x = x.to(matrices.dtype)
    return x if wide is matrices else x.mT
