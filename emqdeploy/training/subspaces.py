"""Subspaces of networks: lines, curves and simplexes of weights that are trained, of which one point is deployed.

*Learning Neural Network Subspaces* (arXiv 2102.10472, and the authors' code): the ends of a line start and learn
independently, each batch trains the network at a point that is drawn anew, and a term pushes the ends apart. The
midpoint is then in the middle of a wide valley. All points need statistics of their own in the normalizations, so these
are estimated anew wherever the midpoint is judged.

What is quantized is the point, as any network's weights are; a line over the precisions is ours. The network's own
parameters hold the point, and what an optimizer learns are the ends: the gradient of an end is that of the point times
the end's share of it, so neither quantizers nor exports know of subspaces.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from emqdeploy.errors import UsageError
from emqdeploy.format.child import FLOAT, Child, in_order
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.quant.norms import PrivateNorm, TransitionalNorm
from emqdeploy.registry import Registry
from emqdeploy.training.batches import ImageSource, as_trained
from emqdeploy.training.norms import NORM_ADAPTATIONS

STREAM = 0x11FE
"""The number of the random stream of points."""

ON_IT = ("weights", "norms", "biases")
"""Groups of parameters that the ends have of their own; clips and what quantizers learn are shared."""

JUDGED_BY = 2048
"""Training images, unaugmented, by which the statistics of a point are estimated."""

Fresh = Callable[[], nn.Module]
"""Makes another network of the same kind, with other random weights."""


class Origin(NamedTuple):
    """What a subspace is made from.

    Attributes:
        network: in training.
        groups: its parameters, as an optimizer takes them.
        diversity: weight of the term that pushes ends apart; None is the usual one.
        fresh: where ends come from that start independently; None where all start from the network's weights, because
            those were trained.
        seed: of the run.
    """

    network: MultiBitNetwork
    groups: Sequence[dict[str, Any]]
    diversity: float | None
    fresh: Fresh | None
    seed: int


class Subspace:
    """A single point, the network itself; the base of the others.

    Args:
        origin: what it is made from.

    Attributes:
        groups: what is to be learned instead.
        ends: parameters that are learned and no part of the network.
    """

    one_master: ClassVar[bool] = True
    """Whether all children have the same weights, so that one file serves them all."""

    def __init__(self, origin: Origin) -> None:
        self.network = origin.network
        self.groups = list(origin.groups)
        self.ends: list[Tensor] = []

    def draw(self, number: int) -> None:
        """Chooses the point of a step, by its number in the run."""

    def place(self, child: Child) -> None:
        """Puts the point of a child's pass into the network."""

    def collect(self) -> None:
        """Hands the gradient of the point on to the ends."""

    def spread(self, number: int) -> None:
        """Called once before an update, with the number of its step: adds the gradient of what pushes ends apart."""

    def rest(self) -> None:
        """Puts the point that is deployed into the network."""

    def show(self, source: ImageSource, adaptation: str) -> None:
        """The same, with statistics of the normalizations that are its own.

        Args:
            source: all training images, so that processes with shards of their own estimate alike.
            adaptation: how statistics are estimated, a name in `NORM_ADAPTATIONS`.
        """


SUBSPACES: Registry[type[Subspace]] = Registry("subspace")
SUBSPACES.register("none")(Subspace)


class _Ends(Subspace, ABC):
    """What all real subspaces share; each says how many ends it has, and their shares in a point."""

    count: ClassVar[int] = 2
    independent: ClassVar[bool] = True
    usual_diversity: ClassVar[float] = 1.0

    def __init__(self, origin: Origin) -> None:
        super().__init__(origin)
        if any(isinstance(norm, (PrivateNorm, TransitionalNorm)) for norm in self.network.norms.values()):
            raise UsageError("--subspace needs gains and shifts that all children share; use --norm shared-affine")
        self.seed = origin.seed
        self.diversity = self.usual_diversity if origin.diversity is None else origin.diversity
        mine = [group for group in self.groups if group["name"] in ON_IT]
        self.points: list[Tensor] = [parameter for group in mine for parameter in group["params"]]
        self.corners = self._corners(origin.fresh)
        self.ends = [end for corner in self.corners for end in corner]
        places = {id(point): place for place, point in enumerate(self.points)}
        for group in mine:
            numbers = [places[id(parameter)] for parameter in group["params"]]
            group["params"] = [corner[number] for corner in self.corners for number in numbers]
        weights = {id(layer.weight) for layer in self.network.layers.values()}
        self.weights = [place for place, point in enumerate(self.points) if id(point) in weights]
        self.drawn = self.shares = self.middle()

    def _corners(self, fresh: Fresh | None) -> list[list[Tensor]]:
        corners = [[nn.Parameter(point.detach().clone()) for point in self.points] for _ in range(self.count)]
        if self.independent and fresh is not None:
            names = {id(parameter): name for name, parameter in self.network.named_parameters()}
            for corner in corners[1:]:
                other = dict(fresh().named_parameters())
                for end, point in zip(corner, self.points, strict=True):
                    end.data.copy_(other[names[id(point)]].data)
        return [list(corner) for corner in corners]

    @abstractmethod
    def random_shares(self, random: np.random.Generator) -> tuple[float, ...]:
        """Shares of the ends in a point that is drawn."""

    @abstractmethod
    def middle(self) -> tuple[float, ...]:
        """Shares of the ends in the point that is deployed."""

    def draw(self, number: int) -> None:
        """One point for all of a batch."""
        self.drawn = self.random_shares(np.random.default_rng([self.seed, STREAM, number]))

    def place(self, child: Child) -> None:
        """Puts the drawn point into the network."""
        self._put(self.drawn)

    @torch.no_grad()
    def _put(self, shares: tuple[float, ...]) -> None:
        self.shares = shares
        total = torch._foreach_mul(self.corners[0], shares[0])
        for corner, share in zip(self.corners[1:], shares[1:], strict=True):
            torch._foreach_add_(total, corner, alpha=share)
        for point, values in zip(self.points, total, strict=True):
            point.copy_(values)

    @torch.no_grad()
    def collect(self) -> None:
        """Adds to the gradient of every end its share of the point's."""
        for place, point in enumerate(self.points):
            if point.grad is None:
                continue
            for corner, share in zip(self.corners, self.shares, strict=True):
                _add_gradient(corner[place], point.grad, share)
            point.grad = None

    @torch.no_grad()
    def spread(self, number: int) -> None:
        """The gradient of ``diversity * cos^2`` between two ends, drawn anew, over the weights of all layers."""
        if not self.diversity:
            return
        pair = np.random.default_rng([self.seed, STREAM, number, 1]).permutation(self.count)[:2]
        one, other = ([self.corners[end][place] for place in self.weights] for end in pair)
        product, first, second = (
            torch.stack([(left * right).sum() for left, right in zip(*both, strict=True)]).sum()
            for both in ((one, other), (one, one), (other, other))
        )
        pull = 2 * self.diversity * product / (first * second)
        for left, right in zip(one, other, strict=True):
            _add_gradient(left, pull * (right - left * (product / first)), 1.0)
            _add_gradient(right, pull * (left - right * (product / second)), 1.0)

    def rest(self) -> None:
        """Puts the middle into the network."""
        self._put(self.middle())

    def show(self, source: ImageSource, adaptation: str) -> None:
        """Puts the middle into the network and estimates its statistics."""
        self.rest()
        training, alone = self.network.training, self.network.trained == (FLOAT,)
        batches = as_trained(source, JUDGED_BY, self.seed)
        self.network.eval()
        NORM_ADAPTATIONS["shared" if alone else adaptation](self.network, batches, self.network.trained)
        self.network.train(training)


def _add_gradient(end: Tensor, gradient: Tensor, share: float) -> None:
    if end.grad is None:
        end.grad = gradient * share
    else:
        end.grad.add_(gradient, alpha=share)


@SUBSPACES.register("line")
class Line(_Ends):
    """``(1 - a) w_0 + a w_1``, ``a`` drawn evenly from 0 to 1."""

    def random_shares(self, random: np.random.Generator) -> tuple[float, ...]:
        """Of both ends."""
        a = float(random.random())
        return 1 - a, a

    def middle(self) -> tuple[float, ...]:
        """Half of each."""
        return 0.5, 0.5


@SUBSPACES.register("curve")
class Curve(_Ends):
    """A quadratic Bezier curve, ``(1 - a)^2 w_0 + 2 a (1 - a) w_2 + a^2 w_1``."""

    count = 3

    @staticmethod
    def at(a: float) -> tuple[float, ...]:
        """Shares of both ends and of the point that bends the curve."""
        return (1 - a) ** 2, a**2, 2 * a * (1 - a)

    def random_shares(self, random: np.random.Generator) -> tuple[float, ...]:
        """Anywhere between the ends."""
        return self.at(float(random.random()))

    def middle(self) -> tuple[float, ...]:
        """Half way."""
        return self.at(0.5)


@SUBSPACES.register("simplex")
class Simplex(_Ends):
    """A triangle, whose points are drawn evenly."""

    count = 3

    def random_shares(self, random: np.random.Generator) -> tuple[float, ...]:
        """A flat Dirichlet distribution."""
        return tuple(random.dirichlet(np.ones(self.count)).tolist())

    def middle(self) -> tuple[float, ...]:
        """A third of each."""
        return (1 / self.count,) * self.count


@SUBSPACES.register("precision")
class Precision(_Ends):
    """A line over the weight widths: one end is the widest child, the other the narrowest, the rest lie between them.

    Ours. Both ends start alike, nothing pushes them apart, and the float network is the midpoint. Every child has
    weights of its own, and needs a file of its own.
    """

    one_master = False
    independent = False
    usual_diversity = 0.0

    def __init__(self, origin: Origin) -> None:
        widths = [child.bits for child in in_order(origin.network.trained) if child != FLOAT]
        if len(set(widths)) < 2:
            raise UsageError("--subspace precision is a line from one width to another; give two --bits or more")
        self.lowest, self.highest = min(widths), max(widths)
        super().__init__(origin)
        self.network.in_use = self.place

    def random_shares(self, random: np.random.Generator) -> tuple[float, ...]:
        """The middle: nothing is drawn, for each child decides its point."""
        return self.middle()

    def place(self, child: Child) -> None:
        """Puts the child's point into the network; also called whenever a child is put to use."""
        width = min(max(child.bits, self.lowest), self.highest)  # a child with widths per layer may be called otherwise
        a = 0.5 if child == FLOAT else (self.highest - width) / (self.highest - self.lowest)
        self._put((1 - a, a))

    def middle(self) -> tuple[float, ...]:
        """The float network's point."""
        return 0.5, 0.5
