"""One call from configuration to checkpoint."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from emqdeploy import __version__
from emqdeploy.checkpoint import Checkpoint, save_checkpoint
from emqdeploy.data import Dataset, Split, load_dataset, validation_split
from emqdeploy.errors import UsageError
from emqdeploy.quant.activations import FLOAT_BITS
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.deploy import deployed_reference, freeze
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.quant.skeleton import export_skeleton
from emqdeploy.runs import CHECKPOINT_FILE
from emqdeploy.training.config import TrainConfig
from emqdeploy.training.coreset import coreset_size
from emqdeploy.training.evaluate import accuracy, accuracy_per_bits
from emqdeploy.training.loop import Tensors, Trainer
from emqdeploy.training.norms import NORM_ADAPTATIONS, measure_input_means
from emqdeploy.training.run import RunDirectory

CALIBRATION_IMAGES = 2048
"""Training images, unaugmented, over which statistics are estimated after training."""

SMALL_IMAGE = 16
"""Pixels up to which operators are so short that handing work to a second thread costs more than it saves."""


@dataclass
class TrainResult:
    """What a run produced.

    Attributes:
        checkpoints: the ``.emq`` file; one per bit-width where codes do not nest; none for the float network.
        accuracy: percent of the test set per stored bit-width, of the deployed network.
        trained_bits: which of them training visited.
        seconds: training time, without loading data and writing the checkpoint.
        sample_passes: images that went forward and backward.
        run: the run directory.
    """

    run: Path
    trained_bits: tuple[int, ...]
    seconds: float
    sample_passes: int
    checkpoints: list[Path] = field(default_factory=list)
    accuracy: dict[int, float] = field(default_factory=dict)


def train(config: TrainConfig, out: Path, resume: bool = False, console: Console | None = None) -> TrainResult:
    """Trains a multi-bit network and writes its checkpoint.

    Args:
        config: the run; ignored where a run is resumed, which keeps its own.
        out: the run directory.
        resume: continue the run in ``out`` exactly where it stopped.
        console: where progress goes; standard error by default.
    """
    console = console or Console(stderr=True)
    run = RunDirectory(out)
    if resume:
        run, config = RunDirectory.open(out)
    dataset = load_dataset(config.data, _path(config.data_dir), config.image_size, config.limit)
    spec = network_spec(config, dataset)
    torch.set_num_threads(config.threads or (1 if spec.input_shape[1] <= SMALL_IMAGE else os.cpu_count() or 1))
    torch.manual_seed(config.seed)
    network = spec.build(users_code=True)
    train_split, validation = (_tensors(split, dataset) for split in validation_split(dataset.train))
    if config.prune_rate > 0:
        coreset_size(
            len(train_split.labels), config.prune_rate, config.batch_size
        )  # refused before anything is written
    if not resume:
        run = RunDirectory.create(out, config)
    network.initialise_clips(train_split.images[: 4 * config.batch_size])
    augmentation = config.augment or dataset.augmentation
    trainer = Trainer(config, network, train_split, validation, len(dataset.classes), augmentation, run, console)
    state = run.load_state() if resume else None
    if state is not None:
        trainer.restore(state)
    trainer.fit()
    result = TrainResult(out, config.bits, trainer.progress.seconds, trainer.progress.sample_passes)
    run.save_latent(network.float_state())
    test = _tensors(dataset.test, dataset)
    if config.bits == (FLOAT_BITS,):
        result.accuracy = accuracy_per_bits(network, test.images, test.labels, config.bits)
        return result
    for group in storage_groups(config):
        _write(group, network, spec, config, dataset, train_split, test, trainer, result)
    return result


def network_spec(config: TrainConfig, dataset: Dataset) -> NetworkSpec:
    """The network that a configuration trains on a data set."""
    pre = dataset.preprocessing
    shape = (pre.channels, pre.height, pre.width)
    return NetworkSpec(
        config.model, len(dataset.classes), shape, pre.input_range, tuple(sorted(config.bits)), config.insertion()
    )


def storage_groups(config: TrainConfig) -> list[tuple[int, ...]]:
    """Bit-widths that share one file: every one from the lowest to the highest trained, where codes nest."""
    if config.insertion().weights.nested:
        return [tuple(range(min(config.bits), max(config.bits) + 1))]
    return [(bits,) for bits in config.bits]


def _write(
    widths: tuple[int, ...],
    network: MultiBitNetwork,
    spec: NetworkSpec,
    config: TrainConfig,
    dataset: Dataset,
    train_split: Tensors,
    test: Tensors,
    trainer: Trainer,
    result: TrainResult,
) -> None:
    """Adapts the normalizations, freezes the network, measures what was frozen and writes it."""
    images = train_split.images[:CALIBRATION_IMAGES]
    batches = [batch for batch in images.split(256) if len(batch) > 1]
    measure_input_means(network, batches)
    NORM_ADAPTATIONS[config.norm_adaptation](network, batches, widths)
    frozen = freeze(network.eval(), widths)
    measured = {bits: accuracy(deployed_reference(network, frozen, bits), test.images, test.labels) for bits in widths}
    result.accuracy |= measured
    name = CHECKPOINT_FILE if len(widths) > 1 or len(config.bits) == 1 else f"model-w{widths[0]}.emq"
    path = result.run / name
    metadata: dict[str, Any] = {
        "network": spec.to_dict(),
        "data": {"name": config.data, "image_size": config.image_size},
        "classes": list(dataset.classes),
        "preprocessing": dataset.preprocessing.to_dict(),
        "trained_bits": [bits for bits in config.bits if bits in widths],
        "accuracy": {str(bits): round(percent, 4) for bits, percent in measured.items()},
        "recipe": config.to_dict(),
        "provenance": {
            "emqdeploy": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "best_epoch": trainer.progress.best_epoch,
            "sample_passes": trainer.progress.sample_passes,
            "seconds": round(trainer.progress.seconds, 2),
        },
    }
    skeleton = export_skeleton(network, frozen, spec.input_shape)
    save_checkpoint(path, Checkpoint(frozen, skeleton, metadata))
    result.checkpoints.append(path)


def _tensors(split: Split, dataset: Dataset) -> Tensors:
    if len(split) == 0:
        raise UsageError(f"data set {dataset.name!r} has too few images for training, validation and test; add images")
    images: Tensor = torch.from_numpy(dataset.preprocessing.normalize(split.images[:]))
    return Tensors(images, torch.from_numpy(split.labels))


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
