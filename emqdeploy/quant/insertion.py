"""Inserts quantizers into any traceable module, where integer runtimes fuse them.

The rewrite works on the `torch.fx` graph, so the user's model stays as it is. A *site* (one activation quantizer)
stands behind every tensor that a convolution, linear layer or residual add produces or reads; normalization and ReLU
between a layer and its site fuse into it. Operators that only move values (max pooling, flatten, ...) keep the grid:
behind them the site is repeated, not learned again.
"""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import fx, nn

from emqdeploy.errors import EmqError
from emqdeploy.grid import LIMIT_SIGNED_INPUT, LIMIT_UNSIGNED_INPUT, MASTER_BITS
from emqdeploy.quant.activations import ActivationQuantizer
from emqdeploy.quant.layers import SameGrid, quantize_layer
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.quant.norms import quantize_norm
from emqdeploy.quant.weights import PinnedQuantizer, WeightConfig, WeightQuantizer

SMALL_GROUP = 32
"""Channels of fewer weights cannot carry a mean and a norm of their own: 7 bits a weight for a depthwise 3x3."""

INPUT_SITE = "input"

_ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
_FUNCTIONS = {
    "relu": (nn.ReLU, F.relu, torch.relu, "relu", "relu_"),
    "relu6": (nn.ReLU6, F.relu6),
    "never_negative": (nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, torch.sigmoid, F.hardsigmoid, F.softmax, "sigmoid"),
    "moves_values": (
        *(nn.MaxPool2d, nn.Flatten, nn.Dropout, nn.Dropout2d, F.max_pool2d, F.dropout),
        *(torch.flatten, torch.squeeze, torch.reshape, torch.max_pool2d),
        *("flatten", "view", "reshape", "squeeze", "contiguous"),
    ),
    "joins": (torch.cat, torch.concat),
    "average": (*(nn.AdaptiveAvgPool2d, nn.AvgPool2d, F.adaptive_avg_pool2d, F.avg_pool2d, torch.mean, "mean"),),
}


@dataclass(frozen=True)
class InsertionConfig:
    """Where and how to quantize.

    Attributes:
        weights: partition and correction of the switchable layers.
        activation_bits: 2..8, or ``same`` to follow the weight bits.
        keep_8bit: layers that stay at 8 bits: ``first``, ``last`` and module names.
        small_groups: layers with fewer than 32 weights per channel (depthwise): ``pin`` at 8 bits, or share ``layer``
            statistics.
        norm: what the normalizations share over the bit-widths, a name in `emqdeploy.quant.norms.NORMS`.
    """

    weights: WeightConfig = field(default_factory=WeightConfig)
    activation_bits: int | str = 8
    keep_8bit: tuple[str, ...] = ("first", "last")
    small_groups: str = "pin"
    norm: str = "shared-affine"


def insert_quantizers(
    model: nn.Module, config: InsertionConfig, trained_bits: tuple[int, ...], input_range: float
) -> MultiBitNetwork:
    """Returns a multi-bit copy of a float model.

    Args:
        model: any module of convolutions, linear layers and the usual rest that `torch.fx` can trace; it takes one
            tensor ``(N, C, H, W)``.
        config: where and how to quantize.
        trained_bits: the weight bit-widths that training will visit.
        input_range: the largest absolute value of a normalised input image.

    Raises:
        EmqError: the model cannot be traced, or calls one layer twice.
    """
    model = copy.deepcopy(model)
    try:
        graph = fx.symbolic_trace(model)
    except Exception as error:
        raise EmqError(
            f"cannot trace {type(model).__name__}: {str(error).splitlines()[0]}; make its forward free of branches on"
            " tensor values"
        ) from error
    return _Inserter(graph, config, trained_bits).run(input_range)


class _Inserter:
    """One rewrite of one graph. Steps read the graph as traced and note what to change; `run` then changes it."""

    def __init__(self, graph: fx.GraphModule, config: InsertionConfig, trained_bits: tuple[int, ...]) -> None:
        self.module = graph
        self.graph = graph.graph
        self.config = config
        self.trained_bits = trained_bits
        self.modules = dict(graph.named_modules())
        self._erase_identities()
        self._own_dropouts()
        self._pool_means()
        self.layers = [node for node in self.graph.nodes if self._is_layer(node)]
        self.norm_of: dict[str, str] = {}
        self.never_negative: dict[fx.Node, bool] = {}

    def _erase_identities(self) -> None:
        for node in list(self.graph.nodes):
            if node.op == "call_module" and type(self.modules[str(node.target)]) is nn.Identity:
                node.replace_all_uses_with(node.all_input_nodes[0])
                self.graph.erase_node(node)

    def _own_dropouts(self) -> None:
        """Makes modules of functional dropouts: tracing froze the mode that the model was in, a module follows it."""
        for node in list(self.graph.nodes):
            if node.op == "call_function" and node.target is F.dropout:
                share = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
                self.modules[node.name] = nn.Dropout(float(share))
                self.module.add_submodule(node.name, self.modules[node.name])
                with self.graph.inserting_before(node):
                    node.replace_all_uses_with(self.graph.call_module(node.name, (node.all_input_nodes[0],)))
                self.graph.erase_node(node)

    def _pool_means(self) -> None:
        """Writes a mean over height and width as the pooling, and flattening, that integer runtimes fuse."""
        for node in list(self.graph.nodes):
            options = dict(zip(("input", "dim", "keepdim"), node.args, strict=False)) | node.kwargs
            dims = options.get("dim")
            over_plane = isinstance(dims, (tuple, list)) and sorted(dims) == [2, 3]
            if not node.op.startswith("call") or node.target not in (torch.mean, "mean") or not over_plane:
                continue
            with self.graph.inserting_before(node):
                mean = self.graph.call_function(F.adaptive_avg_pool2d, (node.all_input_nodes[0], 1))
                if not options.get("keepdim", False):
                    mean = self.graph.call_function(torch.flatten, (mean, 1))
            node.replace_all_uses_with(mean)
            self.graph.erase_node(node)

    # --- what a node is ---

    def _callable(self, node: fx.Node) -> object:
        return type(self.modules[str(node.target)]) if node.op == "call_module" else node.target

    def _is(self, node: fx.Node, kind: str) -> bool:
        return node.op.startswith("call") and self._callable(node) in _FUNCTIONS[kind]

    def _is_layer(self, node: fx.Node) -> bool:
        return node.op == "call_module" and type(self.modules[str(node.target)]) in (nn.Conv2d, nn.Linear)

    def _is_norm(self, node: fx.Node) -> bool:
        return node.op == "call_module" and type(self.modules[str(node.target)]) is nn.BatchNorm2d

    def _is_add(self, node: fx.Node) -> bool:
        is_add = node.op.startswith("call") and node.target in _ADDS
        return is_add and all(isinstance(argument, fx.Node) for argument in node.args[:2])

    def _feeds(self, node: fx.Node, wanted: tuple[str, ...]) -> bool:
        """Whether a layer, an add (``quantized``) or the ``output`` reads the node, perhaps through value movers."""
        for user in node.users:
            if "quantized" in wanted and (self._is_layer(user) or self._is_add(user)):
                return True
            if "output" in wanted and user.op == "output":
                return True
            if self._is(user, "moves_values") and self._feeds(user, wanted):
                return True
        return False

    def _tail(self, node: fx.Node) -> fx.Node:
        """The last node that fuses into ``node``: its normalization, then its activation."""
        tail = node
        if self._is_layer(node) and len(tail.users) == 1 and self._is_norm(next(iter(tail.users))):
            tail = next(iter(tail.users))
            self.norm_of[str(node.target)] = str(tail.target)
        if len(tail.users) == 1:
            user = next(iter(tail.users))
            if self._is(user, "relu") or self._is(user, "relu6"):
                tail = user
        return tail

    def _is_never_negative(self, node: fx.Node) -> bool:
        """Whether a tensor is never negative, from the operators that lead to it."""
        if node not in self.never_negative:
            inputs = node.all_input_nodes
            passes = self._is_add(node) or any(self._is(node, kind) for kind in ("moves_values", "average", "joins"))
            known = any(self._is(node, kind) for kind in ("relu", "relu6", "never_negative"))
            self.never_negative[node] = known or (
                passes and bool(inputs) and all(self._is_never_negative(source) for source in inputs)
            )
        return self.never_negative[node]

    # --- the rewrite ---

    def run(self, input_range: float) -> MultiBitNetwork:
        called = [str(node.target) for node in self.layers]
        for name in called:
            if called.count(name) > 1:
                raise EmqError(f"layer {name!r} is called {called.count(name)} times; give each call its own layer")
        if not self.layers:
            raise EmqError("the model has no Conv2d or Linear layer to quantize")
        tensors, movers = self._plan_sites()
        pinned = self._pinned_layers()
        sites = {tail: self._site(tail, pinned, input_range) for tail in tensors}
        aliases = {node: _site_name(self._source(node)) for node in movers}
        reads = {str(node.target): _site_name(self._source(node)) for node in self.layers}
        self._insert_sites(sites, aliases)
        for name, site in reads.items():
            self._swap_layer(name, site, pinned)
        for name in self.norm_of.values():
            self._replace(name, quantize_norm(self.modules[name], self.config.norm, self.trained_bits))
        self.graph.lint()
        self.module.recompile()
        return MultiBitNetwork(self.module, self.trained_bits, reads, dict(self.norm_of))

    def _plan_sites(self) -> tuple[list[fx.Node], list[fx.Node]]:
        """Returns the tensors that need a site of their own, and the value movers behind which one is repeated."""
        sites, aliases, inside = [], [], set()
        for node in self.graph.nodes:
            if node in inside or node.op in ("output", "get_attr"):
                continue
            if self._is(node, "moves_values"):
                if any(self._is_layer(user) or self._is_add(user) for user in node.users):
                    aliases.append(node)
                continue
            tail = self._tail(node) if node.op != "placeholder" else node
            walk = node
            while walk is not tail:
                walk = next(iter(walk.users))
                inside.add(walk)
            produces = (self._is_layer(node) or self._is_add(node)) and not self._feeds(tail, ("output",))
            if produces or self._feeds(tail, ("quantized",)):
                sites.append(tail)
        return sites, aliases

    def _pinned_layers(self) -> set[str]:
        """Names of the layers that stay at 8 bits."""
        names = [str(node.target) for node in self.layers]
        unknown = [name for name in self.config.keep_8bit if name not in ("first", "last", *names)]
        if unknown:
            raise EmqError(f"cannot keep {unknown[0]!r} at 8 bits: no such layer; layers: {', '.join(names)}")
        pinned = set(self.config.keep_8bit) & set(names)
        for node in self.layers:
            name = str(node.target)
            fan_in = self.modules[name].weight[0].numel()
            first = "first" in self.config.keep_8bit and self._source(node).op == "placeholder"
            last = "last" in self.config.keep_8bit and self._feeds(self._tail(node), ("output",))
            small = self.config.small_groups == "pin" and fan_in < SMALL_GROUP
            if first or last or small:
                pinned.add(name)
        return pinned

    def _source(self, node: fx.Node) -> fx.Node:
        """The node whose tensor ``node`` really reads, looking through value movers."""
        source = node.all_input_nodes[0]
        while self._is(source, "moves_values"):
            source = source.all_input_nodes[0]
        return source

    def _site(self, tail: fx.Node, pinned: set[str], input_range: float) -> ActivationQuantizer:
        """Builds the quantizer of one tensor."""
        is_input = tail.op == "placeholder"
        readers = self._reading_layers(tail)
        reads_8bit = bool(readers) and all(str(reader.target) in pinned for reader in readers)
        site = ActivationQuantizer(
            signed=is_input or not self._is_never_negative(tail),
            setting=MASTER_BITS
            if is_input or (reads_8bit and not self._reaches_add(tail))
            else self.config.activation_bits,
            trained_bits=self.trained_bits,
            ceiling=6.0 if self._is(tail, "relu6") else None,
        )
        if is_input:
            site.fix_clip(input_range)
        return site

    def _insert_sites(self, sites: dict[fx.Node, ActivationQuantizer], aliases: dict[fx.Node, str]) -> None:
        """Inserts the quantizers and drops the activations that their range subsumes."""
        self.module.add_submodule("sites", nn.ModuleDict())
        self.module.add_submodule("aliases", nn.ModuleDict())
        for tail, site in sites.items():
            self._insert_behind(tail, f"sites.{_site_name(tail)}", site)
        for node, name in aliases.items():
            self._insert_behind(node, f"aliases.{node.name}", SameGrid(name))
        for tail in sites:
            if self._is(tail, "relu") or self._is(tail, "relu6"):
                # The site's range starts at zero and ends at the clip: it is the activation.
                tail.replace_all_uses_with(tail.all_input_nodes[0])
                self.graph.erase_node(tail)

    def _reading_layers(self, node: fx.Node) -> list[fx.Node]:
        readers: list[fx.Node] = []
        for user in node.users:
            if self._is_layer(user):
                readers.append(user)
            elif self._is(user, "moves_values"):
                readers.extend(self._reading_layers(user))
        return readers

    def _reaches_add(self, node: fx.Node) -> bool:
        return any(
            self._is_add(user) or (self._is(user, "moves_values") and self._reaches_add(user)) for user in node.users
        )

    def _insert_behind(self, node: fx.Node, name: str, quantizer: nn.Module) -> None:
        users = list(node.users)
        self.module.add_submodule(name, quantizer)
        self.modules[name] = quantizer
        with self.graph.inserting_after(node):
            inserted = self.graph.call_module(name, (node,))
        for user in users:
            user.replace_input_with(node, inserted)

    def _swap_layer(self, name: str, site: str, pinned: set[str]) -> None:
        module = self.modules[name]
        signed = self.modules[f"sites.{site}"].signed
        limit = LIMIT_SIGNED_INPUT if signed else LIMIT_UNSIGNED_INPUT
        weights = self.config.weights
        if module.weight[0].numel() < SMALL_GROUP:
            weights = WeightConfig(**{**weights.to_dict(), "group": "layer"})
        quantizer = PinnedQuantizer(limit) if name in pinned else WeightQuantizer(weights, limit)
        self._replace(name, quantize_layer(module, quantizer))

    def _replace(self, name: str, module: nn.Module) -> None:
        parent, _, leaf = name.rpartition(".")
        setattr(self.module.get_submodule(parent), leaf, module)


def _site_name(tail: fx.Node) -> str:
    return INPUT_SITE if tail.op == "placeholder" else tail.name
