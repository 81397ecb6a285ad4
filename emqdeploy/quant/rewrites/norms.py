"""Brings normalizations into the form that a layer absorbs."""

from __future__ import annotations

from typing import cast

import torch
from torch import fx, nn

from emqdeploy.errors import EmqError
from emqdeploy.quant.rewrites.base import Stage, Traced, dims, rewrite, widen


@rewrite(Stage.NORMS)
def split_activations(traced: Traced) -> None:
    """Splits timm's normalization with an activation into the two; parameters keep their names."""
    calls = [node for node in traced.nodes if hasattr(traced.called(node), "act")]
    split: dict[str, list[str]] = {}
    for node in calls:
        name = str(node.target)
        norm = traced.called(node)
        if name not in split and isinstance(norm, nn.BatchNorm2d):
            plain = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
            plain._parameters, plain._buffers = norm._parameters, norm._buffers
            traced.module.set_submodule(name, plain.eval())
            parts = [cast(nn.Module, norm.drop), cast(nn.Module, norm.act)]
            split[name] = [traced.add(f"{name}_then", part) for part in parts if type(part) is not nn.Identity]
        tail = node
        for part_name in split.get(name, ()):
            with traced.graph.inserting_after(tail):
                after = traced.graph.call_module(part_name, (tail,))
            after.meta = dict(node.meta)
            readers = [user for user in tail.users if user is not after]
            for user in readers:
                user.replace_input_with(tail, after)
            tail = after


@rewrite(Stage.NORMS)
def rows_before_norms(traced: Traced) -> None:
    """Lets a linear layer read rows where only its answer is flattened into rows for its normalization (LeViT)."""
    for _, nodes in traced.calls_of(nn.BatchNorm1d):
        for norm in nodes:
            rows = norm.all_input_nodes[0]
            layer = rows.all_input_nodes[0] if rows.target in (torch.flatten, "flatten") else None
            sizes = None if layer is None else dims(layer)
            back = next(iter(norm.users), None)
            if layer is None or sizes is None or back is None or type(traced.called(layer)) is not nn.Linear:
                continue
            joined = tuple(rows.args[1:]) == (0, len(sizes) - 2) and len(norm.users) == 1
            if not joined or back.target != "reshape_as" or set(layer.users) != {rows, back} or None in sizes[1:]:
                continue
            source = layer.all_input_nodes[0]
            with traced.graph.inserting_before(layer):
                flat = traced.graph.call_function(torch.flatten, (source, 0, len(sizes) - 2))
            with traced.graph.inserting_before(back):
                unflat = traced.graph.call_method("reshape", (norm, -1, *sizes[1:]))
            unflat.meta = dict(back.meta)
            traced.swap(back, unflat)
            norm.replace_input_with(rows, layer)
            traced.graph.erase_node(rows)
            layer.replace_input_with(source, flat)
            layer.meta["dims"] = norm.meta.get("dims")


@rewrite(Stage.SHAPES)
def rows_as_images(traced: Traced) -> None:
    """Turns a normalization of rows, or of sequences, that follows no linear layer into one of images."""
    for _, nodes in traced.calls_of(nn.BatchNorm1d):
        before = nodes[0].all_input_nodes[0]
        sizes, norm = dims(before), traced.called(nodes[0])
        rows = len(sizes or ()) == 2 and type(traced.called(before)) is nn.Linear and len(before.users) == 1
        if sizes is None or rows or None in sizes[1:] or norm is None:
            continue
        norm.__class__ = nn.BatchNorm2d
        widen(traced, nodes[0], (-1, sizes[1], *sizes[2:], *(1 for _ in range(4 - len(sizes)))), (-1, *sizes[1:]))


@rewrite(Stage.NORMS)
def check_statistics(traced: Traced) -> None:
    """Raises for a normalization whose answer to an image depends on the others of the batch."""
    for node in traced.nodes:
        norm = traced.called(node)
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is None:
            raise EmqError(
                f"normalization {node.target!r} keeps no statistics, so an image's answer depends on the others of its"
                " batch, and no layer can absorb it; build it with track_running_stats=True and train it"
            )
        if node.target is torch.nn.functional.batch_norm and _uses_batch(node):
            raise EmqError(
                f"{node.name!r} normalizes with the statistics of the batch in evaluation too; use a BatchNorm2d module"
            )


def _uses_batch(node: fx.Node) -> bool:
    names = ("input", "running_mean", "running_var", "weight", "bias", "training")
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    return bool(given.get("training", False))
