"""What a checkpoint already offers for new children: which widths each layer has, and its codes at each of them.

Nothing but the file is needed. The children of a file share the codes, and all that have a layer at one width share its
integers; a new mix of those widths has its own scales and biases only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from emqdeploy.format.child import MASTER_BITS, Child, in_order
from emqdeploy.format.frozen import FrozenNetwork

Map = Mapping[str, int]
"""Weight bits by layer."""


def widest(network: FrozenNetwork) -> Child:
    """The uniform child of most bits, of activations first; where there is none, the last child of the file."""
    uniform = [child for child in network.children if child.uniform]
    return max(uniform or network.children[-1:], key=lambda child: (child.activations.default, child.bits))


def offered(network: FrozenNetwork, start: Child) -> dict[str, tuple[int, ...]]:
    """Widths that the file has for each switchable layer, ascending, up to that of the child to start from."""
    found = {}
    for name, layer in network.layers.items():
        if not layer.pinned:
            widths = {child.weights.of(name) for child in network.children}
            found[name] = tuple(sorted(bits for bits in widths if bits <= start.weights.of(name)))
    return found


def lender(network: FrozenNetwork, layer: str, bits: int, start: Child) -> Child:
    """The stored child whose numbers a layer has at a width until they are estimated anew.

    Args:
        network: of the file.
        layer: its name.
        bits: a width that it is offered.
        start: preferred where its layer has that width.
    """
    if network.layers[layer].pinned or start.weights.of(layer) == bits:
        return start
    alike = [child for child in network.children if child.weights.of(layer) == bits]
    return max(alike, key=lambda child: (child.uniform, child.activations.default))


def named_child(name: str, widths: Map, start: Child) -> Child:
    """A child whose layers have widths of their own, and the activations of another.

    The layers that it does not name are those of its commonest width: the number that a mixed child is sorted by.

    Args:
        name: of the child.
        widths: bits of every switchable layer.
        start: whose activations it has.
    """
    counts = Counter(widths.values())
    common = max(counts, key=lambda bits: (counts[bits], bits), default=MASTER_BITS)
    named = {layer: bits for layer, bits in widths.items() if bits != common}
    return Child(name, {"*": common, **named} if named else common, start.activations)


def with_child(network: FrozenNetwork, child: Child, start: Child) -> FrozenNetwork:
    """Adds a child with the codes of the file and borrowed scales and biases; one by its name is replaced.

    Args:
        network: of the file.
        child: each of its layers has a width that the file offers.
        start: whose activation scales it has.
    """
    kept = [other for other in network.children if other.name != child.name]
    layers = {}
    for name, layer in network.layers.items():
        of = lender(network, name, child.weights.of(name), start)
        grids = {other: layer.grids[other] for other in kept} | {child: layer.grids[of]}
        biases = {other: layer.biases[other] for other in kept} | {child: layer.biases[of]}
        layers[name] = replace(layer, grids=grids, biases=biases)
    sites = {
        name: replace(
            site,
            bits={other: site.bits[other] for other in kept} | {child: site.bits[start]},
            scales={other: site.scales[other] for other in kept} | {child: site.scales[start]},
        )
        for name, site in network.sites.items()
    }
    return replace(network, layers=layers, sites=sites, children=in_order([*kept, child]))
