"""Milliseconds of a child in the native kernels, here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from statistics import median
from typing import ClassVar

import numpy as np

from emqdeploy.errors import EmqError
from emqdeploy.report.units import milliseconds
from emqdeploy.runtimes.native_library import NativeNetwork
from emqdeploy.training.mixing.descent import Costs
from emqdeploy.training.mixing.stored import lender
from emqdeploy.workflows.mixing.costs.base import COSTS, CostModel, Subject

ROUNDS = 30
"""Of every child, in turns, so that a drift of the machine meets all of them."""


@COSTS.register("latency")
class LatencyCost(CostModel):
    """Time of one image in the native kernels on this machine: every layer at every width, measured where it runs.

    A layer's share is what passes until the tensor behind it is there, at a stored child that has the layer at that
    width. Handing the tensor out takes time of its own, the same at every width: only differences to the widest child
    count, and are taken from the time of that child as a whole.
    """

    units: ClassVar[Mapping[str, float]] = {"us": 1e-3, "ms": 1, "s": 1e3}

    def costs(self, subject: Subject, widths: Mapping[str, tuple[int, ...]]) -> Costs:
        """Milliseconds, medians."""
        network, start = subject.checkpoint.network, subject.start
        try:
            native = NativeNetwork(subject.checkpoint, subject.threads)
        except EmqError as error:
            raise EmqError(f"a budget of latency is measured in the native kernels: {error}") from error
        image = np.zeros((1, *subject.checkpoint.card.input_shape), np.float32)
        image += np.random.default_rng(0).standard_normal(image.shape, np.float32)
        parts = _parts(native, image)
        whole = median(native.clock(native.children.index(start), image, traced=False)[""] for _ in range(ROUNDS))
        places = {name: subject.sites[name] or "" for name in network.layers}
        places = {name: site if site in parts[0] else "" for name, site in places.items()}
        sharing = Counter(places.values())

        def taken(name: str, bits: int) -> float:
            child = native.children.index(lender(network, name, bits, start))
            return parts[child][places[name]] / sharing[places[name]]

        layers = {name: {bits: taken(name, bits) for bits in offer} for name, offer in widths.items()}
        # What the layers do not explain is the same for every mix.
        rest = whole - sum(by_width[start.weights.of(name)] for name, by_width in layers.items())
        return Costs(rest, layers)

    def shown(self, value: float) -> str:
        """A duration for people."""
        return milliseconds(value)


def _parts(native: NativeNetwork, image: np.ndarray) -> list[dict[str, float]]:
    """Per child, how many milliseconds pass until each tensor is there, since the one before it; medians."""
    rounds = [[native.clock(child, image) for child in range(len(native.children))] for _ in range(ROUNDS)]
    return [
        {site: median(one[child][site] for one in rounds) for site in rounds[0][child]}
        for child in range(len(native.children))
    ]
