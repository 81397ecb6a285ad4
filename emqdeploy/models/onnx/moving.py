"""ONNX operators that put values in other places and shapes, or work over axes, as functions of torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from emqdeploy.models.onnx.building import COUNTS, Building, Value, sizes_of
from emqdeploy.models.onnx.file import Node
from emqdeploy.models.onnx.layers import OPERATORS, operator


@operator("Reshape")
def _reshape(net: Building, node: Node) -> Value:
    x, wanted = net.image(node), net.known.get(node.inputs[1])
    if wanted is None:
        raise net.refuse(node, "computes its sizes from the images")
    shapes = []
    for sample, asked in zip(x.samples, wanted, strict=True):
        shapes.append(_filled(net, node, list(sample.shape), [int(size) for size in asked]))
    sizes = sizes_of(*shapes) if len(shapes[0]) == len(shapes[1]) else ()
    if sizes.count(-1) != 1 or _before(sizes) != _before(x.sizes):
        raise net.refuse(node, "mixes images with one another, or fixes their number")
    return x if sizes == x.sizes else net.call(node, "reshape", x, shape=list(sizes))


def _before(sizes: tuple[int, ...]) -> int:
    """How many values lie in the axes before that of the images."""
    return int(np.prod(sizes[: sizes.index(-1)]))


def _filled(net: Building, node: Node, have: list[int], sizes: list[int]) -> list[int]:
    """Sizes with what stands for one of the input (0) or for the rest (-1) worked out."""
    fixed = net.file.shape[0]
    if not node.attributes.get("allowzero"):
        sizes = [have[place] if size == 0 and place < len(have) else size for place, size in enumerate(sizes)]
    if fixed is not None and sizes and sizes[0] == fixed and -1 not in sizes:
        sizes = [-1, *sizes[1:]]  # exported for so many images; any number is meant
    elif fixed is not None and sizes and sizes[0] == fixed:
        sizes = [have[0], *sizes[1:]]
    known = int(np.prod([size for size in sizes if size != -1]))
    if -1 in sizes and known:
        sizes[sizes.index(-1)] = int(np.prod(have)) // known
    return sizes


@operator("Flatten")
def _flatten(net: Building, node: Node) -> Value:
    x = net.image(node)
    axis = int(node.attributes.get("axis", 1)) % len(x.sizes)
    if axis != 1:
        raise net.refuse(node, f"joins images at axis {axis}")
    return net.call(node, "reshape", x, shape=[-1, int(np.prod(x.sizes[1:]))])


@operator("Transpose")
def _transpose(net: Building, node: Node) -> Value:
    x = net.image(node)
    axes = [int(axis) for axis in node.attributes.get("perm", reversed(range(len(x.sizes))))]
    place = net.step_of(x)
    before = None if place is None else net.steps[place]
    if before is not None and before.kind == "permute":
        first = before.settings["axes"]
        if [first[axis] for axis in axes] == list(range(len(axes))):  # there and back again
            return net.source_of(before)
    return net.call(node, "permute", x, axes=axes)


@operator("Squeeze")
def _squeeze(net: Building, node: Node) -> Value:
    x = net.image(node)
    axes = net.numbers(node, "axes", 1)
    sizes = x.sizes
    axes = [place for place, size in enumerate(sizes) if size == 1] if axes is None else axes
    for axis in sorted((axis % len(sizes) for axis in axes), reverse=True):
        x = net.call(node, "squeeze", x, axis=axis)
    return x


@operator("Unsqueeze")
def _unsqueeze(net: Building, node: Node) -> Value:
    x = net.image(node)
    axes = net.numbers(node, "axes", 1) or []
    for axis in sorted(axis % (len(x.sizes) + len(axes)) for axis in axes):
        x = net.call(node, "unsqueeze", x, axis=axis)
    return x


@operator("Expand")
def _expand(net: Building, node: Node) -> Value:
    x, wanted = net.image(node), net.known.get(node.inputs[1])
    if wanted is None:
        raise net.refuse(node, "computes its sizes from the images")
    shapes = [np.broadcast_shapes(s.shape, tuple(map(int, w))) for s, w in zip(x.samples, wanted, strict=True)]
    sizes = sizes_of(*shapes)
    if sizes == x.sizes:
        return x
    return net.call(node, "expand", x, sizes=list(sizes))


@operator("Concat")
def _concat(net: Building, node: Node) -> Value:
    parts: list[Any] = []
    widened = []
    for place, name in enumerate(node.inputs):
        if name in net.values:
            parts.append(net.values[name])
            continue
        two, three = net.known[name]
        if two.shape != three.shape or two.shape[:1] == (1,):  # one for every image
            widened.append(place)
            two = two[:1]
        parts.append(two)
    axis = int(node.attributes["axis"]) % len(net.image(node, _first_image(net, node)).sizes)
    if net.image(node, _first_image(net, node)).sizes[axis] == -1:
        raise net.refuse(node, "joins images with one another")
    return net.call(node, "cat", *parts, axis=axis, **({"widened": widened} if widened else {}))


def _first_image(net: Building, node: Node) -> int:
    return next(place for place, name in enumerate(node.inputs) if name in net.values)


@operator("Slice")
def _slice(net: Building, node: Node) -> Value:
    x = net.image(node)
    starts, ends = net.numbers(node, "starts", 1) or [], net.numbers(node, "ends", 2) or []
    axes = net.numbers(node, "axes", 3) or list(range(len(starts)))
    steps = net.numbers(node, "steps", 4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis %= len(x.sizes)
        size = x.sizes[axis]
        every = (start, step) == (0, 1) and (end > COUNTS[-1] or end == net.file.shape[0])
        if step < 1 or (size == -1 and not every):
            raise net.refuse(node, "runs backwards, or takes some of the images")
        start, stop, _ = slice(start, end, step).indices(size)
        if size != -1 and (start, stop, step) != (0, size, 1):
            x = net.call(node, "slice", x, axis=axis, start=start, stop=stop, step=step)
    return x


@operator("Split")
def _split(net: Building, node: Node) -> list[Value]:
    x, parts = net.image(node), net.numbers(node, "split", 1)
    axis = int(node.attributes.get("axis", 0)) % len(x.sizes)
    size, count = x.sizes[axis], len(node.outputs)
    if size == -1:
        raise net.refuse(node, "takes some of the images")
    if parts is None:
        each = -(-size // count)
        parts = [min(each, size - each * place) for place in range(count)]
    starts = [sum(parts[:place]) for place in range(count)]
    pairs = zip(starts, parts, strict=True)
    return [net.call(node, "slice", x, axis=axis, start=start, stop=start + part, step=1) for start, part in pairs]


@operator("Gather")
def _gather(net: Building, node: Node) -> Value:
    x, indices = net.image(node), net.constant(node, 1)
    axis = int(node.attributes.get("axis", 0)) % len(x.sizes)
    if indices is None or x.sizes[axis] == -1:
        raise net.refuse(node, "takes some of the images")
    if indices.ndim == 0:
        return net.call(node, "select", x, axis=axis, index=int(indices) % x.sizes[axis])
    if indices.ndim != 1:
        raise net.refuse(node, f"takes places in {indices.ndim} axes")
    return net.call(node, "take", x, axis=axis, indices=[int(index) % x.sizes[axis] for index in indices])


@operator("Pad")
def _pad(net: Building, node: Node) -> Value:
    x, mode = net.image(node), node.attributes.get("mode", "constant")
    pads = net.numbers(node, "pads", 1) or []
    filler = net.constant(node, 2, node.attributes.get("value", 0.0))
    given = net.numbers(node, "axes", 3)
    rank = len(x.sizes)
    axes = [axis % rank for axis in given] if given is not None else list(range(rank))
    sides = dict(zip(axes, zip(pads[: len(axes)], pads[len(axes) :], strict=True), strict=True))
    ordered = [size for axis in reversed(range(rank)) for size in sides.get(axis, (0, 0))]
    kinds = {"constant": "ZeroPad2d", "reflect": "ReflectionPad2d", "edge": "ReplicationPad2d"}
    if not any(ordered):
        return x
    value = 0.0 if filler is None else float(filler.reshape(-1)[0])
    if rank == 4 and not any(ordered[4:]) and mode in kinds and (mode != "constant" or value == 0):
        return net.module(node, kinds[mode], x, {"padding": ordered[:4]})
    if mode != "constant":
        raise net.refuse(node, f"pads in the manner {mode!r}")
    return net.call(node, "pad", x, pads=ordered, value=value)


@operator("Cast")
def _cast(net: Building, node: Node) -> Value:
    if node.attributes["to"] != 1:
        raise net.refuse(node, "makes other numbers than float32 of what it reads")
    return net.image(node)


# --- over axes ---


def _reduce(kind: str) -> Any:
    def read(net: Building, node: Node) -> Value:
        x = net.image(node)
        axes = net.numbers(node, "axes", 1) or list(range(len(x.sizes)))
        axes = sorted(axis % len(x.sizes) for axis in axes)
        keep = bool(node.attributes.get("keepdims", 1))
        if any(x.sizes[axis] == -1 for axis in axes):
            raise net.refuse(node, "works over several images")
        if kind == "mean" and len(x.sizes) == 4 and axes == [2, 3]:
            pooled = net.module(node, "AdaptiveAvgPool2d", x, {"output_size": 1})
            return pooled if keep else net.call(node, "reshape", pooled, shape=[-1, x.sizes[1]])
        return net.call(node, kind, x, axes=axes, keep=keep)

    return read


for _name, _kind in (("ReduceMean", "mean"), ("ReduceSum", "sum"), ("ReduceMax", "largest")):
    OPERATORS.register(_name)(_reduce(_kind))
