"""Accuracy without training: `emqdeploy quantize` at every weight width, and what each of its steps is worth.

Float networks are trained over three seeds, on digits and on 6,000 images of Fashion-MNIST; each is quantized from 512
of its training images. Accuracy is that of the deployed network (integer weights and biases) on the whole test set;
``--ablate`` adds rows with one choice changed, on 2,000 test images. ``--floats`` keeps the float networks for a next
run.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks.common import arguments, by_width, earlier, show, write
from emqdeploy.data import Dataset, load_dataset
from emqdeploy.format.child import FLOAT, FLOAT_BITS, WEIGHT_BITS
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.deploy import deployed_reference
from emqdeploy.training.api import train
from emqdeploy.training.batches import image_source
from emqdeploy.training.config import TrainConfig
from emqdeploy.training.evaluate import accuracies
from emqdeploy.training.posttraining.config import QuantizeConfig
from emqdeploy.training.posttraining.quantize import calibrate, calibration_batches
from emqdeploy.training.pretrained import load_pretrained
from emqdeploy.training.run import RunDirectory

BOUND_POINTS = -1.0
"""What 4 to 8 bits may lose against the float network."""

FLOATS: dict[str, dict[str, Any]] = {
    "digits resnet8": {"data": "digits", "model": "resnet8", "epochs": 40},
    "fashion-mnist resnet8": {"data": "fashion-mnist", "model": "resnet8", "limit": 6000, "epochs": 12},
    "fashion-mnist resnet20": {"data": "fashion-mnist", "model": "resnet20", "limit": 6000, "epochs": 12},
}
ABLATION_TEST = 2000
DEFAULT = "rounded"
ABLATIONS: dict[str, dict[str, Any]] = {
    "reconstructed": {"reconstruction": "blocks"},
    "no equalization": {"equalization": "none"},
    "statistics: bits": {"statistics": "bits"},
    "statistics: float": {"statistics": "float"},
    "biases: none": {"bias_correction": "none"},
    "statistics: float, biases: none": {"statistics": "float", "bias_correction": "none"},
    **{f"clips: {choice}": {"clips": choice} for choice in ("majority", "max", "p99.99", "p99.9", "p99")},
    **{
        f"4-bit activations, clips: {choice}": {"clips": choice, "activation_bits": 4}
        for choice in ("mse", "majority", "max", "p99.99", "p99.9", "p99")
    },
    **{f"{count} images": {"images": count} for count in (64, 128, 2048)},
}


def float_network(name: str, seed: int, folder: Path, quick: bool) -> Path:
    """Trains a float network, or finds the one that an earlier run kept; returns its run directory."""
    out = folder / f"{name.replace(' ', '-')}-{seed}"
    if not (out / "latent.safetensors").exists():
        changes = dict(FLOATS[name]) | ({"epochs": 2, "limit": 1000} if quick else {})
        config = TrainConfig(**changes, bits=(FLOAT_BITS,), seed=seed)
        train(config, out, RunDirectory.holds_run(out), Console(file=io.StringIO()))
    return out


def measure(weights: Path, config: QuantizeConfig, dataset: Dataset) -> dict[str, float]:
    """Accuracy per weight width, and of the float network, without writing a checkpoint."""
    pre = dataset.preprocessing
    shape = (pre.channels, pre.height, pre.width)
    spec = NetworkSpec(config.model, len(dataset.classes), shape, pre.input_range, config.trained)
    network = spec.build(lambda model: load_pretrained(model, weights)).eval()
    test = image_source(dataset.test, pre, "none", torch.device("cpu"))
    found = accuracies({FLOAT: network}, test)
    frozen = calibrate(network, calibration_batches(dataset, config.images, config.seed), config)
    found |= accuracies({child: deployed_reference(network, frozen, child) for child in frozen.children}, test)
    return by_width(found)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = arguments(__doc__, "quantize")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ablate", action="store_true", help="add rows with one choice changed (takes long)")
    parser.add_argument("--resnet20", action="store_true", help="add ResNet-20 (its float networks take long)")
    parser.add_argument("--resume", action="store_true", help="keep the rows that the report has")
    parser.add_argument("--floats", type=Path, metavar="DIR", help="keep the float networks here, and reuse them")
    options = parser.parse_args(argv)
    seeds = 1 if options.quick else options.seeds
    settings = {"bound_points": BOUND_POINTS, "seeds": seeds}
    rows = earlier(options.json, settings) if options.resume else []
    known = {(entry["network"], entry["row"]) for entry in rows}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.floats or Path(temporary)
        for name in FLOATS if options.resnet20 else list(FLOATS)[:2]:
            trained = FLOATS[name]
            dataset = load_dataset(trained["data"], limit=trained.get("limit"))
            part = replace(dataset, test=dataset.test.subset(np.arange(min(ABLATION_TEST, len(dataset.test)))))
            base = QuantizeConfig(
                folder, trained["model"], trained["data"], bits=tuple(WEIGHT_BITS), reconstruction="none"
            )
            wanted = {DEFAULT: (base, part if options.quick else dataset)}
            if options.ablate:
                wanted |= {f"{DEFAULT}, {len(part.test)} test images": (base, part)}
                wanted |= {row: (replace(base, **changes), part) for row, changes in ABLATIONS.items()}
            wanted = {row: chosen for row, chosen in wanted.items() if (name, row) not in known}
            if not wanted:
                continue
            paths = [float_network(name, seed, folder, options.quick) for seed in range(seeds)]
            for row, (config, data) in wanted.items():
                runs = [measure(path, replace(config, seed=seed), data) for seed, path in enumerate(paths)]
                rows.append({"network": name, "row": row, "test_images": len(data.test), "runs": runs})
                write(options.json, "quantize", options.quick, rows, **settings)
    table = []
    for entry in rows:
        means = {bits: np.mean([run[bits] for run in entry["runs"]]) for bits in entry["runs"][0]}
        cells = [f"{means[str(bits)]:.2f}" for bits in (*WEIGHT_BITS, FLOAT_BITS)]
        table.append((entry["network"], entry["row"], len(entry["runs"]), *cells))
    columns = ("network", "row", "seeds", *(f"{bits}b" for bits in WEIGHT_BITS), "float")
    show("Test accuracy without training, percent", columns, table)
    for entry in rows:
        if entry["row"] == DEFAULT:
            worst = {bits: min(run[str(bits)] - run["32"] for run in entry["runs"]) for bits in WEIGHT_BITS}
            held = all(worst[bits] >= BOUND_POINTS for bits in range(4, 9))
            shown = ", ".join(f"{bits}: {points:+.2f}" for bits, points in worst.items())
            state = "holds" if held else "MISSED"
            print(f"{entry['network']}: worst seed minus float {shown}; bound {BOUND_POINTS} for 4..8: {state}")


if __name__ == "__main__":
    main()
