"""One call from configuration to checkpoint."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from emqdeploy import __version__
from emqdeploy.checkpoint import Checkpoint, save_checkpoint
from emqdeploy.data import Dataset, Split, load_dataset, validation_split
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.grid import ALL_BITS
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.deploy import deployed_reference, freeze
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.quant.skeleton import export_skeleton
from emqdeploy.runs import CHECKPOINT_FILE
from emqdeploy.training.batches import ImageSource, image_source
from emqdeploy.training.config import FLOAT_NETWORK, TrainConfig
from emqdeploy.training.coreset import coreset_size
from emqdeploy.training.distributed import World
from emqdeploy.training.evaluate import accuracy, accuracy_per_bits
from emqdeploy.training.loop import Trainer
from emqdeploy.training.memory import keep_freed_memory
from emqdeploy.training.norms import NORM_ADAPTATIONS, calibrate, measure_input_means
from emqdeploy.training.pretrained import load_pretrained
from emqdeploy.training.run import RunDirectory

CALIBRATION_IMAGES = 2048
"""Training images, unaugmented, over which statistics are estimated after training."""

SMALL_IMAGE = 16
"""Pixels up to which operators are so short that handing work to a second thread costs more than it saves."""


@dataclass
class TrainResult:
    """What a run produced.

    Attributes:
        run: the run directory.
        trained_bits: the bit-widths that training visited.
        seconds: training time, without loading data and writing the checkpoint.
        sample_passes: images that went forward and backward, calibration included.
        checkpoints: the ``.emq`` file; one per bit-width where codes do not nest; none for the float network.
        accuracy: percent of the test set per stored bit-width, of the deployed network.
    """

    run: Path
    trained_bits: tuple[int, ...]
    seconds: float = 0.0
    sample_passes: int = 0
    checkpoints: list[Path] = field(default_factory=list)
    accuracy: dict[int, float] = field(default_factory=dict)

    def __iadd__(self, other: TrainResult) -> TrainResult:
        """Adds a part of the run."""
        self.seconds += other.seconds
        self.sample_passes += other.sample_passes
        self.checkpoints += other.checkpoints
        self.accuracy |= other.accuracy
        return self


@dataclass(frozen=True)
class Material:
    """A data set as training needs it, on the training device."""

    dataset: Dataset
    train: ImageSource
    validation: ImageSource
    test: ImageSource


def train(
    config: TrainConfig,
    out: Path,
    resume: bool = False,
    console: Console | None = None,
    report_test: bool = True,
    world: World | None = None,
) -> TrainResult:
    """Trains a multi-bit network, or one per bit-width, and writes checkpoints.

    Args:
        config: the run.
        out: the run directory.
        resume: continue the run in ``out`` exactly where it stopped.
        console: where progress goes; standard error by default.
        report_test: whether to measure accuracy on the test set; False takes the validation part, for choosing options.
        world: the processes that train together; all but the first return a result without checkpoints.
    """
    keep_freed_memory()
    world = world or World()
    console = console or Console(stderr=True, quiet=not world.leads)
    if config.ghost_batches % world.size and config.ghost_batches > 1:
        raise UsageError(
            f"--ghost-batches is {config.ghost_batches}, but {world.size} processes train; give a multiple of it"
        )
    parts = {out: config}
    if config.separate:
        parts = {out / f"w{bits}": replace(config, bits=(bits,), separate=False) for bits in config.bits}
    material = _material(config, report_test)
    if config.separate and not resume and world.leads:
        RunDirectory.create(out, config)
    result = TrainResult(out, config.bits)
    for path, part in parts.items():
        resumes = world.agree(resume and RunDirectory.holds_run(path))
        result += _train_one(part, path, resumes, console, material, world)
    return result


def _train_one(
    config: TrainConfig, out: Path, resume: bool, console: Console, material: Material, world: World
) -> TrainResult:
    """Trains one network."""
    dataset, images = material.dataset, material.train
    spec = network_spec(config, dataset)
    cores = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(config.threads or (1 if spec.input_shape[1] <= SMALL_IMAGE else cores))
    torch.manual_seed(config.seed)
    notes: list[str] = []
    network = spec.build(lambda model: notes.extend(_initial_weights(config, model)), users_code=True)
    for note in notes:
        console.print(note, highlight=False)
    if config.prune_rate > 0:  # refused before anything is written
        coreset_size(len(images), config.prune_rate, config.batch_size)
    run = RunDirectory(out, writes=False)
    if world.leads:
        run = RunDirectory.open(out, config)[0] if resume else RunDirectory.create(out, config)
    network.to(images.labels.device)
    if config.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.initialise_clips(images.plain(np.arange(min(4 * config.batch_size, len(images)))))
    trainer = Trainer(config, network, images, material.validation, len(dataset.classes), run, console, world)
    state = run.load_state() if resume else None
    if state is not None:
        trainer.restore(state)
    trainer.fit()
    progress = trainer.progress
    result = TrainResult(out, config.bits, progress.seconds, progress.sample_passes)
    if not world.leads:
        return result
    if config.calibrate_epochs:
        _calibrate(network, config, images, result, console)
    run.save_latent(network.float_state())
    if config.bits == FLOAT_NETWORK:
        result.accuracy = accuracy_per_bits(network, material.test, config.bits)
        return result
    for group in storage_groups(config):
        _write(group, network, spec, config, material, progress.best_epoch, result)
    return result


def _initial_weights(config: TrainConfig, model: torch.nn.Module) -> list[str]:
    return [] if config.pretrained is None else load_pretrained(model, Path(config.pretrained))


def _calibrate(
    network: MultiBitNetwork, config: TrainConfig, images: ImageSource, result: TrainResult, console: Console
) -> None:
    unseen = tuple(bits for bits in ALL_BITS if min(config.bits) < bits < max(config.bits) and bits not in config.bits)
    if not unseen:
        return
    console.print(f"calibrating the norms of {', '.join(map(str, unseen))} bits", highlight=False)
    started = time.perf_counter()
    rate = 0.1 * config.learning_rate
    passes = calibrate(network, images, unseen, config.calibrate_epochs, config.batch_size, rate, config.seed)
    result.seconds += time.perf_counter() - started
    result.sample_passes += passes


def training_device(config: TrainConfig) -> torch.device:
    """The device that a configuration asks for."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise EmqError("--device cuda: torch sees no GPU here; use --device cpu, or install a torch build for this GPU")
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(automatic if config.device == "auto" else config.device)


def _material(config: TrainConfig, report_test: bool) -> Material:
    dataset = load_dataset(config.data, _path(config.data_dir), config.image_size, config.limit)
    train_split, validation_split_ = validation_split(dataset.train)
    device = training_device(config)

    def source(split: Split) -> ImageSource:
        if len(split) == 0:
            raise UsageError(
                f"data set {dataset.name!r} has too few images for training, validation and test; add images"
            )
        augmentation = config.augment or dataset.augmentation
        return image_source(split, dataset.preprocessing, augmentation, device, config.workers)

    validation = source(validation_split_)
    return Material(dataset, source(train_split), validation, source(dataset.test) if report_test else validation)


def network_spec(config: TrainConfig, dataset: Dataset) -> NetworkSpec:
    """The network that a configuration trains on a data set."""
    pre = dataset.preprocessing
    shape = (pre.channels, pre.height, pre.width)
    return NetworkSpec(
        config.model, len(dataset.classes), shape, pre.input_range, tuple(sorted(config.bits)), config.insertion()
    )


def storage_groups(config: TrainConfig) -> list[tuple[int, ...]]:
    """Bit-widths that share one file: every one from the lowest to the highest trained, where codes nest.

    Rounded codes do not, so every bit-width that was trained or calibrated gets a file of its own.
    """
    everything = tuple(range(min(config.bits), max(config.bits) + 1))
    if config.insertion().weights.nested:
        return [everything]
    return [(bits,) for bits in (everything if config.calibrate_epochs else sorted(config.bits))]


def _write(
    widths: tuple[int, ...],
    network: MultiBitNetwork,
    spec: NetworkSpec,
    config: TrainConfig,
    material: Material,
    best_epoch: int,
    result: TrainResult,
) -> None:
    """Adapts the normalizations, freezes the network, measures what was frozen and writes it."""
    images = material.train.plain(np.arange(min(CALIBRATION_IMAGES, len(material.train))))
    batches = [batch for batch in images.split(256) if len(batch) > 1]
    measure_input_means(network, batches)
    NORM_ADAPTATIONS[config.norm_adaptation](network, batches, widths)
    network.cpu().eval()
    frozen = freeze(network, widths)
    device = images.device
    measured = {bits: accuracy(deployed_reference(network, frozen, bits).to(device), material.test) for bits in widths}
    result.accuracy |= measured
    name = CHECKPOINT_FILE if len(widths) > 1 or len(config.bits) == 1 else f"model-w{widths[0]}.emq"
    path = result.run / name
    dataset = material.dataset
    metadata: dict[str, Any] = {
        "network": spec.to_dict(),
        "data": {"name": config.data, "image_size": config.image_size},
        "classes": list(dataset.classes),
        "preprocessing": dataset.preprocessing.to_dict(),
        "trained_bits": [bits for bits in config.bits if bits in widths] or list(widths),
        "accuracy": {str(bits): round(percent, 4) for bits, percent in measured.items()},
        "recipe": config.to_dict(),
        "provenance": {
            "emqdeploy": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "best_epoch": best_epoch,
            "sample_passes": result.sample_passes,
            "seconds": round(result.seconds, 2),
        },
    }
    skeleton = export_skeleton(network, frozen, spec.input_shape)
    save_checkpoint(path, Checkpoint(frozen, skeleton, metadata))
    result.checkpoints.append(path)
    network.to(device)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
