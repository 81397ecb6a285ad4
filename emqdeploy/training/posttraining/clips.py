"""Activation clips from a few images: what a float network produces, and where to cut it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emqdeploy.format.child import FLOAT
from emqdeploy.quant.activations import ActivationQuantizer
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.registry import Registry
from emqdeploy.training.norms import run_all

SAMPLE = 100_000
"""Values kept of every tensor, over all images."""

SMALLEST_CLIP = 1e-12
"""Of faint tensors, and of those that are always zero; its scale times that of the weights stays a normal float32."""

ClipChoice = Callable[[Tensor, int], float]
"""``(absolute values (K,), steps between zero and the clip) -> clip``."""

CLIP_CHOICES: Registry[ClipChoice] = Registry("clip calibration")


@CLIP_CHOICES.register("max")
def largest(values: Tensor, steps: int) -> float:
    """The largest value: nothing is cut, and the steps are coarse."""
    return float(values.max())


def percentile(share: float) -> ClipChoice:
    """Returns the choice that cuts all but a share of the values."""

    def choose(values: Tensor, steps: int) -> float:
        return float(torch.quantile(values, share))

    return choose


CLIP_CHOICES.register("p99")(percentile(0.99))
CLIP_CHOICES.register("p99.9")(percentile(0.999))
CLIP_CHOICES.register("p99.99")(percentile(0.9999))


@CLIP_CHOICES.register("mse")
def least_error(values: Tensor, steps: int) -> float:
    """The clip of least mean squared error of the quantized values, of ninety between a tenth and all of the range."""
    top = float(values.max())
    best, least = top, math.inf
    for share in torch.linspace(0.1, 1, 91).tolist():
        clip = top * share
        scale = clip / steps
        error = float(((values / scale).round().clamp_(max=steps).mul_(scale) - values).square().mean())
        if error < least:
            best, least = clip, error
    return best


@torch.no_grad()
def calibrate_clips(network: MultiBitNetwork, batches: list[Tensor], choice: str) -> None:
    """Sets the clip of every activation tensor, at every child, from what the float network produces.

    Args:
        network: with float weights; evaluated in float.
        batches: normalised images.
        choice: a name in `CLIP_CHOICES`.
    """
    choose = CLIP_CHOICES[choice]
    values = _observe(network, batches)
    for name, site in network.sites.items():
        if site.fixed:  # the input image, whose range is known
            continue
        steps = {child: site.code_range(child).steps for child in site.clips()}
        # A percentile is zero where nearly all values are.
        clips = {count: choose(values[name], count) or float(values[name].max()) for count in set(steps.values())}
        for child, count in steps.items():
            site.set_clip(child, max(clips[count], SMALLEST_CLIP))


def _observe(network: MultiBitNetwork, batches: list[Tensor]) -> dict[str, Tensor]:
    """Returns a random sample of the absolute values of every site's tensor, by site."""
    random = torch.Generator().manual_seed(0)
    found: dict[str, list[Tensor]] = {name: [] for name in network.sites}

    def watch(name: str, site: ActivationQuantizer) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0] if site.signed else F.relu(inputs[0])
            x = (x if site.ceiling is None else x.clamp(max=site.ceiling)).abs().reshape(-1).float()
            count = min(x.numel(), max(1, SAMPLE // len(batches)))
            found[name].append(x[torch.randint(x.numel(), (count,), generator=random).to(x.device)])

        return note

    hooks = [site.register_forward_pre_hook(watch(name, site)) for name, site in network.sites.items()]
    run_all(network.eval(), batches, (FLOAT,))
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}
