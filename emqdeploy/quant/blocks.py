"""A network in pieces that follow one another: what lies between two tensors through which everything flows."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from emqdeploy.quant.network import MultiBitNetwork


@dataclass(frozen=True)
class Block:
    """A piece of a network that reads one tensor and gives one.

    Attributes:
        module: runs the piece; layers, sites and normalizations are the network's own, so it follows the child in use.
        layers: names of the quantized layers in it, in the order in which they run; none after the last of them.
    """

    module: fx.GraphModule
    layers: tuple[str, ...]


def blocks(network: MultiBitNetwork) -> list[Block]:
    """Cuts a network wherever one tensor is all that the rest of it reads; every piece but the last has a layer.

    A residual block is one piece, and so is a whole network in which something reads the first tensor and the last.
    """
    graph = network.graph.graph
    nodes = [node for node in graph.nodes if node.op not in ("get_attr", "output")]
    places = {node: place for place, node in enumerate(nodes)}
    end = next(node for node in graph.nodes if node.op == "output")
    pieces: list[Block] = []
    first, cut, reach, begun = 1, 0, 0, False
    for place, node in enumerate(nodes):
        if _layer(network, node):
            if begun and cut >= first:  # as late as it can be: an activation belongs to the piece before it
                pieces.append(_piece(network, nodes[first - 1], nodes[first : cut + 1]))
                first = cut + 1
            begun = True
        if begun and reach <= place and not _is_several(node):
            cut = place
        reach = max([reach, *(places.get(user, len(nodes)) for user in node.users)])
    assert end.args[0] is nodes[-1]
    return [*pieces, _piece(network, nodes[first - 1], nodes[first:])]


def _is_several(node: fx.Node) -> bool:
    """Whether a node gives several tensors, as a split does."""
    return any(user.target is operator.getitem and isinstance(user.args[1], int) for user in node.users)


def _layer(network: MultiBitNetwork, node: fx.Node) -> str | None:
    """The name of the quantized layer that a node calls."""
    return str(node.target) if node.op == "call_module" and node.target in network.layer_input else None


def _piece(network: MultiBitNetwork, start: fx.Node, nodes: Sequence[fx.Node]) -> Block:
    graph = fx.Graph()
    copies = {start: graph.placeholder("x")}

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:  # a constant, which lies outside of every piece
            copies[node] = graph.node_copy(node, copied)
        return copies[node]

    for node in nodes:
        copies[node] = graph.node_copy(node, copied)
    graph.output(copies[nodes[-1]])
    layers = tuple(name for node in nodes if (name := _layer(network, node)))
    return Block(fx.GraphModule(network.graph, graph), layers)
