"""What mixed children are worth, beside the uniform ones of the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn

from emqdeploy.errors import EmqError
from emqdeploy.format.card import POST_TRAINING, FidelityRecord
from emqdeploy.format.child import Child
from emqdeploy.format.emq import Checkpoint
from emqdeploy.format.grid import Floats
from emqdeploy.graph.fidelity import compare, spread
from emqdeploy.progress import Report
from emqdeploy.runtimes.test_images import TestSet, limited
from emqdeploy.training.batches import image_source
from emqdeploy.training.posttraining.given import batch_of
from emqdeploy.training.posttraining.judging import Verdict, answers, percent_right, verdict
from emqdeploy.workflows.baselines import LATENT_FILE
from emqdeploy.workflows.comparing import ParityImages
from emqdeploy.workflows.mixing.opening import Opened
from emqdeploy.workflows.origin import FloatModel

ALLOWED = 1.0
"""Points that a usable child may lose against the widest one."""


class Judge:
    """Compares children with the widest one on a few test images.

    Args:
        opened: the network.
    """

    def __init__(self, opened: Opened) -> None:
        test, pixels = opened.dataset.test, opened.dataset.preprocessing
        self.inputs: Floats = pixels.normalize(test.subset(spread(len(test))).images[:])
        self._batch, self._against = batch_of(pixels), f"child {opened.start.name}"
        self._wanted = self.logits(opened.widest)

    @torch.inference_mode()
    def logits(self, module: nn.Module) -> Floats:
        """Answers of a module to those images, ``(N, classes)``."""
        parts = torch.from_numpy(self.inputs).split(self._batch)
        return np.concatenate([module(part).numpy() for part in parts])

    def __call__(self, module: nn.Module) -> FidelityRecord:
        """How far a child's answers are from those of the widest."""
        return compare(self._wanted, self.logits(module), self._against)


@dataclass(frozen=True)
class Judged:
    """What all test images say.

    Attributes:
        accuracy: percent per child; empty where the classes are not known.
        verdicts: what each loses against the widest child.
        images: how many.
        whole: whether the accuracies are those of the network's own test set.
    """

    accuracy: dict[Child, float]
    verdicts: dict[Child, Verdict]
    images: int
    whole: bool


def judge_all(
    opened: Opened, modules: Mapping[Child, nn.Module], most: int | None, own: bool, report: Report
) -> Judged:
    """Judges new children, and the widest one, on test images.

    Args:
        opened: the network.
        modules: the new children, deployed.
        most: test images at most.
        own: whether the images are those of the network's own data set.
        report: receives progress.
    """
    dataset = opened.dataset
    test = limited(TestSet(dataset.name, dataset.test, tuple(dataset.classes), whole=True), most)
    source = image_source(test.split, dataset.preprocessing, "none", torch.device("cpu"))
    found = answers({opened.start: opened.widest, **modules}, source, batch_of(dataset.preprocessing), report)
    labels = np.asarray(test.split.labels) if opened.labelled else None
    wanted = found[opened.start].decided
    verdicts = {child: verdict(found[child].decided, wanted, labels, ALLOWED) for child in modules}
    accuracy = {} if labels is None else {child: percent_right(one.decided, labels) for child, one in found.items()}
    return Judged(accuracy, verdicts, len(test.split), test.whole and own)


def to_float_model(
    opened: Opened, checkpoint: Checkpoint, modules: Mapping[Child, nn.Module], judge: Judge
) -> dict[Child, FidelityRecord]:
    """How far children are from the float model that `quantize` left beside the file; empty where there is none."""
    weights = opened.path.parent / LATENT_FILE
    if checkpoint.card.method != POST_TRAINING or not Path(weights).is_file():
        return {}
    try:
        model = FloatModel.open(checkpoint, weights, ParityImages(judge.inputs, None, "test images"))
    except EmqError:
        return {}
    return {child: model.compare(judge.logits(module)) for child, module in modules.items()}


def with_results(
    checkpoint: Checkpoint, judged: Judged, fidelity: Mapping[Child, FidelityRecord], recipe: Mapping[str, Any]
) -> Checkpoint:
    """The checkpoint whose card knows the new children: what they reach, and how they were found."""
    card, names = checkpoint.card, {child.name for child in judged.verdicts}
    accuracy = {name: value for name, value in card.accuracy.items() if name not in names}
    records = {name: value for name, value in card.fidelity.items() if name not in names}
    if judged.whole:
        accuracy |= {child.name: round(judged.accuracy[child], 4) for child in judged.verdicts if judged.accuracy}
    records |= {child.name: found for child, found in fidelity.items()}
    trained = tuple(name for name in card.trained if name not in names)
    if card.method == POST_TRAINING:  # there it means: was asked for
        trained += tuple(child.name for child in judged.verdicts)
    known = dict(card.provenance.get("mixes", {})) | {name: dict(recipe) for name in names}
    new = msgspec.structs.replace(
        card, accuracy=accuracy, fidelity=records, trained=trained, provenance={**card.provenance, "mixes": known}
    )
    return Checkpoint(checkpoint.network, checkpoint.skeleton, new)
