"""A run that starts from trained weights is at least as good as these weights rounded without training."""

from __future__ import annotations

import io
from pathlib import Path

import safetensors.torch
from rich.console import Console

from emqdeploy.format.child import Child
from emqdeploy.format.emq import load_checkpoint
from emqdeploy.graph.fidelity import FLOAT_MODEL, TRAINED_NETWORK
from emqdeploy.training.api import TrainResult, train
from emqdeploy.training.config import TrainConfig
from emqdeploy.training.posttraining.config import QuantizeConfig
from emqdeploy.training.posttraining.quantize import quantize

TWO = Child.of(2)


def run(weights: Path, out: Path, bits: str, epochs: int, rate: float) -> tuple[TrainResult, str]:
    """Trains a moment from weights; returns what came of it, and what was said."""
    said = io.StringIO()
    config = TrainConfig(
        pretrained=weights, data="digits", model="resnet8", limit=600, bits=(bits,), epochs=epochs, learning_rate=rate
    )
    return train(config, out, console=Console(file=said, width=200)), said.getvalue()


def test_a_rate_that_destroys_leaves_what_rounding_gives(trained_digits: Path, tmp_path: Path) -> None:
    """As `quantize` makes it, and the float weights beside it are those that came."""
    result, said = run(trained_digits, tmp_path / "run", bits="2", epochs=1, rate=3.0)
    config = QuantizeConfig(trained_digits, "resnet8", "digits", bits=(2,), reconstruction="none")
    wanted = quantize(config, tmp_path / "quantized")
    assert "no epoch was as good as these weights rounded without training" in said
    assert result.accuracy[TWO] > wanted.accuracy[TWO] - 1.5
    assert result.fidelity[TWO].against == FLOAT_MODEL
    assert result.fidelity[TWO].snr_db > wanted.fidelity[TWO].snr_db - 1.5
    checkpoint = load_checkpoint(result.checkpoints[0])
    assert checkpoint.card.provenance["best_epoch"] == -1
    left = safetensors.torch.load_file(result.run / "latent.safetensors")
    came = safetensors.torch.load_file(trained_digits)
    assert all(left[name].equal(tensor) for name, tensor in came.items() if tensor.is_floating_point())


def test_epochs_that_are_better_count(trained_digits: Path, tmp_path: Path) -> None:
    """At one bit of weights and two of activations rounding leaves little, and training much."""
    result, said = run(trained_digits, tmp_path / "run", bits="1a2", epochs=3, rate=0.05)
    assert "no epoch" not in said
    assert result.fidelity[Child.of(1, 2)].against == TRAINED_NETWORK
