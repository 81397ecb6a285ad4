"""From any float module to a clean `torch.fx` graph of what it computes in evaluation.

What tracing stumbles over is rewritten first (`emqdeploy.quant.rewrites.modules`), what it leaves is rewritten
afterwards (the other modules of `emqdeploy.quant.rewrites`). The user's module stays as it is.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, fx, nn

from emqdeploy.errors import EmqError
from emqdeploy.models.answers import answering_with_logits, check_takes_images
from emqdeploy.quant.einops_proxies import teach_einops
from emqdeploy.quant.layers import TrainingOnly
from emqdeploy.quant.rewrites import rewrite_all
from emqdeploy.quant.rewrites.base import DIMS, DTYPE, Traced, attribute, is_foreign
from emqdeploy.quant.rewrites.modules import make_plain
from emqdeploy.quant.sizes import SizedProxy, Sizes, dims_of, length

LEAVES = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""Kept whole in the graph, subclasses too, whatever their forward looks like."""


def trace(model: nn.Module, shape: tuple[int, int, int] | None = None) -> Traced:
    """Traces what a copy of a model computes in evaluation.

    Args:
        model: maps one image tensor ``(N, C, H, W)`` to logits.
        shape: ``(C, H, W)`` of one image; without it nothing that depends on sizes can be traced.

    Returns:
        The graph, in the mode that the model is in, and what the user should know about it.

    Raises:
        EmqError: the model cannot be traced; the message names the module that stopped it.
    """
    check_takes_images(model)
    teach_einops()
    notes: list[str] = []
    name = type(model).__name__
    plain = answering_with_logits(make_plain(_copy(model).eval(), notes), name)
    tracer = _Tracer(shape)
    try:
        graph = tracer.trace(plain)
    except EmqError:
        raise
    except Exception as error:
        where = f" ({tracer.where} of type {tracer.type})" if tracer.where else ""
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise EmqError(
            f"cannot trace {name}{where}: {reason}; make its forward free of branches on tensor values"
        ) from error
    for node in graph.nodes:
        node.meta.pop("is_wrapped", None)  # fx says so of what a function that it wraps gave, and names it in its code
    traced = Traced(fx.GraphModule(tracer.root, graph, name), notes)
    for module in tracer.training_only:
        traced.module.set_submodule(module, TrainingOnly(traced.module.get_submodule(module)))
    rewrite_all(traced)
    traced.module.train(model.training)
    return traced


def _copy(model: nn.Module) -> nn.Module:
    """A deep copy; tensors that a hook computed from parameters, which torch refuses to copy, are copied as values."""
    computed = [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in computed})


class _Tracer(fx.Tracer):
    """Follows sizes, knows which modules stay whole, and where it stopped.

    Attributes:
        values: what the nodes compute for two batch sizes, on tensors without data.
        training_only: modules without state that hand their input on in evaluation; they may do more in training.
    """

    def __init__(self, shape: tuple[int, int, int] | None = None) -> None:
        super().__init__(param_shapes_constant=True)
        self._sizes = None if shape is None else Sizes(shape)
        self._evaluating = False
        self.values: dict[fx.Node, Any] = {}
        self.training_only: set[str] = set()
        self.where = self.type = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LEAVES) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return SizedProxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> fx.Proxy:
        if kind == "call_function" and is_foreign(target):
            # fx takes what is marked with `torch.fx.wrap` as one opaque operator; layers must not hide in it.
            with contextlib.suppress(Exception):
                return target(*args, **kwargs)
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        self._follow(proxy.node, args, kwargs)
        return proxy

    def _follow(self, node: fx.Node, args: Any, kwargs: Any) -> None:
        if self._sizes is None:
            return
        self._evaluating = True
        if node.op == "placeholder":
            found = self._sizes.images
        elif node.op == "get_attr":
            found = (attribute(self.root, str(node.target)),) * 2
        else:
            found = self._sizes.run(self._function(node), args, kwargs, self.values)
        self._evaluating = False
        if found is not None:
            self.values[node] = found
            node.meta[DIMS], node.meta[DTYPE] = dims_of(found), getattr(found[0], "dtype", None)

    def _function(self, node: fx.Node) -> Callable[..., Any]:
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target)).forward
        if node.op == "call_method":
            return lambda owner, *args, **kwargs: getattr(owner, str(node.target))(*args, **kwargs)
        return node.target  # type: ignore[return-value]

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        count = length(self.values.get(obj.node, (None, None)))
        return super().iter(obj) if count is None else iter([obj[index] for index in range(count)])  # type: ignore[index]

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._evaluating:
            return forward(*args, **kwargs)
        before = self.where, self.type
        self.where, self.type = self.path_of_module(m), type(m).__name__
        result = super().call_module(m, forward, args, kwargs)
        if len(args) == 1 and result is args[0] and not m.state_dict() and not list(m.children()):
            self.training_only.add(self.where)
            result = self.create_proxy("call_module", self.where, args, kwargs)
        self.where, self.type = before  # not reached where the module cannot be traced
        return result
