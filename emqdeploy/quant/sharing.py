"""Tensors with two owners: a layer that is quantized scales its weights, and nobody else may read them then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import fx

from emqdeploy.errors import EmqError


def check_shared(module: fx.GraphModule, layers: Iterable[str], norms: Iterable[str]) -> None:
    """Raises for a layer that is called twice, and for a tensor of a layer or of its normalization that others use too.

    Args:
        module: the graph.
        layers: names of the modules that are quantized, one for every call.
        norms: names of the normalizations that they absorb.
    """
    calls = Counter(layers)
    for name, count in calls.items():
        if count > 1:
            raise EmqError(
                f"layer {name!r} is called {count} times; give each call its own layer, or leave it in float with"
                f" --keep-float {name}"
            )
    ours = {*calls, *norms}
    first: dict[int, str] = {}
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        if not tensor.numel() or tensor.is_meta:
            continue
        other = first.setdefault(tensor.data_ptr(), name)
        owners = [_owner(one) for one in (other, name)]
        if owners[0] != owners[1] and ours & set(owners):
            raise EmqError(
                f"{other!r} and {name!r} are one tensor, and quantization scales each by itself; give each its own, or"
                f" leave both in float with --keep-float {','.join(owners)}"
            )


def _owner(tensor: str) -> str:
    return tensor.rpartition(".")[0] or tensor
