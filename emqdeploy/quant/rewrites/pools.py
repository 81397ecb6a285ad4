"""Writes poolings whose windows depend on the size of the image as plain ones."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from emqdeploy.errors import EmqError
from emqdeploy.quant.rewrites.base import Stage, Traced, dims, rewrite
from emqdeploy.quant.sizes import Dims

_MEANS = (nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d)
_PEAKS = (nn.AdaptiveMaxPool2d, F.adaptive_max_pool2d)
_WINDOW = ("kernel_size", "stride", "padding")


@rewrite(Stage.SHAPES)
def needless_ceilings(traced: Traced) -> None:
    """Takes ``ceil_mode`` from poolings whose windows fit anyhow: runtimes differ in what they make of it."""
    for name, nodes in traced.calls_of((nn.MaxPool2d, nn.AvgPool2d)):
        pool: Any = traced.module.get_submodule(name)
        sizes = [(dims(node.all_input_nodes[0]), dims(node)) for node in nodes]
        if pool.ceil_mode and all(read and given and _fits(pool, read, given) for read, given in sizes):
            pool.ceil_mode = False


@rewrite(Stage.POOLS)
@torch.no_grad()
def means_beyond_the_edge(traced: Traced) -> None:
    """Writes a mean with ``ceil_mode`` as padding, a plain mean and its share: runtimes count its last windows anew."""
    for _, nodes in traced.calls_of(nn.AvgPool2d):
        for node in nodes:
            pool: Any = traced.called(node)
            source = node.all_input_nodes[0]
            read, given = dims(source), dims(node)
            if not pool.ceil_mode or read is None or given is None or None in (*read[1:], *given[1:]):
                continue
            windows = zip(read[2:], given[2:], *(_pair(getattr(pool, name)) for name in _WINDOW), strict=True)
            ends = [(pad, max((parts - 1) * s + k - size - pad, 0)) for size, parts, k, s, pad in windows]
            (top, bottom), (left, right) = ends
            edge, plain = nn.ZeroPad2d((left, right, top, bottom)), nn.AvgPool2d(pool.kernel_size, pool.stride)
            ones = torch.ones(1, 1, *read[2:])  # type: ignore[arg-type]
            share = traced.add(f"{node.name}_share", pool(ones) / plain(edge(ones)))
            padded = traced.call(node, traced.add(f"{node.name}_pad", edge), source)
            mean = traced.call(node, traced.add(f"{node.name}_plain", plain), padded)
            with traced.graph.inserting_before(node):
                traced.swap(node, traced.graph.call_function(operator.mul, (mean, traced.graph.get_attr(share))))


def _fits(pool: Any, read: Dims, given: Dims) -> bool:
    options = zip(read[2:], given[2:], *(_pair(getattr(pool, name)) for name in _WINDOW), strict=True)
    dilation = _pair(getattr(pool, "dilation", 1))
    return all(
        size is not None and (size + 2 * pad - d * (kernel - 1) - 1) // stride + 1 == parts
        for (size, parts, kernel, stride, pad), d in zip(options, dilation, strict=True)
    )


def _pair(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


@rewrite(Stage.SHAPES)
def adaptive_pools(traced: Traced) -> None:
    """Gives adaptive poolings windows; a mean of everything stays, because integer runtimes have a kernel for it.

    Raises:
        EmqError: the windows of a maximum would not be of one size.
    """
    for node in traced.nodes:
        module = traced.called(node)
        target = type(module) if module is not None else node.target
        if target not in (*_MEANS, *_PEAKS) or not node.op.startswith("call"):
            continue
        read, given = dims(node.all_input_nodes[0]), dims(node)
        known = len(read or ()) == 4 == len(given or ()) and None not in (*(read or ())[2:], *(given or ())[2:])
        pairs: list[tuple[Any, Any]] = list(zip((read or ())[2:], (given or ())[2:], strict=False)) if known else []
        if pairs and all(size == parts for size, parts in pairs):
            traced.swap(node, node.all_input_nodes[0])
        elif pairs and all(size % parts == 0 for size, parts in pairs):
            if target in _PEAKS or any(parts > 1 for _, parts in pairs):
                windows = tuple(size // parts for size, parts in pairs)
                _replace(traced, node, (nn.MaxPool2d if target in _PEAKS else nn.AvgPool2d)(windows))
        elif target in _PEAKS:
            name = node.target if module is not None else node.name
            raise EmqError(
                f"pooling {name!r} takes the maximum of windows of different sizes, for which runtimes have no"
                " operator; use a MaxPool2d, or another --image-size"
            )


def _replace(traced: Traced, node: fx.Node, pool: nn.Module) -> None:
    traced.swap(node, traced.call(node, traced.add(node.name, pool), node.all_input_nodes[0]))
