"""Several operators that an exporter wrote for one module, as that module: quantization knows it by its kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from torch import Tensor

from emqdeploy.models.described import Step


@dataclass
class Fusing:
    """The steps of a network while some are joined.

    Attributes:
        steps: by name of the value that they give, in order.
        state: tensors by name.
        sizes: of every value, -1 for the image axis.
    """

    steps: dict[str, Step]
    state: dict[str, Tensor]
    sizes: Mapping[str, tuple[int, ...]]
    readers: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for step in self.steps.values():
            for name in step.inputs:
                self.readers[name] = self.readers.get(name, 0) + 1

    def is_(self, name: str, kind: str, readers: int | None = 1, **settings: Any) -> Step | None:
        """The step that gives a value, if it is of a kind, has these settings and so many readers (None: any)."""
        step = self.steps.get(name)
        if step is None or step.kind != kind or (readers is not None and self.readers.get(name) != readers):
            return None
        same = all(_near(step.settings.get(key), value) for key, value in settings.items())
        return step if same else None

    def either(self, step: Step, kind: str, **settings: Any) -> Iterator[tuple[Step, str]]:
        """The inputs of a step of two that are of a kind, each with the other input."""
        if len(step.inputs) == 2:
            for name, other in (step.inputs, step.inputs[::-1]):
                found = self.is_(name, kind, **settings)
                if found is not None:
                    yield found, other


def _near(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, float) and isinstance(value, (int, float)):
        return math.isclose(value, wanted, rel_tol=1e-5)
    return bool(value == wanted)


def fuse(steps: tuple[Step, ...], state: dict[str, Tensor], sizes: Mapping[str, tuple[int, ...]]) -> tuple[Step, ...]:
    """Returns the steps with those joined that are one module.

    Args:
        steps: a network.
        state: its tensors, to which those of new modules are added.
        sizes: of every value, -1 for the image axis.
    """
    for find in (_gelu, _hard_swish, _silu, _layer_norm):
        given = {step.name: step for step in steps}
        net = Fusing(given, state, sizes)
        changed = {step.name: find(net, step) or step for step in steps}
        steps = _needed(tuple(changed.values()))
    return steps


def _needed(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    needed, kept = {steps[-1].name}, []
    for step in reversed(steps):
        if step.name in needed:
            kept.append(step)
            needed.update(step.inputs)
    return tuple(reversed(kept))


Find = Callable[[Fusing, Step], Step | None]


def _becomes(step: Step, kind: str, source: str, settings: dict[str, Any] | None = None) -> Step:
    return msgspec.structs.replace(step, kind=kind, inputs=(source,), settings=settings or {})


def _gelu(net: Fusing, step: Step) -> Step | None:
    """``x (1 + erf(x / sqrt 2)) / 2``, the half at any place."""
    halved = step.kind == "scale" and _near(step.settings["number"], 0.5)
    product = net.is_(step.inputs[0], "mul") if halved else step if step.kind == "mul" else None
    if product is None:
        return None
    for one, other in net.either(product, "shift", number=1.0):
        erf = net.is_(one.inputs[0], "erf")
        inner = None if erf is None else net.is_(erf.inputs[0], "scale", number=math.sqrt(0.5))
        if inner is None:
            continue
        source = inner.inputs[0]
        half = None if halved else net.is_(other, "scale", number=0.5)
        if (halved and other == source) or (half is not None and half.inputs[0] == source):
            return _becomes(step, "GELU", source)
    if not halved:  # x ((1 + erf) / 2)
        for one, other in net.either(product, "scale", number=0.5):
            shifted = net.is_(one.inputs[0], "shift", number=1.0)
            erf = None if shifted is None else net.is_(shifted.inputs[0], "erf")
            inner = None if erf is None else net.is_(erf.inputs[0], "scale", number=math.sqrt(0.5))
            if inner is not None and inner.inputs[0] == other:
                return _becomes(step, "GELU", other)
    return None


def _hard_swish(net: Fusing, step: Step) -> Step | None:
    """``x relu6(x + 3) / 6``, and ``x hardsigmoid(x)``."""
    if step.kind == "scale" and _near(step.settings["number"], 1 / 6):
        product = net.is_(step.inputs[0], "mul")
        for clipped, other in net.either(product, "ReLU6") if product is not None else ():
            if (moved := net.is_(clipped.inputs[0], "shift", number=3.0)) is not None and moved.inputs[0] == other:
                return _becomes(step, "Hardswish", other)
    for gate, other in net.either(step, "Hardsigmoid") if step.kind == "mul" else ():
        if gate.inputs[0] == other:
            return _becomes(step, "Hardswish", other)
    return None


def _silu(net: Fusing, step: Step) -> Step | None:
    """``x sigmoid(x)``."""
    for gate, other in net.either(step, "Sigmoid") if step.kind == "mul" else ():
        if gate.inputs[0] == other:
            return _becomes(step, "SiLU", other)
    return None


def _layer_norm(net: Fusing, step: Step) -> Step | None:
    """``(x - mean) / sqrt(mean((x - mean)^2) + eps) weight + bias`` over the last axis."""
    if step.kind != "add":
        return None
    for scaled, bias in net.either(step, "mul"):
        for normal, weight in net.either(scaled, "truediv"):
            centred, root = normal.inputs
            deviation = net.is_(root, "sqrt")
            moved = None if deviation is None else net.is_(deviation.inputs[0], "shift")
            variance = None if moved is None else net.is_(moved.inputs[0], "mean", keep=True)
            square = None if variance is None else net.is_(variance.inputs[0], "power", number=2.0)
            middle = net.is_(centred, "sub", readers=2)
            if moved is None or variance is None or square is None or middle is None or square.inputs[0] != centred:
                continue
            source = middle.inputs[0]
            mean = net.is_(middle.inputs[1], "mean", keep=True)
            last = len(net.sizes[source]) - 1
            size = net.sizes[source][last]
            axes = mean is not None and mean.inputs[0] == source and mean.settings["axes"] == [last]
            tensors = [net.state.get(name) for name in (weight, bias)]
            if (
                axes
                and variance.settings["axes"] == [last]
                and all(one is not None and one.shape == (size,) for one in tensors)
            ):
                for leaf, tensor in zip(("weight", "bias"), tensors, strict=True):
                    assert tensor is not None
                    net.state[f"{step.name}.{leaf}"] = tensor
                settings = {"normalized_shape": [size], "eps": moved.settings["number"], "bias": True}
                return _becomes(step, "LayerNorm", source, settings)
    return None
