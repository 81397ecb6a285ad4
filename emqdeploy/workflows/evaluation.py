"""Accuracy of the user's float network, beside that of the children that were made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emqdeploy.data import Preprocessing
from emqdeploy.errors import EmqError
from emqdeploy.format.card import POST_TRAINING, Card
from emqdeploy.format.grid import Floats
from emqdeploy.runtimes.source import describe
from emqdeploy.runtimes.test_images import find_test_set
from emqdeploy.runtimes.use import measured_accuracy
from emqdeploy.workflows.baselines import LATENT_FILE
from emqdeploy.workflows.origin import load_float


def float_beside(result: dict[str, Any], data: str | None, data_dir: Path | None) -> dict[str, Any]:
    """What stands beside the children in a result of `emqdeploy.runtimes.use.evaluate`.

    Args:
        result: of the children.
        data: the images, as they were asked for there.
        data_dir: where the data set's files lie.

    Returns:
        ``float_accuracy``, percent of the float network in torch, and ``float_missing``, why it could not be measured.
        Both are None unless the children were quantized without training and the weights lie beside them: after
        training there is no other network to compare with.
    """
    network = Path(result["checkpoint"])
    card, weights = describe(network)[0], _weights_beside(network)
    if card.method != POST_TRAINING or weights is None:
        return {"float_accuracy": None, "float_missing": None}
    try:
        return {"float_accuracy": _float_accuracy(card, weights, data, data_dir, network), "float_missing": None}
    except EmqError as error:
        return {"float_accuracy": None, "float_missing": f"the float network was not measured: {error}"}


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
    return measured_accuracy(answer, test.split, Preprocessing.of(card.preprocessing))
