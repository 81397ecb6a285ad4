"""Networks that a list of steps describes: plain data, so that a checkpoint can carry one that has no code here.

A step calls a module of `MODULES` or a function of `FUNCTIONS`; a description can name nothing else.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import msgspec
import torch
import torch.nn.functional as F
from msgspec import Meta
from torch import Tensor, nn

from emqdeploy.errors import EmqError
from emqdeploy.format.card import Name, Record, Size, convert

IMAGES = "images"
"""The value that a network is called with, ``(N, C, H, W)``."""

MOST_STEPS = 50_000
LARGEST_TENSOR = 1 << 31
"""Values of one weight or constant at most."""


class Step(Record, frozen=True):
    """One operator and the value that it gives.

    Attributes:
        kind: a name in `MODULES` or `FUNCTIONS`.
        name: of the value, and of the module where it is one.
        inputs: names of values, or of tensors of the network.
        settings: what its module is made with, or its function called with.
    """

    kind: Name
    name: Name
    inputs: Annotated[tuple[Name, ...], Meta(max_length=1024)]
    settings: dict[Name, Any] = msgspec.field(default_factory=dict)


class Description(Record, frozen=True):
    """A network: its steps in order, the last of which gives the logits, and the tensors that belong to no module."""

    steps: Annotated[tuple[Step, ...], Meta(min_length=1, max_length=MOST_STEPS)]
    tensors: dict[Name, tuple[Size, ...]] = msgspec.field(default_factory=dict)


MODULES: Mapping[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        *(nn.Conv1d, nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.PReLU, nn.ReLU, nn.ReLU6),
        *(nn.Sigmoid, nn.Hardsigmoid, nn.Hardswish, nn.SiLU, nn.GELU, nn.Tanh, nn.LeakyReLU, nn.ELU, nn.Softplus),
        *(nn.Mish, nn.Softmax, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
        *(nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d),
    )
}


def _reshape(x: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.flatten(x, 1) if len(shape) == 2 and shape[0] == -1 else x.reshape(*shape)


def _beside(*parts: Tensor, axis: int, images: Tensor, widened: Sequence[int] = ()) -> Tensor:
    """Joins tensors; those that have no image axis of their own are there for every image."""
    count = images.shape[0]
    whole = [
        part.expand(count, *[-1] * (part.dim() - 1)) if place in widened else part for place, part in enumerate(parts)
    ]
    return torch.cat(whole, axis)


def _padded(x: Tensor, pads: Sequence[int], value: float) -> Tensor:
    return F.pad(x, list(pads), value=value)


def _reduced(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def reduce(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
        return function(x, list(axes), keep)

    return reduce


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in ("add", "sub", "mul", "truediv", "pow", "matmul", "neg")},
    **{name: getattr(torch, name) for name in ("sqrt", "exp", "log", "erf", "abs", "maximum", "minimum")},
    "scale": lambda x, number: x * number,
    "shift": lambda x, number: x + number,
    "power": lambda x, number: x**number,
    "subtract_from": lambda x, number: number - x,
    "divide": lambda x, number: number / x,
    "clamp": lambda x, least, most: x.clamp(least, most),
    "reshape": _reshape,
    "permute": lambda x, axes: x.permute(*axes),
    "squeeze": lambda x, axis: x.squeeze(axis),
    "unsqueeze": lambda x, axis: x.unsqueeze(axis),
    "expand": lambda x, sizes: x.expand(*sizes),
    "slice": lambda x, axis, start, stop, step: x[(slice(None),) * axis + (slice(start, stop, step),)],
    "select": lambda x, axis, index: x[(slice(None),) * axis + (index,)],
    "take": lambda x, axis, indices: torch.cat([x.narrow(axis, index, 1) for index in indices], axis),
    "pad": _padded,
    "mean": _reduced(torch.mean),
    "sum": _reduced(torch.sum),
    "largest": _reduced(torch.amax),
    "softmax": lambda x, axis: x.softmax(axis),
    "cat": _beside,
}


class DescribedNetwork(nn.Module):
    """The network of a description, its weights empty.

    Args:
        description: as plain data, from a file perhaps.

    Raises:
        EmqError: it is none.
    """

    def __init__(self, description: Mapping[str, Any]) -> None:
        super().__init__()
        try:
            found = convert(Description, description)
            self._build(found)
        except EmqError:
            raise
        except Exception as error:  # whatever a module says of settings that are not its own
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise EmqError(f"the file describes no network ({reason[:200]}); use the original file") from error
        self._steps = found.steps
        self._last_use = {name: place for place, step in enumerate(found.steps) for name in step.inputs}

    def _build(self, description: Description) -> None:
        known = {IMAGES, *description.tensors}
        for name, shape in description.tensors.items():
            self._put(name, nn.Parameter(torch.zeros(_checked(shape))))
        for step in description.steps:
            strange = [name for name in step.inputs if name not in known]
            if strange or step.name in known or step.kind not in {*MODULES, *FUNCTIONS}:
                raise EmqError(f"the file describes no network (step {step.name!r}); use the original file")
            known.add(step.name)
            if step.kind in MODULES:
                self._put(step.name, make_module(step))

    def _put(self, path: str, value: nn.Module | nn.Parameter) -> None:
        """Files a module or parameter under a dotted name."""
        *outer, leaf = path.split(".")
        place: nn.Module = self
        for part in outer:
            if part not in place._modules:
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        if isinstance(value, nn.Module):
            place.add_module(leaf, value)
        else:
            place.register_parameter(leaf, value)

    def forward(self, images: Any) -> Any:
        """Maps images (N, C, H, W) to logits (N, classes)."""
        values = {IMAGES: images}
        answer = images
        for place, step in enumerate(self._steps):
            inputs = [values[name] if name in values else self._tensor(name) for name in step.inputs]
            module = step.kind in MODULES
            answer = self.get_submodule(step.name)(*inputs) if module else call(step, inputs, images)
            values[step.name] = answer
            for name in step.inputs:  # what nothing reads any more must not fill the memory
                if name != IMAGES and self._last_use[name] == place:
                    values.pop(name, None)
        return answer

    def _tensor(self, name: str) -> Tensor:
        found: Tensor = functools.reduce(getattr, name.split("."), self)  # type: ignore[assignment]
        return found


def make_module(step: Step) -> nn.Module:
    """The module of a step, its weights as torch starts them, once it is known how large they are."""
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in step.settings.items()}
    with torch.device("meta"):
        module = MODULES[step.kind](**settings)
    for tensor in module.state_dict().values():
        _checked(tensor.shape)
    return MODULES[step.kind](**settings)


def call(step: Step, inputs: Sequence[Any], images: Any) -> Any:
    """Calls the function of a step."""
    extra = {"images": images} if step.kind == "cat" else {}
    return FUNCTIONS[step.kind](*inputs, **step.settings, **extra)


def plain(description: Description) -> dict[str, Any]:
    """A description as plain values."""
    values: dict[str, Any] = msgspec.to_builtins(description)
    return values


def _checked(shape: Sequence[int]) -> tuple[int, ...]:
    count = 1
    for side in shape:
        count *= side
    if count > LARGEST_TENSOR:
        raise EmqError(f"the file describes a tensor of {count} values, at most {LARGEST_TENSOR} are built")
    return tuple(shape)
