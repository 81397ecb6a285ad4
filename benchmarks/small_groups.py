"""Depthwise layers: stay at 8 bits, or switch with the layer's statistics? Digits, a depthwise-separable net, 3 seeds.

A depthwise 3x3 has 9 weights per channel: a mean and a norm of its own would cost 7 bits a weight, and at 1 bit every
twelfth channel has a single code. The two choices that are left are measured side by side; what 8 bits cost in storage
stands beside the accuracy.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from torch import nn

from benchmarks.common import arguments, by_width, show, write
from emqdeploy.format.emq import load_checkpoint
from emqdeploy.models.registry import model
from emqdeploy.training.api import train
from emqdeploy.training.config import TrainConfig


@model("separable8")
def separable8(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """A stem, three depthwise-separable blocks with ReLU6, and a head."""

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        return [
            *(depthwise, nn.BatchNorm2d(inputs), nn.ReLU6()),
            *(pointwise, nn.BatchNorm2d(outputs), nn.ReLU6()),
        ]

    stem: list[nn.Module] = [nn.Conv2d(in_channels, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()]
    body = [*block(32, 64, 1), *block(64, 64, 2), *block(64, 128, 1)]
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, num_classes))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = arguments(__doc__, "small_groups")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    for choice in ("pin", "layer"):
        accuracies, sizes = [], {}
        for seed in range(1 if options.quick else options.seeds):
            config = TrainConfig(
                model="separable8",
                epochs=2 if options.quick else 15,
                small_groups=choice,
                seed=seed,
                learning_rate=0.05,
            )
            with tempfile.TemporaryDirectory() as folder:
                result = train(config, Path(folder) / "run", console=Console(file=io.StringIO()))
                accuracies.append(by_width(result.accuracy))
                path = result.checkpoints[0]
                sizes = {str(bits): load_checkpoint(path, bits).bytes_read for bits in (1, 4)}
        rows.append({"depthwise": choice, "accuracy": accuracies, "bytes_to_load": sizes})
    table = []
    for row in rows:
        means = [np.mean([accuracy[str(bits)] for accuracy in row["accuracy"]]) for bits in range(1, 9)]
        table.append((row["depthwise"], *(f"{mean:.2f}" for mean in means), row["bytes_to_load"]["1"]))
    columns = ("depthwise layers", *(f"{bits}b" for bits in range(1, 9)), "bytes at 1 bit")
    show("Test accuracy, percent (trained 1, 2, 4, 8)", columns, table)
    write(options.json, "small_groups", options.quick, rows)


if __name__ == "__main__":
    main()
