"""What rewrites of a float network share: where they are filed, and the graph that they change.

A rewrite keeps the function of the network in evaluation within float rounding, and its parameters where it can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from types import FunctionType
from typing import Any

from torch import Tensor, fx, nn

from emqdeploy.quant.sizes import Dims

DIMS, DTYPE = "dims", "dtype"
"""Keys of what is known of a node: sizes, see `emqdeploy.quant.sizes.Dims`, and the type of its elements."""


class Stage(IntEnum):
    """When a rewrite runs; those of one stage do not depend on each other."""

    CLEAN = 0
    CONSTANTS = 1
    LAYERS = 2
    NORMS = 3
    SHAPES = 4
    POOLS = 5


@dataclass
class Traced:
    """A traced network while it is rewritten.

    Attributes:
        module: the graph.
        notes: what the user should know about it, a sentence each.
    """

    module: fx.GraphModule
    notes: list[str] = field(default_factory=list)

    @property
    def graph(self) -> fx.Graph:
        """Its nodes."""
        return self.module.graph

    @property
    def nodes(self) -> list[fx.Node]:
        """All nodes, as a list that changes to the graph leave alone."""
        return list(self.module.graph.nodes)

    def called(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls."""
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def calls_of(self, kind: type[nn.Module] | tuple[type[nn.Module], ...]) -> Iterable[tuple[str, list[fx.Node]]]:
        """Modules of these very types by name, each with the nodes that call it."""
        kinds = kind if isinstance(kind, tuple) else (kind,)
        found: dict[str, list[fx.Node]] = {}
        for node in self.nodes:
            if type(self.called(node)) in kinds:
                found.setdefault(str(node.target), []).append(node)
        return found.items()

    def add(self, wanted: str, value: nn.Module | Tensor) -> str:
        """Files a module or tensor under a name that is still free, as near to the wanted one as can be; returns it."""
        name, count = wanted, 0
        while self._taken(name):
            count += 1
            name = f"{wanted}_{count}"
        if isinstance(value, nn.Module):
            self.module.add_submodule(name, value)
            return name
        owner, _, leaf = name.rpartition(".")
        place = self.module.get_submodule(owner)
        if isinstance(value, nn.Parameter):
            place.register_parameter(leaf, value)
        else:
            place.register_buffer(leaf, value, persistent=False)  # no tensor of the model
        return name

    def _taken(self, name: str) -> bool:
        owner, _, leaf = name.rpartition(".")
        try:
            return hasattr(self.module.get_submodule(owner), leaf)
        except AttributeError:
            return False

    def tensor(self, node: Any) -> Tensor | None:
        """The parameter or buffer that a node reads."""
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            return None
        value = attribute(self.module, str(node.target))
        return value if isinstance(value, Tensor) else None

    def call(self, before: fx.Node, name: str, *inputs: fx.Node) -> fx.Node:
        """A node that calls a module, in front of another one; its sizes are those of the other."""
        with self.graph.inserting_before(before):
            node = self.graph.call_module(name, inputs)
        node.meta = dict(before.meta)
        return node

    def swap(self, node: fx.Node, new: fx.Node) -> None:
        """Puts one node into another's place."""
        node.replace_all_uses_with(new)
        self.graph.erase_node(node)


def caller(node: fx.Node) -> str:
    """Name of the module in whose forward a node stands."""
    return next((name for name, _ in reversed(node.meta.get("nn_module_stack", {}).values())), "")


def widen(traced: Traced, node: fx.Node, read: tuple[Any, ...], given: tuple[Any, ...]) -> None:
    """Lets a module read its tensor in another shape, and gives its answer the old one.

    Args:
        traced: the network.
        node: calls the module.
        read: sizes that it reads from now on, -1 for the batch.
        given: sizes that its readers expect.
    """
    graph, source = traced.graph, node.all_input_nodes[0]
    with graph.inserting_before(node):
        node.replace_input_with(source, graph.call_method("reshape", (source, *read)))
    with graph.inserting_after(node):
        after = graph.call_method("reshape", (node, *given))
    after.meta = dict(node.meta)
    node.meta = {}
    node.replace_all_uses_with(after, delete_user_cb=lambda user: user is not after)


Rewrite = Callable[[Traced], None]
REWRITES: list[tuple[Stage, Rewrite]] = []


def rewrite(stage: Stage) -> Callable[[Rewrite], Rewrite]:
    """Returns a decorator that files a rewrite."""

    def file(function: Rewrite) -> Rewrite:
        REWRITES.append((stage, function))
        return function

    return file


def dims(node: fx.Node) -> Dims | None:
    """Sizes of what a node computes; None where they are not known."""
    found: Dims | None = node.meta.get(DIMS)
    return found


def attribute(module: nn.Module, name: str) -> Any:
    """What a module holds under a dotted name."""
    owner, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)


def is_constant(node: fx.Node) -> bool:
    """Whether no image reaches a node: it reads parameters and buffers only."""
    found, ahead = {node}, [node]
    while ahead:
        for source in ahead.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                ahead.append(source)
    return all(one.op != "placeholder" for one in found)


def is_foreign(target: Any) -> bool:
    """Whether a function is Python code from outside of torch, which can hide anything."""
    return isinstance(target, FunctionType) and target.__module__.partition(".")[0] != "torch"


def is_number(node: fx.Node) -> bool:
    """Whether a node is a shape or computed from shapes, not a tensor."""
    if node.target in ("size", "dim") or (
        node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device")
    ):
        return True
    if node.op != "call_function" or not node.all_input_nodes:
        return False
    arithmetic = getattr(node.target, "__module__", "") in ("_operator", "builtins", "math")
    return arithmetic and all(is_number(source) for source in node.all_input_nodes)
