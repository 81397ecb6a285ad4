"""The training loop: each step trains one child on its own batch, the children taking turns."""

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
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from emqdeploy.errors import EmqError
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.training.augment import AUGMENTATIONS
from emqdeploy.training.config import TrainConfig
from emqdeploy.training.coreset import choose_coresets, coreset_size
from emqdeploy.training.evaluate import accuracy_per_bits
from emqdeploy.training.progress import TrainProgress
from emqdeploy.training.run import RunDirectory
from emqdeploy.training.scores import Dynamics
from emqdeploy.training.steps import Step, interleaved_epoch, steps_in_epoch

WARM_UP = 0.05
"""Share of all steps over which the learning rate rises."""


class TrainingStopped(EmqError):
    """Training was interrupted and can be resumed."""


@dataclass
class Tensors:
    """Normalised images ``(N, C, H, W)`` and labels ``(N,)`` on the training device."""

    images: Tensor
    labels: Tensor


@dataclass
class Progress:
    """How far a run is; together with weights and optimizer, all that resuming needs."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    sample_passes: int = 0
    seconds: float = 0.0
    best_accuracy: float = -1.0
    best_epoch: int = -1
    losses: list[float] = field(default_factory=list)


class Trainer:
    """Trains one network.

    Args:
        config: the run.
        network: with initialised clips.
        train: training images.
        validation: chooses the best epoch.
        classes: number of the network's outputs.
        augmentation: a name in `AUGMENTATIONS`.
        run: where metrics and state go.
        console: where progress goes.
    """

    def __init__(
        self,
        config: TrainConfig,
        network: MultiBitNetwork,
        train: Tensors,
        validation: Tensors,
        classes: int,
        augmentation: str,
        run: RunDirectory,
        console: Console,
    ) -> None:
        self.config = config
        self.network = network
        self.train = train
        self.validation = validation
        self.augment = AUGMENTATIONS[augmentation]
        self.run = run
        self.console = console
        self.forward: Callable[[Tensor], Tensor] = torch.compile(network) if config.compile else network
        decayed = [p for p in network.parameters() if p.dim() > 1]
        others = [p for p in network.parameters() if p.dim() <= 1 and p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=True)
        self.progress = Progress()
        self.everything = {bits: np.arange(len(train.labels)) for bits in config.bits}
        self.coresets: dict[int, NDArray[np.int64]] = {}
        self.dynamics: Dynamics | None = None
        if config.prune_rate > 0:
            self.dynamics = Dynamics(config.bits, config.full_epochs, len(train.labels), classes)
        self.best_state = self._copy_state()

    # --- the loop ---

    def fit(self) -> None:
        """Trains to the last epoch and leaves the best weights in the network."""
        config, progress = self.config, self.progress
        started = time.perf_counter() - progress.seconds
        with _stop_signal() as stopped, TrainProgress(self.console, self.total_steps(), progress.step) as shown:
            while progress.epoch < config.epochs:
                scoring = progress.epoch < config.full_epochs
                if not scoring and not self.coresets:
                    self.coresets = self._choose_coresets()
                subsets = self.everything if scoring else self.coresets
                steps = interleaved_epoch(subsets, config.batch_size, config.seed, progress.epoch)
                for step in steps[progress.step_in_epoch :]:
                    self._step(step, scoring)
                    shown.step()
                    if stopped.is_set():
                        progress.seconds = time.perf_counter() - started
                        self._stop()
                progress.seconds = time.perf_counter() - started
                self._finish_epoch("score" if scoring and self.dynamics else "train", shown)
        self.network.load_state_dict(self.best_state)

    def _step(self, step: Step, scoring: bool) -> None:
        progress = self.progress
        self.network.train()
        self.network.set_bits(step.bits)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        indices = torch.from_numpy(step.indices)
        random = torch.Generator().manual_seed(hash((self.config.seed, progress.step)) & (2**63 - 1))
        images, labels = self.augment(self.train.images[indices], random), self.train.labels[indices]
        logits = self.forward(images)
        loss = F.cross_entropy(logits, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        value = loss.item()
        if not math.isfinite(value):
            raise EmqError(
                f"the loss became {value} at {step.bits} bits in step {progress.step}; {self.run.path} holds the"
                f" run up to its last finished epoch; start again with --lr below {self.config.learning_rate}"
            )
        if scoring and self.dynamics is not None:
            softmax = logits.detach().softmax(1).float().cpu().numpy()
            self.dynamics.record(step.bits, progress.epoch, step.indices, softmax)
        progress.losses.append(value)
        progress.sample_passes += len(step.indices)
        progress.step += 1
        progress.step_in_epoch += 1

    def _finish_epoch(self, phase: str, shown: TrainProgress) -> None:
        progress, config = self.progress, self.config
        accuracy = accuracy_per_bits(self.network, self.validation.images, self.validation.labels, config.bits)
        average = sum(accuracy.values()) / len(accuracy)
        loss = sum(progress.losses) / len(progress.losses)
        if average >= progress.best_accuracy:
            progress.best_accuracy, progress.best_epoch = average, progress.epoch
            self.best_state = self._copy_state()
        shown.epoch(progress.epoch, config.epochs, phase, loss, accuracy)
        self.run.log(
            {
                "epoch": progress.epoch,
                "phase": phase,
                "loss": round(loss, 5),
                "validation_accuracy": {str(bits): round(percent, 3) for bits, percent in accuracy.items()},
                "learning_rate": round(self._learning_rate(), 6),
                "sample_passes": progress.sample_passes,
                "seconds": round(progress.seconds, 2),
            }
        )
        progress.epoch += 1
        progress.step_in_epoch = 0
        progress.losses = []
        self.run.save_state(self.state())

    def _stop(self) -> None:
        self.run.save_state(self.state())
        raise TrainingStopped(
            f"stopped after step {self.progress.step} of {self.total_steps()}, everything is saved; continue with:"
            f" emqdeploy train --resume {self.run.path}"
        )

    # --- schedule ---

    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        config, images = self.config, len(self.train.labels)
        full = steps_in_epoch(images, config.batch_size)
        pruned = full
        if config.prune_rate > 0:
            pruned = steps_in_epoch(coreset_size(images, config.prune_rate, config.batch_size), config.batch_size)
        per_bits = config.full_epochs * full + (config.epochs - config.full_epochs) * pruned
        return len(config.bits) * per_bits

    def _learning_rate(self) -> float:
        """Linear warm-up, then a cosine to zero."""
        share = self.progress.step / self.total_steps()
        factor = (
            share / WARM_UP if share < WARM_UP else 0.5 + 0.5 * math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP))
        )
        return self.config.learning_rate * max(factor, 1e-3)

    def _choose_coresets(self) -> dict[int, NDArray[np.int64]]:
        assert self.dynamics is not None
        config = self.config
        labels = self.train.labels.cpu().numpy()
        return choose_coresets(
            self.dynamics, labels, config.prune_rate, config.score, config.selection, config.batch_size, config.seed
        )

    # --- state ---

    def _copy_state(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """Everything that continuing exactly needs, as tensors and plain values."""
        return {
            "progress": dict(vars(self.progress)),
            "network": self.network.state_dict(),
            "best": self.best_state,
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "coresets": {bits: torch.from_numpy(indices) for bits, indices in self.coresets.items()},
            "dynamics": {
                bits: torch.from_numpy(softmax)
                for bits, softmax in (self.dynamics.softmax.items() if self.dynamics is not None else ())
            },
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.progress = Progress(**state["progress"])
        self.network.load_state_dict(state["network"])
        self.best_state = state["best"]
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        self.coresets = {bits: indices.numpy() for bits, indices in state["coresets"].items()}
        if self.dynamics is not None:
            self.dynamics.softmax = {bits: softmax.numpy() for bits, softmax in state["dynamics"].items()}
        self.run.truncate_metrics(self.progress.epoch)


@contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """Turns the first Ctrl-C into an event, so that a step is never torn; the second one interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    for number in before:
        signal.signal(number, handle)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
