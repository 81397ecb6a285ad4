"""From a network with its frozen numbers to a checkpoint on the disk: what training and post-training end with."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from emqdeploy import __version__
from emqdeploy.data import Dataset
from emqdeploy.format.card import Card, DataSource, FidelityRecord
from emqdeploy.format.child import Child
from emqdeploy.format.emq import Checkpoint, save_checkpoint
from emqdeploy.format.frozen import FrozenNetwork
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.quant.skeleton import export_skeleton


def make_card(
    spec: NetworkSpec,
    dataset: Dataset,
    source: DataSource,
    trained: Sequence[Child],
    accuracy: Mapping[Child, float],
    fidelity: Mapping[Child, FidelityRecord],
    recipe: dict[str, Any],
    provenance: Mapping[str, Any],
) -> Card:
    """What a checkpoint says about its network.

    Args:
        spec: the network's structure.
        dataset: what it was made with.
        source: how to find that again.
        trained: the stored children that training visited, or that were asked for.
        accuracy: percent of the test set per stored child.
        fidelity: per stored child, how far it is from the network that it was made from.
        recipe: the options that made it.
        provenance: seconds, passes and the like; versions are added.
    """
    versions = {"emqdeploy": __version__, "torch": str(torch.__version__), "python": platform.python_version()}
    return Card(
        model=spec.model,
        classes=tuple(dataset.classes),
        preprocessing=dataset.preprocessing.pixels(),
        data=source,
        accuracy={child.name: round(percent, 4) for child, percent in accuracy.items()},
        fidelity={child.name: found for child, found in fidelity.items()},
        trained=tuple(child.name for child in trained),
        levels=spec.insertion.levels,
        structure=spec.to_dict(),
        recipe=recipe,
        provenance={**versions, **provenance},
    )


def write_checkpoint(path: Path, network: MultiBitNetwork, frozen: FrozenNetwork, card: Card) -> Path:
    """Writes a network on the CPU; returns the path."""
    save_checkpoint(path, Checkpoint(frozen, export_skeleton(network, frozen, card.input_shape), card))
    return path
