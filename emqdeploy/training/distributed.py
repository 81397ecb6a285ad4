"""Several processes that train one network, as `torchrun` starts them.

Every process plans the same steps and takes its part of each batch. Gradients, running statistics and losses are summed
in one collective a step, so that all processes hold the same network, optimizer and scores at any time: one of them
can save for all. A batch in parts is normalized part by part ("ghost batches", arXiv 1705.08741), and one process that
is told to do so (``--ghost-batches``) computes the same up to the order of additions.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.quant.norms import MultiBitBatchNorm2d

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for another one: rank 0 alone validates nothing, but it writes checkpoints."""

SMALLEST_PART = 2
"""Batch statistics of one image mean nothing."""


class ProcessLost(EmqError):
    """Another process of the run ended; what it had to say, it said itself."""


@dataclass(frozen=True)
class Part:
    """The share of a batch that one forward pass normalizes.

    Attributes:
        number: of the part in the batch, which draws its augmentation.
        start: its first image in the batch.
        indices: of its images, ``(B,)``.
        share: of the batch's gradient.
        statistics: of the batch's running statistics.
    """

    number: int
    start: int
    indices: NDArray[np.int64]
    share: float
    statistics: float


class World:
    """This process among those that train together; one alone by default.

    Attributes:
        rank: of this process; 0 writes and prints.
        size: number of processes.
        sent_bytes: of this process's own messages so far, each counted once, however it travels.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size
        self.sent_bytes = 0

    @property
    def leads(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def parts(self, indices: NDArray[np.int64], parts: int) -> list[Part]:
        """The parts of a batch that this process works on.

        A batch that is too small has fewer parts; a process without one repeats another's at weight 0, so that all have
        gradients of the same parameters.

        Args:
            indices: the batch, ``(B,)``.
            parts: in how many it is normalized, a multiple of ``size``.
        """
        count = max(1, min(parts, len(indices) // SMALLEST_PART))
        cuts = [len(indices) * part // count for part in range(count + 1)]
        per_process = parts // self.size
        mine = range(self.rank * per_process, (self.rank + 1) * per_process)
        return [
            self._part(indices, cuts, number % count, real=number < count)
            for number in (mine if mine.start < count else mine[:1])
            if number < count or number == mine.start
        ]

    @staticmethod
    def _part(indices: NDArray[np.int64], cuts: list[int], number: int, real: bool) -> Part:
        start, end = cuts[number], cuts[number + 1]
        share = (end - start) / len(indices) if real else 0.0
        return Part(number, start, indices[start:end], share, 1 / (len(cuts) - 1) if real else 0.0)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Adds up tensors over all processes, in place and in one collective."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.detach().reshape(-1).to(torch.float32) for tensor in tensors])
        self.sent_bytes += flat.nbytes
        with _peers():
            dist.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.detach().copy_(total.view_as(tensor))

    def gather(self, rows: Tensor, start: int, count: int) -> Tensor:
        """Joins the rows of all processes.

        Args:
            rows: this process's, ``(B', D)``, or none of its own ``(0, D)``.
            start: their place.
            count: rows of all processes together.

        Returns:
            ``(count, D)`` float32.
        """
        if self.size == 1:
            return rows
        everything = torch.zeros(count, rows.shape[1], device=rows.device)
        everything[start : start + len(rows)] = rows
        self.sent_bytes += everything.nbytes
        with _peers():
            dist.all_reduce(everything)
        return everything

    def collect(self, message: Tensor) -> list[Tensor]:
        """The messages of all processes by rank, each of the length of this one's, ``(M,)`` bytes."""
        if self.size == 1:
            return [message]
        everyone = [torch.empty_like(message) for _ in range(self.size)]
        self.sent_bytes += message.nbytes
        with _peers():
            dist.all_gather(everyone, message)
        return everyone

    def agree(self, value: Any) -> Any:
        """Returns the value of rank 0."""
        if self.size == 1:
            return value
        box = [value]
        with _peers():
            dist.broadcast_object_list(box)
        return box[0]


_store: list[dist.Store] = []  # of the run that this process takes part in
_lost = threading.Event()  # set once another process of the run is gone


def join_world(device: str) -> World:
    """Joins the processes that `torchrun` started; a process that it did not start is alone.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``; each process takes a GPU of its own.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    rank = int(os.environ["RANK"])
    gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if not dist.is_initialized():
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _terminate)
        if gpu:
            local = int(os.environ["LOCAL_RANK"])
            if local >= torch.cuda.device_count():
                raise UsageError(
                    f"torchrun started more processes here than the {torch.cuda.device_count()} GPUs that torch sees;"
                    " lower --nproc-per-node"
                )
            torch.cuda.set_device(local)
        with _peers():
            # The agent of torchrun keeps the store, so it outlives any process of the run.
            hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            keeper = dist.TCPStore(address, port, size, rank == 0 and not hosted, timeout=TIMEOUT)
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            _store[:] = [dist.PrefixStore(f"emqdeploy/{attempt}", keeper)]
            backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
            dist.init_process_group(backend, store=_store[0], rank=rank, world_size=size, timeout=TIMEOUT)
    return World(rank, size)


def _terminate(number: int, frame: Any) -> None:
    """Ends this process, unless it ends already and has something to say: `torchrun` asks at the same moment."""
    if not _lost.is_set():
        raise SystemExit(128 + number)


def leave_world() -> None:
    """Ends this process's part."""
    if dist.is_initialized():
        dist.destroy_process_group()


def says(error: BaseException) -> bool:
    """Whether this process should tell of an error that perhaps all processes of the run met.

    Each sentence is said once. That a process is gone is said only where that process did not say why.
    """
    if not _store:
        return os.environ.get("RANK", "0") == "0"
    try:
        if isinstance(error, ProcessLost):
            time.sleep(0.5)  # the process that is gone may be about to say why
            return _store[0].add("said", 1) == 1
        first = _store[0].add(f"error/{error}", 1) == 1
        _store[0].add("said", 1)
    except RuntimeError:  # the store is gone too
        return True
    return first


@contextlib.contextmanager
def _peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        _lost.set()
        raise ProcessLost(
            "another process of this run ended; what was saved last is intact, go on with the same torchrun command and"
            " --resume RUN"
        ) from error


class _Sum(torch.autograd.Function):
    """Sum over all processes; the gradient of a sum that all of them use is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        with _peers():
            dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)


class SharedMoments:
    """Lets all processes normalize a batch by the statistics of all of it (``--sync-norm``).

    Args:
        norms: the network's.
    """

    def __init__(self, norms: Iterable[MultiBitBatchNorm2d]) -> None:
        self.norms = list(norms)
        self.counts = True

    @contextlib.contextmanager
    def active(self, counts: bool) -> Iterator[None]:
        """While a part goes forward and backward; one that repeats another's images does not count."""
        self.counts = counts
        for norm in self.norms:
            norm.pool = self._pool
        try:
            yield
        finally:
            for norm in self.norms:
                norm.pool = None

    def _pool(self, moments: Tensor) -> Tensor:
        total: Tensor = _Sum.apply(moments * float(self.counts))
        return total


class PartStatistics:
    """Running statistics of the normalizations while a batch goes through the network in parts.

    Each part starts from the same statistics, and their weighted sum takes the place of what one pass leaves.
    """

    def __init__(self, network: nn.Module) -> None:
        self.buffers = [
            buffer
            for module in network.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            for buffer in module.buffers(recurse=False)
            if buffer.is_floating_point()
        ]

    def begin(self) -> None:
        """Notes the statistics before the first part."""
        self.before = [buffer.clone() for buffer in self.buffers]
        self.sums = [torch.zeros_like(buffer) for buffer in self.buffers]

    def end_part(self, weight: float) -> None:
        """Counts what a part left, and goes back to the start."""
        for buffer, before, total in zip(self.buffers, self.before, self.sums, strict=True):
            total.add_(buffer, alpha=weight)
            buffer.copy_(before)

    def finish(self) -> list[Tensor]:
        """Puts the sum over this process's parts in place; summed over all processes it is the result."""
        for buffer, total in zip(self.buffers, self.sums, strict=True):
            buffer.copy_(total)
        return self.buffers
