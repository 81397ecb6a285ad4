"""A multi-bit checkpoint from a trained float model and a few hundred images, without training."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from emqdeploy.data import Dataset, load_dataset
from emqdeploy.data.splits import stratified
from emqdeploy.data.workers import usable_cores
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.card import DataSource, FidelityRecord
from emqdeploy.format.child import FLOAT, Child, in_order
from emqdeploy.format.frozen import UNIT_SUFFIX, FrozenNetwork
from emqdeploy.format.runs import CHECKPOINT_FILE
from emqdeploy.graph.fidelity import FLOAT_MODEL
from emqdeploy.progress import Report, silent
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.deploy import deployed_reference, freeze
from emqdeploy.quant.insertion import InsertionConfig
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.quant.proof import prove
from emqdeploy.training.api import SMALL_IMAGE
from emqdeploy.training.batches import image_source
from emqdeploy.training.deployment import make_card, write_checkpoint
from emqdeploy.training.evaluate import accuracies
from emqdeploy.training.fidelity import build_both, check_rewrite, find_wrong, measure_fidelity
from emqdeploy.training.norms import measure_input_means
from emqdeploy.training.posttraining.clips import calibrate_clips
from emqdeploy.training.posttraining.config import FEWEST_IMAGES, QuantizeConfig
from emqdeploy.training.posttraining.reconstruction import RECONSTRUCTIONS, LearnedWeights
from emqdeploy.training.posttraining.stages import BIAS_CORRECTIONS, EQUALIZATIONS, STATISTICS
from emqdeploy.training.pretrained import load_pretrained
from emqdeploy.training.run import RunDirectory

BATCH, BATCH_PIXELS = 128, 2**20
"""Images and pixels of a calibration batch at most: what a network computes in between fills the memory."""


@dataclass(frozen=True)
class QuantizeResult:
    """What quantization produced.

    Attributes:
        checkpoint: the ``.emq`` file; None where it was not written, because it is wrong.
        accuracy: percent of the test set per child, of the deployed network.
        float_accuracy: percent of the test set, of the model as it came.
        usable: the children that lose at most the allowed points.
        images: how many images calibrated.
        seconds: without loading and measuring.
        notes: what loading the weights had to say.
        fidelity: per child, how far its answers are from the float model's.
        wrong: why the 8-bit child is not the float model, and what to do; None where it is.
    """

    checkpoint: Path | None
    accuracy: dict[Child, float]
    float_accuracy: float
    usable: tuple[Child, ...]
    images: int
    seconds: float
    notes: list[str]
    fidelity: dict[Child, FidelityRecord]
    wrong: str | None = None


def quantize(config: QuantizeConfig, out: Path, report: Report = silent, threads: int | None = None) -> QuantizeResult:
    """Quantizes a trained float model and writes its checkpoint, with the float weights beside it.

    An 8-bit child that is too far from the float model is a fault; unless the configuration accepts it, nothing is
    written, and the result says where it goes wrong.

    Args:
        config: what to quantize and how.
        out: directory of the checkpoint; one that holds a checkpoint is refused.
        report: receives progress.
        threads: torch's threads; None takes one for tiny images, else every core.

    Raises:
        EmqError: the weights do not belong to the model, which was changed by tracing it, the data are missing or too
            few, or ``out`` cannot be written.
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
    shape = (pre.channels, pre.height, pre.width)
    insertion = InsertionConfig(keep_8bit=config.keep_8bit, keep_float=config.keep_float, levels=config.levels)
    spec = NetworkSpec(config.model, len(dataset.classes), shape, pre.input_range, children, insertion=insertion)
    notes: list[str] = []
    load = partial(load_pretrained, path=config.weights, fresh_head=False, entry=config.weights_entry)
    model, network = build_both(spec, lambda model: notes.extend(load(model)), users_code=True)
    model.eval()
    network.eval()
    for note in (*dataset.notes, *notes, *network.notes):
        report(note)
    batches = calibration_batches(dataset, config.images, config.seed)
    images = sum(map(len, batches))
    check_rewrite(config.model, model, network, batches[0])
    prove(network, shape)
    test = image_source(dataset.test, pre, "none", torch.device("cpu"))
    report(f"accuracy of the float model on {len(dataset.test)} test images")
    float_accuracy = accuracies({FLOAT: model}, test)[FLOAT]
    if float_accuracy < 200 / len(dataset.classes):
        report(f"the float model reaches {float_accuracy:.1f} %: are these its weights, and its data and classes?")
    started = time.perf_counter()
    report(f"calibrating {len(children)} children on {images} training images")
    frozen = calibrate(network, batches, config, report)
    seconds = time.perf_counter() - started
    report(f"accuracy of {len(children)} children on {len(dataset.test)} test images")
    deployed = {child: deployed_reference(network, frozen, child) for child in children}
    accuracy = accuracies(deployed, test)
    usable = tuple(child for child, percent in accuracy.items() if percent >= float_accuracy - config.usable_drop)
    fidelity = measure_fidelity(dict.fromkeys(children, model), deployed, test, FLOAT_MODEL)
    found = find_wrong(fidelity, network, deployed, test)
    path = None
    if found is None or config.accept_difference:
        known = {"float_accuracy": round(float_accuracy, 4), "calibration_images": images, "seconds": round(seconds, 2)}
        source, asked = DataSource(config.data, config.image_size), in_order(config.trained)
        card = make_card(spec, dataset, source, asked, accuracy, fidelity, config.to_dict(), known)
        # Copies, because a file of tensors has no word for two names of one.
        RunDirectory(out).save_latent({name: tensor.clone() for name, tensor in model.state_dict().items()}, pre)
        path = write_checkpoint(out / CHECKPOINT_FILE, network, frozen, card)
    wrong = None if found is None else found.sentence
    if found is not None and path is None:
        wrong = f"{wrong}; {_remedy(config, found.layer, network)}"
    return QuantizeResult(path, accuracy, float_accuracy, usable, images, seconds, notes, fidelity, wrong)


def _remedy(config: QuantizeConfig, layer: str, network: MultiBitNetwork) -> str:
    """Options that may mend a layer that goes wrong and were not given yet, and the one that takes it as it is."""
    ways = [
        (f"--keep-float {layer}", not layer.endswith(UNIT_SUFFIX)),
        ("--statistics float", layer in network.norm_of and config.statistics != "float"),
        ("--clips max", config.clips != "max"),
        ("--reconstruct none", any(isinstance(one.quantizer, LearnedWeights) for one in network.layers.values())),
        ("--images 2048", config.images < 2048),
    ]
    tried = " or ".join(way for way, open_ in ways if open_)
    return f"{f'try {tried}, or ' if tried else ''}write it as it is with --accept-difference"


def calibrate(
    network: MultiBitNetwork, batches: list[Tensor], config: QuantizeConfig, report: Report = silent
) -> FrozenNetwork:
    """Runs the chosen stages in their order on every child of the network, and returns the deployed numbers."""
    EQUALIZATIONS[config.equalization](network)
    calibrate_clips(network, batches, config.clips)
    RECONSTRUCTIONS[config.reconstruction](network, batches, config.reconstruction_steps, report)
    measure_input_means(network, batches)
    STATISTICS[config.statistics](network, batches, network.known)
    return BIAS_CORRECTIONS[config.bias_correction](network, freeze(network.eval(), network.known), batches)


def calibration_batches(dataset: Dataset, images: int, seed: int) -> list[Tensor]:
    """Normalised training images ``(B, C, H, W)``, classes in proportion and mixed in every batch."""
    count = min(images, len(dataset.train))
    if count < FEWEST_IMAGES:
        raise EmqError(f"{dataset.name} has {count} training images; calibration needs {FEWEST_IMAGES} or more")
    chosen = np.random.default_rng(seed).permutation(stratified(dataset.train.labels, count, seed)[0])
    pixels = dataset.preprocessing.height * dataset.preprocessing.width
    parts = np.array_split(chosen, -(-count // max(1, min(BATCH, BATCH_PIXELS // pixels))))
    return [torch.from_numpy(dataset.preprocessing.normalize(dataset.train.subset(part).images[:])) for part in parts]


def advice(config: QuantizeConfig, result: QuantizeResult, children_file: str | None = None) -> str:
    """Which children to use as they are, and how to get the others.

    Args:
        config: what was quantized.
        result: what came of it.
        children_file: where the user's children with widths per layer stand.
    """
    lost = [child for child in result.accuracy if child not in result.usable]
    lines = []
    if lost:
        top = in_order(config.trained)[-1]
        wanted = in_order({*lost, top})
        plain = ",".join(child.name for child in wanted if child not in config.children) or "none"
        options = {
            "--data": config.data,
            "--image-size": config.image_size,
            "--model": config.model,
            "--pretrained": config.weights,
            "--weights-entry": config.weights_entry,
            "--bits": plain,
            "--children": (children_file or "FILE") if any(child in config.children for child in wanted) else None,
        }
        given = [str(part) for pair in options.items() if pair[1] is not None for part in pair]
        lost_names = ", ".join(child.name for child in lost)
        lines.append(f"more than {config.usable_drop:g} points lost at: {lost_names}; train from the same weights:")
        lines.append(f"      emqdeploy train {shlex.join(given)}")
    if result.usable and result.checkpoint is not None:
        run = result.checkpoint.parent
        lines.append(f"next: emqdeploy export {run} --bits {in_order(result.usable)[0].name} --target onnx")
        lines.append(f"      emqdeploy bench {run} --device cpu")
    return "\n".join(lines)
