"""Comparing two runs of one network: codes, steps, decisions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emqdeploy.format.grid import Codes, Floats
from emqdeploy.format.tasks import CLASSIFICATION
from emqdeploy.graph.reference import Followed, IntegerReference

SAFE_MARGIN = 0.01
"""Where the margin of a decision is at most this share of the range of all outputs, any rounding may turn it."""

FLOAT_ERROR = 2e-5
"""What float32 leaves open, as a share of the largest output: the sums of a few thousand products in another order."""

DEVIATIONS = 6
"""A decision compares two outputs; a difference of six times their root mean square error is no accident."""

NOISE = 0.1
"""Root mean square error of a runtime that rounds in its own way, as a share of that of its logits: 20 decibels."""

MOST_NOISE = 0.5
"""The same, at most, of a network that answers otherwise when few of its codes are rounded to a neighbour."""

ROUNDED = 1e-3
"""Share of codes that a runtime which rounds in its own way gives otherwise by one step."""

TIES = 0.01
"""Share of codes that may be rounded to a neighbour: sums in float turn few values that stand near a tie."""

DISAGREEMENT = 0.005
"""Share of images that may be decided differently though rounding does not explain that."""

ACCURACY_POINTS = 0.3
"""Percentage points by which its accuracy may differ; of fewer than 333 images, one image."""


@dataclass
class Parity:
    """How one run differs from the integer reference, over all images compared so far.

    Whether a flipped decision is safe depends on how far the outputs of this very run are off: two that are apart by
    more than `DEVIATIONS` of its root mean square error, and by more than `SAFE_MARGIN`, do not change places by
    rounding. That holds for logits, log-probabilities and squeezed probabilities alike. How far outputs may be off
    at all is the business of whoever judges: see `noise_share`.

    Attributes:
        images: images compared.
        codes: codes compared, over all quantized tensors.
        differing_codes: how many of them differ.
        max_step_error: the largest difference of a code.
        flips: images that are decided differently.
        max_logit_error: largest difference of a logit, as a share of the logit range.
        max_float_error: the same as a share of the largest logit's absolute value, which is what float rounds by.
        first_difference: the first quantized tensor, in order of computation, with a differing code.
        rounded: codes behind float operators, where the reference went on with the runtime's own.
        differing_rounded: how many of them the reference rounds to another code.
        max_rounded_step: the largest difference among them.
        signal: energy of the reference's logits, each image's mean taken off.
        noise: energy of the differences, likewise.
        logits: how many logits that are.
        max_explained: noise that rounding alone makes in this network, see `explain_noise`; 0 where nobody asked.
        float_logits: whether they come from a float operator, which no two runtimes compute to the same last bit.
    """

    images: int = 0
    codes: int = 0
    differing_codes: int = 0
    max_step_error: int = 0
    flips: int = 0
    max_logit_error: float = 0.0
    max_float_error: float = 0.0
    first_difference: str | None = None
    rounded: int = 0
    differing_rounded: int = 0
    max_rounded_step: int = 0
    signal: float = 0.0
    noise: float = 0.0
    logits: int = 0
    max_explained: float = 0.0
    float_logits: bool = False
    _margins: list[float] = field(default_factory=list)
    """Of the flips, in units of a logit; 0 where it is at most `SAFE_MARGIN`."""

    def add(
        self,
        reference: tuple[Floats, Mapping[str, Codes]],
        other: tuple[Floats, Mapping[str, Codes]],
    ) -> None:
        """Adds a batch: logits ``(N, classes)`` and codes by tensor name, in order of computation."""
        expected, actual = reference[0], other[0]
        spread = max(float(np.ptp(expected)), 1e-12)
        flipped = CLASSIFICATION.decide(expected) != CLASSIFICATION.decide(actual)
        margins = CLASSIFICATION.margin(expected)[flipped]
        self.images += len(expected)
        self.flips += int(flipped.sum())
        self._margins += [float(margin) * spread if margin > SAFE_MARGIN else 0.0 for margin in margins]
        error = expected.astype(np.float64) - actual
        worst = float(np.abs(error).max()) if np.isfinite(error).all() else math.inf
        self.max_logit_error = max(self.max_logit_error, worst / spread)
        self.max_float_error = max(self.max_float_error, worst / max(float(np.abs(expected).max()), 1e-12))
        self.signal += energy_of(expected)
        self.noise += energy_of(error)
        self.logits += expected.size
        for name, codes in reference[1].items():
            differing, step = _difference(codes, other[1][name])
            self.codes += codes.size
            self.differing_codes += differing
            self.max_step_error = max(self.max_step_error, step)
            if differing and self.first_difference is None:
                self.first_difference = name

    def merge(self, other: Parity) -> None:
        """Adds another comparison, of other images or another child."""
        for part in fields(self):
            mine, theirs = getattr(self, part.name), getattr(other, part.name)
            if part.name.startswith("max_") or isinstance(mine, bool):
                setattr(self, part.name, max(mine, theirs))
            elif part.name != "first_difference":
                setattr(self, part.name, mine + theirs)
        self.first_difference = self.first_difference or other.first_difference

    def add_followed(self, followed: Followed, other: tuple[Floats, Mapping[str, Any]]) -> None:
        """Adds a batch on which the reference followed the runtime: integer kernels, and apart from them roundings.

        What a runtime does not show is not compared.
        """
        self.add((followed.logits, {name: followed.exact[name] for name in followed.exact if name in other[1]}), other)
        for name, codes in followed.rounded.items():
            if name not in other[1]:
                continue
            differing, step = _difference(codes, other[1][name])
            self.rounded += codes.size
            self.differing_rounded += differing
            self.max_rounded_step = max(self.max_rounded_step, step)

    @property
    def top1_agreement(self) -> float:
        """Share of images with the same decision."""
        return 1 - self.flips / max(self.images, 1)

    @property
    def unsafe_flips(self) -> int:
        """Flips that the rounding of this run does not explain."""
        explained = DEVIATIONS * math.sqrt(self.noise / max(self.logits, 1))
        return sum(margin > explained for margin in self._margins)

    @property
    def noise_share(self) -> float:
        """Root mean square of the differences as a share of that of the logits; 0 where float rounds no better."""
        if self.max_float_error <= FLOAT_ERROR:
            return 0.0
        return math.sqrt(self.noise / self.signal) if self.signal else math.inf

    @property
    def rounded_share(self) -> float:
        """Share of the codes, behind float operators and elsewhere, that the reference rounds to another."""
        return (self.differing_codes + self.differing_rounded) / max(self.codes + self.rounded, 1)

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
        known = {name: value for name, value in asdict(self).items() if not name.startswith("_")}
        more = ("top1_agreement", "max_output_steps", "unsafe_flips", "noise_share")
        return known | {name: getattr(self, name) for name in more}


Judge = Callable[[Parity, float | None], str | None]
"""Returns what is wrong with a comparison, or None; also given how many points the accuracy differs, where known."""


def must_be_exact(parity: Parity, accuracy_points: float | None) -> str | None:
    """An integer runtime gives the reference's codes and logits, all of them; only float operators round."""
    if parity.differing_codes:
        return f"{parity.differing_codes} of {parity.codes} codes differ"
    if parity.max_rounded_step > 1:
        return f"codes behind float operators differ by up to {parity.max_rounded_step} steps, more than a rounding"
    right = parity.max_float_error <= FLOAT_ERROR if parity.float_logits else not parity.max_logit_error
    return None if right else f"logits differ by {100 * parity.max_logit_error:.2g} %"


def may_round(parity: Parity, accuracy_points: float | None) -> str | None:
    """Float sums round a value near a tie the other way: some codes differ by one step, logits as elsewhere."""
    steps = max(parity.max_step_error, parity.max_rounded_step)
    if steps > 1:
        return f"codes differ by up to {steps} steps, more than a rounding"
    if parity.rounded_share > TIES:
        return f"{100 * parity.rounded_share:.2g} % of the codes differ, more than stand near a tie"
    return must_agree(parity, accuracy_points)


def must_agree(parity: Parity, accuracy_points: float | None) -> str | None:
    """A runtime that rounds in its own way is near the reference, and decides as it does wherever that is clear.

    But for one image, or a few in a thousand; see `Parity` for what is clear.
    """
    limit = min(max(NOISE, 2 * parity.max_explained), MOST_NOISE)
    if parity.noise_share > limit:
        found, most = 100 * parity.noise_share, 100 * limit
        return f"logits are off by {found:.3g} % of their spread, rounding explains {most:.0f} %"
    if parity.unsafe_flips > max(1, DISAGREEMENT * parity.images):
        return f"{parity.unsafe_flips} of {parity.images} images change their class, and rounding does not explain it"
    allowed = max(ACCURACY_POINTS, 100 / max(parity.images, 1))
    if parity.unsafe_flips and accuracy_points is not None and abs(accuracy_points) > allowed:
        return f"accuracy differs by {accuracy_points:+.2f} points"
    return None


def explain_noise(parity: Parity, reference: IntegerReference, images: Floats, expected: Floats) -> None:
    """Where logits are off by more than `NOISE`, finds out what rounding alone does to this network's.

    Some networks, above all those that nobody trained, make much of little: a few codes beside a tie, and their logits
    are others. Then that is the measure, up to `MOST_NOISE`: no wrong operator stays below it.

    Args:
        parity: of these images; takes what is found.
        reference: runs once more, with `ROUNDED` of its codes moved by one step.
        images: normalised, ``(N, C, H, W)``.
        expected: the reference's logits for them.
    """
    if parity.noise_share > NOISE:
        moved = Parity()
        moved.add((expected, {}), (reference.disturbed(images, ROUNDED), {}))
        parity.max_explained = moved.noise_share


def energy_of(values: NDArray[Any]) -> float:
    """Of ``(N, ...)``, each image's mean taken off: a constant on every logit decides nothing."""
    rows = values.reshape(len(values), -1).astype(np.float64)
    with np.errstate(invalid="ignore"):
        energy = float(np.square(rows - rows.mean(1, keepdims=True)).sum())
    return energy if math.isfinite(energy) else math.inf


def _difference(expected: NDArray[Any], actual: NDArray[Any]) -> tuple[int, int]:
    """How many values differ, and by how many steps at most; float answers have no steps, they differ or do not."""
    actual = actual.reshape(expected.shape)
    if expected.dtype != np.uint8:
        return int(np.count_nonzero(expected != actual)), 0
    steps = np.abs(expected.astype(np.int16) - actual.astype(np.int16))
    return int(np.count_nonzero(steps)), int(steps.max(initial=0))
