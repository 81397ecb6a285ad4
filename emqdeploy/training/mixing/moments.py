"""Statistics of a new child, estimated on unlabelled images: each layer gives what it gives at the widest child.

A normalization is folded into the layer before it, so new statistics are a new scale and a new bias. Those that give an
output channel the mean and the deviation that it has at the widest child are what re-estimated statistics would be: a
normalization gives its output the same moments whatever comes in. A layer without one keeps its scale, and gets the
mean alone (arXiv 1906.04721, sec. 4.2).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from emqdeploy.format.child import Child
from emqdeploy.format.frozen import FrozenNetwork
from emqdeploy.format.grid import fold
from emqdeploy.quant.deploy import deployed_reference
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.quant.watching import hooked

LEAST_SHARE = 1e-3
"""Of the deviation that a channel should have: below it the channel gives a constant, and is only shifted."""


@dataclass(frozen=True)
class Moments:
    """Mean and mean square of every output channel of a layer on some images, ``(C,)`` in float64."""

    mean: Tensor
    square: Tensor

    @classmethod
    def of(cls, output: Tensor, is_convolution: bool) -> Moments:
        """Of images ``(N, C, H, W)`` behind a convolution, else of rows ``(..., C)``."""
        values = (output.transpose(0, 1) if is_convolution else output.movedim(-1, 0)).flatten(1).double()
        return cls(values.mean(1), values.square().mean(1))

    @classmethod
    def over(cls, parts: Sequence[Moments]) -> Moments:
        """Of several batches."""
        return cls(*(torch.stack([getattr(part, of) for part in parts]).mean(0) for of in ("mean", "square")))

    @property
    def deviation(self) -> Tensor:
        """Standard deviation, ``(C,)``."""
        return (self.square - self.mean.square()).clamp(min=0).sqrt()


def gain_and_shift(found: Moments, wanted: Moments, scaled: bool) -> tuple[Tensor, Tensor]:
    """Returns ``g`` and ``h``, ``(C,)`` each, so that ``g y + h`` has the wanted moments where ``y`` has those found.

    Args:
        found: of ``y``.
        wanted: of the result.
        scaled: whether the deviation is matched too; else ``g`` is 1.
    """
    gain = torch.ones_like(found.mean)
    if scaled:
        deviation = found.deviation
        lives = deviation > LEAST_SHARE * wanted.deviation
        gain = torch.where(lives, wanted.deviation / torch.where(lives, deviation, 1.0), gain)
    return gain, wanted.mean - gain * found.mean


def moved(output: Tensor, gain: Tensor, shift: Tensor, is_convolution: bool) -> Tensor:
    """``g y + h`` per channel."""
    column = (-1, 1, 1) if is_convolution else (-1,)
    return output * gain.to(output.dtype).reshape(column) + shift.to(output.dtype).reshape(column)


class Matching:
    """Estimates children of one network on the same images.

    Args:
        structure: a network of the file's structure; its weights do not matter.
        frozen: what the file holds.
        start: the child whose layers say what others should give.
        batches: normalised images ``(B, C, H, W)``.
    """

    def __init__(
        self, structure: MultiBitNetwork, frozen: FrozenNetwork, start: Child, batches: Sequence[Tensor]
    ) -> None:
        self._structure, self._batches = structure, batches
        self.convolutions = {name for name, layer in structure.layers.items() if isinstance(layer, nn.Conv2d)}
        self.scaled: Collection[str] = structure.norm_of.keys()
        module = deployed_reference(structure, frozen, start)
        self._wanted = [self._run(module, images, None) for images in batches]

    def __call__(self, frozen: FrozenNetwork, child: Child) -> FrozenNetwork:
        """Returns the network with scales and biases of one of its children estimated anew.

        The layers are matched in the order in which they run, all in one pass: each reads what those before it give
        once they are matched.
        """
        module = deployed_reference(self._structure, frozen, child)
        found: dict[str, list[Moments]] = defaultdict(list)
        for images, wanted in zip(self._batches, self._wanted, strict=True):
            for name, parts in self._run(module, images, wanted).items():
                found[name] += parts
        layers = {}
        for name, layer in frozen.layers.items():
            whole = Moments.over([part for batch in self._wanted for part in batch[name]])
            gain, shift = gain_and_shift(Moments.over(found[name]), whole, name in self.scaled)
            step = frozen.sites[layer.site].scales[child]
            bias = layer.biases[child].astype(np.float64)
            grid, folded = fold(layer.grids[child], bias, gain.numpy(), shift.numpy(), step)
            layers[name] = replace(layer, grids=layer.grids | {child: grid}, biases=layer.biases | {child: folded})
        return replace(frozen, layers=layers)

    @torch.inference_mode()
    def _run(
        self, module: nn.Module, images: Tensor, wanted: Mapping[str, Sequence[Moments]] | None
    ) -> dict[str, list[Moments]]:
        """What each layer gives, at every call of it; it is moved to what is wanted before others read it."""
        found: dict[str, list[Moments]] = defaultdict(list)

        def match(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
            is_convolution = name in self.convolutions

            def hook(_: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
                found[name].append(Moments.of(output, is_convolution))
                if wanted is None:
                    return None
                target = wanted[name][len(found[name]) - 1]
                return moved(output, *gain_and_shift(found[name][-1], target, name in self.scaled), is_convolution)

            return hook

        with hooked({module.get_submodule(name): match(name) for name in self._structure.layers}):
            module(images)
        return found
