"""Makes layers of functions that multiply a tensor with parameters."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from emqdeploy.quant.rewrites.base import Stage, Traced, caller, dims, rewrite, widen

_MATMULS = (torch.matmul, operator.matmul, torch.mm, "matmul", "mm")

PRODUCTS: tuple[Any, ...] = (F.linear, F.conv1d, F.conv2d, F.conv3d, F.bilinear, torch.conv2d, *_MATMULS)
"""Functions that compute a layer where one of their tensors is a parameter."""

_PASSING = (F.relu, torch.relu, torch.flatten, torch.squeeze, torch.reshape, "flatten", "squeeze", "view", "reshape")

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_LINEAR = ("input", "weight", "bias")


@rewrite(Stage.LAYERS)
def own_layers(traced: Traced) -> None:
    """Makes a Conv2d or Linear of every function that computes one; the parameters stay the same objects."""
    for node in traced.nodes:
        if node.target in (F.conv2d, torch.conv2d):
            _own(traced, node, _CONV, _convolution)
        elif node.target is F.linear:
            _own(traced, node, _LINEAR, _linear)
        elif node.op.startswith("call") and node.target in _MATMULS:
            _own(traced, node, ("input", "weight"), _product)
        elif node.target is torch.einsum:
            _own_sum(traced, node)


@rewrite(Stage.LAYERS)
def sequences_as_images(traced: Traced) -> None:
    """Makes a Conv2d of one row of a Conv1d."""
    for _, nodes in traced.calls_of(nn.Conv1d):
        layer = traced.called(nodes[0])
        sizes = [(dims(node.all_input_nodes[0]), dims(node)) for node in nodes]
        if not isinstance(layer, nn.Conv1d) or isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            continue
        if any(len(one or ()) != 3 or None in (one or ())[1:] for pair in sizes for one in pair):
            continue
        wide = {name: (1, *getattr(layer, name)) for name in ("kernel_size", "stride", "dilation")}
        layer.__class__ = nn.Conv2d  # type: ignore[assignment]
        vars(layer).update(wide, padding=(0, *layer.padding), output_padding=(0, 0))
        layer.weight = nn.Parameter(layer.weight.detach().unsqueeze(2), requires_grad=layer.weight.requires_grad)
        for node, (read, given) in zip(nodes, sizes, strict=True):
            _, channels, length = read or ()
            widen(traced, node, (-1, channels, 1, length), (-1, *(given or ())[1:]))


@rewrite(Stage.POOLS)
def logits_of_one_pixel(traced: Traced) -> None:
    """Makes a Linear of a Conv2d that answers the logits: integer kernels of convolutions answer in codes only."""
    for _, nodes in traced.calls_of(nn.Conv2d):
        layer, node = traced.called(nodes[0]), nodes[0]
        read, given = dims(node.all_input_nodes[0]), dims(node)
        if read is None or given is None or not isinstance(layer, nn.Conv2d) or len(nodes) > 1:
            continue
        sees_all = given[2:] == (1, 1) and read[2:] == layer.kernel_size and layer.padding == (0, 0)
        if sees_all and layer.groups == 1 and _is_last(traced, node):
            layer.__class__ = nn.Linear  # type: ignore[assignment]
            layer.weight = nn.Parameter(layer.weight.detach().flatten(1), requires_grad=layer.weight.requires_grad)
            vars(layer).update(in_features=layer.weight.shape[1], out_features=layer.weight.shape[0])
            widen(traced, node, (-1, layer.weight.shape[1]), (-1, *given[1:]))


def _is_last(traced: Traced, node: fx.Node) -> bool:
    """Whether only what puts values in another shape follows, and an activation."""
    users = list(node.users)
    if len(users) != 1 or users[0].op == "output":
        return len(users) == 1
    goes_on = isinstance(traced.called(users[0]), (nn.Flatten, nn.ReLU)) or users[0].target in _PASSING
    return goes_on and _is_last(traced, users[0])


def _own(traced: Traced, node: fx.Node, names: tuple[str, ...], build: Callable[..., nn.Module | None]) -> None:
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    source, weight, bias = given.pop("input", None), given.pop("weight", None), given.pop("bias", None)
    weights, biases = traced.tensor(weight), traced.tensor(bias)
    if weights is None or (bias is not None and biases is None) or not isinstance(source, fx.Node):
        return
    if source.op == "get_attr" or any(isinstance(value, fx.Node) for value in given.values()):
        return
    layer = build(weights, biases, **given)
    if layer is None:
        return
    traced.swap(node, traced.call(node, _place(traced, node, {weight, bias}, layer), source))


def _place(traced: Traced, node: fx.Node, own: set[Any], layer: nn.Module) -> str:
    """Files a layer under the module that called its function, if that does nothing else: tensors keep their names."""
    owner = caller(node)
    others = (other for other in traced.nodes if other.op in ("get_attr", "call_module") and other not in own)
    if not owner or any(f"{other.target}.".startswith(f"{owner}.") for other in others):
        return traced.add(node.name, layer)
    traced.module.set_submodule(owner, layer)
    return owner


def _own_sum(traced: Traced, node: fx.Node) -> None:
    """``einsum("...i,io->...o", x, W)``, in whatever letters, is a linear layer."""
    equation, *tensors = node.args
    found = re.fullmatch(r"(.*)(\w),(\w)(\w)->(.*)(\w)", str(equation).replace(" ", ""))
    if found is None or len(tensors) != 2:
        return
    rows, shared, first, second, kept, given = found.groups()
    if rows != kept or shared == given or {shared, given} != {first, second} or {shared, given} & set(rows):
        return
    node.args = tuple(tensors)
    _own(traced, node, ("input", "weight"), _product if first == shared else _linear)


def _parameter(tensor: Tensor | None) -> nn.Parameter | None:
    return tensor if tensor is None or isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)


def _convolution(weight: Tensor, bias: Tensor | None, **options: Any) -> nn.Module | None:
    if weight.dim() != 4 or (isinstance(options.get("padding"), str) and options["padding"] not in ("same", "valid")):
        return None
    outputs, inputs, *kernel = weight.shape
    groups = options.pop("groups", 1)
    layer = nn.Conv2d(inputs * groups, outputs, tuple(kernel), groups=groups, bias=False, device="meta", **options)  # type: ignore[arg-type]
    layer.weight, layer.bias = _parameter(weight), _parameter(bias)  # type: ignore[assignment]
    return layer


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Module | None:
    if weight.dim() != 2:
        return None
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias=False, device="meta")
    layer.weight, layer.bias = _parameter(weight), _parameter(bias)  # type: ignore[assignment]
    return layer


def _product(weight: Tensor, bias: Tensor | None) -> nn.Module | None:
    """``x @ W`` is a linear layer of ``W`` transposed."""
    if weight.dim() != 2:
        return None
    turned = weight.detach().t().contiguous()
    return _linear(nn.Parameter(turned, requires_grad=weight.requires_grad), None)
