"""Inserts quantizers into any traceable module, where integer runtimes fuse them.

The rewrite works on the `torch.fx` graph, so the user's model stays as it is. A *site* (one activation quantizer)
stands behind every tensor that a convolution or residual add produces, and every tensor that one of them or a linear
layer reads; normalization and ReLU between a layer and its site fuse into it. Operators that only move values (max
pooling, flatten, ...) keep the grid: behind them the site is repeated, not learned again.

A batch normalization that follows no layer (pre-activation networks) becomes one: a depthwise 1x1 convolution with unit
weights stands before it and absorbs it, so that it computes in integers and switches with the bit-width.

A residual stream that layer normalizations read stays in float: a linear layer's integer kernel answers in float, the
sum and the normalization are float operators anyway, and codes between them would cost conversions and accuracy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor, fx, nn

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.child import FLOAT, Child
from emqdeploy.format.frozen import UNIT_SUFFIX
from emqdeploy.format.levels import HALF, Levels, largest_weight
from emqdeploy.quant.activations import ActivationQuantizer
from emqdeploy.quant.families.base import FamilyOptions, PinnedQuantizer
from emqdeploy.quant.families.tanh import TanhOptions
from emqdeploy.quant.layers import ALIASES, SITES, SameGrid, UnitConv2d, quantize_layer, unit_layer
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.quant.norms import quantize_norm
from emqdeploy.quant.patterns import Patterns
from emqdeploy.quant.readers import Readers, layers_before, readers_of
from emqdeploy.quant.rewrites.base import Traced
from emqdeploy.quant.tracing import trace

SMALL_GROUP = 32
"""Channels of fewer weights cannot carry a mean and a norm of their own: 7 bits a weight for a depthwise 3x3."""

INPUT_SITE = "input"


@dataclass(frozen=True)
class InsertionConfig:
    """Where and how to quantize.

    Attributes:
        quantizer: family and options of the switchable layers' weights.
        keep_8bit: layers that stay at 8 bits: ``first``, ``last`` and module names.
        small_groups: layers with fewer than 32 weights per channel (depthwise): ``pin`` at 8 bits, or share ``layer``
            statistics.
        norm: what the normalizations share over the children, a name in `emqdeploy.quant.norms.NORMS`.
        keep_float: layers that are not quantized at all, by name or by the name of a module around them.
        share_clips: whether children of one activation width learn the clip of a tensor together.
        levels: how much of int8 and uint8 is used, see `emqdeploy.format.levels`.
    """

    quantizer: FamilyOptions = field(default_factory=TanhOptions)
    keep_8bit: tuple[str, ...] = ("first", "last")
    small_groups: str = "pin"
    norm: str = "shared-affine"
    keep_float: tuple[str, ...] = ()
    share_clips: bool = True
    levels: Levels = HALF


def insert_quantizers(
    model: nn.Module,
    config: InsertionConfig,
    trained: tuple[Child, ...],
    unseen: tuple[Child, ...],
    input_range: float,
    shape: tuple[int, int, int] | None = None,
) -> MultiBitNetwork:
    """Returns a multi-bit copy of a float model.

    Args:
        model: any module of convolutions, linear layers and the usual rest that `torch.fx` can trace; it takes one
            tensor ``(N, C, H, W)``.
        config: where and how to quantize.
        trained: the children that training will visit.
        unseen: those that come with them; they have numbers of their own, but are not trained.
        input_range: the largest absolute value of a normalised input image.
        shape: ``(C, H, W)`` of one image, for what depends on sizes.

    Raises:
        EmqError: the model cannot be traced, or has a layer without an integer kernel.
        UsageError: a child names a layer that the model does not have, or a width that the quantizer cannot have.
    """
    check_widths(config.quantizer, trained)
    return _Inserter(trace(model, shape), config, trained, unseen).run(input_range)


def check_widths(options: FamilyOptions, children: Iterable[Child]) -> None:
    """Raises for a child with a weight width that a quantizer family cannot have."""
    for child in children:
        strange = [bits for bits in child.weights.all if bits not in options.widths]
        if strange and child != FLOAT:
            raise UsageError(
                f"child {child.name!r} has {strange[0]}-bit weights, which quantizer {options.name!r} cannot make;"
                f" allowed: {options.widths[0]}..{options.widths[-1]}"
            )


class _Inserter:
    """One rewrite of one graph. Steps read the graph as traced and note what to change; `run` then changes it."""

    def __init__(
        self, traced: Traced, config: InsertionConfig, trained: tuple[Child, ...], unseen: tuple[Child, ...]
    ) -> None:
        graph = traced.module
        self.traced = traced
        self.module = graph
        self.graph = graph.graph
        self.config = config
        self.trained, self.unseen = trained, unseen
        self._add_unit_layers(Patterns(graph, config.keep_float))
        self.patterns = Patterns(graph, config.keep_float)
        self.modules = self.patterns.modules
        self.layers = [node for node in self.graph.nodes if self.patterns.is_layer(node)]
        self.norm_of: dict[str, str] = {}

    def _add_unit_layers(self, patterns: Patterns) -> None:
        """Gives every normalization that follows no layer of its own a layer to fold into."""
        for node in list(self.graph.nodes):
            if not patterns.is_norm(node):
                continue
            before = node.all_input_nodes[0]
            if patterns.is_layer(before) and len(before.users) == 1:
                continue
            norm = patterns.modules[str(node.target)]
            assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
            name = self.traced.add(f"{node.target}{UNIT_SUFFIX}", unit_layer(norm.num_features))
            node.replace_input_with(before, self.traced.call(node, name, before))

    def _tail(self, node: fx.Node) -> fx.Node:
        """The last node that fuses into ``node``: its normalization, then its activation."""
        tail = node
        if self.patterns.is_layer(node) and len(tail.users) == 1 and self.patterns.is_norm(next(iter(tail.users))):
            tail = next(iter(tail.users))
            self.norm_of[str(node.target)] = str(tail.target)
        if len(tail.users) == 1 and self._is_clipping(next(iter(tail.users))):
            tail = next(iter(tail.users))
        return tail

    def _is_clipping(self, node: fx.Node) -> bool:
        """An activation that is nothing but the range of an unsigned site."""
        return self.patterns.calls(node, "relu") or self.patterns.calls(node, "relu6")

    # --- the rewrite ---

    def run(self, input_range: float) -> MultiBitNetwork:
        self.patterns.check()
        if not self.layers:
            raise EmqError("the model has no Conv2d or Linear layer to quantize")
        tensors, movers = self._plan_sites()
        pinned = self._pinned_layers()
        sites = {tail: self._site(tail, pinned, input_range) for tail in tensors}
        aliases = {node: _site_name(self.patterns.source(node)) for node in movers}
        reads = {str(node.target): _site_name(self.patterns.source(node)) for node in self.layers}
        before = layers_before(self.patterns)
        self._insert_sites(sites, aliases)
        for name, site in reads.items():
            self._swap_layer(name, site, pinned)
        children = (*self.trained, *self.unseen)
        for layer, name in self.norm_of.items():
            norm = self.modules[name]
            self._replace(name, quantize_norm(norm, self.config.norm, children, self.trained, layer, before[layer]))
        self.graph.lint()
        self.module.recompile()
        notes = tuple(self.traced.notes)
        return MultiBitNetwork(self.module, self.trained, self.unseen, reads, dict(self.norm_of), notes)

    def _plan_sites(self) -> tuple[list[fx.Node], list[fx.Node]]:
        """Returns the tensors that need a site of their own, and the value movers behind which one is repeated."""
        sites, aliases, inside = [], [], set()
        for node in self.graph.nodes:
            if node in inside or node.op in ("output", "get_attr"):
                continue
            if self.patterns.moves(node):
                if not self.patterns.vanishes(node) and any(
                    self.patterns.is_layer(user) or self.patterns.is_add(user) for user in node.users
                ):
                    aliases.append(node)
                continue
            tail = self._tail(node) if node.op != "placeholder" else node
            walk = node
            while walk is not tail:
                walk = next(iter(walk.users))
                inside.add(walk)
            answers_in_codes = self.patterns.is_convolution(node) or self.patterns.is_add(node)
            produces = answers_in_codes and not self.patterns.feeds(tail, ("output",))
            if produces or self.patterns.feeds(tail, ("quantized",)):
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
            fan_in = self._fan_in(name)
            first = "first" in self.config.keep_8bit and self.patterns.source(node).op == "placeholder"
            last = "last" in self.config.keep_8bit and self.patterns.feeds(self._tail(node), ("output",))
            small = self.config.small_groups == "pin" and fan_in < SMALL_GROUP
            if first or last or small or self._is_unit(node):
                pinned.add(name)
        return pinned

    def _fan_in(self, name: str) -> int:
        """Weights per output channel of a layer."""
        weight = self.modules[name].weight
        assert isinstance(weight, Tensor)
        return weight[0].numel()

    def _is_unit(self, node: fx.Node) -> bool:
        return isinstance(self.modules.get(str(node.target)), UnitConv2d) if node.op == "call_module" else False

    def _site(self, tail: fx.Node, pinned: set[str], input_range: float) -> ActivationQuantizer:
        """Builds the quantizer of one tensor."""
        is_input = tail.op == "placeholder"
        site = ActivationQuantizer(
            signed=is_input or not self.patterns.is_never_negative(tail),
            readers=Readers() if is_input else readers_of(self.patterns, tail, pinned.__contains__),
            trained=self.trained,
            shares=self.config.share_clips,
            levels=self.config.levels,
            ceiling=6.0 if self.patterns.calls(tail, "relu6") else None,
        )
        if is_input:
            site.fix_clip(input_range)
        return site

    def _insert_sites(self, sites: dict[fx.Node, ActivationQuantizer], aliases: dict[fx.Node, str]) -> None:
        """Inserts the quantizers and drops the activations that their range subsumes."""
        for tail, site in sites.items():
            self._insert_behind(tail, f"{SITES}{_site_name(tail)}", site)
        for node, name in aliases.items():
            self._insert_behind(node, f"{ALIASES}{node.name}", SameGrid(name))
        for tail in sites:
            if self._is_clipping(tail):
                # The site's range starts at zero and ends at the clip: it is the activation.
                tail.replace_all_uses_with(tail.all_input_nodes[0])
                self.graph.erase_node(tail)

    def _insert_behind(self, node: fx.Node, name: str, quantizer: nn.Module) -> None:
        users = list(node.users)
        if node in self.patterns.float_adds:
            # The stream itself stays in float; only what computes in integers reads its codes.
            users = [user for user in users if self._reads_codes(user)]
        self.module.add_submodule(name, quantizer)
        self.modules[name] = quantizer
        with self.graph.inserting_after(node):
            inserted = self.graph.call_module(name, (node,))
        for user in users:
            user.replace_input_with(node, inserted)

    def _reads_codes(self, node: fx.Node) -> bool:
        patterns = self.patterns
        return (
            patterns.is_layer(node)
            or patterns.is_add(node)
            or (patterns.moves(node) and patterns.feeds(node, ("quantized",)))
        )

    def _swap_layer(self, name: str, site: str, pinned: set[str]) -> None:
        limit = largest_weight(self.modules[f"{SITES}{site}"].signed, self.config.levels)
        options = self.config.quantizer
        if self._fan_in(name) < SMALL_GROUP:
            options = options.by_layer()
        module = self.modules[name]
        if name in pinned:
            self._replace(name, quantize_layer(module, PinnedQuantizer(limit)))
            return
        widths = tuple({child.weights.of(name) for child in self.trained if child != FLOAT})
        weight = module.weight
        assert isinstance(weight, Tensor)
        self._replace(name, quantize_layer(module, options.quantizer(weight, limit, widths)))

    def _replace(self, name: str, module: nn.Module) -> None:
        parent, _, leaf = name.rpartition(".")
        setattr(self.module.get_submodule(parent), leaf, module)


def _site_name(tail: fx.Node) -> str:
    return INPUT_SITE if tail.op == "placeholder" else tail.name
