"""Proves, before any work goes into a network, that it can be deployed: at every batch size, and as a file."""

from __future__ import annotations

import torch

from emqdeploy.errors import EmqError
from emqdeploy.format.child import FLOAT
from emqdeploy.format.gate import INPUT
from emqdeploy.format.onnx_graph import read_model
from emqdeploy.format.shapes import Shapes
from emqdeploy.quant.deploy import freeze
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.quant.skeleton import export_skeleton

TOLERANCE = 1e-3
"""Share of the logits' size that rounding in another order may change: deep networks amplify the last bit."""


def _check_shapes(skeleton: bytes, shape: tuple[int, int, int]) -> None:
    """Raises for a graph that no file could be opened with: its gate computes every shape."""
    try:
        Shapes({INPUT: (1, *shape)}).follow(read_model(skeleton).graph)
    except ValueError as error:
        raise EmqError(f"this network cannot be stored: {error}; replace that operator") from error


@torch.no_grad()
def prove(network: MultiBitNetwork, shape: tuple[int, int, int]) -> None:
    """Runs a network on one image and on three, and exports it once; nothing of it is changed.

    Args:
        network: on the CPU.
        shape: ``(C, H, W)`` of one image.

    Raises:
        EmqError: a batch size was frozen into the network, or the exporter cannot take it.
    """
    modes = [(module, module.training) for module in network.modules()]
    images = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    network.eval()
    try:
        with network.at(FLOAT):
            together, alone = network(images), network(images[:1])
        if not torch.allclose(
            together[:1], alone, rtol=0, atol=TOLERANCE * float(together.abs().max()), equal_nan=True
        ):
            raise EmqError(
                "the model answers an image differently in a batch of one and of three; make its forward free of"
                " branches on the size of the batch"
            )
        deployable = [child for child in network.known if child != FLOAT]
        if deployable:
            _check_shapes(export_skeleton(network, freeze(network, deployable[:1]), shape), shape)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise EmqError(
            f"the traced model does not take batches of every size: {reason}; take sizes from the shape of the tensor"
            " in its forward"
        ) from error
    finally:
        for module, training in modes:
            module.training = training
