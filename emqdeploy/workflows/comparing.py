"""Comparing rungs with the integer reference: on which images, and what came out."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emqdeploy.data import Preprocessing
from emqdeploy.errors import EmqError
from emqdeploy.format.card import Card
from emqdeploy.format.child import Child
from emqdeploy.format.emq import Checkpoint
from emqdeploy.format.grid import Codes, Floats
from emqdeploy.format.tasks import TASKS
from emqdeploy.graph.floating import float_operators
from emqdeploy.graph.parity import Parity, explain_noise
from emqdeploy.graph.reference import CODES_SUFFIX, VALUES_SUFFIX, IntegerReference
from emqdeploy.runtimes.test_images import find_test_set
from emqdeploy.workflows.rungs import RUNGS, Rung

PARITY_IMAGES = 256
"""Test images that an export is proven on; `verify` takes more when asked."""

BATCH = 64


@dataclass(frozen=True)
class ParityImages:
    """What is compared on.

    Attributes:
        inputs: normalised, ``(N, C, H, W)``.
        labels: their classes, None where they have none.
        origin: where they are from, for people.
        missing: why they are no test images, empty where they are.
    """

    inputs: Floats
    labels: NDArray[Any] | None
    origin: str
    missing: str = ""


def parity_images(
    card: Card, count: int | None, data_dir: Path | None, data: str | None = None, path: Path | None = None
) -> ParityImages:
    """Returns test images as `find_test_set` finds them; noise where none are named and none are at hand.

    Args:
        card: of the network.
        count: how many; None takes all.
        data_dir: where the data set's files lie.
        data: other images than those of the network's own data set.
        path: the bundle, or a file in it.
    """
    preprocessing = Preprocessing.of(card.preprocessing)
    labels: NDArray[Any] | None = None
    missing = ""
    try:
        test = find_test_set(card, data, data_dir, path, labelled=False).split
        images = test.images[:count]
        labels = np.asarray(test.labels[:count]) if card.data.labelled and data is None else None
        origin = f"{len(images)} test images"
    except EmqError as error:
        if data is not None:
            raise
        missing = str(error)
        shape = (count or PARITY_IMAGES, *card.input_shape)
        images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
        origin = f"{len(images)} noise images, because the data set is not at hand"
    return ParityImages(preprocessing.normalize(images), labels, origin, missing)


@dataclass(frozen=True)
class Batch:
    """Some of the images, and what the integer reference answers.

    Attributes:
        inputs: normalised images.
        labels: their classes, None where they have none.
        logits: the reference's.
        codes: the reference's, by quantized tensor.
    """

    inputs: Floats
    labels: NDArray[Any] | None
    logits: Floats
    codes: dict[str, Codes]


def reference_batches(reference: IntegerReference, images: ParityImages) -> Iterator[Batch]:
    """Runs the reference on all images, batch by batch."""
    for start in range(0, len(images.inputs), BATCH):
        part = slice(start, start + BATCH)
        inputs = images.inputs[part]
        labels = None if images.labels is None else images.labels[part]
        yield Batch(inputs, labels, *reference.run(inputs))


@dataclass
class Compared:
    """A rung at work: how its answers differ from the reference's, over all batches so far."""

    rung: Rung
    reference: IntegerReference
    task: str
    parity: Parity = field(default_factory=Parity)
    _correct: int = 0
    _reference_correct: int = 0
    _labelled: bool = False

    def add(self, batch: Batch) -> None:
        """Runs the rung on a batch, or on as much of it as the rung may still get."""
        most = self.rung.most_images
        count = len(batch.inputs) if most is None else min(len(batch.inputs), most - self.parity.images)
        if count <= 0:
            return
        inputs = batch.inputs[:count]
        actual = self.rung.run(inputs)
        logits = batch.logits[:count]
        fresh = functools.partial(Parity, float_logits=self.reference.float_logits)
        parity, followed = fresh(), self.rung.followed
        if followed != "behind floats":
            # A runtime that shows no codes is compared by its logits.
            # The rows of some tensors are the tokens of all images, one image behind the other.
            share = {name: len(batch.codes[name]) // len(batch.inputs) for name in actual[1]}
            parity.add((logits, {name: batch.codes[name][: count * rows] for name, rows in share.items()}), actual)
        if followed == "behind floats" or (followed and self.rung.judge(parity, None) is not None):
            answers = self.reference.follow(inputs, actual[1], followed == "everywhere")
            parity, logits = fresh(), answers.logits
            parity.add_followed(answers, actual)
        explain_noise(parity, self.reference, inputs, logits)
        self.parity.merge(parity)
        if batch.labels is not None:
            task, labels = TASKS[self.task], batch.labels[:count]
            self._labelled = True
            self._correct += task.correct(actual[0], labels)
            self._reference_correct += task.correct(logits, labels)

    @property
    def accuracy_points(self) -> float | None:
        """How many points the accuracy differs from the reference's; None without labels."""
        if not self._labelled:
            return None
        return 100 * (self._correct - self._reference_correct) / max(self.parity.images, 1)

    @property
    def wrong(self) -> str | None:
        """What is wrong with the rung's answers, None where nothing is."""
        return self.rung.judge(self.parity, self.accuracy_points)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return self.parity.to_dict() | {
            "accuracy": 100 * self._correct / max(self.parity.images, 1) if self._labelled else None,
            "accuracy_points": self.accuracy_points,
            "wrong": self.wrong,
            "first_layer": layer_of(self.parity.first_difference),
        }


def layer_of(tensor: str | None) -> str | None:
    """The layer or site that a graph value belongs to."""
    return None if tensor is None else tensor.removesuffix(CODES_SUFFIX).removesuffix(VALUES_SUFFIX)


class Prover:
    """Compares rungs with the integer reference of one checkpoint; what the reference answers is kept.

    Args:
        checkpoint: what was exported.
        images: what is compared on.
        allow_float: accept layers that run in float.
        data_dir: where the data set's files lie.
    """

    def __init__(
        self, checkpoint: Checkpoint, images: ParityImages, allow_float: bool = False, data_dir: Path | None = None
    ) -> None:
        self.checkpoint, self.images, self.allow_float, self.data_dir = checkpoint, images, allow_float, data_dir
        self.float_ops = float_operators(checkpoint.skeleton)
        self._references: dict[Child, tuple[IntegerReference, list[Batch]]] = {}
        self._fused: dict[tuple[str, Child], Compared] = {}

    def compare(self, rung: Rung, child: Child) -> Compared:
        """Compares a rung on all images."""
        if child not in self._references:
            reference = IntegerReference(self.checkpoint.skeleton, self.checkpoint.network.initializers(child))
            self._references[child] = reference, list(reference_batches(reference, self.images))
        reference, batches = self._references[child]
        compared = Compared(rung, reference, self.checkpoint.card.task)
        for batch in batches:
            compared.add(batch)
        return compared

    def fused(self, child: Child, name: str = "onnxruntime") -> Compared:
        """Compares every code of every quantized tensor of the fused graph with the reference, once per child.

        An exported file shows its logits only, so the codes are read from the same graph with more outputs. Behind
        float operators the reference goes on with the graph's own codes.

        Args:
            child: which one.
            name: of the rung that runs that graph.
        """
        if (name, child) not in self._fused:
            rung = RUNGS[name](self.checkpoint, child)
            self._fused[name, child] = self.compare(rung, child)
            rung.close()
        return self._fused[name, child]
