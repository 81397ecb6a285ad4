"""The training loop: plan an epoch, run its steps, validate, save. What differs between methods comes in by name."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from emqdeploy.errors import EmqError
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.training.batches import ImageSource
from emqdeploy.training.config import TrainConfig
from emqdeploy.training.coreset import SHARINGS, Coreset, choose_coresets, coreset_size
from emqdeploy.training.distributed import World
from emqdeploy.training.dynamics import WINDOW, Dynamics, FeatureTap
from emqdeploy.training.evaluate import accuracy_per_bits
from emqdeploy.training.optimizers import OPTIMIZERS, SCHEDULES, parameter_groups
from emqdeploy.training.passes import Passes
from emqdeploy.training.progress import TrainProgress
from emqdeploy.training.resampling import RESAMPLINGS
from emqdeploy.training.run import RunDirectory
from emqdeploy.training.scores import SCORES
from emqdeploy.training.steps import STEP_PLANS, Child, Epoch, Step
from emqdeploy.training.targets import TARGETS
from emqdeploy.training.tensorboard import TensorBoardLog

Indices = NDArray[np.int64]


class TrainingStopped(EmqError):
    """Training was interrupted and can be resumed."""


@dataclass
class Progress:
    """How far a run is; together with weights and optimizer, all that resuming needs.

    Attributes:
        sample_passes: images that went forward and backward, per child.
        forward_passes: images that only went forward to be scored anew.
        unvalidated: sample passes since the last validation.
        losses: per child of the current epoch, the sum of its losses and their number.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    sample_passes: int = 0
    forward_passes: int = 0
    unvalidated: int = 0
    seconds: float = 0.0
    best_accuracy: float = -1.0
    best_epoch: int = -1
    losses: dict[str, list[float]] = field(default_factory=dict)


class Trainer:
    """Trains one network.

    Args:
        config: the run.
        network: with initialised clips, on the training device.
        train: training images.
        validation: chooses the best epoch.
        classes: number of the network's outputs.
        run: where metrics and state go.
        console: where progress goes.
        world: the processes that train together; one alone by default.
    """

    def __init__(
        self,
        config: TrainConfig,
        network: MultiBitNetwork,
        train: ImageSource,
        validation: ImageSource,
        classes: int,
        run: RunDirectory,
        console: Console,
        world: World | None = None,
    ) -> None:
        self.config = config
        self.network = network
        self.train = train
        self.validation = validation
        self.run = run
        self.console = console
        self.device = train.labels.device
        self.world = world or World()
        groups = parameter_groups(network, config.weight_decay)
        self.optimizer = OPTIMIZERS[config.optimizer](groups, config.learning_rate, config.momentum)
        self.schedule = SCHEDULES[config.schedule]
        self.target = TARGETS[config.distill](len(train), classes, max(config.bits), config.distill_weight, self.device)
        self.progress = Progress()
        self.everything = {bits: np.arange(len(train)) for bits in config.bits}
        self.labels = train.labels.cpu().numpy()
        self.coresets: dict[int, Coreset] = {}
        self.dynamics: Dynamics | None = None
        self.features: FeatureTap | None = None
        if config.prune_rate > 0:
            self._open_record(classes)
        self.logs: list[Callable[[dict[str, Any]], None]] = [run.log]
        if config.tensorboard and self.world.leads:
            self.logs.append(TensorBoardLog(run.path / "tensorboard").log)
        self.passes = Passes(config, network, train, self.target, self.world, self.features)
        self.best_state = self._copy_state()
        self.total_steps = sum(len(self._plan(epoch, self._sizes(epoch))) for epoch in range(config.epochs))
        self.last_save = time.perf_counter()

    def _open_record(self, classes: int) -> None:
        config = self.config
        width = 0
        if SCORES[config.score].needs_features:
            last = [layer for layer in self.network.layers.values() if isinstance(layer, torch.nn.Linear)][-1]
            self.features, width = FeatureTap(last), last.in_features
        keys = (0,) if SHARINGS[config.sharing].record else config.bits
        window = max(config.full_epochs, WINDOW if config.resample_every else 1)
        self.dynamics = Dynamics(keys, len(self.train), classes, window, width)

    # --- the loop ---

    def fit(self) -> None:
        """Trains to the last epoch and leaves the best weights in the network."""
        config, progress = self.config, self.progress
        started = time.perf_counter() - progress.seconds
        with _stop_signal(self.world) as asked, TrainProgress(self.console, self.total_steps, progress.step) as shown:
            while progress.epoch < config.epochs:
                steps = self._begin_epoch()
                left = steps[progress.step_in_epoch :]
                stopping = False
                for step, images in zip(left, self.passes.batches(left, progress.step), strict=True):
                    update = self._updates(len(steps))
                    losses, stop = self._step(step, images, update, asked.is_set())
                    shown.step(losses, len(step.indices))
                    progress.seconds = time.perf_counter() - started
                    # Several processes stop after the same step: what one was asked goes round with the next one.
                    stopping = stopping or stop or (self.world.size == 1 and asked.is_set())
                    if update and stopping:
                        self._stop()
                    if update and time.perf_counter() - self.last_save > config.save_every:
                        self._save()
                self._finish_epoch(shown)
                progress.seconds = time.perf_counter() - started
                self._save()
        self.network.load_state_dict(self.best_state)

    def _begin_epoch(self) -> list[Step]:
        """Chooses coresets and returns the steps; in the middle of an epoch that was resumed, only the latter."""
        config, progress = self.config, self.progress
        after_scoring = progress.epoch - config.full_epochs
        pruned = self.dynamics is not None and after_scoring >= 0
        if progress.step_in_epoch == 0:
            anew = config.resample_every and after_scoring % config.resample_every == 0
            if pruned and after_scoring > 0 and anew:
                progress.forward_passes += RESAMPLINGS[config.resample_from](self)
            if pruned and (after_scoring == 0 or anew):
                self.coresets = self._choose_coresets()
            if self.dynamics is not None and self._recording:
                self.dynamics.open_epoch()
            self.target.start_epoch(progress.epoch / config.epochs)
        self.network.train()
        subsets = {bits: core.indices for bits, core in self.coresets.items()} if pruned else self.everything
        return self._plan(progress.epoch, subsets)

    def _updates(self, steps: int) -> bool:
        """Whether gradients accumulated to an update with the next of an epoch's steps; with the last they always do.

        A run is saved only after an update, so that no state holds half a gradient.
        """
        done = self.progress.step_in_epoch + 1
        return done % self.config.accumulate == 0 or done == steps

    def _step(self, step: Step, images: list[Tensor], update: bool, stopping: bool) -> tuple[dict[str, float], bool]:
        """One step and perhaps an update.

        Returns:
            the loss of each child, and whether any process was asked to stop.
        """
        if self.progress.step_in_epoch % self.config.accumulate == 0:
            self.optimizer.zero_grad(set_to_none=True)
        remembering = (self.dynamics is not None and self._recording) or self.target.remembers
        shares = self.passes.run(step, images, self._weights, self._remember if remembering else None)
        values, stop = self.passes.exchange(shares, stopping, update)
        losses = {_name(child): value for child, value in zip(step.children, values, strict=True)}
        self._check_losses(losses)
        if update:
            self._update()
        self._count(step, losses)
        return losses, stop

    def _remember(self, bits: int, indices: Indices, logits: Tensor, features: Tensor | None) -> None:
        if self.dynamics is not None and self._recording:
            self.dynamics.record(bits, indices, logits, features)
        if self.target.remembers:
            self.target.remember(bits, torch.from_numpy(indices).to(self.device), logits)

    def _update(self) -> None:
        factor = self.schedule(self.progress.step / self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * factor
        self.optimizer.step()

    def _count(self, step: Step, losses: dict[str, float]) -> None:
        progress = self.progress
        for child, loss in losses.items():
            total = progress.losses.setdefault(child, [0.0, 0.0])
            total[0] += loss
            total[1] += 1
        progress.sample_passes += len(step.indices) * len(step.children)
        progress.unvalidated += len(step.indices) * len(step.children)
        progress.step += 1
        progress.step_in_epoch += 1

    def _check_losses(self, losses: dict[str, float]) -> None:
        for child, loss in losses.items():
            if not math.isfinite(loss):
                raise EmqError(
                    f"the loss became {loss} at {child} bits in step {self.progress.step}; {self.run.path} holds the"
                    f" run up to its last save; start again with --lr below {self.config.learning_rate}"
                )

    def _finish_epoch(self, shown: TrainProgress) -> None:
        progress, config = self.progress, self.config
        phase = "score" if self.dynamics is not None and progress.epoch < config.full_epochs else "train"
        losses = {child: total / count for child, (total, count) in progress.losses.items()}
        accuracy: dict[int, float] = {}
        if self._validates():
            accuracy = accuracy_per_bits(self.network, self.validation, config.bits, self.world)
            average = sum(accuracy.values()) / len(accuracy)
            progress.unvalidated = 0
            if average >= progress.best_accuracy:
                progress.best_accuracy, progress.best_epoch = average, progress.epoch
                self.best_state = self._copy_state()
        shown.epoch(progress.epoch, config.epochs, phase, losses, accuracy)
        record = {
            "epoch": progress.epoch,
            "phase": phase,
            "loss": {child: round(loss, 5) for child, loss in losses.items()},
            "validation_accuracy": {str(bits): round(percent, 3) for bits, percent in accuracy.items()},
            "learning_rate": round(self.optimizer.param_groups[0]["lr"], 6),
            "sample_passes": progress.sample_passes,
            "seconds": round(progress.seconds, 2),
        }
        for log in self.logs:
            log(record)
        progress.epoch += 1
        progress.step_in_epoch = 0
        progress.losses = {}

    def _validates(self) -> bool:
        """Short epochs are not worth a validation each: it would cost a fifth of an epoch at a prune rate of 0.8."""
        progress, every = self.progress, self.config.validate_every
        if progress.epoch + 1 == self.config.epochs:
            return True
        if every is not None:
            return (progress.epoch + 1) % every == 0
        return progress.unvalidated >= len(self.train) * len(self.config.bits)

    # --- what an epoch consists of ---

    @property
    def _recording(self) -> bool:
        """Whether what passes say of images is still of use."""
        scoring = self.progress.epoch < self.config.full_epochs
        return scoring or (self.config.resample_every > 0 and self.config.resample_from == "record")

    def _plan(self, epoch: int, subsets: dict[int, Indices]) -> list[Step]:
        config = self.config
        scoring = config.prune_rate > 0 and epoch < config.full_epochs
        plan = STEP_PLANS[config.score_plan if scoring and config.score_plan else config.step_plan]
        layers = tuple(self.network.layers)
        return plan.plan(Epoch(subsets, config.batch_size, config.seed, epoch, config.epochs, layers))

    def _sizes(self, epoch: int) -> dict[int, Indices]:
        """Subsets of the right size, to count the steps of an epoch ahead of time."""
        if epoch < self.config.full_epochs:
            return self.everything
        keep = coreset_size(len(self.train), self.config.prune_rate, self.config.batch_size)
        return {bits: np.arange(keep) for bits in self.config.bits}

    def _choose_coresets(self) -> dict[int, Coreset]:
        config = self.config
        assert self.dynamics is not None
        if self.progress.epoch == config.full_epochs:
            if config.scores_from is not None:
                self.dynamics.restore(RunDirectory.load_scores(config.scores_from))
            self.run.save_scores(self.dynamics.state())
        keep = coreset_size(len(self.train), config.prune_rate, config.batch_size)
        seed = (config.seed, self.progress.epoch)
        return choose_coresets(
            self.dynamics, self.labels, keep, config.score, config.selection, config.sharing, config.bits, seed
        )

    def _weights(self, bits: int | None, indices: Indices) -> Tensor | float:
        """Loss weights of a batch; 1 where losses are not weighed."""
        core = self.coresets.get(bits) if bits is not None and self.config.unbiased else None
        if core is None:
            return 1.0
        weights = core.weights()[np.searchsorted(core.indices, indices)]
        return torch.from_numpy(weights).to(self.device)

    # --- state ---

    def _copy_state(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}

    def _save(self) -> None:
        self.run.save_state(self.state())
        self.last_save = time.perf_counter()

    def _stop(self) -> None:
        self._save()
        raise TrainingStopped(
            f"stopped after step {self.progress.step} of {self.total_steps}, everything is saved; continue with:"
            f" emqdeploy train --resume {self.run.path}"
        )

    def state(self) -> dict[str, Any]:
        """Everything that continuing exactly needs, as tensors and plain values."""
        return {
            "progress": dict(vars(self.progress)),
            "network": self.network.state_dict(),
            "best": self.best_state,
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "coresets": {
                bits: {"indices": torch.from_numpy(core.indices), "odds": torch.from_numpy(core.odds)}
                for bits, core in self.coresets.items()
            },
            "dynamics": None if self.dynamics is None else self.dynamics.state(),
            "target": self.target.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.progress = Progress(**state["progress"])
        self.network.load_state_dict(state["network"])
        self.best_state = state["best"]
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        self.coresets = {
            bits: Coreset(core["indices"].numpy(), core["odds"].numpy()) for bits, core in state["coresets"].items()
        }
        if self.dynamics is not None:
            self.dynamics.restore(state["dynamics"])
        self.target.restore(state["target"])
        self.run.truncate_metrics(self.progress.epoch)


def _name(child: Child) -> str:
    return str(child) if isinstance(child, int) else "mixed"


@contextmanager
def _stop_signal(world: World) -> Iterator[threading.Event]:
    """Turns the first Ctrl-C into an event, so that a step is never torn; the second one interrupts at once.

    `torchrun` repeats a Ctrl-C that the terminal has sent already, so with several processes there is no second one.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: Any) -> None:
        if event.is_set() and world.size == 1:
            raise KeyboardInterrupt
        event.set()

    for number in before:
        signal.signal(number, handle)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
