"""What the nodes of a traced graph are, as far as quantization cares."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from emqdeploy.errors import EmqError
from emqdeploy.quant.layers import TrainingOnly, UnitConv2d
from emqdeploy.quant.rewrites.base import attribute, dims, is_foreign, is_number
from emqdeploy.quant.rewrites.padding import pads_zeros
from emqdeploy.quant.rewrites.sharing import COPY_SUFFIX

_ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
_FUNCTIONS = {
    "relu": (nn.ReLU, F.relu, torch.relu, "relu", "relu_"),
    "relu6": (nn.ReLU6, F.relu6),
    "never_negative": (nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, torch.sigmoid, F.hardsigmoid, F.softmax, "sigmoid"),
    "vanishes": (TrainingOnly, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
    "moves_values": (
        *(nn.MaxPool2d, nn.Flatten, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d),
        *(F.max_pool2d, torch.flatten, torch.squeeze, torch.reshape, torch.max_pool2d),
        *("flatten", "view", "reshape", "squeeze", "contiguous"),
    ),
    "moves_axes": (
        *(torch.permute, torch.transpose, torch.chunk, torch.split, torch.unbind, torch.channel_shuffle),
        *(F.channel_shuffle, nn.ChannelShuffle, operator.getitem),
        *("permute", "transpose", "chunk", "split", "unbind", "unflatten", "expand"),
    ),
    "joins": (torch.cat, torch.concat),
    "average": (*(nn.AdaptiveAvgPool2d, nn.AvgPool2d, F.adaptive_avg_pool2d, F.avg_pool2d, torch.mean, "mean"),),
    "layer_norm": (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, F.layer_norm, F.group_norm, F.rms_norm),
    "multiplies": (
        *(F.linear, F.conv1d, F.conv2d, F.conv3d, F.bilinear, F.conv_transpose1d, F.conv_transpose2d),
        *(torch.matmul, operator.matmul, torch.bmm, torch.einsum, "matmul", "bmm", "mm"),
    ),
}
_WEIGHTLESS = (nn.BatchNorm2d, nn.BatchNorm1d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU)
"""Modules with parameters that scale or shift, but do not multiply matrices; they may stay in float."""


class Patterns:
    """Answers questions about the nodes of one graph.

    Args:
        module: a graph of `emqdeploy.quant.tracing.trace`.
        keep_float: names of layers, of modules around them, or of nodes, that are not quantized.
    """

    def __init__(self, module: fx.GraphModule, keep_float: tuple[str, ...] = ()) -> None:
        self.module = module
        self.nodes = module.graph.nodes
        self.modules = dict(module.named_modules())
        self.keep_float = keep_float
        self.made_of_images: set[fx.Node] = set()
        for node in self.nodes:
            if node.op == "placeholder" or not self.made_of_images.isdisjoint(node.all_input_nodes):
                self.made_of_images.add(node)
        self.float_adds: set[fx.Node] = set()
        self.float_adds = self._find_float_adds()
        self.never_negative: dict[fx.Node, bool] = {}

    def callable(self, node: fx.Node) -> object:
        """The type of the module, the function or the method name that a node calls."""
        return type(self.modules[str(node.target)]) if node.op == "call_module" else node.target

    def calls(self, node: fx.Node, kind: str) -> bool:
        """Whether a node calls something of one kind of `_FUNCTIONS`."""
        if not node.op.startswith("call"):
            return False
        function = self.callable(node)
        if isinstance(function, type):
            return any(isinstance(known, type) and issubclass(function, known) for known in _FUNCTIONS[kind])
        return function in _FUNCTIONS[kind]

    def is_layer(self, node: fx.Node) -> bool:
        """A convolution or linear layer, which gets quantized weights."""
        plain = node.op == "call_module" and type(self.modules[str(node.target)]) in (nn.Conv2d, nn.Linear, UnitConv2d)
        return plain and not self.stays_float(node)

    def is_convolution(self, node: fx.Node) -> bool:
        """A layer whose integer kernels can only answer with codes; linear ones can answer in float as well."""
        return self.is_layer(node) and isinstance(self.modules[str(node.target)], nn.Conv2d)

    def is_norm(self, node: fx.Node) -> bool:
        """A batch normalization, which a layer absorbs; that of rows only behind a linear layer that gives rows."""
        kind = type(self.modules[str(node.target)]) if node.op == "call_module" else None
        if kind is nn.BatchNorm1d:
            before = node.all_input_nodes[0]
            rows = len(dims(before) or ()) == 2
            return rows and self.is_layer(before) and not self.is_convolution(before) and len(before.users) == 1
        return kind is nn.BatchNorm2d

    def is_add(self, node: fx.Node) -> bool:
        """A sum of two quantized tensors, computed in integers."""
        return self._is_tensor_sum(node) and node not in self.float_adds

    def moves(self, node: fx.Node) -> bool:
        """An operator that keeps values and grid."""
        return self.calls(node, "moves_values") or self.vanishes(node) or pads_zeros(node)

    def vanishes(self, node: fx.Node) -> bool:
        """An operator of training, which the deployed graph does not have."""
        return self.calls(node, "vanishes")

    def carries(self, user: fx.Node, node: fx.Node) -> bool:
        """Whether ``user`` moves the values of ``node`` (and does not merely take a size from it)."""
        return self.moves(user) and user.all_input_nodes[0] is node

    def stays_float(self, node: fx.Node) -> bool:
        """Whether the user asked to leave this layer alone, at every place where it is called."""
        name = str(node.target) if node.op == "call_module" else node.name
        return any(name == kept or name.startswith((f"{kept}.", f"{kept}{COPY_SUFFIX}")) for kept in self.keep_float)

    def feeds(self, node: fx.Node, wanted: tuple[str, ...]) -> bool:
        """Whether a layer, an integer add (``quantized``) or the ``output`` reads the node, perhaps through movers."""
        for user in node.users:
            if "quantized" in wanted and (self.is_layer(user) or self.is_add(user)):
                return True
            if "output" in wanted and user.op == "output":
                return True
            if self.carries(user, node) and self.feeds(user, wanted):
                return True
        return False

    def source(self, node: fx.Node) -> fx.Node:
        """The node whose tensor ``node`` really reads, looking through value movers."""
        source = node.all_input_nodes[0]
        while self.moves(source):
            source = source.all_input_nodes[0]
        return source

    def readers(self, node: fx.Node) -> list[fx.Node]:
        """Layers and integer adds that read a tensor, perhaps through movers."""
        found: list[fx.Node] = []
        for user in node.users:
            if self.is_layer(user) or self.is_add(user):
                found.append(user)
            elif self.carries(user, node):
                found.extend(self.readers(user))
        return found

    def is_never_negative(self, node: fx.Node) -> bool:
        """Whether a tensor is never negative, from the operators that lead to it."""
        if node not in self.never_negative:
            known = any(self.calls(node, kind) for kind in ("relu", "relu6", "never_negative"))
            inputs = node.all_input_nodes
            if not (self._is_tensor_sum(node) or self.calls(node, "joins")):
                # What else a mover is given, a size for example, says nothing about its values.
                inputs = inputs[:1] if self._passes(node) else []
            self.never_negative[node] = known or (bool(inputs) and all(map(self.is_never_negative, inputs)))
        return self.never_negative[node]

    # --- sums ---

    def _is_tensor_sum(self, node: fx.Node) -> bool:
        if not node.op.startswith("call") or node.target not in _ADDS:
            return False
        terms = node.args[:2]
        return all(isinstance(term, fx.Node) and term in self.made_of_images and not is_number(term) for term in terms)

    def _find_float_adds(self) -> set[fx.Node]:
        """The sums of a residual stream that layer normalizations read.

        A LayerNorm computes in float, so codes between it and the sums would only cost conversions and accuracy. A sum
        belongs to such a stream if a LayerNorm or a sum of the stream reads it, or if it adds to one or to what a
        LayerNorm reads as well.
        """
        sums = [node for node in self.nodes if self._is_tensor_sum(node)]
        found: set[fx.Node] = set()
        for node in reversed(sums):
            if self._leads_to(node, found):
                found.add(node)
        for node in sums:
            if any(self._comes_from(term, found) for term in node.all_input_nodes):
                found.add(node)
        return found

    def _passes(self, node: fx.Node) -> bool:
        return self.moves(node) or any(self.calls(node, kind) for kind in ("moves_axes", "joins", "average"))

    def _leads_to(self, node: fx.Node, found: set[fx.Node]) -> bool:
        return any(
            user in found or self.calls(user, "layer_norm") or (self._passes(user) and self._leads_to(user, found))
            for user in node.users
        )

    def _comes_from(self, node: fx.Node, found: set[fx.Node]) -> bool:
        if node in found or any(self.calls(user, "layer_norm") for user in node.users):
            return True
        return self._passes(node) and any(self._comes_from(source, found) for source in node.all_input_nodes)

    # --- what cannot be quantized ---

    def check(self) -> None:
        """Raises for weights that would silently compute in float."""
        for node in self.nodes:
            if self.stays_float(node) or not node.op.startswith("call"):
                continue
            if node.op == "call_module":
                module = self.modules[str(node.target)]
                heavy = any(parameter.dim() > 1 for parameter in module.parameters())
                if heavy and not self.is_layer(node) and not isinstance(module, _WEIGHTLESS):
                    raise EmqError(
                        f"layer {node.target!r} is a {type(module).__name__}, for which there is no integer kernel;"
                        f" replace it, or leave it in float with --keep-float {node.target}"
                    )
            elif (self.calls(node, "multiplies") or is_foreign(node.target)) and any(
                self._is_parameter(term) for term in node.all_input_nodes
            ):
                raise EmqError(
                    f"{node.name!r} multiplies with a parameter outside of any Conv2d or Linear layer; make it one, or"
                    f" leave it in float with --keep-float {node.name}"
                )

    def _is_parameter(self, node: fx.Node) -> bool:
        if node.op != "get_attr":
            return False
        value = attribute(self.module, str(node.target))
        return isinstance(value, nn.Parameter) and value.dim() > 1
