"""Comparing two runs of one network: codes, steps, decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emqdeploy.format.grid import Codes, Floats
from emqdeploy.format.tasks import CLASSIFICATION
from emqdeploy.graph.reference import Followed

SAFE_MARGIN = 0.01
"""A decision may flip between runs that differ in rounding only where its margin is at most this."""


@dataclass
class Parity:
    """How one run differs from the integer reference, over all images compared so far.

    Attributes:
        images: images compared.
        codes: codes compared, over all quantized tensors.
        differing_codes: how many of them differ.
        max_step_error: the largest difference of a code.
        flips: images that are decided differently.
        unsafe_flips: those among them whose margin exceeds `SAFE_MARGIN`.
        max_logit_error: largest difference of a logit, as a share of the logit range.
        first_difference: the first quantized tensor, in order of computation, with a differing code.
        rounded: codes behind float operators, where the reference went on with the runtime's own.
        differing_rounded: how many of them the reference rounds to another code.
        max_rounded_step: the largest difference among them.
    """

    images: int = 0
    codes: int = 0
    differing_codes: int = 0
    max_step_error: int = 0
    flips: int = 0
    unsafe_flips: int = 0
    max_logit_error: float = 0.0
    first_difference: str | None = None
    rounded: int = 0
    differing_rounded: int = 0
    max_rounded_step: int = 0

    def add(
        self,
        reference: tuple[Floats, Mapping[str, Codes]],
        other: tuple[Floats, Mapping[str, Codes]],
    ) -> None:
        """Adds a batch: logits ``(N, classes)`` and codes by tensor name, in order of computation."""
        expected, actual = reference[0], other[0]
        spread = max(float(np.ptp(expected)), 1e-12)
        flipped = CLASSIFICATION.decide(expected) != CLASSIFICATION.decide(actual)
        self.images += len(expected)
        self.flips += int(flipped.sum())
        self.unsafe_flips += int((flipped & (CLASSIFICATION.margin(expected) > SAFE_MARGIN)).sum())
        self.max_logit_error = max(self.max_logit_error, float(np.abs(expected - actual).max()) / spread)
        for name, codes in reference[1].items():
            differing, step = _difference(codes, other[1][name])
            self.codes += codes.size
            self.differing_codes += differing
            self.max_step_error = max(self.max_step_error, step)
            if differing and self.first_difference is None:
                self.first_difference = name

    def merge(self, other: Parity) -> None:
        """Adds another comparison, of other images or another child."""
        for name in ("images", "codes", "differing_codes", "flips", "unsafe_flips", "rounded", "differing_rounded"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.max_step_error = max(self.max_step_error, other.max_step_error)
        self.max_rounded_step = max(self.max_rounded_step, other.max_rounded_step)
        self.max_logit_error = max(self.max_logit_error, other.max_logit_error)
        self.first_difference = self.first_difference or other.first_difference

    def add_followed(self, followed: Followed, other: tuple[Floats, Mapping[str, Any]]) -> None:
        """Adds a batch on which the reference followed the runtime: integer kernels, and apart from them roundings."""
        self.add((followed.logits, followed.exact), other)
        for name, codes in followed.rounded.items():
            differing, step = _difference(codes, other[1][name])
            self.rounded += codes.size
            self.differing_rounded += differing
            self.max_rounded_step = max(self.max_rounded_step, step)

    @property
    def top1_agreement(self) -> float:
        """Share of images with the same decision."""
        return 1 - self.flips / max(self.images, 1)

    @property
    def exact(self) -> bool:
        """No code and no decision differs; behind float operators, no code by more than a rounding."""
        return self.differing_codes == 0 and self.flips == 0 and self.max_rounded_step <= 1

    @property
    def max_output_steps(self) -> float:
        """The largest difference of a logit in steps of an 8-bit output, which cuts the logit range into 255."""
        return 255 * self.max_logit_error

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return {"top1_agreement": self.top1_agreement, "max_output_steps": self.max_output_steps, **asdict(self)}


def _difference(expected: NDArray[Any], actual: NDArray[Any]) -> tuple[int, int]:
    """How many values differ, and by how many steps at most; float answers have no steps, they differ or do not."""
    actual = actual.reshape(expected.shape)
    if expected.dtype != np.uint8:
        return int(np.count_nonzero(expected != actual)), 0
    steps = np.abs(expected.astype(np.int16) - actual.astype(np.int16))
    return int(np.count_nonzero(steps)), int(steps.max(initial=0))
