"""Computes once what depends on no image: layers over a table, and weights that are computed from other parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from emqdeploy.quant.rewrites.base import Stage, Traced, caller, rewrite
from emqdeploy.quant.rewrites.functional import PRODUCTS
from emqdeploy.quant.rewrites.in_place import changes, memory


@rewrite(Stage.CONSTANTS)
def fold_constants(traced: Traced) -> None:
    """Folds every layer, and every computed weight of one, that no image reaches; gathers and the like stay.

    The result is a parameter where parameters made it, so that training can go on with it.
    """
    constant = _constants(traced)
    made = {node for node in constant if node.op != "get_attr"}
    wanted = {node for node in made if _multiplies(traced, node)}
    for node in traced.nodes:
        if node not in constant and node.target in PRODUCTS:
            wanted.update(source for source in node.all_input_nodes if source in made)
    wanted.update(memory(changed) for node in made if (changed := changes(traced, node)) is not None)
    values: dict[fx.Node, Any] = {}
    learned: set[fx.Node] = set()
    for node in constant:
        values[node] = _value(traced, node, values, learned)
    folded: dict[fx.Node, None] = {}
    inner: set[fx.Node] = set()
    for node in reversed(constant):
        # What only computes another folded tensor is folded with it.
        if node.users and all(user in folded or user in inner for user in node.users):
            inner.add(node)
        elif node in wanted and isinstance(values[node], Tensor):
            folded[node] = None
    trained = [_fold(traced, node, values[node], node in learned) for node in reversed(list(folded))]
    names = list(dict.fromkeys(name for name in trained if name))
    if names:
        listed = ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        traced.notes.append(
            f"no image reaches {listed}: computed once from parameters, and trained as plain tensors where training"
            " follows"
        )


def _constants(traced: Traced) -> dict[fx.Node, None]:
    found: dict[fx.Node, None] = {}
    for node in traced.nodes:
        sources = node.all_input_nodes
        computed = node.op.startswith("call") and sources and all(source in found for source in sources)
        if node.op == "get_attr" or computed:
            found[node] = None
    return found


def _multiplies(traced: Traced, node: fx.Node) -> bool:
    module = traced.called(node)
    if module is not None:
        return any(parameter.dim() > 1 for parameter in module.parameters())
    return node.target in PRODUCTS


@torch.no_grad()
def _value(traced: Traced, node: fx.Node, values: dict[fx.Node, Any], learned: set[fx.Node]) -> Any:
    if node.op == "get_attr":
        tensor = traced.tensor(node)
        if isinstance(tensor, nn.Parameter) and tensor.requires_grad:
            learned.add(node)
        return tensor
    given: Any = map_arg((node.args, node.kwargs), values.__getitem__)
    args, kwargs = given
    module = traced.called(node)
    own = module is not None and any(parameter.requires_grad for parameter in module.parameters())
    if own or any(source in learned for source in node.all_input_nodes):
        learned.add(node)
    if module is not None:
        return module(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    function: Any = node.target
    return function(*args, **kwargs)


def _fold(traced: Traced, node: fx.Node, value: Tensor, learned: bool) -> str:
    """Puts a tensor in a node's place; returns its name where it is a parameter."""
    tensor = value.detach().clone().contiguous()
    name = traced.add(f"{node.name}_folded", nn.Parameter(tensor) if learned else tensor)
    with traced.graph.inserting_before(node):
        traced.swap(node, traced.graph.get_attr(name))
    return (caller(node) or node.name) if learned else ""
