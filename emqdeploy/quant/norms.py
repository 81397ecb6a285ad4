"""Batch normalization that serves every child, under several policies of what the children share.

A policy is a class registered by name. All of them answer the same three questions: how to normalize now, which
statistics evaluation uses at a child, and which gain and shift export folds there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emqdeploy.format.child import FLOAT, MASTER_BITS, Child
from emqdeploy.registry import Registry

P = TypeVar("P")

NO_ROW = -1
"""Of a child without numbers of its own: the float network."""


class MultiBitBatchNorm2d(nn.BatchNorm2d):
    """A batch normalization of images ``(N, C, H, W)`` or rows ``(N, C)`` with a child in use; subclasses are policies.

    Running statistics exist twice: shared, and per child (two numbers a channel, no gradient). Evaluation uses those of
    the child in use where they were estimated, else the shared ones. A child that is none of the network's, with widths
    drawn per layer, uses the numbers of the child whose weight width its layer has here.

    Attributes:
        layer: name of the layer before it.
        sources: names of the layers before that one, by the graph.
        pool: adds up moments over the processes that share a batch, where they normalize it together.
    """

    pool: Callable[[Tensor], Tensor] | None = None
    layer: str
    sources: tuple[str, ...]
    child: Child
    child_mean: Tensor
    child_var: Tensor
    estimated: Tensor
    running_mean: Tensor
    running_var: Tensor

    def attach(self, children: Sequence[Child], trained: Sequence[Child], layer: str, sources: Sequence[str]) -> None:
        """Adds what the policy keeps per child; called once, when the float normalization is converted.

        Args:
            children: all of the network's.
            trained: those among them that training visits.
            layer: name of the layer before the normalization.
            sources: names of the layers before that one.
        """
        self.layer, self.sources = layer, tuple(sources)
        # Alone, the float network has the numbers of the float normalization; among others it is a child like them.
        own = [child for child in children if child != FLOAT or len(children) > 1]
        self._rows = {child: row for row, child in enumerate(own)}
        self.register_buffer("child_mean", torch.zeros(len(self._rows), self.num_features))
        self.register_buffer("child_var", torch.ones(len(self._rows), self.num_features))
        self.register_buffer("estimated", torch.zeros(len(self._rows), dtype=torch.bool))
        self.use(FLOAT)

    def use(self, child: Child) -> None:
        """Sets the child of the next forward passes."""
        self.child = child
        self._row = self.row(child)

    def row(self, child: Child) -> int:
        """Where a child's numbers are; `NO_ROW` where it has none."""
        if child in self._rows:
            return self._rows[child]
        width = child.weights.of(self.layer)
        alike = [row for other, row in self._rows.items() if other.uniform and other.bits == width]
        return alike[0] if alike else NO_ROW

    def redefine(self, old: Child, new: Child) -> None:
        """Lets a child have other widths from now on; its numbers stay."""
        self._rows = {new if child == old else child: row for child, row in self._rows.items()}

    def keep(self, child: Child, mean: Tensor, var: Tensor) -> None:
        """Sets the statistics that evaluation uses at a child of the network."""
        row = self._rows[child]
        self.child_mean[row], self.child_var[row] = mean, var
        self.estimated[row] = True

    def start_from_float(self) -> None:
        """Children that learn gain and shift of their own begin with those that the float network has learned."""

    def forget(self) -> None:
        """Evaluation goes back to the shared statistics at every child."""
        self.estimated.fill_(False)

    def _initial_affine(self) -> tuple[Tensor, Tensor]:
        """Gain and shift of the float normalization, ``(C,)``; 1 and 0 where it learns none."""
        ones = torch.ones(self.num_features)
        weight = ones if self.weight is None else self.weight.detach()
        return weight, torch.zeros_like(ones) if self.bias is None else self.bias.detach()

    def _affine(self, row: int) -> tuple[Tensor | None, Tensor | None]:
        """Learned gain and shift ``(C,)`` of a row."""
        return self.weight, self.bias

    def _tracked(self, row: int) -> tuple[Tensor, Tensor]:
        """The running mean and variance ``(C,)`` that a training pass updates."""
        return self.running_mean, self.running_var

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes with batch statistics in training, else with the stored ones."""
        gain, shift = self._affine(self._row)
        if not self.training:
            mean, var = self._statistics(self._row)
            return F.batch_norm(x, mean, var, gain, shift, False, 0.0, self.eps)
        if self._row == NO_ROW or self.momentum is None:
            return self._average(x, gain, shift)
        mean, var = self._tracked(self._row)
        return self._by_batch(x, mean, var, gain, shift, self.momentum)

    def _average(self, x: Tensor, gain: Tensor | None, shift: Tensor | None) -> Tensor:
        """Batch statistics go into the shared ones: as a moving average, or as a plain one without momentum."""
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        return self._by_batch(x, self.running_mean, self.running_var, gain, shift, factor)

    def _by_batch(
        self, x: Tensor, mean: Tensor, var: Tensor, gain: Tensor | None, shift: Tensor | None, factor: float
    ) -> Tensor:
        """Normalizes with the statistics of the batch, towards which the running ones move by ``factor``."""
        if self.pool is None:
            return F.batch_norm(x, mean, var, gain, shift, True, factor, self.eps)
        own_var, own_mean = torch.var_mean(x.float(), (0, *range(2, x.dim())), correction=0)
        moments = torch.stack([own_mean.double(), own_var.double() + own_mean.double().square()])
        count = x.numel() / self.num_features
        total = self.pool(torch.cat([moments.flatten(), moments.new_ones(1)]) * count)
        values, (first, second) = total[-1], (total[:-1] / total[-1]).view(2, -1)
        batch_mean, batch_var = first.float(), (second - first.square()).float()
        with torch.no_grad():
            mean.lerp_(batch_mean, factor)
            var.lerp_(batch_var * (values / (values - 1)).float(), factor)
        scale = torch.rsqrt(batch_var + self.eps)
        scale = scale if gain is None else scale * gain
        offset = -batch_mean * scale if shift is None else shift - batch_mean * scale
        column = (1, -1) + (1,) * (x.dim() - 2)
        return (x * scale.view(column) + offset.view(column)).to(x.dtype)

    def _statistics(self, row: int) -> tuple[Tensor, Tensor]:
        """Mean and variance ``(C,)`` that evaluation uses."""
        if row != NO_ROW and bool(self.estimated[row]):
            return self.child_mean[row], self.child_var[row]
        return self.running_mean, self.running_var

    def statistics(self, child: Child) -> tuple[Tensor, Tensor]:
        """Mean and variance ``(C,)`` that evaluation uses at a child, whichever is in use."""
        return self._at(child, self._statistics)

    def gain_and_shift(self, child: Child) -> tuple[Tensor, Tensor]:
        """Returns ``g`` and ``h`` of the map ``g x + h`` that evaluation computes at a child, ``(C,)`` in float64."""
        mean, var = (statistic.double() for statistic in self.statistics(child))
        training, self.training = self.training, False
        weight, bias = self._at(child, self._affine)
        self.training = training
        gain = (torch.ones_like(mean) if weight is None else weight.double()) / torch.sqrt(var + self.eps)
        return gain, (torch.zeros_like(mean) if bias is None else bias.double()) - gain * mean

    def _at(self, child: Child, read: Callable[[int], P]) -> P:
        """Reads something as it is at a child, and leaves the one in use as it was."""
        before = self.child
        self.use(child)
        try:
            return read(self._row)
        finally:
            self.use(before)


NORMS: Registry[type[MultiBitBatchNorm2d]] = Registry("norm")


@NORMS.register("shared")
class SharedNorm(MultiBitBatchNorm2d):
    """One gain, one shift and one set of running statistics for every child (EMQNet, arXiv 2510.20673)."""


@NORMS.register("shared-affine")
class SharedAffineNorm(MultiBitBatchNorm2d):
    """Gain and shift are shared, running statistics are kept per child as training goes."""

    def _tracked(self, row: int) -> tuple[Tensor, Tensor]:
        return self.child_mean[row], self.child_var[row]

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes; in training the shared statistics follow whichever child was just trained."""
        output = super().forward(x)
        if self.training and self._row != NO_ROW and self.momentum is not None:
            mean, var = self._tracked(self._row)
            self.estimated[self._row].fill_(True)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var, self.momentum)
        return output


@NORMS.register("private")
class PrivateNorm(SharedAffineNorm):
    """Everything per child: gain, shift and statistics (Any-Precision DNNs, arXiv 1911.07346; AdaBits).

    A child that was neither trained nor calibrated borrows gain and shift of the nearest one that was.
    """

    learned: Tensor

    def attach(self, children: Sequence[Child], trained: Sequence[Child], layer: str, sources: Sequence[str]) -> None:
        """Adds one gain and shift per child."""
        super().attach(children, trained, layer, sources)
        weight, bias = self._initial_affine()
        self.child_weight = nn.Parameter(weight.repeat(len(self._rows), 1))
        self.child_bias = nn.Parameter(bias.repeat(len(self._rows), 1))
        self.register_buffer("learned", torch.tensor([child in trained for child in self._rows], dtype=torch.bool))

    @torch.no_grad()
    def start_from_float(self) -> None:
        """Every row becomes the float network's, its own where it is one of the children."""
        gain, shift = self._affine(self._rows.get(FLOAT, NO_ROW))
        if gain is not None and shift is not None:
            self.child_weight.copy_(gain.clone().expand_as(self.child_weight))
            self.child_bias.copy_(shift.clone().expand_as(self.child_bias))

    @torch.no_grad()
    def start(self, children: Sequence[Child]) -> None:
        """Starts children without gain and shift of their own from what they borrow, to be learned from now on."""
        borrowed = {self._rows[child]: self._lender(self._rows[child]) for child in children}
        for row, lender in borrowed.items():
            self.child_weight[row] = self.child_weight[lender]
            self.child_bias[row] = self.child_bias[lender]
            self.learned[row] = True

    def _lender(self, row: int) -> int:
        """The row of the nearest child that has learned gain and shift, the wider one of two."""
        known = self.learned.tolist()
        children = list(self._rows)
        wanted = children[row]

        def distance(other: Child) -> tuple[int, int, int]:
            between = abs(other.activations.default - wanted.activations.default)
            return abs(other.bits - wanted.bits), between, -other.bits

        learned = [other for other, row_ in self._rows.items() if known[row_]]
        return self._rows[min(learned, key=distance)] if learned else row

    def _affine(self, row: int) -> tuple[Tensor | None, Tensor | None]:
        if row == NO_ROW:
            return self.weight, self.bias
        if not self.training and not self.learned[row]:
            row = self._lender(row)
        return self.child_weight[row], self.child_bias[row]


@NORMS.register("transitional")
class TransitionalNorm(MultiBitBatchNorm2d):
    """Everything per pair of weight widths, of the layer before and of those before that (Bit-Mixer, arXiv 2103.17267).

    Where several layers stand before, the widest counts. With one width for the whole network only the pairs ``(b, b)``
    are used; the others are what a network needs in which every layer has a width of its own (step plan ``mixed``).
    """

    learned: Tensor
    pair_mean: Tensor
    pair_var: Tensor

    def attach(self, children: Sequence[Child], trained: Sequence[Child], layer: str, sources: Sequence[str]) -> None:
        """Adds gain, shift and statistics per pair, indexed ``[source, own]``."""
        pairs = (MASTER_BITS, MASTER_BITS, self.num_features)
        weight, bias = self._initial_affine()
        self.pair_weight = nn.Parameter(weight.expand(pairs).clone())
        self.pair_bias = nn.Parameter(bias.expand(pairs).clone())
        self.register_buffer("pair_mean", torch.zeros(pairs))
        self.register_buffer("pair_var", torch.ones(pairs))
        self.register_buffer("learned", torch.zeros(pairs[:2], dtype=torch.bool))
        super().attach(children, trained, layer, sources)

    @torch.no_grad()
    def start_from_float(self) -> None:
        """Every pair becomes the float network's."""
        gain, shift = self._affine(NO_ROW)
        if gain is not None and shift is not None:
            self.pair_weight.copy_(gain.expand_as(self.pair_weight))
            self.pair_bias.copy_(shift.expand_as(self.pair_bias))

    def use(self, child: Child) -> None:
        """Sets the child, and with it the pair of widths."""
        super().use(child)
        own = child.weights.of(self.layer)
        source = max((child.weights.of(name) for name in self.sources), default=own)
        self._own_pair = (source - 1, own - 1)

    def row(self, child: Child) -> int:
        """Every child but the float network has a pair, and so a place among the children or the first one's."""
        return NO_ROW if child == FLOAT else max(super().row(child), 0)

    def _pair(self) -> tuple[int, int]:
        """The pair in use, or the nearest one that was trained."""
        pair = self._own_pair
        if self.training:
            return pair
        known = self.learned.nonzero().tolist()
        if not known or self.learned[pair]:
            return pair
        nearest = min(known, key=lambda other: abs(other[0] - pair[0]) + abs(other[1] - pair[1]))
        return nearest[0], nearest[1]

    def _affine(self, row: int) -> tuple[Tensor | None, Tensor | None]:
        if row == NO_ROW:
            return self.weight, self.bias
        pair = self._pair()
        return self.pair_weight[pair], self.pair_bias[pair]

    def _tracked(self, row: int) -> tuple[Tensor, Tensor]:
        pair = self._pair()
        return self.pair_mean[pair], self.pair_var[pair]

    def _statistics(self, row: int) -> tuple[Tensor, Tensor]:
        """Those estimated for the child where there are any, else those of its pair."""
        mine = self.child in self._rows and bool(self.estimated[row])
        return super()._statistics(row) if row == NO_ROW or mine or not self.learned.any() else self._tracked(row)

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes and remembers which pairs were trained."""
        output = super().forward(x)
        if self.training and self._row != NO_ROW and self.momentum is not None:
            pair = self._pair()
            self.learned[pair].fill_(True)
            self.running_mean.lerp_(self.pair_mean[pair], self.momentum)
            self.running_var.lerp_(self.pair_var[pair], self.momentum)
        return output


def quantize_norm(
    module: nn.modules.batchnorm._BatchNorm,
    policy: str,
    children: Sequence[Child],
    trained: Sequence[Child],
    layer: str,
    sources: Sequence[str],
) -> MultiBitBatchNorm2d:
    """Turns a batch normalization into its multi-bit form; parameters keep their names and identity."""
    norm = copy.copy(module)
    norm.__class__ = NORMS[policy]
    assert isinstance(norm, MultiBitBatchNorm2d)
    norm._parameters = dict(module._parameters)
    norm._buffers = dict(module._buffers)
    norm.attach(children, trained, layer, sources)
    return norm
