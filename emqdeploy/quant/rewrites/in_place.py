"""Makes visible in the graph what operators change in place: who reads a tensor later reads what became of it."""

from __future__ import annotations

import operator

import torch
from torch import fx

from emqdeploy.errors import EmqError
from emqdeploy.quant.rewrites.base import Stage, Traced, is_constant, rewrite

_FUNCTIONS = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
_VIEWS = (
    *(
        "view",
        "reshape",
        "flatten",
        "transpose",
        "permute",
        "squeeze",
        "unsqueeze",
        "expand",
        "chunk",
        "split",
        "unbind",
    ),
    *("view_as", "reshape_as", "expand_as", "narrow", "select", "unflatten", "contiguous", "detach", "t"),
    *(torch.flatten, torch.reshape, torch.transpose, torch.permute, torch.squeeze, torch.unsqueeze, torch.chunk),
    *(torch.split, torch.unbind, operator.getitem),
)
"""Operators whose answer may be the same memory."""


def changes(traced: Traced, node: fx.Node) -> fx.Node | None:
    """The tensor that a node changes in place."""
    named = str(getattr(node.target, "__name__", node.target))
    method = node.op == "call_method" and named.endswith("_") and not named.endswith("__")
    function = node.op == "call_function" and (node.target in _FUNCTIONS or (named.endswith("_") and named[0] != "_"))
    if not (method or function or node.kwargs.get("inplace") or getattr(traced.called(node), "inplace", False)):
        return None
    source = node.args[0] if node.args else None
    return source if isinstance(source, fx.Node) else None


def memory(node: fx.Node) -> fx.Node:
    """The tensor of which a node's is a part."""
    while node.target in _VIEWS and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


@rewrite(Stage.CLEAN)
def show_changes(traced: Traced) -> None:
    """Lets whoever reads a changed tensor afterwards read the changed one; constants are folded later on.

    Raises:
        EmqError: a part of a tensor is changed while other names of it live on.
    """
    place = {node: index for index, node in enumerate(traced.nodes)}
    for node in traced.nodes:
        changed = changes(traced, node)
        if changed is None or is_constant(node):
            continue
        for user in list(changed.users):
            if place[user] > place[node]:
                user.replace_input_with(changed, node)
        parts = _parts(memory(changed)) - {changed}
        if any(place[user] > place[node] and user not in parts for part in parts for user in part.users):
            raise EmqError(
                f"{node.name!r} changes a part of a tensor in place that is read as a whole afterwards, which a traced"
                " network cannot show; write it without changes in place"
            )


def _parts(whole: fx.Node) -> set[fx.Node]:
    found, ahead = {whole}, [whole]
    while ahead:
        for user in ahead.pop().users:
            if user.target in _VIEWS and user not in found:
                found.add(user)
                ahead.append(user)
    return found
