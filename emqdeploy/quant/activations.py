"""Activation fake quantization: uniform codes with a learned clip, one clip per tensor and activation bit-width."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emqdeploy.grid import CodeRange, activation_bits, code_range, interpolate_clip

FLOAT_BITS = 32
"""The bit-width that means: do not quantize at all (the float child)."""


CLIP_GRADIENT_SHARE = 8
"""The gradient of a clip, one number, is estimated on an eighth of the batch: thousands of values are plenty for it."""


class _FakeQuantize(torch.autograd.Function):
    """``s clamp(round(x / s), low, high)`` with the LSQ gradient (arXiv 1902.08153) for the logarithm of the clip.

    With ``s = clip / high`` the derivative by ``log clip`` is ``sum(g y) - sum(g x [inside])``, where inside means that
    the rounded value is in range. Built from plain element-wise operators, because torch's own fused operator is far
    slower on the CPU; sums of products rather than dot products, because flattening would make a compiled step, whose
    tensors are channels-last, transpose them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, log_clip: Tensor, low: int, high: int, grad_scale: float) -> Tensor:
        scale = log_clip.exp() / high
        steps = x * scale.reciprocal()
        codes = steps.round().clamp_(low, high)
        inside = None
        if torch.compiler.is_compiling():
            # A compiled step on the CPU stores and loads booleans one by one, forty times slower than bytes that come
            # from arithmetic; and bytes are all that it has to keep for the backward pass.
            inside = (1 - (steps.round() - codes).abs().clamp(max=1)).to(torch.uint8)
        output = codes.mul_(scale)
        ctx.save_for_backward(steps, output, scale, inside)
        ctx.range = (low - 0.5, high + 0.5)
        ctx.grad_scale = grad_scale
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        steps, output, scale, inside = ctx.saved_tensors
        passed = torch.ops.aten.hardtanh_backward(grad, steps, *ctx.range) if inside is None else grad * inside
        images = -(-len(grad) // CLIP_GRADIENT_SHARE)
        within = (passed[:images] * steps[:images]).sum() * scale
        slope = (grad[:images] * output[:images]).sum() - within
        return passed, slope * (ctx.grad_scale * len(grad) / images), None, None, None


class ActivationQuantizer(nn.Module):
    """Fake-quantizes one activation tensor; one quantizer is one *site*, shared by every consumer of the tensor.

    Args:
        signed: whether the tensor can be negative; a never-negative site replaces the ReLU before it.
        setting: activation bits, or ``same`` to follow the weight bits (at least 2).
        trained_bits: the weight bit-widths that training visits; with ``same`` each has a clip of its own.
        ceiling: an upper bound of the tensor (6 for ReLU6), which the clip never exceeds.
    """

    def __init__(
        self, signed: bool, setting: int | str, trained_bits: tuple[int, ...], ceiling: float | None = None
    ) -> None:
        super().__init__()
        self.signed = signed
        self.setting = setting
        self.ceiling = ceiling
        self.widths = sorted({activation_bits(setting, bits) for bits in trained_bits})
        self.log_clip = nn.Parameter(torch.zeros(len(self.widths)))
        self.bits = FLOAT_BITS
        self.observing = False

    def code_range(self, weight_bits: int) -> CodeRange:
        """The codes of this site when the network runs at ``weight_bits``."""
        return code_range(activation_bits(self.setting, weight_bits), self.signed)

    def clips(self) -> dict[int, float]:
        """Trained clip per activation bit-width."""
        top = math.log(self.ceiling) if self.ceiling is not None else math.inf
        return {width: math.exp(min(log, top)) for width, log in zip(self.widths, self.log_clip.tolist(), strict=True)}

    def scale(self, weight_bits: int) -> float:
        """Value of one step at ``weight_bits``, as the float32 that is deployed."""
        clip = interpolate_clip(self.clips(), activation_bits(self.setting, weight_bits))
        return float(torch.tensor(clip / self.code_range(weight_bits).steps, dtype=torch.float32))

    def fix_clip(self, clip: float) -> None:
        """Sets the clip once and for all: the input image's range is known, not learned."""
        with torch.no_grad():
            self.log_clip.fill_(math.log(clip))
        self.log_clip.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the fake-quantized tensor, or the activation itself at 32 bits."""
        if self.bits == FLOAT_BITS:
            x = x if self.signed else F.relu(x)
            x = x if self.ceiling is None else x.clamp(max=self.ceiling)
            if self.observing and self.log_clip.requires_grad:
                self._observe(x)
            return x
        codes = self.code_range(self.bits)
        low, high = codes.low - codes.zero_point, codes.steps
        width = activation_bits(self.setting, self.bits)
        if width not in self.widths:
            scale = self.scale(self.bits)
            return (x / scale).round().clamp_(low, high).mul_(scale)
        index = self.widths.index(width)
        log_clip = self.log_clip[index : index + 1]
        if self.ceiling is not None:
            log_clip = log_clip.clamp(max=math.log(self.ceiling))
        return _FakeQuantize.apply(x, log_clip, low, high, 1 / math.sqrt(x.numel() * high))

    def _observe(self, x: Tensor) -> None:
        """Starts the clip at a high percentile of what the float network produces; narrower widths clip earlier."""
        values = x.detach().abs().reshape(-1)
        values = values[:: max(1, values.numel() // 100_000)]
        for index, width in enumerate(self.widths):
            quantile = {1: 0.95, 2: 0.95, 3: 0.98, 4: 0.99}.get(width, 0.999)
            clip = max(float(torch.quantile(values.float(), quantile)), 1e-3)
            with torch.no_grad():
                self.log_clip[index] = math.log(clip)
