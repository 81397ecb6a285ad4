"""The training loop: an epoch's steps, validation, saving. What differs between methods the method says."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from emqdeploy.ending import ASKED
from emqdeploy.errors import EmqError
from emqdeploy.format.child import in_order
from emqdeploy.models.external import is_users
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.training.averaging import MovingAverage
from emqdeploy.training.batches import ImageSource
from emqdeploy.training.config import TrainConfig
from emqdeploy.training.distributed import PartStatistics, World
from emqdeploy.training.evaluate import accuracy_per_child
from emqdeploy.training.exchange import exchange_of, own_images
from emqdeploy.training.methods import METHODS, Setting
from emqdeploy.training.nonfinite import name_of_nonfinite
from emqdeploy.training.optimizers import OPTIMIZERS, SCHEDULES, parameter_groups
from emqdeploy.training.passes import Passes
from emqdeploy.training.progress import TrainProgress
from emqdeploy.training.run import RunDirectory
from emqdeploy.training.scales import set_rates
from emqdeploy.training.steps import Step
from emqdeploy.training.subspaces import SUBSPACES, Fresh, Origin
from emqdeploy.training.tensorboard import TensorBoardLog

READ_EVERY = 16
"""Steps of a GPU whose losses are read together, because reading waits until the device has caught up."""

STATE = 3
"""Version of what `Trainer.state` holds."""

EXTRA = "method."
"""Begins the names of what a method learns, among all that is learned."""


class TrainingStopped(EmqError):
    """Training was interrupted and can be resumed."""


@dataclass
class Progress:
    """How far a run is; together with weights and optimizer, all that resuming needs.

    Attributes:
        sample_passes: images that went forward and backward, per child.
        unvalidated: sample passes since the last validation.
        losses: per child, by name, of the current epoch, the sum of its losses and their number.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    sample_passes: int = 0
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
        fresh: makes another such network with other random weights; None where this one's weights were trained.
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
        fresh: Fresh | None = None,
    ) -> None:
        self.config = config
        self.network = network
        self.world = world or World()
        shard = own_images(config, train, self.world)
        self.images, self.train = train, shard.source
        self.validation = validation
        self.run = run
        self.console = console
        setting = Setting(config, network, self.train, classes, run)
        self.method = METHODS[config.method.name](config.method, setting)
        extra = self.method.parameters()
        own = parameter_groups(network, config.weight_decay, config.lr_scale)
        self.subspace = SUBSPACES[config.subspace](Origin(network, own, config.diversity, fresh, config.seed))
        groups = [*self.subspace.groups, *extra]
        self.extra: list[Tensor] = [parameter for group in extra for parameter in group["params"]]
        self.extra += self.subspace.ends
        self.optimizer = OPTIMIZERS[config.optimizer](groups, config.learning_rate, config.momentum)
        self.schedule = SCHEDULES[config.schedule]
        self.progress = Progress()
        self.logs: list[Callable[[dict[str, Any]], None]] = [run.log]
        self.learned: list[Tensor] = [parameter for group in groups for parameter in group["params"]]
        about = (self.learned, PartStatistics(network).buffers, shard.share)
        self.exchange = exchange_of(config, self.world, self.method, self.optimizer, *about)
        self.passes = Passes(config, network, self.train, self.method, classes, self.exchange.company, self.subspace)
        self.average = MovingAverage(self._weights(), config.ema) if config.ema else None
        self.best_weights = self._copy_weights()
        self.total_steps = sum(map(self.method.length, range(config.epochs)))
        self.on_step: Callable[[dict[str, float], int], None] = lambda losses, images: None
        self.stopping = False
        self.read_every = READ_EVERY if train.labels.is_cuda else 1
        self.last_save = time.perf_counter()

    # --- the loop ---

    def fit(self) -> None:
        """Trains to the last epoch and leaves the best weights in the network."""
        config, progress = self.config, self.progress
        started = time.perf_counter() - progress.seconds
        if config.tensorboard and self.world.leads:
            self.logs.append(TensorBoardLog(self.run.path / "tensorboard").log)
        names = [child.name for child in in_order(self.network.trained)]
        with (
            _stop_signal(self.world) as asked,
            TrainProgress(self.console, self.total_steps, progress.step, names) as shown,
        ):
            self.on_step = shown.step
            while progress.epoch < config.epochs:
                if progress.step_in_epoch == 0:
                    self.subspace.rest()
                    self.method.begin_epoch(progress.epoch)
                self.network.train()
                steps = self.method.plan(progress.epoch)
                left = steps[progress.step_in_epoch :]
                remembering = self.method.remembers(progress.epoch)
                for planned, images in zip(left, self.passes.batches(left, progress.step), strict=True):
                    update = self._updates(len(steps))
                    step = self.method.next_step(planned)
                    self._step(step, images, remembering, update, asked.is_set())
                    if update:
                        self.exchange.settle(progress.step, progress.step_in_epoch == len(steps))
                    if self.exchange.settled and self.average:
                        self.average.update()
                    progress.seconds = time.perf_counter() - started
                    # Several processes stop after the same step: what one was asked goes round with the losses.
                    if self.exchange.settled and (self.stopping or (self.world.size == 1 and asked.is_set())):
                        self._stop()
                    if self.exchange.settled and time.perf_counter() - self.last_save > config.save_every:
                        self._save()
                self._finish_epoch(shown)
                progress.seconds = time.perf_counter() - started
                self._save()
        self._load_weights(self.best_weights)
        self.subspace.rest()

    def _updates(self, steps: int) -> bool:
        """Whether gradients accumulated to an update with the next of an epoch's steps; with the last they always do.

        A run is saved only after an update, so that no state holds half a gradient.
        """
        done = self.progress.step_in_epoch + 1
        return done % self.config.accumulate == 0 or done == steps

    def _step(self, step: Step, images: list[Tensor], remembering: bool, update: bool, stopping: bool) -> None:
        """One step and perhaps an update."""
        if self.progress.step_in_epoch % self.config.accumulate == 0:
            self.optimizer.zero_grad(set_to_none=True)
        self.subspace.draw(self.progress.step)
        self.passes.begin(self.progress.step / self.total_steps)
        shares = self.passes.run(step, images, remembering)
        self.exchange.tell(step, self.progress.step, shares, stopping, update)
        if len(self.exchange.heard) >= self.read_every:
            self._read()
        if update:
            self._update(step)
        self._count(step)

    def _read(self) -> None:
        """Reads the losses of the steps since the last reading, and whether any process was asked to stop."""
        heard, self.exchange.heard = self.exchange.heard, []
        reports = torch.cat([report for _, report in heard]).tolist() if heard else []
        for step, _ in heard:
            *values, asked = reports[: len(step.children) + 1]
            del reports[: len(step.children) + 1]
            losses = {child.name: value for child, value in zip(step.children, values, strict=True)}
            self._check_losses(losses)
            for child, loss in losses.items():
                total = self.progress.losses.setdefault(child, [0.0, 0.0])
                total[0] += loss
                total[1] += 1
            self.on_step(losses, len(step.indices))
            self.stopping = self.stopping or asked > 0

    def _update(self, step: Step) -> None:
        config = self.config
        rate = config.learning_rate * self.schedule(self.progress.step / self.total_steps, config.warm_up)
        alone = step.children[0] if step.updates_alone(config.accumulate) else None
        set_rates(self.optimizer.param_groups, rate, config.lr_scale, alone)
        self.subspace.spread(self.progress.step)
        if config.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.learned, config.clip_norm)
        self.optimizer.step()
        self.method.after_update()

    def _count(self, step: Step) -> None:
        progress = self.progress
        passes = len(step.indices) * len(step.children) * self.exchange.batches
        progress.sample_passes += passes
        progress.unvalidated += passes
        progress.step += 1
        progress.step_in_epoch += 1

    def _check_losses(self, losses: dict[str, float]) -> None:
        for child, loss in losses.items():
            if not math.isfinite(loss):
                where = name_of_nonfinite(self.network)
                raise EmqError(
                    f"the loss became {loss} at child {child} in step {self.progress.step}"
                    f"{f' and the {where} is not finite' if where else ''}; {self.run.path} holds the"
                    f" run up to its last save; start again with --lr below {self.config.learning_rate}"
                )

    def _finish_epoch(self, shown: TrainProgress) -> None:
        self._read()
        progress, config = self.progress, self.config
        phase = self.method.phase(progress.epoch)
        losses = {child: total / count for child, (total, count) in progress.losses.items()}
        accuracy: dict[str, float] = {}
        if self._validates():
            with self.average.swapped() if self.average else nullcontext():
                accuracy = self._validate()
        shown.epoch(progress.epoch, config.epochs, phase, losses, accuracy)
        record = {
            "epoch": progress.epoch,
            "phase": phase,
            "loss": {child: round(loss, 5) for child, loss in losses.items()},
            "validation_accuracy": {child: round(percent, 3) for child, percent in accuracy.items()},
            "learning_rate": round(self.optimizer.param_groups[0]["lr"], 6),
            "sample_passes": progress.sample_passes,
            "seconds": round(progress.seconds, 2),
            **self.exchange.about(),
        }
        for log in self.logs:
            log(record)
        progress.epoch += 1
        progress.step_in_epoch = 0
        progress.losses = {}

    def _validate(self) -> dict[str, float]:
        """Accuracy per child, by name; keeps the weights if they are the best, or the last and there is no measure."""
        progress = self.progress
        self.subspace.show(self.images, self.config.norm_adaptation)
        if not len(self.validation):
            progress.best_epoch, self.best_weights = progress.epoch, self._copy_weights()
            return {}
        found = accuracy_per_child(self.network, self.validation, self.network.trained, self.world)
        average = sum(found[child] for child in self.network.quantized) / len(self.network.quantized)
        progress.unvalidated = 0
        if average >= progress.best_accuracy:
            progress.best_accuracy, progress.best_epoch = average, progress.epoch
            self.best_weights = self._copy_weights()
        return {child.name: percent for child, percent in found.items()}

    def _validates(self) -> bool:
        """Short epochs are not worth a validation each: it would cost a fifth of an epoch at a prune rate of 0.8."""
        progress, every = self.progress, self.config.validate_every
        if progress.epoch + 1 == self.config.epochs:
            return True
        if not len(self.validation) or not self.method.ready(progress.epoch):
            return False
        if every is not None:
            return (progress.epoch + 1) % every == 0
        return progress.unvalidated >= len(self.train) * len(self.network.trained)

    # --- state ---

    def _weights(self) -> dict[str, Tensor]:
        """Everything that is learned, and the network's statistics."""
        extra = {f"{EXTRA}{number}": parameter.detach() for number, parameter in enumerate(self.extra)}
        return {**self.network.state_dict(), **extra}

    def _copy_weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self._weights().items()}

    def _load_weights(self, weights: dict[str, Tensor]) -> None:
        self.network.load_state_dict({name: tensor for name, tensor in weights.items() if not name.startswith(EXTRA)})
        with torch.no_grad():
            for number, parameter in enumerate(self.extra):
                parameter.copy_(weights[f"{EXTRA}{number}"])

    def _save(self) -> None:
        self._read()
        self.run.save_state(self.state())
        self.last_save = time.perf_counter()

    def _stop(self) -> None:
        self._save()
        named = f" --model {self.config.model}" if is_users(self.config.model) else ""
        raise TrainingStopped(
            f"stopped after step {self.progress.step} of {self.total_steps}, everything is saved; continue with:"
            f" emqdeploy train --resume {self.run.path}{named}"
        )

    def state(self) -> dict[str, Any]:
        """Everything that continuing exactly needs, as tensors and plain values."""
        return {
            "version": STATE,
            "progress": dict(vars(self.progress)),
            "weights": self._weights(),
            "best": self.best_weights,
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "random_of_gpu": torch.cuda.get_rng_state() if self.train.labels.is_cuda else None,
            "method": self.method.state(),
            "average": self.average.state() if self.average else None,
            "exchange": self.exchange.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`.

        Raises:
            EmqError: another version of emqdeploy saved it.
        """
        if state.get("version") != STATE:
            raise EmqError(
                f"{self.run.path} was trained by another version of emqdeploy, whose state cannot be continued; begin"
                f" anew with: emqdeploy train --config {self.run.path}/config.toml"
            )
        self.progress = Progress(**state["progress"])
        self._load_weights(state["weights"])
        self.best_weights = state["best"]
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        if state["random_of_gpu"] is not None and self.train.labels.is_cuda:
            torch.cuda.set_rng_state(state["random_of_gpu"])
        self.method.restore(state["method"])
        if self.average:
            self.average.restore(state["average"])
        if "exchange" in state:  # not in those of before there was one
            self.exchange.restore(state["exchange"])
        self.run.truncate_metrics(self.progress.epoch)


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
        ASKED.append(number)

    for number in before:
        signal.signal(number, handle)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
