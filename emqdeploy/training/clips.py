"""Activation clips from a few images: what readers see of what a float network produces, and where to cut it.

A max pooling shows its readers the largest values only, which no cut may touch lightly. A mean rounds off rounding
errors, which have either sign, but not what was cut, which always has the same. So errors are measured behind both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emqdeploy.format.child import FLOAT, Child
from emqdeploy.format.grid import HIGHEST_ZERO
from emqdeploy.format.levels import FULL
from emqdeploy.quant.activations import ActivationQuantizer
from emqdeploy.quant.layers import SITES
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.registry import Registry
from emqdeploy.training.norms import run_all

SAMPLE = 100_000
"""Values kept of every tensor, over all images."""

AVERAGED = 64
"""Values, at most, that stand for a group of which readers see the mean."""

MIDDLE, STEPS = 128, 255
"""The code of zero that signed tensors have otherwise, and the steps of 8 bits."""

ONE_SIDED = 2
"""How many times as far as below zero a tensor has to reach above it for zero to leave the middle."""

SMALLEST_CLIP = 1e-12
"""Of faint tensors, and of those that are always zero; its scale times that of the weights stays a normal float32."""

SHARES = torch.linspace(0.1, 1, 91).tolist()
"""The clips that are tried, as shares of the range."""

ClipChoice = Callable[[Tensor, int, int, Tensor], float]
"""``(values (K, G), steps below zero, steps above it, channels (K,)) -> clip``, the value of the highest step.

Readers see the mean of every row of G, all of one channel. Never-negative tensors have as many steps below zero as
above it, and use none.
"""

CLIP_CHOICES: Registry[ClipChoice] = Registry("clip calibration")


@CLIP_CHOICES.register("max")
def largest(values: Tensor, below: int, above: int, channels: Tensor | None = None) -> float:
    """The clip that cuts nothing: the steps are coarse."""
    return _reach(values, below, above)


def percentile(share: float) -> ClipChoice:
    """Returns the choice that cuts all but a share of the values."""

    def choose(values: Tensor, below: int, above: int, channels: Tensor | None = None) -> float:
        return float(torch.quantile(_heights(values, below, above).flatten(), share))

    return choose


CLIP_CHOICES.register("p99")(percentile(0.99))
CLIP_CHOICES.register("p99.9")(percentile(0.999))
CLIP_CHOICES.register("p99.99")(percentile(0.9999))


@CLIP_CHOICES.register("mse")
def least_error(values: Tensor, below: int, above: int, channels: Tensor | None = None) -> float:
    """The clip of least mean squared error for the readers, of ninety between a tenth and all of the range."""
    top = _reach(values, below, above)
    errors = {top * share: _error(values, top * share, below, above) for share in SHARES}
    return min(errors, key=errors.__getitem__)


@CLIP_CHOICES.register("majority")
def most_channels(values: Tensor, below: int, above: int, channels: Tensor) -> float:
    """The clip that serves most channels (direct quantization: Hoang et al., arXiv 2012.13762).

    A squared error over the whole tensor is that of the few channels with large values. Here each channel's error is
    divided by its own mean square, and the mean over the channels is smallest. Reconstructed from the abstract, which
    says that errors of individual channels count, so that the quantizer suits the majority of them.
    """
    top = _reach(values, below, above)
    power = _per_channel(values.mean(1).square(), channels)
    alive = power > 0
    errors = {}
    for share in SHARES:
        wrong = _per_channel(_differences(values, top * share, below, above), channels)
        errors[top * share] = float((wrong[alive] / power[alive]).sum())
    return min(errors, key=errors.__getitem__)


def _heights(values: Tensor, below: int, above: int) -> Tensor:
    """The clips that values ask for: negative ones have steps of their own."""
    return torch.where(values < 0, values * (-above / below), values)


def _reach(values: Tensor, below: int, above: int) -> float:
    """The largest clip that a value asks for."""
    return float(_heights(values, below, above).max())


def _error(values: Tensor, clip: float, below: int, above: int) -> float:
    """Mean squared error for the readers."""
    return float(_differences(values, clip, below, above).mean())


def _differences(values: Tensor, clip: float, below: int, above: int) -> Tensor:
    """Squared error for the readers of every row ``(K,)``."""
    scale = clip / above
    given = (values / scale).round_().clamp_(-below, above).mul_(scale).sub_(values)
    return given.mean(1).square()


def _per_channel(rows: Tensor, channels: Tensor) -> Tensor:
    """Sums of the rows ``(K,)`` of every channel, ``(C,)``."""
    return rows.new_zeros(int(channels.max()) + 1).index_add_(0, channels, rows)


@torch.no_grad()
def calibrate_clips(network: MultiBitNetwork, batches: list[Tensor], choice: str) -> None:
    """Sets the clip of every activation tensor, at every child, from what the float network produces.

    Args:
        network: with float weights; run in float, in the mode that it is in.
        batches: normalised images.
        choice: a name in `CLIP_CHOICES`.
    """
    choose = CLIP_CHOICES[choice]
    seen = _observe(network, batches)
    for name, site in network.sites.items():
        if site.fixed:  # the input image, whose range is known
            continue
        values, channels = seen[name]
        if site.signed and site.levels == FULL:
            site.zero_point = _zero_point(values, channels, choose)
        steps = {child: _steps(site, child) for child in site.clips()}
        # A percentile is zero where nearly all values are.
        clips = {ends: choose(values, *ends, channels) or _reach(values, *ends) for ends in set(steps.values())}
        for child, ends in steps.items():
            site.set_clip(child, max(clips[ends], SMALLEST_CLIP))


def start_clips(network: MultiBitNetwork, images: Tensor, choice: str | None) -> None:
    """Starts what training learns for activations and quantizers from a batch of normalised images.

    Args:
        network: in training.
        images: ``(N, C, H, W)``.
        choice: a name in `CLIP_CHOICES`; None is a quantile that depends on the width.
    """
    network.initialise_clips(images)
    if choice is not None:
        with network.by_batch():
            calibrate_clips(network, [images], choice)


def _steps(site: ActivationQuantizer, child: Child) -> tuple[int, int]:
    """Steps below zero and above it."""
    codes = site.code_range(child)
    return (codes.steps if site.zero_point is None else codes.below), codes.steps


def _zero_point(values: Tensor, channels: Tensor, choose: ClipChoice) -> int | None:
    """The code of zero that the ends of the range ask for; None where it serves readers no better than the middle.

    Nor is it moved where both ends reach nearly as far: little is won there, and a maximum reads the very ends.
    """
    low, high = (float(end) for end in torch.aminmax(values))
    if ONE_SIDED * -low >= high:
        return None
    zero = min(max(round(-low / (high - low) * STEPS), 1), HIGHEST_ZERO)
    ways = {None: (MIDDLE - 1, MIDDLE - 1), zero: (zero, STEPS - zero)}
    errors = {way: _error(values, choose(values, *ends, channels) or high, *ends) for way, ends in ways.items()}
    return min(errors, key=errors.__getitem__)


def _observe(network: MultiBitNetwork, batches: list[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Values ``(K, G)`` that the readers of every site see, or see the means of, and their channels ``(K,)``.

    Of many, a random sample.
    """
    random = torch.Generator().manual_seed(0)
    found: dict[str, _Sample] = {}
    taps, windows = network.taps(), _averaged(network)

    def watch(name: str, site: ActivationQuantizer) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0] if site.signed else F.relu(inputs[0])
            x = (x if site.ceiling is None else x.clamp(max=site.ceiling)).float()
            rows = _rows(x, windows[name]) if name in windows else x.reshape(-1, 1)
            count = max(1, SAMPLE // (len(batches) * rows.shape[1]))
            if len(rows) <= count:
                places = torch.arange(len(rows))
            else:
                # The largest value is always among them: nothing else says how far the tensor reaches.
                places = torch.randint(len(rows), (count,), generator=random)
                places[0] = rows.abs().amax(1).argmax()
            places = places.to(x.device)
            if name not in found:
                found[name] = _Sample(rows, len(batches) * count)
            found[name].add(rows[places], _channels(x, len(rows))(places))

        return note

    # Behind a max pooling stands what repeats its site, where the values are those that the readers see.
    hooks = [
        network.graph.get_submodule(taps[name]).register_forward_pre_hook(watch(name, site))
        for name, site in network.sites.items()
    ]
    run_all(network, batches, (FLOAT,))
    for hook in hooks:
        hook.remove()
    return {name: sample.kept for name, sample in found.items()}


class _Sample:
    """Rows of a tensor and their channels, in memory that is taken once.

    Pieces of every batch would lie between what the network frees, and keep it from being used again.
    """

    def __init__(self, like: Tensor, most: int) -> None:
        self._rows = like.new_empty(most, like.shape[1])
        self._channels = torch.empty(most, dtype=torch.int32, device=like.device)
        self._filled = 0

    def add(self, rows: Tensor, channels: Tensor) -> None:
        """Keeps rows ``(K, G)`` and their channels ``(K,)``."""
        end = self._filled + len(rows)
        self._rows[self._filled : end], self._channels[self._filled : end] = rows, channels
        self._filled = end

    @property
    def kept(self) -> tuple[Tensor, Tensor]:
        """All that was kept."""
        return self._rows[: self._filled], self._channels[: self._filled]


def _channels(x: Tensor, rows: int) -> Callable[[Tensor], Tensor]:
    """Which channel of ``(N, C, H, W)``, or of ``(..., C)``, each of its rows is of."""
    run, channels = (rows // (x.shape[0] * x.shape[1]), x.shape[1]) if x.dim() == 4 else (1, x.shape[-1])
    return lambda places: places // run % channels


def _averaged(network: MultiBitNetwork) -> dict[str, tuple[int, int] | None]:
    """The windows of which a mean alone reads a site, by site; None for all of an image."""
    found: dict[str, tuple[int, int] | None] = {}
    for node in network.graph.graph.nodes:
        reader = next(iter(node.users)) if len(node.users) == 1 else None
        if not str(node.target).startswith(SITES) or reader is None or reader.op != "call_module":
            continue
        pool = network.graph.get_submodule(str(reader.target))
        name = str(node.target).removeprefix(SITES)
        if isinstance(pool, nn.AvgPool2d):
            found[name] = pool.kernel_size if isinstance(pool.kernel_size, tuple) else (pool.kernel_size,) * 2
        elif isinstance(pool, nn.AdaptiveAvgPool2d) and pool.output_size in (1, (1, 1)):
            found[name] = None
    return found


def _rows(x: Tensor, window: tuple[int, int] | None) -> Tensor:
    """The windows of images ``(N, C, H, W)`` as rows, of `AVERAGED` values at most."""
    high, wide = (min(size, whole) for size, whole in zip(window or x.shape[2:], x.shape[2:], strict=True))
    rows = x.unfold(2, high, high).unfold(3, wide, wide).reshape(-1, high * wide)
    return rows[:, :: -(-rows.shape[1] // AVERAGED)]
