"""What the children of a checkpoint are measured against: the same network in onnxruntime, in int8 and in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from emqdeploy.format.child import FLOAT_BITS, Child
from emqdeploy.format.emq import Checkpoint, load_checkpoint
from emqdeploy.format.grid import Floats
from emqdeploy.format.precision import FLOAT32, INT8, LayerPrecision
from emqdeploy.graph.unquantized import unquantized
from emqdeploy.registry import Registry
from emqdeploy.runtimes.base import open_runtime
from emqdeploy.runtimes.onnx_kernels import computed_as, profile_kernels
from emqdeploy.runtimes.onnx_session import SessionEngine, create_session, session_options
from emqdeploy.runtimes.source import Source

RUNTIME = "onnxruntime"


class Reference:
    """A network that has no children, as a row of a bench.

    Args:
        network: answers a batch of normalised images with logits.
        layers: what it computes.
    """

    name = RUNTIME
    children: tuple[Child, ...] = ()

    def __init__(self, network: Callable[[Floats], Floats], layers: list[LayerPrecision]) -> None:
        self._network = network
        self._layers = layers

    def __call__(self, images: Floats) -> Floats:
        """Returns logits ``(N, classes)``."""
        return self._network(images)

    def precision(self, child: Child | None = None) -> list[LayerPrecision]:
        """Every layer, with the kernel that really ran."""
        return self._layers


REFERENCES: Registry[Callable[[Checkpoint, int | None], Reference]] = Registry("reference")
"""References by name; each takes a checkpoint and the threads inside an operator."""


@REFERENCES.register(INT8)
def _int8(checkpoint: Checkpoint, threads: int | None) -> Reference:
    """The widest child; onnxruntime takes as long for every other one."""
    child = checkpoint.network.children[-1]
    runtime = open_runtime(checkpoint, RUNTIME, children=[child], threads=threads)
    return Reference(runtime, runtime.precision(child))


@REFERENCES.register(FLOAT32)
def _float32(checkpoint: Checkpoint, threads: int | None) -> Reference:
    """The same child without quantizers."""
    network = checkpoint.network
    graph = unquantized(checkpoint.skeleton, network, network.children[-1])
    kernels = profile_kernels(graph, session_options(threads), None, checkpoint.card.input_shape)
    layers = [LayerPrecision(name, FLOAT_BITS, FLOAT32, *computed_as(kernel)) for name, kernel in kernels.items()]
    return Reference(SessionEngine(create_session(graph, session_options(threads)), len(graph)).run, layers)


def open_reference(path: Path, name: str, threads: int | None) -> Source:
    """Opens a reference of a checkpoint.

    Args:
        path: the checkpoint.
        name: in `REFERENCES`.
        threads: threads inside an operator; None uses every core.

    Raises:
        EmqError: onnxruntime is not installed, or does not take this network.
    """
    checkpoint = load_checkpoint(path)
    network: Any = REFERENCES[name](checkpoint, threads)
    return Source(path, network, checkpoint.card, {})
