"""Proxies that know their sizes: what a model asks of a tensor's shape while it is traced gets a plain number.

Every operator runs on tensors without data for two batch sizes. A size that is the same for both is a constant of the
network, so that padding and branches that depend on it can be traced; one that differs stays a node of the graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import map_aggregate

BATCHES = (2, 3)

Dims = tuple[int | None, ...]
"""Sizes of a tensor; None where the batch decides."""


class SizedProxy(fx.Proxy):
    """A traced tensor, or number, whose sizes may be known."""

    @property
    def _pair(self) -> Any:
        return self.tracer.values.get(self.node, (None, None))  # type: ignore[attr-defined]

    @property
    def _dims(self) -> Dims | None:
        return dims_of(self._pair)

    @property
    def shape(self) -> Any:
        """Sizes as numbers where they are constants of the network, else as nodes."""
        dims = self._dims
        if dims is None:
            return super().__getattr__("shape")
        if None not in dims:
            return torch.Size(dims)  # type: ignore[arg-type]
        return tuple(super(SizedProxy, self).__getattr__("size")(i) if d is None else d for i, d in enumerate(dims))

    def size(self, dim: int | None = None) -> Any:
        """The same as `shape`, or one of it."""
        if self._dims is None:
            return super().__getattr__("size")(*(() if dim is None else (dim,)))
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> Any:
        """Number of dimensions."""
        return super().__getattr__("dim")() if self._dims is None else len(self._dims)

    @property
    def ndim(self) -> Any:
        """Number of dimensions."""
        return super().__getattr__("ndim") if self._dims is None else len(self._dims)

    @property
    def dtype(self) -> Any:
        """Type of its elements."""
        return super().__getattr__("dtype") if self._dims is None else self._pair[0].dtype

    @property
    def device(self) -> Any:
        """Where it is while it is traced; a graph must not hold on to it."""
        return super().__getattr__("device") if self._dims is None else self._pair[0].device

    def new_zeros(self, *size: Any, **options: Any) -> Any:
        """Zeros of a constant size are a constant, which the model may fill."""
        shape = size[0] if len(size) == 1 and isinstance(size[0], (tuple, list)) else size
        if self._dims is None or not all(isinstance(one, int) for one in shape):
            return super().__getattr__("new_zeros")(*size, **options)
        return torch.zeros(shape, dtype=options.get("dtype") or self.dtype)

    def __len__(self) -> int:
        count = length(self._pair)
        return super().__len__() if count is None else count

    def __bool__(self) -> bool:
        known = _common(self._pair)
        return super().__bool__() if known is None else bool(known)

    def __int__(self) -> int:
        known = _common(self._pair)
        if known is None:
            raise TypeError(f"the value of {self.node.name} is not known before the network runs")
        return int(known)

    __index__ = __int__


class Sizes:
    """Evaluates nodes on tensors without data.

    Args:
        shape: ``(C, H, W)`` of one image.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        with self._mode:
            self.images = tuple(torch.empty(count, *shape) for count in BATCHES)

    def run(self, function: Callable[..., Any], args: Any, kwargs: Any, values: dict[fx.Node, Any]) -> Any:
        """The results for both batch sizes, None where they cannot be had."""
        results = []
        for index in range(len(BATCHES)):

            def known(value: Any, index: int = index) -> Any:
                return values[value.node][index] if isinstance(value, fx.Proxy) else value

            # An operator that needs values of tensors, or a tensor that could not be followed, has no sizes.
            with contextlib.suppress(Exception), torch.no_grad(), self._mode:
                results.append(function(*map_aggregate(args, known), **map_aggregate(kwargs, known)))
        return tuple(results) if len(results) == len(BATCHES) else None


def dims_of(pair: Any) -> Dims | None:
    """The sizes of a tensor that was evaluated for both batch sizes; None where it is no tensor."""
    if not all(isinstance(value, Tensor) for value in pair) or pair[0].dim() != pair[1].dim():
        return None
    return tuple(a if a == b else None for a, b in zip(pair[0].shape, pair[1].shape, strict=True))


def length(pair: Any) -> int | None:
    """How many parts something has that was evaluated for both batch sizes; None where that is not known."""
    sized = all(isinstance(value, (tuple, list)) or (isinstance(value, Tensor) and value.dim()) for value in pair)
    return len(pair[0]) if sized and len(pair[0]) == len(pair[1]) else None


def _common(pair: Any) -> Any:
    """The plain number that both batch sizes give."""
    plain = all(isinstance(value, (bool, int, float)) for value in pair)
    return pair[0] if plain and pair[0] == pair[1] else None
