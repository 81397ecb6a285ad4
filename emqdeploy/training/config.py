"""Everything that decides a training run, checked in one place."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from emqdeploy.bits import check_bits
from emqdeploy.errors import UsageError
from emqdeploy.quant.activations import FLOAT_BITS
from emqdeploy.quant.insertion import InsertionConfig
from emqdeploy.quant.weights import WeightConfig
from emqdeploy.training.augment import AUGMENTATIONS
from emqdeploy.training.coreset import SELECTIONS
from emqdeploy.training.norms import NORM_ADAPTATIONS
from emqdeploy.training.scores import SCORES


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        model: name of a model.
        data: name of a data set.
        data_dir: where its files lie; None looks in the usual places.
        image_size: height and width that an image folder is resized to.
        limit: at most this many training images, for quick trials; None takes all.
        bits: weight bit-widths to train; 32 alone trains the float network that the others are compared with.
        activation_bits: 2..8, or ``same`` to follow the weight bits.
        epochs: passes over each bit-width's subset.
        batch_size: images in a step.
        learning_rate: peak of the schedule (linear warm-up, then cosine to zero).
        momentum: of SGD (Nesterov).
        weight_decay: on weights of layers only.
        prune_rate: share of the training images that each bit-width leaves out after the score phase.
        score: importance score that picks the rest.
        selection: how the score picks: ``top`` or ``sampled``.
        score_epochs: epochs on all images in which the score is recorded; None takes a tenth, at least 2.
        augment: augmentation; None takes the data set's own.
        norm_adaptation: statistics after training: per bit-width (``bits``), over the mixture (``shared``) or ``none``.
        partition: weight partition, ``floor`` or ``dorefa``.
        correction: weight bias correction, ``exact``, ``banner`` or ``none``.
        correction_group: its statistics per ``channel`` or per ``layer``.
        correction_reference: what it restores, ``w`` or ``tanh``.
        detach_norm: whether its norm ratio is constant for the gradient.
        keep_8bit: layers that stay at 8 bits.
        small_groups: depthwise layers: ``pin`` at 8 bits or ``layer`` statistics.
        compile: whether `torch.compile` compiles each bit-width's step.
        threads: of torch on the CPU; None takes one for images of at most 16 pixels, where a second one only gets in
            the way, else every core.
        seed: fixes initial weights, batches, augmentation and coresets.
    """

    model: str = "resnet8"
    data: str = "digits"
    data_dir: str | None = None
    image_size: int | None = None
    limit: int | None = None
    bits: tuple[int, ...] = (1, 2, 4, 8)
    activation_bits: int | str = 8
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    prune_rate: float = 0.0
    score: str = "el2n"
    selection: str = "sampled"
    score_epochs: int | None = None
    augment: str | None = None
    norm_adaptation: str = "bits"
    partition: str = "floor"
    correction: str = "exact"
    correction_group: str = "channel"
    correction_reference: str = "w"
    detach_norm: bool = False
    keep_8bit: tuple[str, ...] = ("first", "last")
    small_groups: str = "pin"
    compile: bool = False
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks every value; the message names the command-line flag."""
        if self.bits != (FLOAT_BITS,):
            check_bits(self.bits)
        if self.activation_bits != "same" and self.activation_bits not in range(2, 9):
            raise UsageError(
                f"--act-bits is {self.activation_bits}; allowed: 2..8, or 'same' to follow the weight bits"
            )
        if not 0 <= self.prune_rate < 1:
            raise UsageError(f"--prune-rate is {self.prune_rate}; allowed: 0 (keep all) up to, not including, 1")
        for flag, value, least in (
            ("--epochs", self.epochs, 1),
            ("--batch-size", self.batch_size, 2),
            ("--limit", self.limit, 1),
            ("--score-epochs", self.score_epochs, 1),
            ("--threads", self.threads, 1),
        ):
            if value is not None and value < least:
                raise UsageError(f"{flag} is {value}; it must be at least {least}")
        if not self.learning_rate > 0:
            raise UsageError(f"--lr is {self.learning_rate}; it must be positive")
        if self.small_groups not in ("pin", "layer"):
            raise UsageError(f"unknown small_groups {self.small_groups!r}; allowed: pin, layer")
        # Looking a name up raises the sentence that lists the known ones.
        SCORES[self.score]
        SELECTIONS[self.selection]
        NORM_ADAPTATIONS[self.norm_adaptation]
        if self.augment is not None:
            AUGMENTATIONS[self.augment]
        self.insertion()

    @property
    def full_epochs(self) -> int:
        """Epochs on all images: the score phase, or every epoch where nothing is pruned."""
        if self.prune_rate == 0:
            return self.epochs
        wanted = max(2, self.epochs // 10) if self.score_epochs is None else self.score_epochs
        return min(wanted, self.epochs)

    def insertion(self) -> InsertionConfig:
        """The quantizers that this run inserts."""
        weights = WeightConfig(
            self.partition, self.correction, self.correction_group, self.correction_reference, self.detach_norm
        )
        return InsertionConfig(weights, self.activation_bits, self.keep_8bit, self.small_groups)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The inverse of `to_dict`, also after a round trip through JSON."""
        tuples: dict[str, Any] = {key: tuple(values[key]) for key in ("bits", "keep_8bit") if key in values}
        return cls(**(values | tuples))
