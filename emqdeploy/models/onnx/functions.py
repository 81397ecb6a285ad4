"""ONNX operators that compute value by value, as modules and functions of torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from emqdeploy.models.onnx.building import Building, Value
from emqdeploy.models.onnx.file import Node
from emqdeploy.models.onnx.layers import operator

_FLOATS = (1, 10, 11, 16)  # of ONNX's types
_ACTIVATIONS = {"Relu": "ReLU", "Sigmoid": "Sigmoid", "Tanh": "Tanh", "Mish": "Mish", "HardSwish": "Hardswish"}
_PLAIN = {"Sqrt": "sqrt", "Exp": "exp", "Log": "log", "Erf": "erf", "Abs": "abs", "Neg": "neg"}
_LARGEST = float(np.finfo(np.float32).max)

# --- activations ---


def _file_simple() -> None:
    for name, kind in _ACTIVATIONS.items():
        operator(name)(lambda net, node, kind=kind: net.module(node, kind, net.image(node), {}))  # type: ignore[misc]
    for name, kind in _PLAIN.items():
        operator(name)(lambda net, node, kind=kind: net.call(node, kind, net.image(node)))  # type: ignore[misc]
    for name in ("Identity", "Dropout"):
        operator(name)(lambda net, node: net.image(node))


_file_simple()


@operator("Clip")
def _clip(net: Building, node: Node) -> Value:
    ends = []
    for place, (name, unlimited) in enumerate((("min", -_LARGEST), ("max", _LARGEST)), 1):
        found = net.constant(node, place)
        ends.append(float(node.attributes.get(name, unlimited)) if found is None else float(found.reshape(-1)[0]))
    if ends[0] == 0 and ends[1] in (6, _LARGEST):
        return net.module(node, "ReLU6" if ends[1] == 6 else "ReLU", net.image(node), {})
    return net.call(node, "clamp", net.image(node), least=ends[0], most=ends[1])


@operator("LeakyRelu")
def _leaky(net: Building, node: Node) -> Value:
    return net.module(node, "LeakyReLU", net.image(node), {"negative_slope": _number(node, "alpha", 0.01)})


@operator("Elu")
def _elu(net: Building, node: Node) -> Value:
    return net.module(node, "ELU", net.image(node), {"alpha": _number(node, "alpha", 1.0)})


@operator("Softplus")
def _softplus(net: Building, node: Node) -> Value:
    return net.module(node, "Softplus", net.image(node), {})


@operator("Gelu")
def _gelu(net: Building, node: Node) -> Value:
    return net.module(node, "GELU", net.image(node), {"approximate": node.attributes.get("approximate", "none")})


@operator("HardSigmoid")
def _hard_sigmoid(net: Building, node: Node) -> Value:
    slope, shift = _number(node, "alpha", 0.2), _number(node, "beta", 0.5)
    if abs(slope - 1 / 6) < 1e-6 and shift == 0.5:
        return net.module(node, "Hardsigmoid", net.image(node), {})
    moved = net.call(node, "shift", net.call(node, "scale", net.image(node), number=slope), number=shift)
    return net.call(node, "clamp", moved, least=0.0, most=1.0)


@operator("Softmax")
def _softmax(net: Building, node: Node) -> Value:
    x = net.image(node)
    axis = int(node.attributes.get("axis", -1 if net.file.opset >= 13 else 1)) % len(x.sizes)
    if net.file.opset < 13 and axis != len(x.sizes) - 1:
        raise net.refuse(node, "joins several axes, as old operator sets do")
    return net.call(node, "softmax", x, axis=axis)


def _number(node: Node, name: str, default: float) -> float:
    return float(node.attributes.get(name, default))


# --- arithmetic ---


@operator("Add")
def _add(net: Building, node: Node) -> Value:
    x, other = _pair(net, node)
    if isinstance(other, float):
        return net.call(node, "shift", x, number=other)
    return _as_bias(net, node, x, other) or net.call(node, "add", x, other)


@operator("Mul")
def _mul(net: Building, node: Node) -> Value:
    x, other = _pair(net, node)
    return net.call(node, "scale", x, number=other) if isinstance(other, float) else net.call(node, "mul", x, other)


@operator("Sub")
def _sub(net: Building, node: Node) -> Value:
    x, other = _pair(net, node)
    if isinstance(other, float):
        if x.name == net.values.get(node.inputs[0], x).name and node.inputs[0] in net.values:
            return net.call(node, "shift", x, number=-other)
        return net.call(node, "subtract_from", x, number=other)
    return net.call(node, "sub", *_in_order(net, node, x, other))


@operator("Div")
def _div(net: Building, node: Node) -> Value:
    x, other = _pair(net, node)
    if isinstance(other, float):
        if node.inputs[0] in net.values:
            return (
                net.call(node, "scale", x, number=1 / other) if other else net.call(node, "truediv", x, _array(other))
            )
        return net.call(node, "divide", x, number=other)
    return net.call(node, "truediv", *_in_order(net, node, x, other))


@operator("Pow")
def _pow(net: Building, node: Node) -> Value:
    x, other = _pair(net, node)
    if isinstance(other, float) and node.inputs[0] in net.values:
        return net.call(node, "power", x, number=other)
    raise net.refuse(node, "has an exponent that is no number")


@operator("Reciprocal")
def _reciprocal(net: Building, node: Node) -> Value:
    return net.call(node, "divide", net.image(node), number=1.0)


@operator("Max")
def _max(net: Building, node: Node) -> Value:
    return _extreme(net, node, "maximum")


@operator("Min")
def _min(net: Building, node: Node) -> Value:
    return _extreme(net, node, "minimum")


def _extreme(net: Building, node: Node, kind: str) -> Value:
    if len(node.inputs) != 2:
        raise net.refuse(node, f"has {len(node.inputs)} inputs, not two")
    x, other = _pair(net, node)
    if isinstance(other, float):
        ends = {"least": other, "most": _LARGEST} if kind == "maximum" else {"least": -_LARGEST, "most": other}
        return net.module(node, "ReLU", x, {}) if ends["least"] == 0 else net.call(node, "clamp", x, **ends)
    return net.call(node, kind, x, other)


def _pair(net: Building, node: Node) -> tuple[Value, Any]:
    """What images become, and the other input: a number, a constant, or another such value."""
    first, second = node.inputs[:2]
    if first in net.values and second in net.values:
        return net.values[first], net.values[second]
    place = 0 if first in net.values else 1
    constant = net.constant(node, 1 - place)
    assert constant is not None
    x = net.image(node, place)
    if constant.size == 1 and constant.ndim <= len(x.sizes):
        return x, float(np.float32(constant.reshape(-1)[0]))
    return x, constant


def _in_order(net: Building, node: Node, x: Value, other: Any) -> tuple[Any, Any]:
    return (x, other) if node.inputs[0] in net.values else (other, x)


def _array(number: float) -> Any:
    return np.asarray([number], np.float32)


def _as_bias(net: Building, node: Node, x: Value, other: Any) -> Value | None:
    """Gives a constant that is added to the layer before as its bias; None where that is not what it is."""
    place = net.step_of(x)
    reads = [name for name in node.inputs[:2] if name in net.values]
    if isinstance(other, Value) or place is None or len(reads) != 1 or net.readers[reads[0]] != 1:
        return None
    step = net.steps[place]
    if step.kind not in ("Linear", "Conv2d") or step.settings["bias"]:
        return None
    count = step.settings["out_features" if step.kind == "Linear" else "out_channels"]
    shape = (count,) if step.kind == "Linear" else (count, 1, 1)
    if other.size != count or tuple(side for side in other.shape if side != 1) != (count,) or count == 1:
        return None
    if other.shape[-len(shape) :] != shape:
        return None
    return net.with_bias(place, other.reshape(-1))
