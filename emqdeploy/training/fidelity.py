"""The float model beside the network that is made of it: whether they are one function, and how far children stray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from emqdeploy.errors import EmqError
from emqdeploy.format.card import FidelityRecord
from emqdeploy.format.child import FLOAT, Child
from emqdeploy.format.grid import Floats
from emqdeploy.graph.fidelity import TRAINED_NETWORK, compare, spread, what_is_wrong
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.faults import first_fault, rewritten
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.training.batches import ImageSource

FEW_IMAGES = 8
"""Images that show whether two float networks are one function: any single one does."""

_BATCH = 64


def build_both(
    spec: NetworkSpec, initial: Callable[[nn.Module], object], users_code: bool = False
) -> tuple[nn.Module, MultiBitNetwork]:
    """Creates a float model with its weights, and a multi-bit network of a copy of it.

    Args:
        spec: the network's structure.
        initial: loads the weights.
        users_code: as `NetworkSpec.build` takes it.

    Returns:
        The model, untouched, and the network.
    """
    made: list[nn.Module] = []

    def keep(model: nn.Module) -> None:
        initial(model)
        made.append(model)

    network = spec.build(keep, users_code)
    return made[0], network


def check_rewrite(name: str, model: nn.Module, network: MultiBitNetwork, images: Tensor) -> None:
    """Raises where a network, computing in float, is not the function that its float model is in evaluation mode.

    Args:
        name: of the model.
        model: untouched.
        network: made of a copy of it, not yet changed.
        images: normalised ``(N, C, H, W)``; the first few are taken.
    """
    first = rewritten(model, network, images[:FEW_IMAGES])
    if first is not None:
        raise EmqError(rewritten_sentence(name, first))


def rewritten_sentence(name: str, first: str) -> str:
    """What to say of a network that was changed by getting its quantizers."""
    return (
        f"{name} became another function when it was traced, before anything was quantized: its answers in float are"
        f" not those of the model in evaluation mode, first at module {first!r} or in what it reads; write that part"
        " with modules of torch.nn, free of branches on self.training, or choose another --model"
    )


def _batches(source: ImageSource) -> Iterator[Tensor]:
    """Up to 256 images of a split, evenly over it, in batches."""
    chosen = spread(len(source))
    for start in range(0, len(chosen), _BATCH):
        yield source.plain(chosen[start : start + _BATCH])


@torch.inference_mode()
def measure_fidelity(
    measures: Mapping[Child, Callable[[Tensor], Tensor]],
    deployed: Mapping[Child, nn.Module],
    source: ImageSource,
    against: str,
) -> dict[Child, FidelityRecord]:
    """How far the answers of children are from the expected ones; every image is decoded once for all of them.

    Args:
        measures: what gives the logits ``(N, classes)`` that a child should give; one for several runs once.
        deployed: the children, as they are deployed.
        source: the split whose images are taken.
        against: what the expected answers are those of.
    """
    wanted: dict[Child, list[Floats]] = {child: [] for child in deployed}
    given: dict[Child, list[Floats]] = {child: [] for child in deployed}
    for images in _batches(source):
        answers = {measure: measure(images).cpu().numpy() for measure in set(measures.values())}
        for child, module in deployed.items():
            wanted[child].append(answers[measures[child]])
            given[child].append(module(images).cpu().numpy())
    return {child: compare(np.concatenate(wanted[child]), np.concatenate(given[child]), against) for child in deployed}


class Wrong(NamedTuple):
    """A child that is not the network that it was made from.

    Attributes:
        sentence: which child, by how much, and the layer where it begins.
        layer: that layer's name.
    """

    sentence: str
    layer: str


def find_wrong(
    fidelity: Mapping[Child, FidelityRecord],
    network: MultiBitNetwork,
    deployed: Mapping[Child, nn.Module],
    source: ImageSource,
) -> Wrong | None:
    """The first child that is not what `measure_fidelity` compared it with, None where all are."""
    for child, found in fidelity.items():
        reason = what_is_wrong(child, found)
        if reason is not None:
            reference = child if found.against == TRAINED_NETWORK else FLOAT
            fault = first_fault(network, deployed[child], next(_batches(source)), reference)
            lost = f"child {child.name} does not answer like the {found.against}: {reason}"
            return Wrong(f"{lost}; it goes wrong first at {fault}", fault.layer)
    return None
