"""One call from configuration to checkpoint."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console

from emqdeploy.data import Dataset
from emqdeploy.data.workers import usable_cores, useful_threads
from emqdeploy.errors import UsageError, plain_text
from emqdeploy.format.card import DataSource, FidelityRecord
from emqdeploy.format.child import FLOAT, Child, in_order
from emqdeploy.format.frozen import FrozenNetwork
from emqdeploy.format.runs import CHECKPOINT_FILE
from emqdeploy.graph.fidelity import FLOAT_MODEL, TRAINED_NETWORK
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.deploy import deployed_reference, freeze
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.quant.proof import prove
from emqdeploy.training.batches import STATISTICS_BATCH, as_trained
from emqdeploy.training.clips import start_clips
from emqdeploy.training.config import TrainConfig
from emqdeploy.training.deployment import make_card, write_checkpoint
from emqdeploy.training.distributed import World
from emqdeploy.training.evaluate import accuracies, accuracy_per_child
from emqdeploy.training.fidelity import FEW_IMAGES, build_both, check_rewrite, find_wrong, measure_fidelity
from emqdeploy.training.loop import Trainer
from emqdeploy.training.material import Material, open_material
from emqdeploy.training.memory import keep_freed_memory
from emqdeploy.training.methods import NetworkPlan
from emqdeploy.training.norms import NORM_ADAPTATIONS, measure_input_means
from emqdeploy.training.posttraining.rounding import Rounded, rounded
from emqdeploy.training.recipes import stored_config, write_options
from emqdeploy.training.run import RunDirectory
from emqdeploy.training.starting import start_of

CALIBRATION_IMAGES = 2048
"""Training images over which statistics are estimated after training, as training sees them."""

START_IMAGES = 512
"""Training images over which they are estimated for weights that training starts from."""

ROUNDED = "no epoch was as good as these weights rounded without training, as `quantize` does: the run leaves those"


@dataclass
class TrainResult:
    """What a run produced.

    Attributes:
        run: the run directory.
        trained: the children that training visited.
        seconds: training time, without loading data and writing the checkpoint.
        sample_passes: images that went forward and backward, calibration included.
        checkpoints: the ``.emq`` file; one per weight setting where codes do not nest; none for the float network.
        accuracy: percent of the test set per stored child, of the deployed network.
        fidelity: per stored child, how far the deployed network is from the one that was trained.
        wrong: the first child whose deployed network is another one, and where that begins; None as it should be.
    """

    run: Path
    trained: tuple[Child, ...]
    seconds: float = 0.0
    sample_passes: int = 0
    checkpoints: list[Path] = field(default_factory=list)
    accuracy: dict[Child, float] = field(default_factory=dict)
    fidelity: dict[Child, FidelityRecord] = field(default_factory=dict)
    wrong: str | None = None

    def __iadd__(self, other: TrainResult) -> TrainResult:
        """Adds a part of the run."""
        self.trained += other.trained
        self.seconds += other.seconds
        self.sample_passes += other.sample_passes
        self.checkpoints += other.checkpoints
        self.accuracy |= other.accuracy
        self.fidelity |= other.fidelity
        self.wrong = self.wrong or other.wrong
        return self


def train(
    config: TrainConfig,
    out: Path,
    resume: bool = False,
    console: Console | None = None,
    report_test: bool = True,
    world: World | None = None,
) -> TrainResult:
    """Trains the networks of a method, mostly one for all children, and writes checkpoints.

    Args:
        config: the run.
        out: the run directory.
        resume: continue the run in ``out`` exactly where it stopped.
        console: where progress goes; standard error by default.
        report_test: whether to measure accuracy on the test set; False takes the validation part, for choosing options.
        world: the processes that train together; all but the first return a result without checkpoints.
    """
    keep_freed_memory()
    # On a GPU torch would round the inputs of float32 convolutions to ten bits, which is not what is deployed.
    torch.backends.cudnn.allow_tf32 = False
    world = world or World()
    console = console or Console(stderr=True, quiet=not world.leads)
    run = RunDirectory(out, writes=world.leads)
    with run.held():
        return _train(config, run, resume, console, report_test, world)


def _train(
    config: TrainConfig, run: RunDirectory, resume: bool, console: Console, report_test: bool, world: World
) -> TrainResult:
    """Trains the networks one after the other, in a directory that is held."""
    out = run.path
    if config.ghost_batches % world.size and config.ghost_batches > 1:
        raise UsageError(
            f"--ghost-batches is {config.ghost_batches}, but {world.size} processes train; give a multiple of it"
        )
    if world.leads and resume:
        config.check_resumes(stored_config(out), out)
    elif world.leads:
        run.check_new()
    material = open_material(config, report_test, console)
    plans = config.networks()
    if world.leads and not resume and any(plan.folder for plan in plans):
        run.start(write_options(config))
    result = TrainResult(out, ())
    for plan in plans:
        path = out / plan.folder
        resumes = world.agree(resume and RunDirectory.holds_run(path))
        result += _train_one(config.only(plan), plan, path, resumes, console, material, world)
    return result


def _train_one(
    config: TrainConfig,
    plan: NetworkPlan,
    out: Path,
    resume: bool,
    console: Console,
    material: Material,
    world: World,
) -> TrainResult:
    """Trains one network."""
    dataset, images = material.dataset, material.train
    few = images.plain(np.arange(min(FEW_IMAGES, len(images))))
    start = start_of(config, dataset, images.plain(np.arange(min(START_IMAGES, len(images)))))
    spec = replace(network_spec(config, dataset, plan), model=start.model, description=start.description)
    cores = max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(config.threads or useful_threads(spec.input_shape[1], cores))
    torch.manual_seed(config.seed)
    notes: list[str] = []
    model, network = build_both(spec, lambda model: notes.extend(start.load(model)), users_code=True)
    check_rewrite(start.model, model, network, few.cpu())
    prove(network, spec.input_shape)
    del model
    for note in (*dataset.notes, *notes, *network.notes):
        console.print(plain_text(note), markup=False, highlight=False, soft_wrap=True)
    network.to(images.labels.device)
    if config.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    start_clips(network, images.plain(np.arange(min(4 * config.batch_size, len(images)))), config.clips)
    run = RunDirectory(out, writes=world.leads)
    fresh = None if start.known else partial(spec.build, users_code=True)
    trainer = Trainer(config, network, images, material.validation, len(dataset.classes), run, console, world, fresh)
    if resume:
        state = run.load_state()
        if state is not None:
            trainer.restore(state)
        else:  # stopped before anything was saved, perhaps after an epoch was noted
            run.truncate_metrics(0)
    elif world.leads:  # only now, so that whatever was refused has written nothing
        run.start(write_options(config))
    trainer.fit()
    progress = trainer.progress
    result = TrainResult(out, plan.trained, progress.seconds, progress.sample_passes)
    if not world.leads:
        return result
    if start.known and plan.trained != (FLOAT,) and len(material.validation) > 0 and trainer.method.competes:
        some = images.plain(np.arange(min(START_IMAGES, len(images))))
        start_spec = replace(spec, trained=network.quantized)
        begun = rounded(start_spec, start.load, _batches(some), material.validation)
        if begun.accuracy > progress.best_accuracy:
            console.print(ROUNDED, soft_wrap=True)
            return _leave_rounded(begun, run, config, material, result)
    started = time.perf_counter()
    result.sample_passes += trainer.method.finish(console)
    result.seconds += time.perf_counter() - started
    result.trained = network.trained  # some methods find out their widths
    run.save_latent(network.float_state(), dataset.preprocessing)
    left = in_order(trainer.method.leaves())
    if FLOAT in left:
        result.accuracy = _judge_float(network, config, material)
    children = tuple(child for child in left if child != FLOAT)
    if not children:
        return result
    unseen = tuple(child for child in network.known if child not in network.trained)
    spec = replace(spec, trained=network.quantized, unseen=unseen)  # what a file says of its network
    groups = storage_groups(children, config.nested)
    for name, group in groups.items():
        path = out / (CHECKPOINT_FILE if len(groups) == 1 else f"model-{name}.emq")
        _write(path, group, network, spec, config, material, progress.best_epoch, result)
    return result


def network_spec(config: TrainConfig, dataset: Dataset, plan: NetworkPlan | None = None) -> NetworkSpec:
    """The network that a configuration trains on a data set; the first one where the method trains several."""
    pre = dataset.preprocessing
    shape = (pre.channels, pre.height, pre.width)
    plan = plan or config.networks()[0]
    children = (in_order(plan.trained), plan.unseen)
    return NetworkSpec(config.model, len(dataset.classes), shape, pre.input_range, *children, config.insertion())


def storage_groups(children: Sequence[Child], nested: bool) -> dict[str, list[Child]]:
    """The children that share one file, by a name for it: all of them where codes nest, else those of equal weights."""
    if nested:
        return {"all": list(children)}
    groups: dict[str, list[Child]] = {}
    for child in children:
        same = [name for name, group in groups.items() if group[0].weights == child.weights]
        name = f"w{child.bits}" if child.weights.uniform else child.name
        groups.setdefault(same[0] if same else name, []).append(child)
    return groups


def _leave_rounded(
    begun: Rounded, run: RunDirectory, config: TrainConfig, material: Material, result: TrainResult
) -> TrainResult:
    """Leaves the weights that training started from, rounded, for what came of them is worse."""
    run.save_latent(begun.network.float_state(), material.dataset.preprocessing)
    if FLOAT in result.trained:
        result.accuracy = accuracies({FLOAT: begun.model}, material.test)
    children = begun.frozen.children
    measures = dict.fromkeys(children, begun.model)
    made = Made(begun.spec, begun.network, begun.frozen, measures, FLOAT_MODEL)
    _measure_and_write(run.path / CHECKPOINT_FILE, made, config, material, -1, result)
    return result


class Made(NamedTuple):
    """A network with the numbers that deploy it, and what its children should answer.

    Attributes:
        spec: of the network.
        network: on the device of the images.
        frozen: the numbers.
        measures: by child, what gives the logits that it should give.
        against: what these are those of.
    """

    spec: NetworkSpec
    network: MultiBitNetwork
    frozen: FrozenNetwork
    measures: Mapping[Child, Callable[[torch.Tensor], torch.Tensor]]
    against: str


def _write(
    path: Path,
    children: Sequence[Child],
    network: MultiBitNetwork,
    spec: NetworkSpec,
    config: TrainConfig,
    material: Material,
    best_epoch: int,
    result: TrainResult,
) -> None:
    """Adapts the normalizations, freezes the network, measures what was frozen and writes it."""
    batches = as_trained(material.train, CALIBRATION_IMAGES, config.seed)
    measure_input_means(network, batches, network.quantized)
    NORM_ADAPTATIONS[config.norm_adaptation](network, batches, children)
    network.cpu().eval()
    network.use(children[0])  # where children have weights of their own, a file holds those of one setting
    frozen = freeze(network, children)
    network.to(material.train.labels.device)
    # The float weights are no measure: training bent them to their codes, they were never the network.
    measures = {child: partial(_at, network, child) for child in children}
    made = Made(spec, network, frozen, measures, TRAINED_NETWORK)
    _measure_and_write(path, made, config, material, best_epoch, result)


def _measure_and_write(
    path: Path, made: Made, config: TrainConfig, material: Material, best_epoch: int, result: TrainResult
) -> None:
    """Measures the children of a network, as they are deployed, and writes them."""
    network, children = made.network, made.frozen.children
    device = material.test.labels.device
    fidelity: dict[Child, FidelityRecord] = {}
    for child in children:
        deployed = {child: deployed_reference(network, made.frozen, child).to(device)}
        result.accuracy |= accuracies(deployed, material.test)
        found = measure_fidelity({child: made.measures[child]}, deployed, material.test, made.against)
        wrong = find_wrong(found, network, deployed, material.test)
        if wrong is not None and result.wrong is None:
            result.wrong = f"{path}: {wrong.sentence}; do not deploy it, train with --keep-float {wrong.layer}"
        fidelity |= found
    result.fidelity |= fidelity
    passes, seconds = result.sample_passes, round(result.seconds, 2)
    provenance = {"best_epoch": best_epoch, "sample_passes": passes, "seconds": seconds}
    trained = [child for child in children if child in network.trained] or children
    measured = {child: result.accuracy[child] for child in children}
    source = DataSource(config.data, config.image_size)
    card = make_card(made.spec, material.dataset, source, trained, measured, fidelity, config.to_dict(), provenance)
    result.checkpoints.append(write_checkpoint(path, network.cpu(), made.frozen, card))
    network.to(device)


def _judge_float(network: MultiBitNetwork, config: TrainConfig, material: Material) -> dict[Child, float]:
    """Percent of the test images that the float network decides correctly; among others it has its own statistics."""
    if network.quantized != (FLOAT,):
        batches = as_trained(material.train, CALIBRATION_IMAGES, config.seed)
        NORM_ADAPTATIONS[config.norm_adaptation](network, batches, (FLOAT,))
    return accuracy_per_child(network, material.test, (FLOAT,))


def _batches(images: torch.Tensor) -> list[torch.Tensor]:
    """Images in parts that have statistics."""
    return [batch for batch in images.split(STATISTICS_BATCH) if len(batch) > 1]


def _at(network: MultiBitNetwork, child: Child, images: torch.Tensor) -> torch.Tensor:
    """What a child was trained to answer: fake-quantized, in evaluation mode."""
    with network.at(child):
        logits: torch.Tensor = network(images)
    return logits
