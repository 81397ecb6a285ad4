"""Parity at every weight width 1..8 and several activation widths, for a small trained network of every family.

Fused onnxruntime against the integer reference: 0 differing codes, and behind float operators (transformers) codes that
differ by a rounding at most, counted apart. The torch forward and onnxruntime without optimisation: no arg-max flip
where the top two logits are more than 1 % of the logit range apart; codes that differ, steps and flips are reported.
OpenVINO, which rounds in its own way: at most 0.5 % of the images change their class where the two logits are so far
apart, and the accuracy stays within 0.3 points.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common import arguments, show, write
from emqdeploy.training.api import train
from emqdeploy.training.config import TrainConfig
from emqdeploy.workflows.verify import verify

FAMILIES = {
    "resnet8": "residual",
    "preact-resnet8": "pre-activation",
    "mobilenet-micro": "depthwise",
    "vit-micro": "transformer",
}

RUNGS = ("onnxruntime", "torch", "unfused")


def measure(model: str, setting: str, quick: bool, images: int) -> list[dict[str, Any]]:
    """Trains one network on the digits and verifies every stored child of it."""
    activation_bits = setting if setting == "same" else int(setting)
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            model=model, activation_bits=activation_bits, epochs=1 if quick else 8, limit=200 if quick else None
        )
        result = train(config, Path(folder) / "run", console=Console(file=io.StringIO()))
        verified = verify(result.checkpoints[0], bits=(1, 8) if quick else None, count=images)
    accuracy = {child.name: percent for child, percent in result.accuracy.items()}
    return [
        {
            "model": model,
            "family": FAMILIES.get(model, model),
            **{key: entry[key] for key in ("child", "bits")},
            "activation_bits": activation_bits,
            "images": verified["images"],
            "accuracy": accuracy[entry["child"]],
            **{key: entry[key] for key in ("integer_layers", "layers")},
            "ok": all(entry["rungs"][name]["wrong"] is None for name in RUNGS),
            "rungs": {name: entry["rungs"][name] for name in RUNGS},
            "openvino": entry["rungs"].get("openvino"),
        }
        for entry in verified["results"]
    ]


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table."""
    fused, *loose = (row["rungs"][name] for name in RUNGS)
    return (
        row["family"],
        f"W{row['bits']}A{row['activation_bits']}",
        f"{row['accuracy']:.2f} %",
        f"{row['integer_layers']} of {row['layers']}",
        f"{fused['differing_codes']} of {fused['codes']}",
        f"{fused['differing_rounded']} of {fused['rounded']}" if fused["rounded"] else "-",
        *(f"{rung['differing_codes']}, {rung['max_step_error']}, {rung['flips']}" for rung in loose),
        _openvino(row["openvino"]),
        str(row["ok"]),
    )


def _openvino(rung: dict[str, Any] | None) -> str:
    """Share of images with the reference's class, points of accuracy, and whether that is close enough."""
    if rung is None:
        return "not here"
    points = f", {rung['accuracy_points']:+.2f}" if rung["accuracy_points"] is not None else ""
    return f"{100 * rung['top1_agreement']:.2f} %{points}{'' if rung['wrong'] is None else ' MISSED'}"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = arguments(__doc__, "parity")
    parser.add_argument("--models", nargs="+", default=list(FAMILIES))
    parser.add_argument("--act-bits", nargs="+", default=None, help="8, 4 and same by default")
    parser.add_argument("--images", type=int, default=128, help="test images compared")
    options = parser.parse_args(argv)
    settings = options.act_bits or (["8"] if options.quick else ["8", "4", "same"])
    rows = [
        row
        for model in options.models
        for setting in settings
        for row in measure(model, setting, options.quick, options.images)
    ]
    columns = (
        *("family", "bits", "accuracy", "integer layers", "fused: codes differ", "behind float operators"),
        *("torch: codes, step, flips", "unfused", "OpenVINO: same class", "ok"),
    )
    show(f"Parity with the integer reference, {rows[0]['images']} of digits", columns, [cells(row) for row in rows])
    write(options.json, "parity", options.quick, rows)


if __name__ == "__main__":
    main()
