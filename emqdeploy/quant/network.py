"""The multi-bit network: one set of float weights, the child in use, and what every layer is at each child."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from emqdeploy.format.child import FLOAT, FLOAT_BITS, Child, ChildLike, find_child
from emqdeploy.format.frozen import check_layers
from emqdeploy.quant.activations import ActivationQuantizer
from emqdeploy.quant.attention import IN_PROJECTION
from emqdeploy.quant.layers import ALIASES, SITES, QuantLayer, SameGrid
from emqdeploy.quant.norms import MultiBitBatchNorm2d
from emqdeploy.quant.patterns import Patterns

_FLOAT_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
"""Tensors of a normalization that the float model has as well."""


class MultiBitNetwork(nn.Module):
    """A traced network with quantizers in it; made by `insert_quantizers`.

    Args:
        graph: the rewritten graph.
        trained: the children that training visits.
        unseen: those that come with them, without being trained.
        layer_input: the site that each layer reads.
        norm_of: the normalization that fuses into each layer that has one.
        notes: what the user should know of how the model was rewritten, a sentence each.

    Attributes:
        known: every child of the network, the trained ones first.
        child: in use.
        in_use: told of the child whenever one is put to use; where children have weights of their own, it brings them.
    """

    in_use: Callable[[Child], None] | None = None

    def __init__(
        self,
        graph: fx.GraphModule,
        trained: tuple[Child, ...],
        unseen: tuple[Child, ...],
        layer_input: dict[str, str],
        norm_of: dict[str, str],
        notes: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.graph = graph
        self.trained = trained
        self.known = (*trained, *unseen)
        self.layer_input = layer_input
        self.norm_of = norm_of
        self.notes = notes
        called = [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]
        self._site_names = tuple(name.removeprefix(SITES) for name in called if name.startswith(SITES))
        self.child = FLOAT
        pinned = {name: layer.pinned for name, layer in self.layers.items()}
        for child in self.known:
            check_layers(child, list(pinned), pinned)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits ``(N, classes)`` for normalised images ``(N, C, H, W)`` at the child in use."""
        return self.graph(images)

    @property
    def layers(self) -> dict[str, QuantLayer]:
        """The quantized layers by name, in the order in which they run."""
        return {name: self.graph.get_submodule(name) for name in self.layer_input}  # type: ignore[misc]

    @property
    def switchable(self) -> tuple[str, ...]:
        """Names of the layers that do not stay at 8 bits."""
        return tuple(name for name, layer in self.layers.items() if not layer.pinned)

    @property
    def sites(self) -> dict[str, ActivationQuantizer]:
        """The activation quantizers by name."""
        return {name: self.graph.get_submodule(SITES + name) for name in self._site_names}  # type: ignore[misc]

    @property
    def norms(self) -> dict[str, MultiBitBatchNorm2d]:
        """The normalizations that fuse into a layer, by name."""
        return {name: self.graph.get_submodule(name) for name in self.norm_of.values()}  # type: ignore[misc]

    @property
    def quantized(self) -> tuple[Child, ...]:
        """The trained children without the float network, which no file holds; that one where it is alone."""
        return tuple(child for child in self.trained if child != FLOAT) or self.trained

    def use(self, child: ChildLike) -> None:
        """Sets the child of the next forward passes.

        Args:
            child: one of the network's, by itself, its weight width or a short form; `FLOAT`; or any other `Child`,
                which has the clips and statistics of those that are most like it.
        """
        if not isinstance(child, Child):
            child = FLOAT if child == FLOAT_BITS else find_child(self.known, child)
        for site in self.sites.values():
            site.use(child)
        for name, layer in self.layers.items():
            layer.bits = child.weights.of(name)
        for norm in self.norms.values():
            norm.use(child)
        self.child = child
        if self.in_use is not None:
            self.in_use(child)

    def set_bits(self, bits: int) -> None:
        """The same as `use`, for a weight width; 32 computes in float."""
        self.use(bits)

    def redefine(self, old: Child, new: Child) -> None:
        """Lets a child have other widths, and perhaps another name, from now on; what it has learned goes with it.

        A method that learns or searches widths begins with a child that stands for what it will find.
        """
        pinned = {name: layer.pinned for name, layer in self.layers.items()}
        check_layers(new, list(pinned), pinned)
        self.trained, self.known = (_replaced(children, old, new) for children in (self.trained, self.known))
        for site in self.sites.values():
            site.redefine(old, new)
        for norm in self.norms.values():
            norm.redefine(old, new)
        self.use(new if self.child == old else self.child)

    @contextmanager
    def at(self, child: ChildLike) -> Iterator[MultiBitNetwork]:
        """Runs a block at one child: ``with network.at(4): logits = network(images)``."""
        before = self.child
        self.use(child)
        try:
            yield self
        finally:
            self.use(before)

    def initialise_clips(self, images: Tensor) -> None:
        """Starts every clip from what the float network makes of a batch of normalised images.

        And what quantizers learn from its weights, where they ask for it.
        """
        for layer in self.layers.values():
            layer.quantizer.start_from(layer.weight.detach())
        for site in self.sites.values():
            site.observing = True
        with torch.no_grad(), self.at(FLOAT), self.by_batch():
            self(images)
        for site in self.sites.values():
            site.observing = False

    @contextmanager
    def by_batch(self) -> Iterator[None]:
        """Normalizes by the statistics of each batch, as training does; the running ones stay as they were.

        Those of a fresh network mean nothing yet.
        """
        training = self.training
        statistics = {name: copy.deepcopy(norm.state_dict()) for name, norm in self.norms.items()}
        self.train()
        try:
            yield
        finally:
            for name, norm in self.norms.items():
                norm.load_state_dict(statistics[name])
            self.train(training)

    def float_state(self) -> dict[str, Tensor]:
        """Float parameters and shared statistics under the names of the original model, and what quantizers learned."""
        own = {f"{layer}.input_mean" for layer in self.layers}
        for name, norm in self.norms.items():
            own |= {f"{name}.{tensor}" for tensor in norm.state_dict() if tensor not in _FLOAT_NORM}
        state = self.graph.state_dict()
        packed = f".{IN_PROJECTION}.", ".in_proj_"
        return {
            name.replace(*packed): tensor
            for name, tensor in state.items()
            if name not in own and not name.startswith((SITES, ALIASES))
        }

    def float_parameters(self) -> dict[str, Tensor]:
        """Parameters and buffers that no quantized layer or folded normalization owns; operators in float need them."""
        owners = {*self.layer_input, *self.norm_of.values()}
        graph = self.graph
        parameters, buffers = (named(remove_duplicate=False) for named in (graph.named_parameters, graph.named_buffers))
        tensors = {**dict(parameters), **dict(buffers)}
        return {
            name: tensor
            for name, tensor in tensors.items()
            if tensor.is_floating_point()
            and not name.startswith(SITES)
            and not any(name.startswith(f"{owner}.") for owner in owners)
        }

    def rebuild(
        self,
        layer: Callable[[str, QuantLayer], nn.Module],
        site: Callable[[str, ActivationQuantizer], nn.Module],
        alias: Callable[[str, str], nn.Module],
    ) -> fx.GraphModule:
        """Returns a copy of the graph with layers, sites and aliases replaced and the fused norms taken out.

        The deployed torch reference and the ONNX skeleton are both this graph, with different modules in it.
        """
        module = copy.deepcopy(self.graph)
        graph = module.graph
        norms, sites = set(self.norm_of.values()), self.sites
        patterns = Patterns(module)
        for node in list(graph.nodes):
            if node.op != "call_module":
                continue
            name = str(node.target)
            if name in norms or patterns.vanishes(node):
                node.replace_all_uses_with(node.all_input_nodes[0])
                graph.erase_node(node)
            elif name in self.layer_input:
                _set_submodule(module, name, layer(name, self.layers[name]))
            elif name.startswith(SITES):
                _set_submodule(module, name, site(name.removeprefix(SITES), sites[name.removeprefix(SITES)]))
            elif name.startswith(ALIASES):
                same_grid = module.get_submodule(name)
                assert isinstance(same_grid, SameGrid)
                _set_submodule(module, name, alias(name, same_grid.site))
        module.delete_all_unused_submodules()
        module.recompile()
        return module

    def taps(self) -> dict[str, str]:
        """Per site, the module behind which the deployed graph clamps its codes.

        That is the site itself, or what repeats it behind a max pooling that alone reads it: the maximum and the clamp
        commute, and the pooled tensor is a quarter of the size.
        """
        taps = {}
        for node in self.graph.graph.nodes:
            name = str(node.target)
            if node.op == "call_module" and name.startswith(SITES):
                after = _only_user(node)
                behind = _only_user(after) if after is not None and self._is_max_pool(after) else None
                repeats = behind is not None and str(behind.target).startswith(ALIASES)
                taps[name.removeprefix(SITES)] = str(behind.target) if behind is not None and repeats else name
        return taps

    def _is_max_pool(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self.graph.get_submodule(str(node.target)), nn.MaxPool2d)
        return node.target in (F.max_pool2d, torch.max_pool2d)


def _replaced(children: tuple[Child, ...], old: Child, new: Child) -> tuple[Child, ...]:
    return tuple(new if child == old else child for child in children)


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _set_submodule(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)
