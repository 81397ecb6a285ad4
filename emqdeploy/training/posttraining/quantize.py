"""A multi-bit checkpoint from a trained float model and a few hundred images, without training."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from emqdeploy.data import Dataset, load_dataset
from emqdeploy.data.splits import stratified
from emqdeploy.data.workers import usable_cores
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.card import DataSource
from emqdeploy.format.child import FLOAT, Child, in_order
from emqdeploy.format.frozen import FrozenNetwork
from emqdeploy.format.runs import CHECKPOINT_FILE
from emqdeploy.progress import Report, silent
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.deploy import deployed_reference, freeze
from emqdeploy.quant.insertion import InsertionConfig
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.training.api import SMALL_IMAGE
from emqdeploy.training.batches import image_source
from emqdeploy.training.deployment import make_card, write_checkpoint
from emqdeploy.training.evaluate import accuracies
from emqdeploy.training.norms import measure_input_means
from emqdeploy.training.posttraining.clips import calibrate_clips
from emqdeploy.training.posttraining.config import FEWEST_IMAGES, QuantizeConfig
from emqdeploy.training.posttraining.stages import BIAS_CORRECTIONS, EQUALIZATIONS, STATISTICS
from emqdeploy.training.pretrained import load_pretrained
from emqdeploy.training.run import RunDirectory

BATCH = 128


@dataclass(frozen=True)
class QuantizeResult:
    """What quantization produced.

    Attributes:
        checkpoint: the ``.emq`` file.
        accuracy: percent of the test set per child, of the deployed network.
        float_accuracy: percent of the test set, of the model as it came.
        usable: the children that lose at most the allowed points.
        images: how many images calibrated.
        seconds: without loading and measuring.
        notes: what loading the weights had to say.
    """

    checkpoint: Path
    accuracy: dict[Child, float]
    float_accuracy: float
    usable: tuple[Child, ...]
    images: int
    seconds: float
    notes: list[str]


def quantize(config: QuantizeConfig, out: Path, report: Report = silent, threads: int | None = None) -> QuantizeResult:
    """Quantizes a trained float model and writes its checkpoint.

    Args:
        config: what to quantize and how.
        out: directory of the checkpoint; one that holds a checkpoint is refused.
        report: receives progress.
        threads: torch's threads; None takes one for tiny images, else every core.

    Raises:
        EmqError: the weights do not belong to the model, the data are missing or too few, or ``out`` cannot be written.
    """
    with RunDirectory(out).held():
        return _quantize(config, out, report, threads)


def _quantize(config: QuantizeConfig, out: Path, report: Report, threads: int | None) -> QuantizeResult:
    if (out / CHECKPOINT_FILE).exists():
        raise UsageError(f"{out} already holds a checkpoint; choose another --out")
    torch.manual_seed(config.seed)
    dataset = load_dataset(config.data, config.data_dir, config.image_size)
    pre = dataset.preprocessing
    torch.set_num_threads(threads or (1 if pre.height <= SMALL_IMAGE else usable_cores()))
    children = in_order(config.stored)
    # All of them count as trained here, because each gets clips of its own.
    shape, insertion = (pre.channels, pre.height, pre.width), InsertionConfig(keep_8bit=config.keep_8bit)
    spec = NetworkSpec(config.model, len(dataset.classes), shape, pre.input_range, children, insertion=insertion)
    notes: list[str] = []
    weights = config.weights
    network = spec.build(lambda model: notes.extend(load_pretrained(model, weights, fresh_head=False)), True).eval()
    for note in notes:
        report(note)
    batches = calibration_batches(dataset, config.images, config.seed)
    images = sum(map(len, batches))
    # The model as it came: equalization and statistics leave its function, but not its last bits, unchanged.
    test = image_source(dataset.test, pre, "none", torch.device("cpu"))
    report(f"accuracy of the float model on {len(dataset.test)} test images")
    float_accuracy = accuracies({FLOAT: network}, test)[FLOAT]
    if float_accuracy < 200 / len(dataset.classes):
        report(f"the float model reaches {float_accuracy:.1f} %: are these its weights, and its data and classes?")
    started = time.perf_counter()
    report(f"calibrating {len(children)} children on {images} training images")
    frozen = calibrate(network, batches, config)
    seconds = time.perf_counter() - started
    report(f"accuracy of {len(children)} children on {len(dataset.test)} test images")
    accuracy = accuracies({child: deployed_reference(network, frozen, child) for child in children}, test)
    usable = tuple(child for child, percent in accuracy.items() if percent >= float_accuracy - config.usable_drop)
    known = {"float_accuracy": round(float_accuracy, 4), "calibration_images": images, "seconds": round(seconds, 2)}
    source, asked = DataSource(config.data, config.image_size), in_order(config.trained)
    card = make_card(spec, dataset, source, asked, accuracy, config.to_dict(), known)
    path = write_checkpoint(out / CHECKPOINT_FILE, network, frozen, card)
    return QuantizeResult(path, accuracy, float_accuracy, usable, images, seconds, notes)


def calibrate(network: MultiBitNetwork, batches: list[Tensor], config: QuantizeConfig) -> FrozenNetwork:
    """Runs the chosen stages in their order on every child of the network, and returns the deployed numbers."""
    EQUALIZATIONS[config.equalization](network)
    calibrate_clips(network, batches, config.clips)
    measure_input_means(network, batches)
    STATISTICS[config.statistics](network, batches, network.known)
    return BIAS_CORRECTIONS[config.bias_correction](network, freeze(network.eval(), network.known), batches)


def calibration_batches(dataset: Dataset, images: int, seed: int) -> list[Tensor]:
    """Normalised training images ``(B, C, H, W)``, classes in proportion and mixed in every batch."""
    count = min(images, len(dataset.train))
    if count < FEWEST_IMAGES:
        raise EmqError(f"{dataset.name} has {count} training images; calibration needs {FEWEST_IMAGES} or more")
    chosen = np.random.default_rng(seed).permutation(stratified(dataset.train.labels, count, seed)[0])
    parts = np.array_split(chosen, -(-count // BATCH))
    return [torch.from_numpy(dataset.preprocessing.normalize(dataset.train.subset(part).images[:])) for part in parts]


def advice(config: QuantizeConfig, result: QuantizeResult) -> str:
    """Which children to use as they are, and how to get the others."""
    lost = [child for child in result.accuracy if child not in result.usable]
    lines = []
    if lost:
        top = in_order(config.trained)[-1]
        wanted = in_order({*lost, top})
        plain = ",".join(child.name for child in wanted if child not in config.children) or "none"
        named = " --children FILE" if any(child in config.children for child in wanted) else ""
        lost_names = ", ".join(child.name for child in lost)
        lines.append(f"more than {config.usable_drop:g} points lost at: {lost_names}; train from the same weights:")
        lines.append(
            f"      emqdeploy train --data {config.data} --model {config.model}"
            f" --pretrained {config.weights} --bits {plain}{named}"
        )
    if result.usable:
        run = result.checkpoint.parent
        lines.append(f"next: emqdeploy export {run} --bits {in_order(result.usable)[0].name} --target onnx")
        lines.append(f"      emqdeploy bench {run} --device cpu")
    return "\n".join(lines)
