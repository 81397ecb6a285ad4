"""The network that grows while a graph is read: its steps, its weights, and how large every value is."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emqdeploy.errors import EmqError
from emqdeploy.models.described import IMAGES, LARGEST_TENSOR, MODULES, Description, Step, call, make_module
from emqdeploy.models.onnx.file import Node, OnnxFile
from emqdeploy.models.onnx.folding import Known

COUNTS = (2, 3)
"""Numbers of images that sizes are worked out for: what differs between them is the image axis."""

State = dict[str, Tensor]

_RESERVED = frozenset(dir(torch.nn.Module()))
_WORD = re.compile(r"[A-Za-z0-9_]+")


@dataclass(frozen=True)
class Value:
    """What images become.

    Attributes:
        name: of the step that gives it.
        samples: for each of `COUNTS`, without data.
    """

    name: str
    samples: tuple[Tensor, Tensor]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes, -1 for the image axis."""
        return sizes_of(*(sample.shape for sample in self.samples))


def sizes_of(two: Any, three: Any) -> tuple[int, ...]:
    """Sizes for two and for three images as one: -1 where they differ."""
    return tuple(a if a == b else -1 for a, b in zip(two, three, strict=True))


@dataclass
class Building:
    """What was read of a file so far.

    Attributes:
        file: the file.
        known: values that no image reaches, for each of `COUNTS`.
        values: what images become, by name of the value.
        readers: how many operators read a value.
        images: what the network is called with.
        steps: the network.
        given: what each step gives.
        state: its weights by name.
        notes: what the user should know.
    """

    file: OnnxFile
    images: Value
    known: dict[str, tuple[Known, Known]] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)
    readers: dict[str, int] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    given: list[Value] = field(default_factory=list)
    state: State = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _taken: set[str] = field(default_factory=lambda: {IMAGES})

    def image(self, node: Node, place: int = 0) -> Value:
        """The value that an operator reads at a place, which images reach."""
        found = self.values.get(node.inputs[place])
        if found is None:
            raise self.refuse(node, f"reads a constant as input {place}")
        return found

    def constant(self, node: Node, place: int, default: Any = None) -> NDArray[Any] | None:
        """The constant that an operator reads at a place; None, or the default, where it is left out."""
        name = node.inputs[place] if place < len(node.inputs) else ""
        if not name:
            return None if default is None else np.asarray(default)
        if name not in self.known:
            raise self.refuse(node, f"computes its input {place} from the images")
        two, three = self.known[name]
        if two.shape == three.shape and np.array_equal(two, three):
            return two
        raise self.refuse(node, f"has an input {place} that changes with the number of images")

    def numbers(self, node: Node, name: str, place: int, default: Any = None) -> list[int] | None:
        """Whole numbers that are an attribute in old operator sets and an input in new ones."""
        given = node.attributes.get(name)
        if given is None:
            found = self.constant(node, place, default)
            given = None if found is None else found.reshape(-1).tolist()
        return None if given is None else [int(number) for number in given]

    def refuse(self, node: Node, reason: str) -> EmqError:
        """The sentence for an operator that cannot be taken."""
        return EmqError(
            f"{self.file.path}: operator {node.about()} {reason}; emqdeploy cannot make a network of that, export it"
            " in another way"
        )

    def module(self, node: Node, kind: str, inputs: Value, settings: dict[str, Any], **weights: Any) -> Value:
        """Adds a step that calls a module.

        Args:
            node: what it is made of.
            kind: of `MODULES`.
            inputs: what it reads.
            settings: what it is made with.
            **weights: its tensors by name; None for one that it lacks.
        """
        name = self._free(self._path(node, kind, bool(weights)))
        value = self._add(node, Step(kind, name, (inputs.name,), settings), [inputs])
        for leaf, array in weights.items():
            if array is not None:
                self.state[f"{name}.{leaf}"] = torch.from_numpy(np.array(array, np.float32))
        return value

    def call(self, node: Node, kind: str, *inputs: Value | Known, **settings: Any) -> Value:
        """Adds a step that calls a function of values and constants."""
        given: list[Value] = []
        for one in inputs:
            given.append(one if isinstance(one, Value) else self._own(node, one))
        name = self._free(self._path(node, kind, False))
        return self._add(node, Step(kind, name, tuple(one.name for one in given), settings), given)

    def _own(self, node: Node, array: Known) -> Value:
        """Keeps a constant as a tensor of the network."""
        label = next((one for one in node.inputs if one in self.known), "")
        name = self._free(self._words(label) or "constant")
        self.state[name] = torch.from_numpy(np.array(array, np.float32))
        sample = torch.empty(array.shape, device="meta")
        return Value(name, (sample, sample))

    def _add(self, node: Node, step: Step, inputs: list[Value]) -> Value:
        try:
            samples = []
            module = make_module(step).to("meta").eval() if step.kind in MODULES else None
            for place, count in enumerate(COUNTS):
                read = [value.samples[place] for value in inputs]
                images = torch.empty((count, 1), device="meta")
                sample = call(step, read, images) if module is None else module(*read)
                if sample.numel() > LARGEST_TENSOR or not sample.is_floating_point():
                    raise ValueError("it gives no tensor of floats of a size that can be computed")
                samples.append(sample)
        except EmqError:
            raise
        except Exception as error:  # torch says of sizes that do not fit what it likes
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise self.refuse(node, f"does not fit what it reads ({reason[:200]})") from error
        self.steps.append(step)
        self.given.append(Value(step.name, (samples[0], samples[1])))
        return self.given[-1]

    def step_of(self, value: Value) -> int | None:
        """Place of the step that gives a value; None for the images."""
        return next((place for place, step in enumerate(self.steps) if step.name == value.name), None)

    def source_of(self, step: Step) -> Value:
        """What a step with one input reads."""
        name = step.inputs[0]
        if name == IMAGES:
            return self.images
        place = next(place for place, one in enumerate(self.steps) if one.name == name)
        return self.given[place]

    def with_bias(self, place: int, bias: Known) -> Value:
        """Gives a layer that has none a bias; returns what it gives."""
        step = self.steps[place]
        self.steps[place] = msgspec.structs.replace(step, settings=step.settings | {"bias": True})
        self.state[f"{step.name}.bias"] = torch.from_numpy(np.array(bias, np.float32))
        return self.given[place]

    # --- names ---

    def _path(self, node: Node, kind: str, weighted: bool) -> str:
        """A dotted name: that of the weight in the file, else that of the operator, else its kind."""
        if weighted:
            for name in node.inputs[1:]:
                owner, dot, leaf = name.rpartition(".")
                if dot and leaf in ("weight", "bias", "gamma", "beta") and self._words(owner):
                    return self._words(owner)
        parts: list[str] = []
        for part in node.name.strip("/").split("/")[:-1]:
            if parts and part.startswith(parts[-1] + "."):
                parts[-1] = part
            else:
                parts.append(part)
        return (self._words(".".join(parts)) if weighted else "") or kind.lower()

    @staticmethod
    def _words(name: str) -> str:
        return ".".join(_WORD.findall(name)) if re.fullmatch(r"[\w./:]+", name) and "::" not in name else ""

    def _free(self, wanted: str) -> str:
        """A name that is no other's, nor inside or around another."""
        if not _RESERVED.isdisjoint(wanted.split(".")):
            wanted = "step"
        name, count = wanted, 0
        while self._clashes(name):
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name

    def _clashes(self, name: str) -> bool:
        return any(one == name or one.startswith(f"{name}.") or name.startswith(f"{one}.") for one in self._taken)

    def description(self, answer: Value) -> Description:
        """The network that gives a value, without the steps that it does not need."""
        needed, kept = {answer.name}, []
        for step in reversed(self.steps):
            if step.name in needed:
                kept.append(step)
                needed.update(step.inputs)
        kept.reverse()
        owners = {step.name for step in kept}
        free = {name: tensor for name, tensor in self.state.items() if name in needed}
        self.state = {
            name: tensor for name, tensor in self.state.items() if name in free or name.rpartition(".")[0] in owners
        }
        return Description(tuple(kept), {name: tuple(tensor.shape) for name, tensor in free.items()})
