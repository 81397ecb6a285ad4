"""What a network was made from: whether a child of a checkpoint still is that network.

The rungs of `verify` compare ways to run a file with the integer reference of that file; a file that is wrong in itself
passes them all. Here the reference is compared with the user's float model, untouched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emqdeploy.errors import EmqError, require
from emqdeploy.format.card import POST_TRAINING, Card, FidelityRecord
from emqdeploy.format.child import Child
from emqdeploy.format.emq import Checkpoint
from emqdeploy.format.grid import Floats
from emqdeploy.format.tasks import TASKS
from emqdeploy.graph.fidelity import FLOAT_MODEL, compare, is_held_to, spread, what_is_wrong
from emqdeploy.workflows.baselines import LATENT_FILE
from emqdeploy.workflows.comparing import BATCH, ParityImages

if TYPE_CHECKING:
    from torch import nn

    from emqdeploy.quant.network import MultiBitNetwork


def load_float(card: Card, weights: Path) -> tuple[nn.Module, MultiBitNetwork]:
    """The user's own model in evaluation mode, with its weights, and the multi-bit network that is made of it.

    Raises:
        EmqError: torch is missing, the weights are not those of the model, or the model is the user's own function and
            was not named.
    """
    require("torch", "train")
    from emqdeploy.quant.build import NetworkSpec
    from emqdeploy.training.fidelity import build_both
    from emqdeploy.training.pretrained import load_pretrained

    # The entry that `quantize` took; the file that it left behind has one only.
    entry = None if weights.name == LATENT_FILE else card.recipe.get("weights_entry")
    load = partial(load_pretrained, path=weights, fresh_head=False, entry=entry)
    model, network = build_both(NetworkSpec.from_dict(card.structure), load)
    return model.eval(), network


@dataclass
class FloatModel:
    """The float model of a checkpoint, and its answers.

    Attributes:
        model: as the user gave it, in evaluation mode.
        network: the multi-bit network that is made of it.
        checkpoint: what is compared.
        inputs: normalised images, up to 256, evenly over those that are verified on.
        places: which of those they are, ascending.
        answers: the model's logits for them, ``(N, classes)``.
    """

    model: nn.Module
    network: MultiBitNetwork
    checkpoint: Checkpoint
    inputs: Floats
    places: NDArray[np.int64]
    answers: Floats

    @classmethod
    def open(cls, checkpoint: Checkpoint, weights: Path, images: ParityImages) -> FloatModel:
        """Builds the model, as `load_float` does, and lets it answer."""
        model, network = load_float(checkpoint.card, weights)
        import torch

        places = spread(len(images.inputs))
        inputs, answers = images.inputs[places], []
        with torch.inference_mode():
            for start in range(0, len(inputs), BATCH):
                answers.append(model(torch.from_numpy(inputs[start : start + BATCH])).numpy())
        return cls(model, network, checkpoint, inputs, places, np.concatenate(answers))

    def compare(self, logits: Floats) -> FidelityRecord:
        """How far a child's answers to `inputs`, ``(N, classes)``, are from the model's."""
        return compare(self.answers, logits, FLOAT_MODEL, TASKS[self.checkpoint.card.task])

    def first_layer(self, child: Child) -> str:
        """Where a child first goes wrong: in the rewrite, or in the numbers."""
        import torch

        from emqdeploy.quant.deploy import deployed_reference
        from emqdeploy.quant.faults import first_fault, rewritten

        some = torch.from_numpy(self.inputs[:BATCH])
        changed = rewritten(self.model, self.network, some)
        if changed is not None:
            return f"{changed}, in float already"
        return first_fault(self.network, deployed_reference(self.network, self.checkpoint.network, child), some).layer


@dataclass
class Origin:
    """What the children of a checkpoint are compared with, and what came out.

    Attributes:
        card: of the checkpoint.
        model: the float model, None where it is not at hand.
        judged: whether a child that is far from it is wrong: one that was made of it, on images of its data.
        missing: why the model is not at hand.
    """

    card: Card
    model: FloatModel | None
    judged: bool
    missing: str | None = None

    @classmethod
    def find(cls, checkpoint: Checkpoint, given: Path | None, folders: Sequence[Path], images: ParityImages) -> Origin:
        """Looks for the float model.

        Args:
            checkpoint: what was made.
            given: float weights that the user named; what is wrong with them is an error.
            folders: where else they may lie.
            images: what is compared on.
        """
        card, made_of_it = checkpoint.card, checkpoint.card.method == POST_TRAINING
        judged = made_of_it and not images.missing
        if given is not None:
            return cls(card, FloatModel.open(checkpoint, given, images), judged)
        if not made_of_it:
            return cls(card, None, judged)
        try:
            return cls(card, FloatModel.open(checkpoint, _left_behind(folders), images), judged)
        except EmqError as error:
            return cls(card, None, judged, str(error))

    def compare(self, child: Child, logits: Floats) -> dict[str, Any] | None:
        """How far a child is from what it was made from, as plain values; None where nobody knows.

        Without the float model that is what was measured when the child was made.

        Args:
            child: which one.
            logits: its answers to all images, ``(N, classes)``.
        """
        known = self.card.fidelity.get(child.name)
        found = known if self.model is None else self.model.compare(logits[self.model.places])
        if found is None:
            return None
        judged = is_held_to(child, found.against) and (self.judged or self.model is None)
        wrong = what_is_wrong(child, found) if judged else None
        where = self.model.first_layer(child) if wrong is not None and self.model is not None else None
        here = self.model is not None
        return {**found.to_dict(), "measured": here, "judged": judged, "wrong": wrong, "first_layer": where}


def _left_behind(folders: Sequence[Path]) -> Path:
    """The float weights that `quantize` left beside a checkpoint."""
    for folder in folders:
        if (folder / LATENT_FILE).is_file():
            return folder / LATENT_FILE
    raise EmqError(f"no {LATENT_FILE} lies beside the checkpoint; name the float weights with --pretrained FILE")
