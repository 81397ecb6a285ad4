"""Gives every call of a layer or normalization its own, and every layer its own tensors.

Each call reads another tensor, hence needs a grid, a clip and a normalization of its own, which one module cannot have.
"""

from __future__ import annotations

import copy

from torch import nn

from emqdeploy.quant.rewrites.base import Stage, Traced, rewrite

_OWNERS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d)
"""Modules that a quantized layer is made of."""


COPY_SUFFIX = "_again"
"""What the copy for a later call is called, behind the name of the module."""


@rewrite(Stage.NORMS)
def copy_per_call(traced: Traced) -> None:
    """Gives every call of a layer or normalization a copy.

    In evaluation nothing changes; where training follows, each copy has statistics and parameters of its own.
    """
    for name, nodes in traced.calls_of(_OWNERS):
        copies = []
        for node in nodes[1:]:
            called = traced.called(node)
            assert called is not None
            node.target = traced.add(f"{name}{COPY_SUFFIX}", copy.deepcopy(called))
            copies.append(repr(node.target))
        if copies:
            kind = "normalization" if isinstance(traced.called(nodes[0]), nn.modules.batchnorm._BatchNorm) else "layer"
            traced.notes.append(
                f"{kind} {name!r} is called {len(nodes)} times: each call has a copy ({', '.join(copies)}), which"
                " is quantized by itself, and learns by itself where training follows"
            )


@rewrite(Stage.SHAPES)
def copy_per_owner(traced: Traced) -> None:
    """Gives every layer and normalization copies of the tensors that something else holds as well."""
    module = traced.module
    first: dict[int, str] = {}
    for name, tensor in [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]:
        if not tensor.numel() or tensor.is_meta:
            continue
        other = first.setdefault(tensor.data_ptr(), name)
        owners = [module.get_submodule(one.rpartition(".")[0]) for one in (other, name)]
        if owners[0] is owners[1] or not any(isinstance(owner, _OWNERS) for owner in owners):
            continue
        own = tensor.detach().clone()
        leaf = name.rpartition(".")[2]
        setattr(owners[1], leaf, nn.Parameter(own, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else own)
        traced.notes.append(
            f"{other!r} and {name!r} are one tensor: the second has a copy, which is quantized by itself, and learns by"
            " itself where training follows"
        )
