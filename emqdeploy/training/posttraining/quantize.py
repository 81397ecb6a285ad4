"""A multi-bit checkpoint from a trained float model and a few hundred images, without training."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emqdeploy.data import Dataset
from emqdeploy.data.wishes import PixelOptions
from emqdeploy.data.workers import useful_threads
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.card import DataSource, FidelityRecord
from emqdeploy.format.child import FLOAT, MASTER_BITS, Child, in_order
from emqdeploy.format.frozen import UNIT_SUFFIX, FrozenNetwork
from emqdeploy.format.runs import CHECKPOINT_FILE
from emqdeploy.graph.fidelity import FLOAT_MODEL, compare
from emqdeploy.options import options_of
from emqdeploy.progress import Report, silent
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.deploy import deployed_reference, freeze
from emqdeploy.quant.insertion import InsertionConfig
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.quant.proof import prove
from emqdeploy.training.augment import BatchFunction, keep_images
from emqdeploy.training.batches import image_source
from emqdeploy.training.clips import calibrate_clips
from emqdeploy.training.deployment import make_card, write_checkpoint
from emqdeploy.training.expectations import class_names
from emqdeploy.training.fidelity import build_both, check_rewrite, find_wrong
from emqdeploy.training.memory import keep_freed_memory, return_freed_memory
from emqdeploy.training.norms import measure_input_means
from emqdeploy.training.posttraining.answering import varied
from emqdeploy.training.posttraining.config import QuantizeConfig
from emqdeploy.training.posttraining.given import batch_of, calibration_batches, open_given
from emqdeploy.training.posttraining.judging import (
    LOST,
    UNSURE,
    USABLE,
    Verdict,
    answers,
    percent_right,
    verdict,
    why_implausible,
)
from emqdeploy.training.posttraining.learned import LearnedWeights
from emqdeploy.training.posttraining.reconstruction import RECONSTRUCTIONS
from emqdeploy.training.posttraining.stages import BIAS_CORRECTIONS, EQUALIZATIONS, STATISTICS, few_of
from emqdeploy.training.posttraining.suspects import what_would_help
from emqdeploy.training.run import RunDirectory


@dataclass(frozen=True)
class QuantizeResult:
    """What quantization produced.

    Attributes:
        checkpoint: the ``.emq`` file; None where it was not written, because it is wrong.
        accuracy: percent of the test set per child, of the deployed network; empty where the labels are unknown.
        float_accuracy: percent of the test set, of the model as it came; None where the labels are unknown.
        verdicts: per child, what it loses against the float model, with bounds.
        images: how many images calibrated.
        seconds: without loading and measuring.
        notes: what loading the weights had to say.
        fidelity: per child, how far its answers are from the float model's.
        wrong: why the 8-bit child is not the float model, and what to do; None where it is.
    """

    checkpoint: Path | None
    accuracy: dict[Child, float]
    float_accuracy: float | None
    verdicts: dict[Child, Verdict]
    images: int
    seconds: float
    notes: list[str]
    fidelity: dict[Child, FidelityRecord]
    wrong: str | None = None

    @property
    def usable(self) -> tuple[Child, ...]:
        """The children that lose at most the allowed points, with 95 % confidence."""
        return tuple(child for child, one in self.verdicts.items() if one.word == USABLE)


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
    keep_freed_memory()
    given, dataset = open_given(config)
    pre, children = dataset.preprocessing, in_order(config.stored)
    torch.set_num_threads(threads or useful_threads(pre.height))
    labelled = not config.unlabelled and given.classes == len(dataset.classes)
    # All children count as trained here, because each gets clips of its own.
    shape = (pre.channels, pre.height, pre.width)
    insertion = InsertionConfig(keep_8bit=config.keep_8bit, keep_float=config.keep_float, levels=config.levels)
    structure: dict[str, Any] = {"insertion": insertion, "description": given.description}
    spec = NetworkSpec(given.model, given.classes, shape, pre.input_range, children, **structure)
    notes: list[str] = []
    model, network = build_both(spec, lambda model: notes.extend(given.load(model)), users_code=True)
    model.eval()
    network.eval()
    batches = calibration_batches(dataset, config.images, config.seed)
    notes += given.check(model, batches[0])
    names = (tuple(dataset.classes) if labelled else class_names(config.model, given.classes)) or tuple(
        map(str, range(given.classes))
    )
    images = sum(map(len, batches))
    notes += _about_labels(config, labelled, given.classes, dataset)
    if images < config.images:
        notes.append(f"all {images} training images calibrate, {config.images} were asked for")
    for note in (*dataset.notes, *notes, *network.notes):
        report(note)
    check_rewrite(given.model, model, network, batches[0])
    prove(network, shape)
    test = image_source(dataset.test, pre, "none", torch.device("cpu"))
    labels = np.asarray(dataset.test.labels) if labelled else None
    report(f"decisions of the float model on {len(dataset.test)} test images")
    wanted = answers({FLOAT: model}, test, batch_of(pre), report)[FLOAT]
    if labels is not None:
        doubt = why_implausible(wanted.decided, dataset, config.expect)
        if doubt is not None:
            helps = what_would_help(model, dataset, test, batch_of(pre))
            raise EmqError(doubt if helps is None else f"{doubt}; tried on a few: {helps}")
    started = time.perf_counter()
    return_freed_memory()
    report(f"calibrating {len(children)} children on {images} training images")
    frozen = calibrate(network, batches, config, report, varied(dataset.augmentation))
    seconds = time.perf_counter() - started
    return_freed_memory()
    report(f"decisions of {len(children)} children on {len(dataset.test)} test images")
    twins = frozen.twins()
    deployed = {child: deployed_reference(network, frozen, child) for child in dict.fromkeys(twins.values())}
    answered = answers(deployed, test, batch_of(pre), report)
    found = {child: answered[first] for child, first in twins.items()}
    usual = (wanted.decided, labels, config.usable_drop)
    verdicts = {child: verdict(one.decided, *usual) for child, one in found.items()}
    accuracy = {} if labels is None else {child: percent_right(one.decided, labels) for child, one in found.items()}
    float_accuracy = None if labels is None else percent_right(wanted.decided, labels)
    fidelity = {child: compare(wanted.logits, one.logits, FLOAT_MODEL) for child, one in found.items()}
    fault = find_wrong(fidelity, network, {child: deployed[first] for child, first in twins.items()}, test)
    path = None
    if fault is None or config.accept_difference:
        known: dict[str, Any] = {"calibration_images": images, "seconds": round(seconds, 2)}
        known |= {} if float_accuracy is None else {"float_accuracy": round(float_accuracy, 4)}
        source, asked = DataSource(config.data, given.image_size, labelled), in_order(config.trained)
        card = make_card(
            spec, replace(dataset, classes=names), source, asked, accuracy, fidelity, config.to_dict(), known
        )
        # Copies, because a file of tensors has no word for two names of one.
        RunDirectory(out).save_latent({name: tensor.clone() for name, tensor in model.state_dict().items()}, pre)
        path = write_checkpoint(out / CHECKPOINT_FILE, network, frozen, card)
    wrong = None if fault is None else fault.sentence
    if fault is not None and path is None:
        wrong = f"{wrong}; {_remedy(config, fault.layer, network)}"
    measured = (accuracy, float_accuracy, verdicts)
    return QuantizeResult(path, *measured, images, seconds, notes, fidelity, wrong)


def _about_labels(config: QuantizeConfig, labelled: bool, classes: int, dataset: Dataset) -> list[str]:
    if labelled or config.unlabelled:
        return []
    if not dataset.labelled:
        return ["children are judged by the float model's decisions, because the images have no labels"]
    return [
        f"the network has {classes} classes and {dataset.name} {len(dataset.classes)}: its labels are left aside, and"
        " children are judged by the float model's decisions"
    ]


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
    network: MultiBitNetwork,
    batches: list[Tensor],
    config: QuantizeConfig,
    report: Report = silent,
    vary: BatchFunction = keep_images,
) -> FrozenNetwork:
    """Runs the chosen stages in their order on every child of the network, and returns the deployed numbers.

    Args:
        network: in evaluation mode.
        batches: normalised images that calibrate.
        config: the stages.
        report: receives progress.
        vary: how a reconstruction makes more images of these.
    """
    EQUALIZATIONS[config.equalization](network)
    calibrate_clips(network.eval(), batches, config.clips)
    RECONSTRUCTIONS[config.reconstruction](network, batches, config.reconstruction_steps, vary, report)
    measure_input_means(network, list(few_of(batches)), in_order(network.known)[-1:])
    _measure_statistics(network, batches, config.statistics, report)
    return BIAS_CORRECTIONS[config.bias_correction](network, freeze(network.eval(), network.known), batches, report)


def _measure_statistics(network: MultiBitNetwork, batches: list[Tensor], statistics: str, report: Report) -> None:
    """Runs that stage once for children that compute the same numbers."""
    twins = freeze(network.eval(), network.known).twins()
    STATISTICS[statistics](network, batches, [*dict.fromkeys(twins.values())], report)
    for child, first in twins.items():
        if child != first:
            why = ", because an int8 holds no more" if child.uniform and child.bits == MASTER_BITS else ""
            report(f"{child.name} computes the same integers as {first.name}{why}")
            for norm in network.norms.values():
                norm.keep(child, *norm.statistics(first))


def advice(config: QuantizeConfig, result: QuantizeResult, children_file: str | None = None) -> str:
    """Which children to use as they are, and how to get the others.

    Args:
        config: what was quantized.
        result: what came of it.
        children_file: where the user's children with widths per layer stand.
    """
    by_word = {word: [child for child, one in result.verdicts.items() if one.word == word] for word in (LOST, UNSURE)}
    lost, unsure = by_word[LOST], by_word[UNSURE]
    labelled = result.float_accuracy is not None
    allowed = f"{config.usable_drop:g} points" if labelled else f"{config.usable_drop:g} % decided otherwise"
    lines = []
    if lost and labelled:
        lines.append(f"more than {allowed} lost at: {_names(lost)}; train from the same weights:")
        lines.append(f"      emqdeploy train {shlex.join(_training_options(config, lost, children_file))}")
    elif lost:
        lines.append(f"more than {allowed} at: {_names(lost)}; training needs images with the network's own labels")
    if unsure:
        lines.append(f"perhaps more than {allowed} at: {_names(unsure)}; more test images would tell")
    chosen = in_order(result.usable)[:1] or in_order(unsure)[-1:]
    if chosen and result.checkpoint is not None:
        run = result.checkpoint.parent
        lines.append(f"next: emqdeploy export {run} --bits {chosen[0].name} --target onnx")
        lines.append(f"      emqdeploy bench {run} --device cpu")
    return "\n".join(lines)


def _names(children: list[Child]) -> str:
    return ", ".join(child.name for child in children)


def _training_options(config: QuantizeConfig, lost: list[Child], children_file: str | None) -> list[str]:
    """What `train` needs to begin where this began; options at their defaults are left out."""
    wanted = in_order({*lost, in_order(config.trained)[-1]})
    plain = ",".join(child.name for child in wanted if child not in config.children) or "none"
    options: dict[str, Any] = {"--data": config.data, "--data-dir": config.data_dir}
    pixels = {f"--{one.flag}": getattr(config, one.name) for one in options_of(PixelOptions)}
    options |= {
        flag: ",".join(map(str, value)) if isinstance(value, tuple) else value for flag, value in pixels.items()
    }
    options |= {"--model": config.model or config.weights, "--pretrained": config.weights}
    options |= {"--weights-entry": config.weights_entry, "--bits": plain}
    usual = {one.name: one.default for one in options_of(type(config))}
    for flag, name in (("--act-bits", "activation_bits"), ("--keep-8bit", "keep_8bit"), ("--keep-float", "keep_float")):
        value = getattr(config, name)
        if value != usual[name]:
            options[flag] = (",".join(value) or "none") if isinstance(value, tuple) else value
    own = any(child in config.children for child in wanted)
    options["--children"] = (children_file or "FILE") if own else None
    return [str(part) for pair in options.items() if pair[1] is not None for part in pair]
