"""Using a network here: its accuracy on a test set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from emqdeploy.data import Preprocessing, Split
from emqdeploy.format.child import ChildLike
from emqdeploy.format.grid import Floats
from emqdeploy.format.tasks import CLASSIFICATION
from emqdeploy.runtimes.source import describe, find_network, open_source, trust_own
from emqdeploy.runtimes.test_images import find_test_set

BATCH = 64


def measured_accuracy(
    network: Callable[[Floats], Floats],
    split: Split,
    preprocessing: Preprocessing,
    stop: Callable[[], bool] = lambda: False,
) -> float | None:
    """Percent of a split that a network classifies correctly; None when it was stopped on the way."""
    correct = 0
    for start in range(0, len(split), BATCH):
        if stop():
            return None
        images = preprocessing.normalize(split.images[start : start + BATCH])
        correct += CLASSIFICATION.correct(network(images), split.labels[start : start + BATCH])
    return 100.0 * correct / len(split)


def evaluate(
    path: Path | None,
    children: str | Sequence[ChildLike] | None,
    runtime: str,
    data_dir: Path | None,
    threads: int | None = None,
    model: str | None = None,
    data: str | None = None,
) -> dict[str, Any]:
    """Accuracy on the test set in a runtime, per child.

    Args:
        path: a run, checkpoint, bundle or exported file; None takes the latest run.
        children: those wanted, see `open_source`.
        runtime: its name.
        data_dir: where the data set's files lie.
        threads: threads inside an operator; None uses every core.
        model: the network's own function ``pkg.module:function``, named again so that torch may import it.
        data: other labelled images of the same classes: a data set by name.
    """
    if model is not None:
        trust_own(model, describe(find_network(path))[0])
    source = open_source(path, children, runtime, threads)
    network = source.runtime
    test = find_test_set(source.card, data, data_dir, source.path)
    accuracy = {}
    for child in source.children:
        network.use(child)
        accuracy[child.name] = measured_accuracy(network, test.split, source.preprocessing)
    return {
        "checkpoint": str(source.path),
        "runtime": network.name,
        "data": test.name,
        "images": len(test.split),
        "trained": list(source.card.trained),
        "method": source.card.method,
        "accuracy": accuracy,
        "unproven": network.unproven,
        "note": test.note,
    }
