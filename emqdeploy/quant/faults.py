"""Where a network first stops being the one that it was made from: two networks side by side, module by module."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from emqdeploy.errors import EmqError
from emqdeploy.format.child import FLOAT, Child
from emqdeploy.graph.fidelity import LEAST_DECIBELS, SAME_DECIBELS, decibels, snr_db
from emqdeploy.quant.network import MultiBitNetwork

LOOKED_AT = 1 << 16
"""Values of a tensor that are compared at most, evenly over it, so that those of a whole network stay in memory."""

OWN_LOSS = 3.0
"""Decibels between what a layer reads and what it gives that make the fault its own: half of the noise is."""


class Fault(NamedTuple):
    """The layer that goes wrong first.

    Attributes:
        layer: its name.
        read_db: signal to noise of what it reads, in decibels.
        given_db: of what it gives, its normalization included.
    """

    layer: str
    read_db: float
    given_db: float

    def __str__(self) -> str:
        return f"layer {self.layer!r}, which reads {self.read_db:.1f} dB and gives {self.given_db:.1f} dB"


class _Seen(NamedTuple):
    """Some values of the tensor that a module read, and of the one that it gave."""

    read: Tensor
    given: Tensor


@torch.no_grad()
def rewritten(model: nn.Module, network: MultiBitNetwork, images: Tensor) -> str | None:
    """The first module whose answer tracing or inserting changed; None where network and model are one function.

    Both compute in float here, in evaluation mode, hence all above rounding is a fault of the rewrite: a branch that
    was traced in training mode, or a function that was taken for another one.

    Args:
        model: the float model, untouched; it is left in evaluation mode.
        network: made from it, with the same weights.
        images: normalised ``(N, C, H, W)``; a few are enough.

    Returns:
        The module's name; that of the last one where no module that both of them have differs.

    Raises:
        EmqError: the model answers the same images differently each time.
    """
    ours = dict(network.graph.named_modules())
    shared = [name for name, module in model.named_modules() if name in ours and not any(module.children())]
    expected, wanted = _watch(model.eval(), images, shared)
    training = network.training
    with network.at(FLOAT):
        actual, given = _watch(network.eval().graph, images, shared)
    network.train(training)
    if not bool(torch.isfinite(wanted).all()) or _distance(wanted, given) >= SAME_DECIBELS:
        return None  # what overflows in float says nothing about the rewrite
    if _distance(wanted, _watch(model, images, ())[1]) < SAME_DECIBELS:
        raise EmqError(
            f"{type(model).__name__} answers the same images differently each time, in evaluation mode too; take what"
            " is random out of its forward, or switch it with self.training"
        )
    differing = (
        name
        for name, seen in expected.items()
        # A ReLU that became the range of a site does not run any more.
        if name in actual and _snr(seen.given, actual[name].given) < SAME_DECIBELS
    )
    return next(differing, next(reversed(expected), type(model).__name__))


@torch.no_grad()
def first_fault(network: MultiBitNetwork, deployed: nn.Module, images: Tensor, reference: Child = FLOAT) -> Fault:
    """The first layer of a deployed network that is below `LEAST_DECIBELS`, and clearly below what it reads.

    Args:
        network: the multi-bit network.
        deployed: one of its children, see `emqdeploy.quant.deploy.deployed_reference`.
        images: normalised ``(N, C, H, W)``.
        reference: the child at which the network is the measure.

    Returns:
        That layer; where none is, the first below `LEAST_DECIBELS`; where none is either, the one that loses most.
    """
    ends = {name: network.norm_of.get(name, name) for name in network.layers}
    training = network.training
    with network.at(reference):
        expected, _ = _watch(network.eval().graph, images, {*ends, *ends.values()})
    network.train(training)
    actual, _ = _watch(deployed.eval(), images, ends)
    faults = [
        Fault(name, _snr(expected[name].read, seen.read), _snr(expected[ends[name]].given, seen.given))
        for name, seen in actual.items()
    ]
    low = [fault for fault in faults if fault.given_db < LEAST_DECIBELS]
    own = [fault for fault in low if fault.read_db - fault.given_db >= OWN_LOSS]
    return next(iter(own or low), max(faults, key=lambda fault: fault.read_db - fault.given_db))


def _watch(module: nn.Module, images: Tensor, names: Iterable[str]) -> tuple[dict[str, _Seen], Tensor]:
    """Runs a network; returns what the named modules read and gave when they first ran, in order, and its answer."""
    seen: dict[str, _Seen] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if name not in seen and inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                seen[name] = _Seen(_some(inputs[0]), _some(output))

        return hook

    hooks = [module.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        answer = module(images)
    finally:
        for hook in hooks:
            hook.remove()
    return seen, answer


def _some(values: Tensor) -> Tensor:
    flat = values.detach().reshape(-1)
    return flat[:: -(-len(flat) // LOOKED_AT) or 1].to("cpu", torch.float32, copy=True)


def _snr(expected: Tensor, actual: Tensor) -> float:
    """Signal to noise of a tensor in decibels; tensors of other shapes have nothing in common."""
    if expected.shape != actual.shape:
        return decibels(0.0, 1.0)
    expected = expected.double()
    return decibels(float(expected.square().sum()), float((actual - expected).square().sum()))


def _distance(expected: Tensor, actual: Any) -> float:
    """Signal to noise of logits in decibels."""
    if not isinstance(actual, Tensor) or actual.shape != expected.shape:
        return decibels(0.0, 1.0)
    return snr_db(expected.cpu().numpy(), actual.cpu().numpy())
