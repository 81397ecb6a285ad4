"""A multi-bit checkpoint from a trained float model and a few hundred images, without training."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from emqdeploy import __version__
from emqdeploy.bits import check_bits
from emqdeploy.checkpoint import Checkpoint, save_checkpoint
from emqdeploy.data import Dataset, load_dataset
from emqdeploy.data.splits import stratified
from emqdeploy.errors import EmqError, UsageError, writable_dir
from emqdeploy.frozen import FrozenNetwork
from emqdeploy.progress import Report, silent
from emqdeploy.quant.activations import FLOAT_BITS
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.deploy import deployed_reference, freeze
from emqdeploy.quant.insertion import InsertionConfig
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.quant.skeleton import export_skeleton
from emqdeploy.runs import CHECKPOINT_FILE
from emqdeploy.training.api import SMALL_IMAGE
from emqdeploy.training.batches import ImageSource, image_source
from emqdeploy.training.clips import CLIP_CHOICES, calibrate_clips
from emqdeploy.training.norms import measure_input_means
from emqdeploy.training.posttraining import BIAS_CORRECTIONS, EQUALIZATIONS, STATISTICS
from emqdeploy.training.pretrained import load_pretrained

BATCH = 128
FEWEST_IMAGES = 16


@dataclass(frozen=True)
class QuantizeConfig:
    """One quantization of a trained model.

    Attributes:
        weights: the float weights, or a run directory.
        model: name of the model that they belong to.
        data: name of a data set; its training images calibrate, its test images measure.
        data_dir: where its files lie.
        image_size: height and width of image files.
        bits: weight bit-widths; everything between the lowest and the highest is stored too.
        activation_bits: 2..8, or ``same`` to follow the weight bits.
        images: how many training images calibrate.
        clips: how activation clips are chosen, a name in `CLIP_CHOICES`.
        equalization: what is done to the weights before, a name in `EQUALIZATIONS`.
        statistics: normalization statistics per bit-width, a name in `STATISTICS`.
        bias_correction: what is done to the biases after, a name in `BIAS_CORRECTIONS`.
        keep_8bit: layers that stay at 8 bits.
        usable_drop: accuracy in points that a usable bit-width may lose against the float model.
        seed: which images calibrate.
    """

    weights: str
    model: str
    data: str
    data_dir: str | None = None
    image_size: int | None = None
    bits: tuple[int, ...] = (4, 5, 6, 7, 8)
    activation_bits: int | str = 8
    images: int = 512
    clips: str = "mse"
    equalization: str = "peak"
    statistics: str = "matched"
    bias_correction: str = "mean"
    keep_8bit: tuple[str, ...] = ("first", "last")
    usable_drop: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks every value; the message names the command-line flag."""
        check_bits(self.bits)
        if self.activation_bits != "same" and self.activation_bits not in range(2, 9):
            raise UsageError(
                f"--act-bits is {self.activation_bits}; allowed: 2..8, or 'same' to follow the weight bits"
            )
        if self.images < FEWEST_IMAGES:
            raise UsageError(f"--images is {self.images}; statistics need at least {FEWEST_IMAGES}, 512 serve well")
        if not self.usable_drop >= 0:
            raise UsageError(f"--usable-drop is {self.usable_drop}; give points of accuracy, 0 or more")
        # Looking a name up raises the sentence that lists the known ones.
        CLIP_CHOICES[self.clips]
        EQUALIZATIONS[self.equalization]
        STATISTICS[self.statistics]
        BIAS_CORRECTIONS[self.bias_correction]

    @property
    def widths(self) -> tuple[int, ...]:
        """The stored bit-widths, ascending."""
        return tuple(range(min(self.bits), max(self.bits) + 1))

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return {"method": "post-training", **asdict(self)}


@dataclass(frozen=True)
class QuantizeResult:
    """What quantization produced.

    Attributes:
        checkpoint: the ``.emq`` file.
        accuracy: percent of the test set per bit-width, of the deployed network.
        float_accuracy: percent of the test set, of the model as it came.
        usable: the bit-widths that lose at most the allowed points.
        images: how many images calibrated.
        seconds: without loading and measuring.
        notes: what loading the weights had to say.
    """

    checkpoint: Path
    accuracy: dict[int, float]
    float_accuracy: float
    usable: tuple[int, ...]
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
    if (out / CHECKPOINT_FILE).exists():
        raise UsageError(f"{out} already holds a checkpoint; choose another --out")
    torch.manual_seed(config.seed)
    dataset = load_dataset(config.data, _path(config.data_dir), config.image_size)
    pre = dataset.preprocessing
    torch.set_num_threads(threads or (1 if pre.height <= SMALL_IMAGE else os.cpu_count() or 1))
    spec = NetworkSpec(
        config.model,
        len(dataset.classes),
        (pre.channels, pre.height, pre.width),
        pre.input_range,
        config.widths,
        InsertionConfig(activation_bits=config.activation_bits, keep_8bit=config.keep_8bit),
    )
    notes: list[str] = []
    weights = Path(config.weights)
    network = spec.build(lambda model: notes.extend(load_pretrained(model, weights, fresh_head=False)), True).eval()
    for note in notes:
        report(note)
    batches = calibration_batches(dataset, config.images, config.seed)
    images = sum(map(len, batches))
    writable_dir(out)
    # The model as it came: equalization and statistics leave its function, but not its last bits, unchanged.
    test = image_source(dataset.test, pre, "none", torch.device("cpu"))
    report(f"accuracy of the float model on {len(dataset.test)} test images")
    float_accuracy = accuracies({FLOAT_BITS: network}, test)[FLOAT_BITS]
    if float_accuracy < 200 / len(dataset.classes):
        report(f"the float model reaches {float_accuracy:.1f} %: are these its weights, and its data and classes?")
    started = time.perf_counter()
    report(f"calibrating {len(config.widths)} bit-widths on {images} training images")
    frozen = calibrate(network, batches, config)
    seconds = time.perf_counter() - started
    report(f"accuracy of {len(config.widths)} bit-widths on {len(dataset.test)} test images")
    accuracy = accuracies({bits: deployed_reference(network, frozen, bits) for bits in config.widths}, test)
    usable = tuple(bits for bits, percent in accuracy.items() if percent >= float_accuracy - config.usable_drop)
    metadata: dict[str, Any] = {
        "network": spec.to_dict(),
        "data": {"name": config.data, "image_size": config.image_size},
        "classes": list(dataset.classes),
        "preprocessing": pre.to_dict(),
        "trained_bits": sorted(config.bits),
        "accuracy": {str(bits): round(percent, 4) for bits, percent in accuracy.items()},
        "recipe": config.to_dict(),
        "provenance": {
            "emqdeploy": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "float_accuracy": round(float_accuracy, 4),
            "calibration_images": images,
            "seconds": round(seconds, 2),
        },
    }
    path = out / CHECKPOINT_FILE
    save_checkpoint(path, Checkpoint(frozen, export_skeleton(network, frozen, spec.input_shape), metadata))
    return QuantizeResult(path, accuracy, float_accuracy, usable, images, seconds, notes)


def calibrate(network: MultiBitNetwork, batches: list[Tensor], config: QuantizeConfig) -> FrozenNetwork:
    """Runs the chosen steps in their order and returns the deployed numbers."""
    EQUALIZATIONS[config.equalization](network)
    calibrate_clips(network, batches, config.clips)
    measure_input_means(network, batches)
    STATISTICS[config.statistics](network, batches, config.widths)
    return BIAS_CORRECTIONS[config.bias_correction](network, freeze(network.eval(), config.widths), batches)


def calibration_batches(dataset: Dataset, images: int, seed: int) -> list[Tensor]:
    """Normalised training images ``(B, C, H, W)``, classes in proportion and mixed in every batch."""
    count = min(images, len(dataset.train))
    if count < FEWEST_IMAGES:
        raise EmqError(f"{dataset.name} has {count} training images; calibration needs {FEWEST_IMAGES} or more")
    chosen = np.random.default_rng(seed).permutation(stratified(dataset.train.labels, count, seed)[0])
    parts = np.array_split(chosen, -(-count // BATCH))
    return [torch.from_numpy(dataset.preprocessing.normalize(dataset.train.subset(part).images[:])) for part in parts]


@torch.inference_mode()
def accuracies(modules: dict[int, nn.Module], test: ImageSource) -> dict[int, float]:
    """Percent that each module classifies correctly; every image is decoded once for all of them."""
    correct = dict.fromkeys(modules, 0)
    for start in range(0, len(test), BATCH):
        indices = np.arange(start, min(start + BATCH, len(test)))
        images, labels = test.plain(indices), test.labels[start : start + BATCH]
        for bits, module in modules.items():
            correct[bits] += int((module(images).argmax(1) == labels).sum())
    return {bits: 100.0 * count / len(test) for bits, count in correct.items()}


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
