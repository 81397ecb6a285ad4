"""The options that every run has, whatever its method."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from emqdeploy.data.flipping import FLIPS
from emqdeploy.data.naming import located
from emqdeploy.data.wishes import PixelOptions
from emqdeploy.errors import UsageError
from emqdeploy.format.child import FLOAT, Child
from emqdeploy.options import Parse, names, option, settle
from emqdeploy.quant.families.base import FamilyOptions, family_options
from emqdeploy.quant.insertion import InsertionConfig, check_widths
from emqdeploy.quant.norms import NORMS
from emqdeploy.registry import Registry
from emqdeploy.training.augment import AUGMENTATIONS
from emqdeploy.training.children import named_children, read_activation_bits, read_bits, read_children, unseen_children
from emqdeploy.training.clips import CLIP_CHOICES
from emqdeploy.training.compression import read_compression
from emqdeploy.training.norms import NORM_ADAPTATIONS
from emqdeploy.training.optimizers import OPTIMIZERS, SCHEDULES, WARM_UP
from emqdeploy.training.scales import check_scales, read_scales
from emqdeploy.training.sharding import read_sizes
from emqdeploy.training.subspaces import SUBSPACES

GENTLER = 10
"""The peak learning rate for fresh weights over that for trained ones: it would destroy what they know before it learns
anything."""

WHAT, SCHEDULE, NORMALIZATION, LABELS = "What to train", "Schedule", "Normalization", "Labels"

_what, _schedule, _norm, _quantization, _speed, _several, _run = (
    partial(option, panel=panel)
    for panel in (WHAT, SCHEDULE, NORMALIZATION, "Quantization", "Speed", "Several processes", "Run")
)


def entry(registry: Registry[Any]) -> Parse:
    """Reads a name that a registry holds."""

    def read(value: object) -> str:
        registry[str(value)]  # looking a name up raises the sentence that lists the known ones
        return str(value)

    return read


def one_of(flag: str, *allowed: str) -> Parse:
    """Reads one of a few words."""

    def read(value: object) -> str:
        if value not in allowed:
            raise UsageError(f"--{flag} is {value!r}; allowed: {', '.join(allowed)}")
        return str(value)

    return read


def hold_anywhere(settings: Any) -> None:
    """Makes the paths of frozen settings absolute, in place: whoever reads them later may work in another directory."""
    for name in ("data_dir", "pretrained", "cache"):
        path = getattr(settings, name, None)
        if path is not None:
            object.__setattr__(settings, name, Path(os.path.abspath(path)))
    model = getattr(settings, "model", None) or ""
    if model.endswith(".onnx"):
        object.__setattr__(settings, "model", os.path.abspath(model))
    object.__setattr__(settings, "data", located(settings.data, settings.data_dir))


@dataclass(frozen=True)
class CommonOptions(PixelOptions):
    """Options of a run; ``emqdeploy train --help`` and docs/training.md describe them.

    Attributes:
        quantizer: the quantizer family with its options.
    """

    model: str = _what(
        "resnet8",
        "Network: resnet8, resnet20, preact-resnet20, vit-micro, resnet18, mobilenet_v2, vit_b_16, ..., timm/NAME,"
        " an .onnx file, or your own pkg.module:function.",
    )
    data: str = _what(
        "digits", "Images: digits, cifar10, ..., a folder of pictures, or a CSV file of paths and labels."
    )
    data_dir: Path | None = option(None, "Folder with the data set's files.", panel=WHAT)
    limit: int | None = _what(None, "Use at most this many training images, for a quick trial.", least=1)
    validation_share: float = _schedule(
        0.1,
        "Share of the training images that choose the best epoch; with 0, all train and the last epoch counts.",
        least=0,
    )
    flip_labels: float = option(
        0.0, "Share of the training labels to make wrong on purpose, for trials.", panel=LABELS, least=0
    )
    flip_kind: str = option(
        "symmetric",
        "What --flip-labels changes labels to: symmetric (any other class) or pairs (the next class).",
        panel=LABELS,
        parse=entry(FLIPS),
    )
    cache: Path | None = option(None, "Folder in which to keep decoded pictures for later runs.", panel="Speed")
    pretrained: Path | None = option(None, "Start from these float weights (.safetensors, .pt, .pth).", panel=WHAT)
    weights_entry: str | None = _what(
        None, "Which weights to take if a --pretrained file holds several, for example model_ema."
    )
    bits: tuple[int | str, ...] = _what(
        (1, 2, 4, 8),
        "Children to train: weight bit-widths, or 2a4 for 2-bit weights and 4-bit activations; the widths between"
        " come for free.",
        parse=read_bits,
    )
    activation_bits: int | str = _what(
        8, "Activation bits, 2 to 8, or 'same' to follow the weights.", flag="act-bits", parse=read_activation_bits
    )
    children: tuple[Child, ...] = _what(
        (),
        "TOML file with more children, with widths of their own for some layers; or dial for 4a4, 2a4, 1a4, 2a2, 1a2.",
        parse=read_children,
    )

    epochs: int = _schedule(10, "Passes of every child over its images.", least=1)
    batch_size: int = _schedule(64, "Images per step.", least=2)
    shuffle_block: int = _speed(
        0,
        "Images to read together, for slow disks: batches mix 16 such blocks; 0 mixes all images.",
        least=0,
    )
    learning_rate: float = _schedule(
        None,
        "Peak learning rate; by default 0.1, or 0.001 with adam and adamw, or a tenth of that if training starts"
        " from weights.",
        flag="lr",
    )
    schedule: str = _schedule(
        "linear", "Course of the learning rate: cosine, linear, step or constant.", parse=entry(SCHEDULES)
    )
    warm_up: float = _schedule(WARM_UP, "Share of the run over which the learning rate rises, 0 to below 1.", least=0)
    optimizer: str = _schedule(
        "muon", "Optimizer: muon (orthogonal updates), sgd (Nesterov), adam or adamw.", parse=entry(OPTIMIZERS)
    )
    momentum: float = _schedule(
        None, "Momentum of the optimizer, 0 to below 1; by default 0.9, or 0.6 for the matrices of muon.", least=0
    )
    weight_decay: float = _schedule(5e-4, "Decay of the layers' weights.")
    lr_scale: tuple[str, ...] = _schedule(
        (),
        "Learning rate factors for weights, norms, biases, clips, quantizer or a child, for example norms=2,4=0.5.",
        parse=read_scales,
    )
    clip_norm: float = _schedule(0.0, "Largest total gradient norm of an update; 0 means no limit.", least=0)
    label_smoothing: float = _schedule(
        0.1, "Share of the target that is spread evenly over all classes, 0 to below 1.", least=0
    )
    ema: float = _schedule(
        0.0, "Decay of a moving average of all weights, which is then validated and kept; 0 means none.", least=0
    )
    subspace: str = _schedule(
        "none",
        "Train networks between two or three learned ends and keep the middle: none, line, curve, simplex, or"
        " precision (a line from the widest child to the narrowest).",
        parse=entry(SUBSPACES),
    )
    diversity: float | None = _schedule(
        None, "How strongly to push the ends of a --subspace apart; by default 1, or 0 with precision.", least=0
    )
    augment: str | None = _schedule(
        None, "Name of the augmentation; the data set's own by default.", parse=entry(AUGMENTATIONS)
    )
    mixup: float = _schedule(
        0.0,
        "Train on sums of two images and their labels, with shares drawn from Beta(X, X); 0 means none, 0.2 is usual.",
        least=0,
    )
    resize_from: float = _schedule(
        1.0,
        "Start with smaller images: their side as a share of the whole one, for example 0.5; they grow to it by"
        " the middle of the run.",
        least=0.125,
    )
    validate_every: int | None = _schedule(
        None, "Epochs between validations; by default one for every full pass over all images.", least=1
    )

    norm: str = _norm(
        "shared-affine",
        "What children share in normalizations: shared (everything), shared-affine (all but statistics), private"
        " (nothing) or transitional (per pair of widths).",
        parse=entry(NORMS),
    )
    norm_adaptation: str = _norm(
        "bits",
        "Normalization statistics to estimate after training: bits (per child), shared (one set over the mixture) or"
        " none.",
        flag="adapt-norm",
        parse=entry(NORM_ADAPTATIONS),
    )

    keep_8bit: tuple[str, ...] = _quantization(
        ("first", "last"), "Layers that stay at 8 bits: first, last, names from `inspect`, or none.", parse=names
    )
    keep_float: tuple[str, ...] = _quantization(
        (), "Layers, or modules around them, to leave unquantized.", parse=names
    )
    small_groups: str = _quantization(
        "pin",
        "Layers with few weights per channel, such as depthwise ones: pin (8 bits) or layer (statistics shared by"
        " the layer).",
        parse=one_of("small-groups", "pin", "layer"),
    )
    clips: str | None = _quantization(
        None,
        "Where activation clips start: mse, majority (of channels), max, p99.99, p99.9 or p99; by default a"
        " percentile that depends on the width.",
        parse=entry(CLIP_CHOICES),
    )
    share_clips: bool = _quantization(True, "Children with the same activation width learn their clips together.")
    quantizer: FamilyOptions = field(default_factory=lambda: family_options({"name": "tanh"}))

    device: str = _speed(
        "auto", "Device to train on: auto, cpu or cuda.", parse=one_of("device", "auto", "cpu", "cuda")
    )
    compile: bool = _speed(False, "Compile each child's step with torch.compile.")
    amp: str = _speed("none", "Mixed precision of float arithmetic: none or bf16.", parse=one_of("amp", "none", "bf16"))
    cuda_graphs: bool = _speed(True, "On one GPU, launch a child's whole forward and backward pass at once.")
    channels_last: bool = _speed(False, "Store images channels last, which is faster on GPUs.")
    ghost_batches: int = _speed(
        1,
        "Parts in which a batch is normalized: at least one per process, and a multiple of the number of processes.",
        least=1,
    )
    sync_norm: bool = _speed(False, "With several processes, normalize each batch by the statistics of all of it.")
    compress: str = _several(
        "none",
        "How processes compress gradients or updates that they exchange: none (32 bits a number), adaptive (few"
        " levels at first, more as the loss falls) or a number of bits, 2 to 16.",
        parse=read_compression,
    )
    compress_bucket: int = _several(
        0, "Numbers that share a norm in a compressed message; 0 means all of them.", least=0
    )
    local_steps: int = _several(
        0,
        "Updates that each process makes on its own images before all average theirs; 0 shares every batch.",
        least=0,
    )
    shards: tuple[float, ...] = _several(
        (),
        "Relative numbers of images per process with --local-steps, for example 3,1; equal by default.",
        parse=read_sizes,
    )
    skew: float = _several(
        0.0,
        "How evenly --local-steps spreads the classes: 0.1 hardly, 100 nearly evenly; 0 leaves it to chance.",
        least=0,
    )
    accumulate: int = _speed(1, "Steps whose gradients are averaged into one update.", least=1)
    threads: int | None = _speed(
        None, "Threads of torch on the CPU; by default one for images of at most 16 pixels, else one per core.", least=1
    )
    workers: int | None = _speed(None, "Processes that decode image files; one per core by default.", least=0)

    save_every: int = _run(300, "Seconds between saves within an epoch; every epoch is saved anyway.", least=0)
    tensorboard: bool = _run(False, "Also write TensorBoard scalars.")
    seed: int = _run(0, "Seed of weights, batches, augmentation and coresets.")

    def __post_init__(self) -> None:
        """Checks every value, and what does not go together; the sentence names the flags."""
        optimizer = OPTIMIZERS[str(self.optimizer)]
        if self.learning_rate is None:
            known = self.pretrained is not None or self.model.endswith(".onnx")
            object.__setattr__(self, "learning_rate", optimizer.rate / (GENTLER if known else 1))
        if self.momentum is None:
            object.__setattr__(self, "momentum", optimizer.momentum)
        settle(self)
        hold_anywhere(self)
        if not self.learning_rate > 0:
            raise UsageError(f"--lr is {self.learning_rate}; it must be positive")
        for flag in ("validation-share", "warm-up", "momentum", "label-smoothing", "ema", "flip-labels"):
            share = getattr(self, flag.replace("-", "_"))
            if not share < 1:
                raise UsageError(f"--{flag} is {share}; allowed: 0 up to, not including, 1")
        if self.resize_from > 1:
            raise UsageError(f"--resize-from is {self.resize_from}; allowed: 0.125 up to 1, which is the whole side")
        check_scales(self.lr_scale, (*self.trained, FLOAT))
        for given, other in (
            (self.ghost_batches > 1, "--ghost-batches"),
            (self.compile, "--compile"),
            (self.local_steps > 0, "--local-steps"),
        ):
            if self.sync_norm and given:
                raise UsageError(f"--sync-norm does not go together with {other}; leave one of them out")
        alone: dict[str, bool] = {
            "shards": bool(self.shards) and not self.local_steps,
            "skew": bool(self.skew) and not self.local_steps,
            "compress-bucket": bool(self.compress_bucket) and self.compress == "none",
            "diversity": self.diversity is not None and self.subspace == "none",
        }
        for flag in (flag for flag, given in alone.items() if given):
            needed = {"compress-bucket": "compress", "diversity": "subspace"}.get(flag, "local-steps")
            raise UsageError(f"--{flag} says nothing without --{needed}; leave it out, or give both")
        check_widths(self.quantizer, self.trained)

    @property
    def nested(self) -> bool:
        """Whether one file serves all children: their codes nest, and their weights are the same."""
        return self.quantizer.nested and SUBSPACES[self.subspace].one_master

    @property
    def trained(self) -> tuple[Child, ...]:
        """The children that training visits."""
        return named_children(self.bits, self.activation_bits, self.children)

    @property
    def between(self) -> tuple[Child, ...]:
        """The uniform children between those."""
        return unseen_children(self.trained, self.activation_bits)

    def insertion(self) -> InsertionConfig:
        """The quantizers that this run inserts."""
        return InsertionConfig(
            self.quantizer, self.keep_8bit, self.small_groups, self.norm, self.keep_float, self.share_clips
        )
