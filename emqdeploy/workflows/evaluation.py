"""Accuracy on a test set: of every child in a runtime, and of the user's float network that they were made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emqdeploy.data import Preprocessing
from emqdeploy.errors import EmqError
from emqdeploy.format.card import POST_TRAINING, Card
from emqdeploy.format.child import ChildLike
from emqdeploy.format.grid import Floats
from emqdeploy.runtimes import use
from emqdeploy.runtimes.source import describe, find_network
from emqdeploy.runtimes.test_images import find_test_set
from emqdeploy.workflows.baselines import LATENT_FILE
from emqdeploy.workflows.origin import load_float


def evaluate(
    path: Path | None,
    children: str | Sequence[ChildLike] | None,
    runtime: str,
    data_dir: Path | None,
    threads: int | None = None,
    model: str | None = None,
    data: str | None = None,
) -> dict[str, Any]:
    """What `emqdeploy.runtimes.use.evaluate` measures, and ``float_accuracy``: percent of the float network in torch.

    That is None, and ``float_missing`` says why, unless the children were quantized without training and the weights
    lie beside them: after training there is no other network to compare with.
    """
    result = use.evaluate(path, children, runtime, data_dir, threads, model, data)
    result |= {"float_accuracy": None, "float_missing": None}
    card, weights = describe(find_network(path))[0], _weights_beside(Path(result["checkpoint"]))
    if card.method == POST_TRAINING and weights is not None:
        try:
            result["float_accuracy"] = _float_accuracy(card, weights, data, data_dir, Path(result["checkpoint"]))
        except EmqError as error:
            result["float_missing"] = f"the float network was not measured: {error}"
    return result


def _weights_beside(network: Path) -> Path | None:
    """The float weights in the run directory of a checkpoint, of a bundle or of a file in one."""
    found = (folder / LATENT_FILE for folder in (network, *network.parents[:2]))
    return next((weights for weights in found if weights.is_file()), None)


def _float_accuracy(card: Card, weights: Path, data: str | None, data_dir: Path | None, network: Path) -> float | None:
    model, _ = load_float(card, weights)
    import torch

    def answer(images: Floats) -> Floats:
        with torch.inference_mode():
            logits: Floats = model(torch.from_numpy(images)).numpy()
        return logits

    test = find_test_set(card, data, data_dir, network)
    return use.measured_accuracy(answer, test.split, Preprocessing.of(card.preprocessing))
