"""Seeing what the modules of a network give while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def hooked(hooks: Mapping[nn.Module, Callable[[nn.Module, Any, Tensor], Any]]) -> Iterator[None]:
    """Lets functions see, or change, what modules give while the block runs."""
    with ExitStack() as stack:
        for module, hook in hooks.items():
            stack.callback(module.register_forward_hook(hook).remove)
        yield


@torch.no_grad()
def multiplications(network: nn.Module, layers: Mapping[str, nn.Module], images: Tensor) -> dict[str, int]:
    """Multiplications of layers for one image, at all of their calls.

    Args:
        network: is run on the images.
        layers: convolutions and linear layers in it, by name.
        images: ``(N, C, H, W)``.
    """
    found = dict.fromkeys(layers, 0)

    def count(name: str) -> Callable[[Any, Any, Tensor], None]:
        def hook(layer: Any, inputs: Any, output: Tensor) -> None:
            found[name] += layer.weight[0].numel() * output.numel() // len(images)

        return hook

    with hooked({layer: count(name) for name, layer in layers.items()}):
        network(images)
    return found
