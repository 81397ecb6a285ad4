"""Everything that decides a training run: one flat set of options, checked in one place.

The command line is made from the fields below, so this module imports nothing heavy; what a name stands for is looked
up when a configuration is made.
"""

from __future__ import annotations

import types
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, get_type_hints

from emqdeploy.errors import UsageError

if TYPE_CHECKING:
    from emqdeploy.quant.insertion import InsertionConfig

FLOAT_NETWORK = (32,)
"""Bit-widths of a run that trains the float network, which the others are compared with."""

WHAT, SCHEDULE, CORESETS = "What to train", "Schedule", "Coresets"
NORMS, QUANTIZATION, SPEED, RUN = "Normalization", "Quantization", "Speed", "Run"


def option(default: Any, panel: str, text: str, flag: str | None = None) -> Any:
    """A field that is also a command-line option.

    Args:
        default: its value where neither recipe, file nor flag sets it.
        panel: heading in the help.
        text: what the help says.
        flag: its flag where it is not the field's name.
    """
    return field(default=default, metadata={"panel": panel, "help": text, "flag": flag})


@dataclass(frozen=True)
class TrainConfig:
    """One training run; ``emqdeploy train --help`` and docs/training.md describe the fields."""

    model: str = option(
        "resnet8",
        WHAT,
        "resnet8, resnet20, preact-resnet20, vit-micro, resnet18, mobilenet_v2, vit_b_16, ..., timm/NAME, or your"
        " own pkg.module:function.",
    )
    data: str = option("digits", WHAT, "digits, fashion-mnist, cifar10, cifar100, ... or imagefolder:PATH.")
    data_dir: str | None = option(None, WHAT, "Where the data set's files lie.")
    image_size: int | None = option(None, WHAT, "Height and width for an image folder.")
    limit: int | None = option(None, WHAT, "At most this many training images, for a quick trial.")
    pretrained: str | None = option(None, WHAT, "Start from these float weights (.safetensors, .pt, .pth).")
    bits: tuple[int, ...] = option((1, 2, 4, 8), WHAT, "Weight bit-widths to train; those between come for free.")
    activation_bits: int | str = option(
        8, WHAT, "Activation bits 2..8, or 'same' to follow the weights.", flag="act-bits"
    )

    epochs: int = option(20, SCHEDULE, "Passes of every bit-width over its images.")
    batch_size: int = option(64, SCHEDULE, "Images in a step.")
    learning_rate: float = option(0.1, SCHEDULE, "Peak learning rate.", flag="lr")
    schedule: str = option("cosine", SCHEDULE, "Learning rate over the run: cosine, step or constant.")
    optimizer: str = option("sgd", SCHEDULE, "sgd (Nesterov), adam or adamw.")
    momentum: float = option(0.9, SCHEDULE, "Momentum of sgd.")
    weight_decay: float = option(5e-4, SCHEDULE, "Weight decay of layers.")
    augment: str | None = option(None, SCHEDULE, "Augmentation by name; the data set's own by default.")
    step_plan: str = option(
        "interleaved", SCHEDULE, "Order of updates: interleaved, joint, sequential, sandwich, progressive, mixed."
    )
    distill: str = option("none", SCHEDULE, "What children learn from one another: none, soft, recursive or cached.")
    distill_weight: float = option(1.0, SCHEDULE, "Share of the other child's opinion in the target, 0 to 1.")
    separate: bool = option(False, SCHEDULE, "Train a network of its own for every bit-width.")
    validate_every: int | None = option(
        None, SCHEDULE, "Epochs between validations; by default as often as a full epoch over all images."
    )

    prune_rate: float = option(0.0, CORESETS, "Share of the images that each bit-width leaves out, 0 to below 1.")
    score: str = option("el2n", CORESETS, "random, entropy, forgetting, el2n, grand, moderate or tdds.")
    selection: str = option("sampled", CORESETS, "How the score picks: sampled (in proportion), top, balanced, middle.")
    sharing: str = option(
        "bits", CORESETS, "Scores and subsets per bit-width (bits), shared scores (scores), one subset for all (all)."
    )
    score_epochs: int | None = option(
        None, CORESETS, "Epochs on all images that record the score; a sixteenth of all by default."
    )
    score_plan: str | None = option(
        None, CORESETS, "Step plan of the score phase: bit-wise (interleaved), batch-wise (joint), rotating."
    )
    resample_every: int = option(0, CORESETS, "Epochs between choosing anew; 0 keeps the first choice.")
    resample_from: str = option(
        "record", CORESETS, "What choosing anew goes by: the record that training keeps, or a forward-only probe."
    )
    unbiased: bool = option(False, CORESETS, "Weigh losses so that the gradient is that of all images (sampled only).")
    scores_from: str | None = option(None, CORESETS, "Take the scores of this run instead of a score phase.")

    norm: str = option(
        "shared-affine",
        NORMS,
        "Shared by the bit-widths: shared, shared-affine (own statistics), private, transitional.",
    )
    norm_adaptation: str = option(
        "bits", NORMS, "Statistics after training: bits (per bit-width), shared (mixture) or none.", flag="adapt-norm"
    )
    calibrate_epochs: int = option(0, NORMS, "Epochs that train the private norms of unseen bit-widths, afterwards.")

    partition: str = option("floor", QUANTIZATION, "floor (nested codes) or dorefa (baseline).")
    correction: str = option("exact", QUANTIZATION, "Weight bias correction: exact, banner, sat or none.")
    correction_group: str = option("channel", QUANTIZATION, "Its statistics per channel or per layer.")
    correction_reference: str = option("w", QUANTIZATION, "What it restores: w or tanh.")
    detach_norm: bool = option(False, QUANTIZATION, "Treat its norm ratio as constant in the gradient.")
    keep_8bit: tuple[str, ...] = option(
        ("first", "last"), QUANTIZATION, "Layers that stay at 8 bits: first, last, names from `inspect`, or none."
    )
    keep_float: tuple[str, ...] = option(
        (), QUANTIZATION, "Layers, or modules around them, that are not quantized at all."
    )
    small_groups: str = option("pin", QUANTIZATION, "Depthwise layers: pin (8 bits) or layer (shared statistics).")

    device: str = option("auto", SPEED, "auto, cpu or cuda.")
    compile: bool = option(False, SPEED, "Compile each bit-width's step.")
    amp: str = option("none", SPEED, "Mixed precision of the float arithmetic: none or bf16.")
    channels_last: bool = option(False, SPEED, "Store images channels last; faster on GPUs.")
    ghost_batches: int = option(
        1, SPEED, "Parts in which a batch is normalized; at least one per process, and a multiple of them."
    )
    sync_norm: bool = option(
        False, SPEED, "Several processes normalize a batch together, by the statistics of all of it."
    )
    accumulate: int = option(1, SPEED, "Steps whose gradients are averaged into one update.")
    threads: int | None = option(
        None, SPEED, "torch's threads on the CPU; by default one for images of at most 16 pixels, else every core."
    )
    workers: int | None = option(None, SPEED, "Processes that decode image files; one per core by default.")

    save_every: int = option(300, RUN, "Seconds between saves within an epoch; every epoch is saved anyway.")
    tensorboard: bool = option(False, RUN, "Also write TensorBoard scalars.")
    seed: int = option(0, RUN, "Fixes weights, batches, augmentation and coresets.")

    def __post_init__(self) -> None:
        """Checks every value; the message names the command-line flag."""
        self._check_numbers()
        self._check_names()
        self._check_together()

    def _check_numbers(self) -> None:
        from emqdeploy.bits import check_bits

        if self.bits != FLOAT_NETWORK:
            check_bits(self.bits)
        if self.activation_bits != "same" and self.activation_bits not in range(2, 9):
            raise UsageError(
                f"--act-bits is {self.activation_bits}; allowed: 2..8, or 'same' to follow the weight bits"
            )
        if not 0 <= self.prune_rate < 1:
            raise UsageError(f"--prune-rate is {self.prune_rate}; allowed: 0 (keep all) up to, not including, 1")
        if not 0 <= self.distill_weight <= 1:
            raise UsageError(f"--distill-weight is {self.distill_weight}; allowed: 0 to 1")
        least = {
            **dict.fromkeys(
                ("epochs", "limit", "score_epochs", "threads", "accumulate", "validate_every", "ghost_batches"), 1
            ),
            **dict.fromkeys(("resample_every", "calibrate_epochs", "workers", "save_every"), 0),
            "batch_size": 2,
        }
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be at least {smallest}")
        if not self.learning_rate > 0:
            raise UsageError(f"--lr is {self.learning_rate}; it must be positive")

    def _check_names(self) -> None:
        from emqdeploy.training import registries

        for name, known in registries.by_field().items():
            value = getattr(self, name)
            if value is not None:
                known[value]  # looking a name up raises the sentence that lists the known ones
        for name, allowed in (("device", ("auto", "cpu", "cuda")), ("amp", ("none", "bf16"))):
            if getattr(self, name) not in allowed:
                raise UsageError(f"--{name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        self.insertion()

    def _check_together(self) -> None:
        """Options that make sense only with, or only without, one another."""
        from emqdeploy.training.coreset import SHARINGS
        from emqdeploy.training.steps import STEP_PLANS
        from emqdeploy.training.targets import TARGETS

        one_batch = STEP_PLANS[self.step_plan].one_batch
        if self.prune_rate > 0 and one_batch and not SHARINGS[self.sharing].subset:
            raise UsageError(
                f"--step-plan {self.step_plan} gives all bit-widths the same batches, so they cannot have coresets of"
                " their own; add --sharing all, or use --step-plan interleaved"
            )
        if TARGETS[self.distill].needs_one_batch and not one_batch:
            raise UsageError(
                f"--distill {self.distill} needs all bit-widths on the same batch, which --step-plan {self.step_plan}"
                " does not give; use --step-plan joint or sequential, or --distill cached"
            )
        if self.unbiased and self.selection != "sampled":
            raise UsageError(f"--unbiased needs odds, which --selection {self.selection} has not; use sampled")
        if self.calibrate_epochs and self.norm != "private":
            raise UsageError(f"--calibrate-epochs trains private norms; --norm is {self.norm}, use private")
        for given, other in ((self.ghost_batches > 1, "--ghost-batches"), (self.compile, "--compile")):
            if self.sync_norm and given:
                raise UsageError(f"--sync-norm does not go together with {other}; leave one of them out")

    @property
    def full_epochs(self) -> int:
        """Epochs on all images: the score phase, or every epoch where nothing is pruned."""
        if self.prune_rate == 0:
            return self.epochs
        if self.scores_from is not None:
            return 0
        wanted = max(1, self.epochs // 16) if self.score_epochs is None else self.score_epochs
        return min(wanted, self.epochs)

    def insertion(self) -> InsertionConfig:
        """The quantizers that this run inserts."""
        from emqdeploy.quant.insertion import InsertionConfig
        from emqdeploy.quant.weights import WeightConfig

        if self.small_groups not in ("pin", "layer"):
            raise UsageError(f"unknown small_groups {self.small_groups!r}; allowed: pin, layer")
        weights = WeightConfig(
            self.partition, self.correction, self.correction_group, self.correction_reference, self.detach_norm
        )
        return InsertionConfig(
            weights, self.activation_bits, self.keep_8bit, self.small_groups, self.norm, self.keep_float
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The inverse of `to_dict`, also after a round trip through JSON or TOML, which leaves out None."""
        tuples: dict[str, Any] = {
            key: tuple(values[key]) for key in ("bits", "keep_8bit", "keep_float") if key in values
        }
        return cls(**(values | tuples))

    def differences(self, other: TrainConfig) -> dict[str, tuple[Any, Any]]:
        """What two configurations have different: ``{field: (mine, the other's)}``."""
        pairs = {item.name: (getattr(self, item.name), getattr(other, item.name)) for item in fields(self)}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def flag_of(name: str) -> str:
    """The command-line flag of a field, without dashes in front: ``lr`` of ``learning_rate``."""
    given = {item.name: item.metadata["flag"] for item in fields(TrainConfig)}[name]
    return given or name.replace("_", "-")


def plain_type(name: str) -> type:
    """The type of a field's value where it has one: ``int`` of ``int | None``; lists and unions are text."""
    hint = get_type_hints(TrainConfig)[name]
    if isinstance(hint, types.UnionType):
        kinds = [kind for kind in hint.__args__ if kind is not type(None)]
        hint = kinds[0] if len(kinds) == 1 else str
    return hint if hint in (int, float, bool) else str
