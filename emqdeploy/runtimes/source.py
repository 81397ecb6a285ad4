"""Whatever a person names, opened as one runnable thing: a checkpoint, a run, a bundle or an exported file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emqdeploy.data import Dataset, Preprocessing, load_dataset
from emqdeploy.errors import EmqError, UsageError, require
from emqdeploy.format.bundle import MANIFEST_FILE, Bundle, is_bundle
from emqdeploy.format.card import Card
from emqdeploy.format.child import ALL, Child, ChildLike, select_children
from emqdeploy.format.emq import load_checkpoint, read_card
from emqdeploy.format.runs import find_checkpoint
from emqdeploy.runtimes.base import Runtime, open_network, open_runtime
from emqdeploy.runtimes.onnx_file import read_sealed
from emqdeploy.runtimes.proof import naming


@dataclass(frozen=True)
class Source:
    """A network that runs, and what a user of it needs to know.

    Attributes:
        path: the file, or the bundle's directory.
        runtime: ready to call.
        card: what the file says about its network.
        size_bytes: per child, the bytes that the file spends on it.
        children: those that were asked for, in that order; else those that were exported, of a checkpoint all.
    """

    path: Path
    runtime: Runtime
    card: Card
    size_bytes: dict[Child, int]
    children: tuple[Child, ...] = ()

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become the network's input."""
        return Preprocessing.of(self.card.preprocessing)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of one image."""
        return self.card.input_shape

    @property
    def accuracy(self) -> dict[Child, float]:
        """Percent of the test set per child, as measured after training."""
        known = self.card.accuracy
        return {child: known[child.name] for child in self.runtime.children if child.name in known}


def open_source(
    path: Path | str | None,
    children: str | Sequence[ChildLike] | None = None,
    runtime: str = "onnxruntime",
    threads: int | None = None,
    **options: Any,
) -> Source:
    """Opens a checkpoint, a run directory, a bundle or an exported ``.onnx`` file; None means the latest run.

    Args:
        path: what to open.
        children: those wanted, also as a person types them (``2-4``); None and ``all`` take every one that was
            exported, of a checkpoint every stored one.
        runtime: adapter; single exported files run in onnxruntime.
        threads: threads inside an operator; None uses every core.
        **options: of the adapter, for example ``residency``, ``flavour``, ``provider``.
    """
    found = find_network(path)
    card, sizes = describe(found)
    if isinstance(children, str):
        children = None if children.strip().lower() == ALL else select_children(tuple(sizes), children)
    options |= {"children": children, "threads": threads}
    if found.suffix == ".onnx" or is_bundle(found):
        network = open_network(found, runtime, **options)
    else:
        only = children[0] if children is not None and len(children) == 1 else None
        with naming(found):
            network = open_runtime(load_checkpoint(found, only), runtime, **options)
        network.card = card
    if children is None:
        exported = Bundle.open(found).exported if is_bundle(found) else ()
        asked = tuple(child for child in network.children if child in exported) or network.children
    else:
        asked = tuple(network.find(child) for child in children)
    return Source(found, network, card, sizes, asked)


def find_network(path: Path | str | None) -> Path:
    """Returns what is meant: an exported file, a bundle's directory, or the checkpoint of a run, by default the latest.

    Args:
        path: as a person names it.
    """
    named = None if path is None else Path(path)
    if named is not None and named.suffix == ".onnx":
        return named
    if named is not None and is_bundle(named):
        return named.parent if named.name == MANIFEST_FILE else named
    return find_checkpoint(named)


def describe(path: Path) -> tuple[Card, dict[Child, int]]:
    """What a file says about its network, and the bytes that it spends on each child, without loading it.

    Args:
        path: from `find_network`.
    """
    if path.suffix == ".onnx":
        about = read_sealed(path)
        return about.card, dict.fromkeys(about.read_children(), path.stat().st_size)
    if not is_bundle(path):
        return read_card(path)
    bundle = Bundle.open(path)
    stored = {} if bundle.checkpoint_path is None else read_card(bundle.checkpoint_path)[1]
    # Of several artefacts for one child the first one that was exported; of a child without any, the checkpoint.
    exported = {child: one.size_bytes for one in reversed(bundle.artefacts) for child in bundle.children_of(one)}
    return bundle.card, {child: (stored | exported)[child] for child in bundle.children if child in stored | exported}


def images_of(card: Card, data_dir: Path | None) -> Dataset:
    """Loads the data set that a network was made with, whose labels mean something only where the card says so.

    Raises:
        EmqError: it is not at hand, or what lies there now has other classes.
    """
    return dataset_of(card, data_dir) if card.data.labelled else _load(card, data_dir)


def _load(card: Card, data_dir: Path | None) -> Dataset:
    return load_dataset(card.data.name, data_dir, pixels=Preprocessing.of(card.preprocessing))


def dataset_of(card: Card, data_dir: Path | None) -> Dataset:
    """Loads the labelled data set that a network was made with.

    Raises:
        EmqError: it is not at hand, what lies there now has other classes, or its labels are not those of the network.
    """
    if not card.data.labelled:
        raise EmqError(f"the network was made with {card.data.name}, whose labels are not its classes; name other data")
    dataset = _load(card, data_dir)
    strange = other_classes(dataset.name, dataset.classes, card)
    if strange is not None:
        raise EmqError(f"{strange}; name the folder of its own data with --data-dir")
    return dataset


def other_classes(name: str, classes: Sequence[str], card: Card) -> str | None:
    """What makes the classes of a data set others than those of a network; None where they are the same, or unknown."""
    known = card.classes
    if not classes:
        return None
    if len(classes) != len(known):
        return f"{name} has {len(classes)} classes, and the network was trained on {len(known)}"
    places = [place for place, pair in enumerate(zip(classes, known, strict=True)) if pair[0] != pair[1]]
    if not places:
        return None
    place = places[0]
    return f"class {place} of {name} is {classes[place]!r}, and the network was trained on {known[place]!r} there"


def trust_own(model: str | None, card: Card) -> None:
    """Lets torch build a network from the user's own function, where the user names the one that it was made from."""
    if model is None:
        return
    if model != card.model:
        raise UsageError(f"this network is {card.model}, not {model}; name the same model, or none")
    require("torch", "train")
    from emqdeploy.models import trust

    trust(model)
