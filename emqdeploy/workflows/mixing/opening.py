"""What a search for mixed children begins with: the file, the network rebuilt from it, and images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from emqdeploy.data import Dataset, Preprocessing, load_dataset
from emqdeploy.data.workers import useful_threads
from emqdeploy.errors import EmqError, UsageError, require
from emqdeploy.format.bundle import is_bundle
from emqdeploy.format.child import Child
from emqdeploy.format.emq import SUFFIX, Checkpoint, load_checkpoint
from emqdeploy.format.runs import find_checkpoint
from emqdeploy.quant.deploy import deployed_reference
from emqdeploy.quant.layers import SITES
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.quant.watching import multiplications
from emqdeploy.runtimes.adapters.torch_reference import structure_of
from emqdeploy.runtimes.source import other_classes, trust_own
from emqdeploy.training.mixing.sensitivity import SENSITIVITIES
from emqdeploy.training.mixing.stored import offered, widest
from emqdeploy.training.posttraining.given import calibration_places
from emqdeploy.workflows.mixing.costs.base import Subject
from emqdeploy.workflows.mixing.settings import MixSettings


@dataclass(frozen=True)
class Opened:
    """All that the search works on.

    Attributes:
        path: of the file.
        structure: a network of its layers, with fresh weights.
        widest: the child that mixes start from, deployed.
        dataset: images as the network sees them.
        labelled: whether their labels are its classes.
        batches: normalised training images.
        labels: theirs, a tensor for each batch; None where they are not known.
        offer: widths of the layers that may be mixed.
        subject: what cost models are asked about.
    """

    path: Path
    structure: MultiBitNetwork
    widest: fx.GraphModule
    dataset: Dataset
    labelled: bool
    batches: list[Tensor]
    labels: list[Tensor] | None
    offer: dict[str, tuple[int, ...]]
    subject: Subject

    @property
    def checkpoint(self) -> Checkpoint:
        """The file, loaded."""
        return self.subject.checkpoint

    @property
    def start(self) -> Child:
        """The child that mixes start from."""
        return self.subject.start

    @property
    def widths(self) -> dict[str, int]:
        """Of the layers that may be mixed, at the start."""
        return {name: offer[-1] for name, offer in self.offer.items()}


def open_mix(settings: MixSettings) -> Opened:
    """Opens what `settings` name.

    Raises:
        EmqError: the file has nothing to mix, the images are not at hand or too few, or torch cannot build the network.
    """
    require("torch", "train")
    path = find_checkpoint(settings.path)
    if is_bundle(path) or is_bundle(path.parent) or path.suffix != SUFFIX:
        raise UsageError(f"{path} belongs to an export, which is sealed; name the run or the {SUFFIX} it was made from")
    checkpoint = load_checkpoint(path)
    card, network = checkpoint.card, checkpoint.network
    start = widest(network)
    offer = _offer(settings, checkpoint, start)
    trust_own(settings.model, card)
    pixels = Preprocessing.of(card.preprocessing)
    dataset = load_dataset(settings.data or card.data.name, settings.data_dir, pixels=pixels)
    labelled = dataset.labelled and (card.data.labelled or settings.data is not None)
    labelled = labelled and other_classes(dataset.name, dataset.classes, card) is None
    _check_images(settings, dataset, labelled)
    torch.set_num_threads(settings.threads or useful_threads(pixels.height))
    structure = structure_of(card).eval()
    module = deployed_reference(structure, network, start)
    places = calibration_places(dataset, min(settings.images, len(dataset.train)), settings.seed)
    parts = [dataset.train.subset(part) for part in places]
    macs, sites = _looked_at(module, structure, pixels)
    return Opened(
        path,
        structure,
        module,
        dataset,
        labelled,
        [torch.from_numpy(pixels.normalize(part.images[:])) for part in parts],
        [torch.from_numpy(np.asarray(part.labels)) for part in parts] if labelled else None,
        offer,
        Subject(checkpoint, start, macs, sites, settings.threads),
    )


def _offer(settings: MixSettings, checkpoint: Checkpoint, start: Child) -> dict[str, tuple[int, ...]]:
    """Widths of the layers that may be mixed."""
    network = checkpoint.network
    found = offered(network, start)
    every = sorted({bits for offer in found.values() for bits in offer})
    strange = next((name for name in settings.keep if name not in network.layers), None)
    if strange is not None:
        raise UsageError(f"--keep names layer {strange!r}, which the network does not have; layers: {_list(found)}")
    pinned = next((name for name in settings.keep if network.layers[name].pinned), None)
    if pinned is not None:
        raise UsageError(f"--keep names layer {pinned!r}, which has 8 bits at every child; leave it out")
    missing = next((bits for bits in settings.widths if bits not in every), None)
    if missing is not None:
        raise UsageError(
            f"--widths has {missing}, and the file offers {_list(map(str, every))}; quantize or train with --bits 2-8"
        )
    offer = {
        name: tuple(bits for bits in offer if not settings.widths or bits in settings.widths or bits == offer[-1])
        for name, offer in found.items()
        if name not in settings.keep
    }
    if not any(len(widths) > 1 for widths in offer.values()):
        have = f"only {_list(map(str, every))} bits" if every else "no layer below 8 bits"
        raise UsageError(f"there is nothing to mix: the file has {have}; quantize or train with --bits 2-8")
    return offer


def _list(words: Any) -> str:
    return ", ".join(words)


def _check_images(settings: MixSettings, dataset: Dataset, labelled: bool) -> None:
    sensitivity = SENSITIVITIES[settings.sensitivity]
    if sensitivity.labelled and not labelled:
        raise UsageError(
            f"--sensitivity {settings.sensitivity} needs labels, and those of {dataset.name} are not the network's"
            " classes; take --sensitivity sqnr"
        )
    if settings.images < sensitivity.fewest:
        raise UsageError(f"--images is {settings.images}; the sensitivity estimate needs {sensitivity.fewest} or more")
    if len(dataset.train) < sensitivity.fewest:
        raise EmqError(
            f"{dataset.name} has {len(dataset.train)} training images; the sensitivity estimate needs"
            f" {sensitivity.fewest} or more"
        )


def _looked_at(
    module: fx.GraphModule, structure: MultiBitNetwork, pixels: Preprocessing
) -> tuple[dict[str, int], Mapping[str, str | None]]:
    """Multiplications of every layer for one image, and the tensor that quantizes what it gives."""
    layers = {name: module.get_submodule(name) for name in structure.layers}
    macs = multiplications(module, layers, torch.zeros(1, pixels.channels, pixels.height, pixels.width))
    ends = {str(node.target): node for node in module.graph.nodes if node.target in macs}
    return macs, {name: _site_behind(ends[name]) for name in macs}


def _site_behind(node: fx.Node) -> str | None:
    """The tensor that a layer's answer becomes; None where something else computes with it first."""
    while len(node.users) == 1:
        node = next(iter(node.users))
        if str(node.target).startswith(SITES):
            return str(node.target).removeprefix(SITES)
    return next(
        (str(user.target).removeprefix(SITES) for user in node.users if str(user.target).startswith(SITES)), None
    )


def deployed(opened: Opened, checkpoint: Checkpoint, child: Child) -> nn.Module:
    """A child of the file, or of one that has more."""
    return deployed_reference(opened.structure, checkpoint.network, child)
