"""Activation fake quantization: uniform codes with learned clips, per tensor and activation width or trained child."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emqdeploy.format.child import FLOAT, FLOAT_BITS, Child
from emqdeploy.format.grid import CodeRange, code_range
from emqdeploy.format.levels import HALF, Levels
from emqdeploy.quant.readers import Readers

CLIP_GRADIENT_SHARE = 8
"""The gradient of a clip, one number, is estimated on an eighth of the batch: thousands of values are plenty for it."""

CLIP_GRADIENT_BATCH = 64
"""The batch for which a clip's gradient is scaled by one over the root of all its values times the largest code.

LSQ counts the values of a tensor (section 2.2 of the paper); implementations count those of the whole batch. But the
gradient of a mean loss does not grow with the batch, so a batch in parts, of several processes or ghost batches, would
have clips learn faster by the root of their number. Counted per image, times the default batch, it is one step for all.
"""

QUANTILES = {2: 0.95, 3: 0.98, 4: 0.99}
"""Where clips start, by activation width: narrower widths clip earlier; wider ones start at the 99.9th percentile."""


class _FakeQuantize(torch.autograd.Function):
    """``s clamp(round(x / s), low, high)`` with the LSQ gradient (arXiv 1902.08153) for the logarithm of the clip.

    With ``s = clip / high`` the derivative by ``log clip`` is ``sum(g y) - sum(g x [inside])``, where inside means that
    the rounded value is in range. A bfloat16 tensor stays one, or all that reads it would compute in float32.

    Sums of products rather than dot products, because flattening would make a compiled step, whose tensors are
    channels-last, transpose them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, log_clips: Tensor, index: int, low: int, high: int, grad_scale: float) -> Tensor:
        scale = log_clips[index].exp() / high
        quantize = in_one_kernel if x.is_cuda and not torch.compiler.is_compiling() else element_by_element
        output, steps, inside = quantize(x, scale, low, high)
        ctx.save_for_backward(steps, output, scale, inside)
        ctx.range = (low - 0.5, high + 0.5)
        ctx.grad_scale = grad_scale
        ctx.place = (index, len(log_clips) - 1 - index)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        steps, output, scale, inside = ctx.saved_tensors
        passed = torch.ops.aten.hardtanh_backward(grad, steps, *ctx.range) if inside is None else grad * inside
        images = _estimating(grad)
        within = (passed[:images] * steps[:images]).sum(dtype=scale.dtype) * scale
        slope = (grad[:images] * output[:images]).sum(dtype=scale.dtype) - within
        slope = (slope * (ctx.grad_scale * len(grad) / images)).reshape(1)
        return passed, F.pad(slope, ctx.place), None, None, None, None


def _estimating(x: Tensor) -> int:
    """How many images of a batch tell the gradient of the clip."""
    return -(-len(x) // CLIP_GRADIENT_SHARE)


Quantized = tuple[Tensor, Tensor, Tensor | None]
"""The fake-quantized tensor; ``x / s``, perhaps of the first images alone; and where it is inside, if that is known."""


def element_by_element(x: Tensor, scale: Tensor, low: int, high: int) -> Quantized:
    """Quantizes by plain operators: torch's own fused one is far slower on the CPU, and a compiler fuses these.

    A scale ``()`` without dimensions leaves the type of what it multiplies alone, and is itself not rounded to it.
    """
    steps = x * scale.reciprocal()
    codes = steps.round().clamp_(low, high)
    inside = None
    if torch.compiler.is_compiling():
        # A compiled step on the CPU stores and loads booleans one by one, forty times slower than bytes that come from
        # arithmetic; and bytes are all that it has to keep for the backward pass.
        inside = (1 - (steps.round() - codes).abs().clamp(max=1)).to(torch.uint8)
    return codes.mul_(scale), steps, inside


def in_one_kernel(x: Tensor, scale: Tensor, low: int, high: int) -> Quantized:
    """Quantizes by torch's fused operator, which computes in float32: on a GPU, where every kernel is a launch."""
    scale = scale.reshape(1)
    zero, on = _constants(x.device)
    quantize = torch._fake_quantize_per_tensor_affine_cachemask_tensor_qparams
    output, inside = quantize(x, scale, zero, on, low, high)
    return output, x[: _estimating(x)] / scale, inside


@cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """The zero point and the switch that torch's fused operator wants as tensors."""
    return torch.zeros(1, dtype=torch.int32, device=device), torch.ones(1, dtype=torch.int64, device=device)


class ActivationQuantizer(nn.Module):
    """Fake-quantizes one activation tensor; one quantizer is one *site*, shared by every consumer of the tensor.

    Args:
        signed: whether the tensor can be negative; a never-negative site replaces the ReLU before it.
        readers: the layers whose activation widths decide that of the tensor.
        trained: the children that training visits.
        ceiling: an upper bound of the tensor (6 for ReLU6), which the clip never exceeds.
        shares: whether children of one activation width learn one clip together; else each trained child has its own.
        levels: those of the network.

    Attributes:
        log_clip: logarithm of each clip, ``(widths,)`` or ``(children,)``.
        fixed: whether the clip is known and not learned: that of the input image.
        zero_point: the code of zero where it is not in the middle: of signed tensors at full levels, once calibrated.
    """

    def __init__(
        self,
        signed: bool,
        readers: Readers,
        trained: Sequence[Child],
        ceiling: float | None = None,
        shares: bool = True,
        levels: Levels = HALF,
    ) -> None:
        super().__init__()
        self.signed = signed
        self.readers = readers
        self.ceiling = ceiling
        self.trained = tuple(child for child in trained if child != FLOAT)
        self.shares = shares
        self.levels = levels
        self._keys = tuple(dict.fromkeys(self._key(child) for child in self.trained))
        self.log_clip = nn.Parameter(torch.zeros(len(self._keys)))
        self.fixed = False
        self.zero_point: int | None = None
        self.observing = False
        self.use(FLOAT)

    def use(self, child: Child) -> None:
        """Sets the child of the next forward passes."""
        self._bits = FLOAT_BITS if child == FLOAT else self.bits_of(child)
        self._index = -1 if child == FLOAT else self._place(child)
        self._borrowed = self.scale(child) if self._index < 0 and child != FLOAT else 0.0

    def redefine(self, old: Child, new: Child) -> None:
        """Lets a child have other widths from now on; its clip goes with it, unless others learn that one too."""
        others = {self._key(child) for child in self.trained if child != old}
        if old in self.trained and self._key(old) not in others:
            self._keys = tuple(self._key(new) if key == self._key(old) else key for key in self._keys)
        self.trained = tuple(new if child == old else child for child in self.trained)

    def _key(self, child: Child) -> int | Child:
        """What has a clip: the activation width, or the child."""
        return self.bits_of(child) if self.shares else child

    def _place(self, child: Child) -> int:
        """Where a child's clip is; -1 where it has none."""
        key = self._key(child)
        return self._keys.index(key) if key in self._keys else -1

    def bits_of(self, child: Child) -> int:
        """Activation bits of the tensor at a child."""
        return self.readers.width(child)

    def code_range(self, child: Child) -> CodeRange:
        """The codes of the tensor at a child."""
        return self._codes(self.bits_of(child))

    def _codes(self, bits: int) -> CodeRange:
        return code_range(bits, self.signed, self.levels, self.zero_point)

    def clips(self) -> dict[Child, float]:
        """Learned clip per trained child."""
        top = math.log(self.ceiling) if self.ceiling is not None else math.inf
        logs = self.log_clip.tolist()
        return {child: math.exp(min(logs[self._place(child)], top)) for child in self.trained}

    def scale(self, child: Child) -> float:
        """Value of one step at a child, as the float32 that is deployed."""
        return float(torch.tensor(self._clip(child) / self.code_range(child).steps, dtype=torch.float32))

    def _clip(self, child: Child) -> float:
        """The learned clip, or one log-linear between trained children: those with this activation width, else all."""
        clips = self.clips()
        if child in clips:
            return clips[child]
        bits = self.bits_of(child)
        alike = [other for other in clips if self.bits_of(other) == bits]
        if alike and self.shares:
            return clips[alike[0]]
        if alike:
            place, points = child.bits, [(other.bits, math.log(clips[other])) for other in alike]
        else:
            place, points = bits, [(self.bits_of(other), math.log(clip)) for other, clip in clips.items()]
        marks = sorted({mark for mark, _ in points})
        means = [np.mean([log for mark, log in points if mark == one]) for one in marks]
        return float(np.exp(np.interp(place, marks, means)))

    def set_clip(self, child: Child, clip: float) -> None:
        """Sets the clip of a trained child."""
        with torch.no_grad():
            self.log_clip[self._place(child)] = math.log(clip)

    def fix_clip(self, clip: float) -> None:
        """Sets the clip of every child once and for all: the input image's range is known, not learned."""
        with torch.no_grad():
            self.log_clip.fill_(math.log(clip))
        self.log_clip.requires_grad_(False)
        self.fixed = True

    def forward(self, x: Tensor) -> Tensor:
        """Returns the fake-quantized tensor, or the activation itself in float."""
        if self._bits == FLOAT_BITS:
            x = x if self.signed else F.relu(x)
            x = x if self.ceiling is None else x.clamp(max=self.ceiling)
            if self.observing and not self.fixed:
                self._observe(x)
            return x
        codes = self._codes(self._bits)
        low, high = codes.low - codes.zero_point, codes.steps
        if self._index < 0:
            deployed = (x / self._borrowed).round().clamp_(low, high).mul_(self._borrowed)
            if not self.training:
                return deployed
            # A borrowed clip does not learn, but what lies before it does: gradients pass where nothing is cut.
            passed = x.clamp(low * self._borrowed, high * self._borrowed)
            return passed + (deployed - passed).detach()
        log_clips = self.log_clip if self.ceiling is None else self.log_clip.clamp(max=math.log(self.ceiling))
        grad_scale = 1 / math.sqrt(CLIP_GRADIENT_BATCH * math.prod(x.shape[1:]) * high)
        output: Tensor = _FakeQuantize.apply(x, log_clips, self._index, low, high, grad_scale)
        return output

    def _observe(self, x: Tensor) -> None:
        """Starts the clips at a high percentile of what the float network produces."""
        values = x.detach().abs().reshape(-1)
        values = values[:: max(1, values.numel() // 100_000)].float()
        widths = {child: self.bits_of(child) for child in self.trained}
        starts = {
            bits: max(float(torch.quantile(values, QUANTILES.get(bits, 0.999))), 1e-3) for bits in set(widths.values())
        }
        for child, bits in widths.items():
            self.set_clip(child, starts[bits])
