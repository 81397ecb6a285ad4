"""How a child's forward pass runs while training: operator by operator, compiled, or replayed as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from emqdeploy.format.child import Child
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.training.settings import CommonOptions

Forward = Callable[[Child, Tensor], Tensor]
"""``(child, images (N, C, H, W)) -> logits (N, classes)``, with gradients."""


def forward_of(
    common: CommonOptions, network: MultiBitNetwork, children: Sequence[Child], device: torch.device, alone: bool
) -> Forward:
    """The forward pass that a configuration asks for.

    Args:
        common: options of the run.
        network: in training.
        children: those that run often.
        device: of the training.
        alone: whether each child has one pass over a whole batch in an update, which graphs take for granted.
    """
    if device.type == "cuda" and alone and common.cuda_graphs and not common.compile:
        return _Graphed(network, frozenset(children), common)
    run: Any = torch.compile(network) if common.compile else network

    def forward(child: Child, images: Tensor) -> Tensor:
        network.use(child)
        if common.compile:  # one graph serves the smaller last batch too
            torch._dynamo.maybe_mark_dynamic(images, 0)
        with _mixed(device.type, common.amp == "bf16"):
            logits: Tensor = run(images)
        return logits

    return forward


def _mixed(device: str, bfloat16: bool) -> torch.autocast:
    # What the cache would keep, quantized weights, every pass makes anew; and a graph must not find it filled.
    return torch.autocast(device, torch.bfloat16, enabled=bfloat16, cache_enabled=False)


class _AtChild(nn.Module):
    """The network at one child, as a module that can be captured.

    Args:
        network: all of it.
        child: to run at.
        mixed: whether its float arithmetic is in mixed precision.
    """

    def __init__(self, network: MultiBitNetwork, child: Child, mixed: bool) -> None:
        super().__init__()
        self.network = network
        self.child = child
        self.mixed = mixed

    def forward(self, images: Tensor) -> Tensor:
        self.network.use(self.child)
        with _mixed(images.device.type, self.mixed):
            logits: Tensor = self.network(images)
        return logits


class _Graphed:
    """Captures forward and backward pass of every child once, and replays them with one launch each.

    A small network's kernels run for microseconds, less than it takes to launch them: without graphs the GPU waits for
    Python. What is rare stays out: a last smaller batch, and children whose widths are drawn for one step.

    Args:
        network: in training, on the GPU.
        children: those that are captured.
        common: options of the run; batches of its size are captured.
    """

    def __init__(self, network: MultiBitNetwork, children: frozenset[Child], common: CommonOptions) -> None:
        self.network = network
        self.children = children
        self.common = common
        self.captured: dict[Child, Callable[..., Any]] = {}

    def __call__(self, child: Child, images: Tensor) -> Tensor:
        if len(images) != self.common.batch_size or child not in self.children:
            logits: Tensor = self._at(child)(images)
            return logits
        if child not in self.captured:
            self.captured[child] = self._capture(child, images)
        logits = self.captured[child](images)
        return logits

    def _at(self, child: Child) -> _AtChild:
        module = _AtChild(self.network, child, self.common.amp == "bf16")
        module.training = self.network.training
        return module

    def _capture(self, child: Child, images: Tensor) -> Callable[..., Any]:
        # Warming up runs the network a few times; the statistics that it gathers there are not those of training.
        before = [buffer.clone() for buffer in self.network.buffers()]
        # A child does not use what only others learn: clips of other widths, say.
        captured: Callable[..., Any] = torch.cuda.make_graphed_callables(
            self._at(child), (images.clone(),), allow_unused_input=True
        )
        for buffer, values in zip(self.network.buffers(), before, strict=True):
            buffer.copy_(values)
        return captured
