"""Who reads a tensor, and which layers stand before one: the graph's answers to questions about widths.

A tensor has one activation width at a child, whoever reads it: that of the reader that needs most. Readers are the
layers that read it, directly or through operators that only move values. Where only sums read it, they are the readers
of the sum; where a layer reads it as well, the sum takes what it gets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import fx

from emqdeploy.format.child import MASTER_BITS, Child
from emqdeploy.quant.patterns import Patterns


@dataclass(frozen=True)
class Readers:
    """The layers that decide the width of one tensor.

    Attributes:
        switchable: they need what the child says of them.
        pinned: layers that stay at 8 bits; they count only where a child names them, for 8 bits are what is left when
            nobody asks for fewer.
    """

    switchable: tuple[str, ...] = ()
    pinned: tuple[str, ...] = ()

    def width(self, child: Child) -> int:
        """Activation bits of the tensor at a child."""
        wanted = [child.activations.of(layer) for layer in self.switchable]
        wanted += [child.activations.of(layer) for layer in self.pinned if child.activations.names(layer)]
        return max(wanted, default=MASTER_BITS)


def readers_of(patterns: Patterns, tensor: fx.Node, is_pinned: Callable[[str], bool]) -> Readers:
    """Finds the layers that decide a tensor's width.

    Args:
        patterns: of the graph.
        tensor: a node whose output is quantized.
        is_pinned: whether the layer of a name stays at 8 bits.
    """
    names = dict.fromkeys(str(node.target) for node in _reading_layers(patterns, tensor))
    switchable = tuple(name for name in names if not is_pinned(name))
    return Readers(switchable, tuple(name for name in names if is_pinned(name)))


def _reading_layers(patterns: Patterns, tensor: fx.Node) -> list[fx.Node]:
    readers = patterns.readers(tensor)
    layers = [node for node in readers if patterns.is_layer(node)]
    sums: Iterable[fx.Node] = () if layers else readers
    return layers + [layer for sum_ in sums for layer in _reading_layers(patterns, sum_)]


def layers_before(patterns: Patterns) -> dict[str, tuple[str, ...]]:
    """The layers whose outputs each layer reads, by the graph: behind a sum or a concatenation there are several."""
    made_from: dict[fx.Node, tuple[str, ...]] = {}
    before: dict[str, tuple[str, ...]] = {}
    for node in patterns.nodes:
        sources = tuple(dict.fromkeys(name for source in node.all_input_nodes for name in made_from[source]))
        made_from[node] = (str(node.target),) if patterns.is_layer(node) else sources
        if patterns.is_layer(node):
            before[str(node.target)] = sources
    return before
