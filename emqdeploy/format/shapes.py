"""Shapes of everything that a graph computes for one image, from the shapes of what goes in: a bound on its memory.

Numbers that shapes are made of (small whole ones) are computed as well. What cannot be told is an error: a graph of
ours has no such value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emqdeploy.format.onnx_graph import DTYPES, Graph, Node, Tensor

LARGEST = 1 << 26
"""Values of one tensor at most, for one image: 256 MB of float32."""

MOST_KNOWN = 256
"""Whole numbers that are followed by value."""

Shape = tuple[int, ...]

_SAME = frozenset(
    (
        *(
            "Relu",
            "Sigmoid",
            "HardSigmoid",
            "HardSwish",
            "Tanh",
            "Erf",
            "Sqrt",
            "Exp",
            "Log",
            "Neg",
            "Abs",
            "Reciprocal",
        ),
        *("Round", "Floor", "Ceil", "Sign", "Softplus", "Softsign", "Elu", "Selu", "Celu", "LeakyRelu", "Mish", "Gelu"),
        *(
            "Identity",
            "Cast",
            "Clip",
            "QuantizeLinear",
            "DequantizeLinear",
            "Softmax",
            "LogSoftmax",
            "Not",
            "Sin",
            "Cos",
        ),
        *("LayerNormalization", "BatchNormalization", "InstanceNormalization", "GroupNormalization", "LpNormalization"),
        *("RMSNormalization", "LRN", "Dropout", "BitwiseNot", "CumSum", "Trilu", "IsNaN"),
    )
)
_BROADCAST = frozenset(
    (
        *("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Mean", "Sum", "And", "Or", "Xor", "Mod", "Where", "PRelu"),
        *("Greater", "Less", "Equal", "GreaterOrEqual", "LessOrEqual", "BitShift", "BitwiseAnd", "BitwiseOr"),
    )
)
_REDUCE = frozenset(
    f"Reduce{kind}" for kind in ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSumExp")
)
_POOL = frozenset(("MaxPool", "AveragePool", "LpPool"))
_FOLDED: dict[str, Callable[..., Any]] = {
    **{"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Min": np.minimum, "Max": np.maximum, "Mod": np.mod},
    **{"Equal": np.equal, "Greater": np.greater, "Less": np.less, "LessOrEqual": np.less_equal, "Where": np.where},
    **{"And": np.logical_and, "Identity": np.asarray, "Neg": np.negative},
}


class Shapes:
    """Follows one graph.

    Args:
        inputs: shapes of what goes in, by name, the batch being one image.
        outer: what a branch can see of the graph around it.
    """

    def __init__(self, inputs: Mapping[str, Shape], outer: Shapes | None = None) -> None:
        self.shapes: dict[str, Shape] = dict(outer.shapes) if outer is not None else {}
        self.known: dict[str, NDArray[Any]] = dict(outer.known) if outer is not None else {}
        self.shapes |= inputs

    def follow(self, graph: Graph) -> None:
        """Computes the shape of every value, in the order of the graph.

        Raises:
            ValueError: one cannot be told, or is too large.
        """
        for tensor in graph.tensors.values():
            self._add(tensor.name, tensor.shape)
            if tensor.numbers is not None and tensor.count <= MOST_KNOWN:
                self.known[tensor.name] = tensor.numbers
        for node in graph.nodes:
            self.add_node(node)

    def add_node(self, node: Node) -> None:
        """Computes the shapes of what one operator answers; raises as `follow`."""
        try:
            self._node(node)
        except (LookupError, TypeError, ArithmeticError, StopIteration) as error:
            raise ValueError(f"the shape of {node.outputs[0]!r} ({node.operator}) cannot be told") from error

    def _add(self, name: str, shape: Sequence[int]) -> None:
        if math.prod(shape) > LARGEST or any(side < 0 for side in shape):
            raise ValueError(
                f"value {name!r} would have shape {'x'.join(map(str, shape))}, more than {LARGEST} numbers"
            )
        self.shapes[name] = tuple(int(side) for side in shape)

    def _node(self, node: Node) -> None:
        shapes = [self.shapes[name] for name in node.inputs if name]
        for name, shape in zip(node.outputs, self._results(node, shapes), strict=False):
            if name:
                self._add(name, shape)
        self._fold(node)

    def _results(self, node: Node, shapes: list[Shape]) -> list[Shape]:
        operator = node.operator
        if operator in _SAME:
            # Further outputs are statistics of the first: never larger.
            return [shapes[0]] * len(node.outputs)
        if operator in _BROADCAST:
            return [np.broadcast_shapes(*shapes)]
        if operator in _REDUCE:
            return [self._reduced(node, shapes[0])]
        if operator in _POOL:
            return [self._window(node, shapes[0], node.attributes["kernel_shape"], shapes[0][1])] * len(node.outputs)
        method: Callable[[Node, list[Shape]], list[Shape]] | None = getattr(self, f"_of_{operator.lower()}", None)
        if method is None:
            raise ValueError(f"operator {operator!r} is none that a graph of ours has")
        return method(node, shapes)

    # --- windows ---

    def _window(self, node: Node, shape: Shape, kernel: Sequence[int], channels: int) -> Shape:
        rank = len(kernel)
        get = node.attributes.get
        strides, dilations = get("strides", [1] * rank), get("dilations", [1] * rank)
        pads = get("pads", [0] * (2 * rank))
        mode = get("auto_pad", b"NOTSET")
        sides = []
        for index, size in enumerate(shape[2:]):
            span, stride = (kernel[index] - 1) * dilations[index] + 1, strides[index]
            if mode in (b"SAME_UPPER", b"SAME_LOWER"):
                sides.append(-(-size // stride))
                continue
            total = size + pads[index] + pads[index + rank] - span
            sides.append((-(-total // stride) if get("ceil_mode") else total // stride) + 1)
        return (shape[0], channels, *sides)

    def _of_conv(self, node: Node, shapes: list[Shape]) -> list[Shape]:
        return [self._window(node, shapes[0], shapes[1][2:], shapes[1][0])]

    def _of_convtranspose(self, node: Node, shapes: list[Shape]) -> list[Shape]:
        kernel, get = shapes[1][2:], node.attributes.get
        rank = len(kernel)
        strides, dilations = get("strides", [1] * rank), get("dilations", [1] * rank)
        pads, extra = get("pads", [0] * (2 * rank)), get("output_padding", [0] * rank)
        sides = [
            strides[i] * (size - 1) + extra[i] + (kernel[i] - 1) * dilations[i] + 1 - pads[i] - pads[i + rank]
            for i, size in enumerate(shapes[0][2:])
        ]
        return [(shapes[0][0], shapes[1][1] * get("group", 1), *sides)]

    def _of_globalaveragepool(self, node: Node, shapes: list[Shape]) -> list[Shape]:
        return [(*shapes[0][:2], *(1 for _ in shapes[0][2:]))]

    _of_globalmaxpool = _of_globalaveragepool

    # --- products ---

    def _of_gemm(self, node: Node, shapes: list[Shape]) -> list[Shape]:
        a, b = shapes[:2]
        rows = a[1] if node.attributes.get("transA") else a[0]
        return [(rows, b[0] if node.attributes.get("transB") else b[1])]

    def _of_matmul(self, node: Node, shapes: list[Shape]) -> list[Shape]:
        a, b = shapes
        if len(a) < 2 or len(b) < 2:
            raise LookupError
        return [(*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1])]

    # --- moves ---

    def _of_flatten(self, node: Node, shapes: list[Shape]) -> list[Shape]:
        axis = node.attributes.get("axis", 1) % (len(shapes[0]) + 1)
        return [(math.prod(shapes[0][:axis]), math.prod(shapes[0][axis:]))]

    def _of_reshape(self, node: Node, shapes: list[Shape]) -> list[Shape]:
        wanted = [int(side) for side in self.known[node.inputs[1]]]
        if not node.attributes.get("allowzero"):
            wanted = [shapes[0][i] if side == 0 else side for i, side in enumerate(wanted)]
        total = math.prod(shapes[0])
        if -1 in wanted:
            rest = math.prod(side for side in wanted if side != -1)
            wanted[wanted.index(-1)] = total // rest
        if math.prod(wanted) != total:
            raise ValueError(f"{node.outputs[0]!r} reshapes {total} numbers to {wanted}")
        return [tuple(wanted)]

    def _of_transpose(self, node: Node, shapes: list[Shape]) -> list[Shape]:
        order = node.attributes.get("perm", list(range(len(shapes[0])))[::-1])
        return [tuple(shapes[0][axis] for axis in order)]

    def _of_concat(self, node: Node, shapes: list[Shape]) -> list[Shape]:
        axis = node.attributes["axis"] % len(shapes[0])
        joined = list(shapes[0])
        joined[axis] = sum(shape[axis] for shape in shapes)
        return [tuple(joined)]

    def _of_split(self, node: Node, shapes: list[Shape]) -> list[Shape]:
        axis = node.attributes.get("axis", 0) % len(shapes[0])
        count = len(node.outputs)
        size = shapes[0][axis]
        sizes = [-(-size // count)] * count
        if len(node.inputs) > 1 and node.inputs[1]:
            sizes = [int(one) for one in self.known[node.inputs[1]]]
        if sizes.count(-1) == 1:
            sizes[sizes.index(-1)] = size - sum(sizes) - 1
        if len(sizes) != count or sum(sizes) > size + count:
            raise LookupError
        return [(*shapes[0][:axis], one, *shapes[0][axis + 1 :]) for one in sizes]

    def _of_slice(self, node: Node, shapes: list[Shape]) -> list[Shape]:
        starts, ends, *rest = (self.known[name].reshape(-1) if name else None for name in node.inputs[1:])
        if starts is None or ends is None:
            raise LookupError
        axes = rest[0] if rest and rest[0] is not None else np.arange(len(starts))
        steps = rest[1] if len(rest) > 1 and rest[1] is not None else np.ones(len(starts), np.int64)
        shape = list(shapes[0])
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            place = int(axis) % len(shape)
            shape[place] = len(range(*slice(int(start), int(end), int(step)).indices(shape[place])))
        return [tuple(shape)]

    def _of_gather(self, node: Node, shapes: list[Shape]) -> list[Shape]:
        axis = node.attributes.get("axis", 0) % len(shapes[0])
        return [(*shapes[0][:axis], *shapes[1], *shapes[0][axis + 1 :])]

    def _of_gathernd(self, node: Node, shapes: list[Shape]) -> list[Shape]:
        if node.attributes.get("batch_dims"):
            raise LookupError
        return [(*shapes[1][:-1], *shapes[0][shapes[1][-1] :])]

    def _of_gatherelements(self, node: Node, shapes: list[Shape]) -> list[Shape]:
        return [shapes[1]]

    def _axes(self, node: Node, place: int = 1) -> list[int] | None:
        if "axes" in node.attributes:
            return list(node.attributes["axes"])
        if len(node.inputs) > place and node.inputs[place]:
            return [int(axis) for axis in self.known[node.inputs[place]].reshape(-1)]
        return None

    def _of_squeeze(self, node: Node, shapes: list[Shape]) -> list[Shape]:
        axes = self._axes(node)
        drop = {axis % len(shapes[0]) for axis in axes} if axes is not None else None
        return [tuple(s for i, s in enumerate(shapes[0]) if (i not in drop if drop is not None else s != 1))]

    def _of_unsqueeze(self, node: Node, shapes: list[Shape]) -> list[Shape]:
        axes = self._axes(node)
        if axes is None:
            raise LookupError
        rank = len(shapes[0]) + len(axes)
        new = {axis % rank for axis in axes}
        if len(new) != len(axes):
            raise LookupError
        sides = iter(shapes[0])
        return [tuple(1 if i in new else next(sides) for i in range(rank))]

    def _reduced(self, node: Node, shape: Shape) -> Shape:
        axes = self._axes(node)
        if axes is None and node.attributes.get("noop_with_empty_axes"):
            return shape
        drop = {axis % len(shape) for axis in axes} if axes is not None else set(range(len(shape)))
        keep = node.attributes.get("keepdims", 1)
        return tuple(1 if i in drop else s for i, s in enumerate(shape) if keep or i not in drop)

    def _of_argmax(self, node: Node, shapes: list[Shape]) -> list[Shape]:
        axis, keep = node.attributes.get("axis", 0) % len(shapes[0]), node.attributes.get("keepdims", 1)
        return [tuple(1 if i == axis else s for i, s in enumerate(shapes[0]) if keep or i != axis)]

    _of_argmin = _of_argmax

    def _of_expand(self, node: Node, shapes: list[Shape]) -> list[Shape]:
        return [np.broadcast_shapes(shapes[0], tuple(int(side) for side in self.known[node.inputs[1]]))]

    def _of_tile(self, node: Node, shapes: list[Shape]) -> list[Shape]:
        repeats = self.known[node.inputs[1]]
        return [tuple(side * int(count) for side, count in zip(shapes[0], repeats, strict=True))]

    def _of_pad(self, node: Node, shapes: list[Shape]) -> list[Shape]:
        pads = [int(pad) for pad in self.known[node.inputs[1]]]
        axes = self._axes(node, 3) or list(range(len(shapes[0])))
        shape = list(shapes[0])
        for place, axis in enumerate(axes):
            shape[axis % len(shape)] += pads[place] + pads[place + len(axes)]
        return [tuple(shape)]

    def _of_resize(self, node: Node, shapes: list[Shape]) -> list[Shape]:
        if len(node.inputs) > 3 and node.inputs[3]:
            return [tuple(int(side) for side in self.known[node.inputs[3]])]
        factors = self.known[node.inputs[2]]
        return [tuple(int(side * factor) for side, factor in zip(shapes[0], factors, strict=True))]

    def _of_depthtospace(self, node: Node, shapes: list[Shape]) -> list[Shape]:
        n, c, h, w = shapes[0]
        size = node.attributes["blocksize"]
        return [(n, c // size**2, h * size, w * size)]

    def _of_spacetodepth(self, node: Node, shapes: list[Shape]) -> list[Shape]:
        n, c, h, w = shapes[0]
        size = node.attributes["blocksize"]
        return [(n, c * size**2, h // size, w // size)]

    def _of_if(self, node: Node, shapes: list[Shape]) -> list[Shape]:
        """The larger of what the two branches answer."""
        answers = []
        for branch in (value for value in node.attributes.values() if isinstance(value, Graph)):
            inner = Shapes({}, self)
            inner.follow(branch)
            answers.append([inner.shapes[value.name] for value in branch.outputs])
        return [tuple(map(max, *both)) for both in zip(*answers, strict=True)]

    # --- numbers ---

    def _of_shape(self, node: Node, shapes: list[Shape]) -> list[Shape]:
        return [(len(self._sides(node)),)]

    def _sides(self, node: Node) -> Shape:
        """The part of its input's shape that a Shape gives."""
        return self.shapes[node.inputs[0]][node.attributes.get("start", 0) : node.attributes.get("end")]

    def _of_constant(self, node: Node, shapes: list[Shape]) -> list[Shape]:
        value = next(iter(node.attributes.values()))
        if isinstance(value, Tensor):
            return [value.shape]
        return [(len(value),)] if isinstance(value, list) else [()]

    def _of_range(self, node: Node, shapes: list[Shape]) -> list[Shape]:
        start, stop, step = (int(self.known[name]) for name in node.inputs)
        return [(len(range(start, stop, step)),)]

    def _of_constantofshape(self, node: Node, shapes: list[Shape]) -> list[Shape]:
        return [tuple(int(side) for side in self.known[node.inputs[0]])]

    def _fold(self, node: Node) -> None:
        """Follows small whole numbers by value."""
        output, operator = node.outputs[0], node.operator
        if math.prod(self.shapes.get(output, (MOST_KNOWN + 1,))) > MOST_KNOWN:
            return
        shape = self.shapes[output]
        value: Any = None
        if operator == "Shape":
            value = np.array(self._sides(node), np.int64)
        elif operator == "Constant":
            held = next(iter(node.attributes.values()))
            value = held.numbers if isinstance(held, Tensor) else held if isinstance(held, (int, list)) else None
        elif all(name in self.known for name in node.inputs if name):
            value = self._computed(node, [self.known[name] for name in node.inputs if name], shape)
        if value is not None:
            self.known[output] = np.asarray(value).reshape(shape)

    @np.errstate(divide="raise", invalid="raise", over="raise")
    def _computed(self, node: Node, arrays: list[NDArray[Any]], shape: Shape) -> Any:
        """What an operator makes of numbers that are known; None where that is not followed."""
        operator = node.operator
        if operator in _FOLDED:
            return _FOLDED[operator](*arrays)
        if operator == "Div":
            return np.trunc(arrays[0] / arrays[1]).astype(np.int64)
        if operator == "Cast":
            kind = DTYPES.get(node.attributes["to"], np.float32)
            return arrays[0].astype(np.int64) if np.dtype(kind).kind in "iub" else None
        if operator == "Gather":
            return np.take(arrays[0], arrays[1], axis=node.attributes.get("axis", 0))
        if operator == "Concat":
            return np.concatenate([np.atleast_1d(array) for array in arrays], node.attributes["axis"])
        if operator == "ReduceProd":
            return np.prod(arrays[0])
        if operator == "Range":
            return np.arange(*(int(array) for array in arrays))
        if operator == "Expand":
            return np.broadcast_to(arrays[0], shape)
        if operator == "Split" and arrays[0].ndim == 1:
            parts = np.split(arrays[0], np.cumsum([self.shapes[name][0] for name in node.outputs])[:-1])
            self.known |= dict(zip(node.outputs, parts, strict=True))
        if operator == "Slice" and arrays[0].ndim == 1:
            step = int(arrays[4][0]) if len(arrays) > 4 else 1
            return arrays[0][int(arrays[1][0]) : int(arrays[2][0]) : step]
        if operator in ("Squeeze", "Unsqueeze", "Reshape", "Flatten"):
            return arrays[0]
        return None
