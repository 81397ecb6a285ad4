"""From any float module to a clean `torch.fx` graph: what tracing stumbles over is rewritten, what it freezes is freed.

Attention modules are taken apart so that their projections become linear layers; normalizations that carry an
activation (timm's) are split; checks and shape arithmetic that nothing reads are dropped.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import fx, nn

from emqdeploy.errors import EmqError
from emqdeploy.quant.attention import SelfAttention

LEAVES = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""Kept whole in the graph, subclasses too, whatever their forward looks like."""


def trace(model: nn.Module) -> fx.GraphModule:
    """Traces a copy of a model that maps one image tensor ``(N, C, H, W)`` to logits.

    Raises:
        EmqError: the model cannot be traced; the message names the module that stopped it.
    """
    model = _take_apart(copy.deepcopy(model))
    name = type(model).__name__
    _take_images_only(model)
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except EmqError:
        raise
    except Exception as error:
        where = f" ({tracer.where} of type {tracer.type})" if tracer.where else ""
        raise EmqError(
            f"cannot trace {name}{where}: {str(error).splitlines()[0]}; make its forward free of"
            " branches on tensor values"
        ) from error
    module = fx.GraphModule(tracer.root, graph, name)
    for clean in (_split_activations, _drop_checks, _erase_identities, _own_dropouts, _pool_means):
        clean(module)
    module.recompile()
    return module


class _Tracer(fx.Tracer):
    """Knows which modules stay whole, and where it stopped."""

    def __init__(self) -> None:
        functions: list[Callable[..., Any]] = []
        self._whole: tuple[type[nn.Module], ...] = LEAVES
        if "timm" in sys.modules:
            import timm.layers

            functions = [function for function in timm.layers.get_notrace_functions() if callable(function)]
            self._whole += tuple(timm.layers.get_notrace_modules())
        super().__init__(autowrap_functions=tuple(functions))
        self.where = self.type = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self._whole) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        before = self.where, self.type
        self.where, self.type = self.path_of_module(m), type(m).__name__
        result = super().call_module(m, forward, args, kwargs)
        self.where, self.type = before  # not reached where the module cannot be traced
        return result


def _take_apart(model: nn.Module) -> nn.Module:
    """Rewrites modules of a float model whose insides must become visible."""
    for name, module in list(model.named_modules()):
        # timm's Linear only casts its parameters while it is scripted.
        if type(module).__name__ == "Linear" and isinstance(module, nn.Linear):
            module.__class__ = nn.Linear
        if isinstance(module, nn.MultiheadAttention):
            attention = SelfAttention(name, module)
            if not name:
                return attention
            model.set_submodule(name, attention)
    return model


def _take_images_only(model: nn.Module) -> None:
    """Leaves further arguments of the forward at their defaults, so that branches on them can be traced."""
    kind = type(model)

    class OneArgument(kind):  # type: ignore[misc, valid-type]
        def forward(self, images: Any) -> Any:
            return kind.forward(self, images)

    model.__class__ = OneArgument


def _modules(module: fx.GraphModule) -> dict[str, nn.Module]:
    return dict(module.named_modules())


def _split_activations(module: fx.GraphModule) -> None:
    """Splits timm's normalization with an activation into the two; parameters keep their names."""
    modules = _modules(module)
    split: dict[str, list[nn.Module]] = {}
    for node in list(module.graph.nodes):
        name = str(node.target)
        norm = modules.get(name) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d) or not (hasattr(norm, "act") or name in split):
            continue
        if name not in split:
            split[name] = [cast(nn.Module, norm.drop), cast(nn.Module, norm.act)]
            plain = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
            plain._parameters, plain._buffers = norm._parameters, norm._buffers
            plain.train(norm.training)
            module.set_submodule(name, plain)
            for index, part in enumerate(split[name]):
                module.add_submodule(f"{name}_then_{index}", part)
        tail = node
        for index, part in enumerate(split[name]):
            if type(part) is nn.Identity:
                continue
            with module.graph.inserting_after(tail):
                after = module.graph.call_module(f"{name}_then_{index}", (tail,))
            tail.replace_all_uses_with(after, delete_user_cb=lambda user, after=after: user is not after)
            tail = after


def _drop_checks(module: fx.GraphModule) -> None:
    """Drops assertions on shapes, and the shape arithmetic that only they read."""
    for node in reversed(list(module.graph.nodes)):
        check = node.op == "call_function" and getattr(node.target, "__name__", "") == "_assert"
        if not node.users and (check or is_number(node)):
            module.graph.erase_node(node)


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


def _erase_identities(module: fx.GraphModule) -> None:
    modules = _modules(module)
    for node in list(module.graph.nodes):
        if node.op == "call_module" and type(modules[str(node.target)]) is nn.Identity:
            node.replace_all_uses_with(node.all_input_nodes[0])
            module.graph.erase_node(node)


def _own_dropouts(module: fx.GraphModule) -> None:
    """Makes modules of functional dropouts: tracing froze the mode that the model was in, a module follows it.

    The dropout inside a fused attention cannot be switched like that and is taken out.
    """
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target is F.dropout:
            share = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
            module.add_submodule(node.name, nn.Dropout(float(share)))
            with module.graph.inserting_before(node):
                node.replace_all_uses_with(module.graph.call_module(node.name, (node.all_input_nodes[0],)))
            module.graph.erase_node(node)
        elif node.target is F.scaled_dot_product_attention and node.kwargs.get("dropout_p"):
            node.kwargs = node.kwargs | {"dropout_p": 0.0}


def _pool_means(module: fx.GraphModule) -> None:
    """Writes a mean over height and width as the pooling, and flattening, that integer runtimes fuse."""
    for node in list(module.graph.nodes):
        if not node.op.startswith("call") or node.target not in (torch.mean, "mean"):
            continue
        options = dict(zip(("input", "dim", "keepdim"), node.args, strict=False)) | node.kwargs
        dims = options.get("dim")
        if not isinstance(dims, (tuple, list)) or sorted(dims) not in ([2, 3], [-2, -1]):
            continue
        with module.graph.inserting_before(node):
            mean = module.graph.call_function(F.adaptive_avg_pool2d, (node.all_input_nodes[0], 1))
            if not options.get("keepdim", False):
                mean = module.graph.call_function(torch.flatten, (mean, 1))
        node.replace_all_uses_with(mean)
        module.graph.erase_node(node)
