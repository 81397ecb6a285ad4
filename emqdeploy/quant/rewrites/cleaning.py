"""Takes out of a graph what computes nothing when it is deployed, and keeps what only training does apart."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from emqdeploy.errors import EmqError
from emqdeploy.quant.layers import TrainingOnly
from emqdeploy.quant.rewrites.base import DTYPE, Stage, Traced, is_number, rewrite

_DROPOUTS = {F.dropout: 1, F.dropout1d: 1, F.dropout2d: 1, F.dropout3d: 1, F.alpha_dropout: 1}
"""Functional dropouts, and the place of their probability among the arguments."""


@rewrite(Stage.CLEAN)
def drop_checks(traced: Traced) -> None:
    """Drops assertions on shapes, and the shape arithmetic that only they read."""
    for node in reversed(traced.nodes):
        check = node.op == "call_function" and getattr(node.target, "__name__", "") == "_assert"
        if not node.users and (check or is_number(node)):
            traced.graph.erase_node(node)


@rewrite(Stage.CLEAN)
def erase_identities(traced: Traced) -> None:
    """Takes out what hands its input on in training as well."""
    for node in traced.nodes:
        if type(traced.called(node)) is nn.Identity:
            traced.swap(node, node.all_input_nodes[0])


@rewrite(Stage.CLEAN)
def erase_casts(traced: Traced) -> None:
    """Takes out moves to the device that the network was traced on, and casts to the type that a tensor has."""
    for node in traced.nodes:
        if node.target not in ("to", "float", "type_as"):
            continue
        given = list(node.args[1:])
        source = node.all_input_nodes[0]
        wanted = [value for value in (*given, *node.kwargs.values()) if not isinstance(value, (bool, torch.device))]
        casts = [torch.float32] if node.target == "float" else wanted
        kinds = [value.meta.get(DTYPE) if isinstance(value, fx.Node) else value for value in casts]
        if all(kind is not None and kind is source.meta.get(DTYPE) for kind in kinds):
            traced.swap(node, source)


@rewrite(Stage.CLEAN)
def own_dropouts(traced: Traced) -> None:
    """Makes modules of functional dropouts: tracing froze the mode that the model was in, a module follows it.

    The dropout inside a fused attention cannot be switched like that and is taken out.
    """
    for node in traced.nodes:
        if node.target in _DROPOUTS or getattr(node.target, "__name__", "") == "stochastic_depth":
            _own_dropout(traced, node)
        elif node.target is F.scaled_dot_product_attention and node.kwargs.get("dropout_p"):
            node.kwargs = node.kwargs | {"dropout_p": 0.0}


def _own_dropout(traced: Traced, node: fx.Node) -> None:
    functional = node.target in _DROPOUTS
    names = ("input", "p", "training", "inplace") if functional else ("input", "p", "mode", "training")
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    if given.get("training", True):
        raise EmqError(
            f"{node.name!r} drops values in evaluation too, so that no two answers are the same; pass"
            " training=self.training to it"
        )
    options = {name: value for name, value in given.items() if name in ("p", "mode")}
    function: Any = node.target
    name = traced.add(node.name, TrainingOnly(partial(function, training=True, **options)))
    traced.swap(node, traced.call(node, name, node.all_input_nodes[0]))


@rewrite(Stage.SHAPES)
def pool_means(traced: Traced) -> None:
    """Writes a mean over height and width as the pooling, and flattening, that integer runtimes fuse."""
    graph = traced.graph
    for node in traced.nodes:
        if not node.op.startswith("call") or node.target not in (torch.mean, "mean"):
            continue
        options = dict(zip(("input", "dim", "keepdim"), node.args, strict=False)) | node.kwargs
        dims = options.get("dim")
        if not isinstance(dims, (tuple, list)) or sorted(dims) not in ([2, 3], [-2, -1]):
            continue
        with graph.inserting_before(node):
            mean = graph.call_function(F.adaptive_avg_pool2d, (node.all_input_nodes[0], 1))
            if not options.get("keepdim", False):
                mean = graph.call_function(torch.flatten, (mean, 1))
        traced.swap(node, mean)
