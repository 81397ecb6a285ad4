"""Everything that decides a quantization without training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emqdeploy.data.wishes import PixelOptions
from emqdeploy.errors import UsageError
from emqdeploy.format.card import POST_TRAINING
from emqdeploy.format.child import Child
from emqdeploy.format.levels import HALF, LEVELS, Levels
from emqdeploy.options import names, option, plain_values, settle
from emqdeploy.training.children import (
    children_tables,
    named_children,
    read_activation_bits,
    read_bits,
    read_children,
    unseen_children,
)
from emqdeploy.training.clips import CLIP_CHOICES
from emqdeploy.training.posttraining.reconstruction import RECONSTRUCTIONS
from emqdeploy.training.posttraining.stages import BIAS_CORRECTIONS, EQUALIZATIONS, STATISTICS
from emqdeploy.training.settings import entry, hold_anywhere, one_of

FEWEST_IMAGES = 16


@dataclass(frozen=True)
class QuantizeConfig(PixelOptions):
    """One quantization of a trained model.

    Attributes:
        weights: the float weights, a run directory, or a network with its weights.
        model: name of the model that weights belong to; None for a network.
        data: name of a data set; its training images calibrate, its test images measure.
    """

    weights: Path
    model: str | None
    data: str
    bits: tuple[int | str, ...] = option(
        (4, 5, 6, 7, 8),
        "Children to store: weight bit-widths, or 2a4 for 2-bit weights and 4-bit activations; the widths"
        " between come for free.",
        parse=read_bits,
    )
    activation_bits: int | str = option(
        8, "Activation bits, 2 to 8, or 'same' to follow the weights.", flag="act-bits", parse=read_activation_bits
    )
    children: tuple[Child, ...] = option(
        (),
        "TOML file with more children, with widths of their own for some layers; or dial for 4a4, 2a4, 1a4, 2a2, 1a2.",
        parse=read_children,
    )
    images: int = option(512, "Number of training images to calibrate with.", least=FEWEST_IMAGES)
    test_images: int | None = option(None, "Most test images to judge with; all by default.", least=1)
    clips: str = option(
        "mse",
        "How to choose activation clips: mse, majority (of channels), max, p99.99, p99.9 or p99.",
        parse=entry(CLIP_CHOICES),
    )
    equalization: str = option(
        "peak",
        "How to prepare weights for quantization: peak (scale channels alike) or none.",
        parse=entry(EQUALIZATIONS),
    )
    statistics: str = option(
        "matched",
        "Normalization statistics per child: matched (to the float model), bits (of the images alone) or float.",
        parse=entry(STATISTICS),
    )
    bias_correction: str = option(
        "mean",
        "Correction of biases: mean (to the means of the float model's channels) or none.",
        parse=entry(BIAS_CORRECTIONS),
    )
    reconstruction: str = option(
        "blocks",
        "Learn weights again for children under 4 bits, without labels: blocks (block by block, then all together if"
        " images are small), together (without blocks), or none.",
        flag="reconstruct",
        parse=entry(RECONSTRUCTIONS),
    )
    reconstruction_steps: int = option(
        150, "Steps of --reconstruct for each layer and each block.", flag="reconstruct-steps", least=1
    )
    keep_8bit: tuple[str, ...] = option(
        ("first", "last"), "Layers that stay at 8 bits: first, last, names from `inspect`, or none.", parse=names
    )
    keep_float: tuple[str, ...] = option((), "Layers, or modules around them, to leave unquantized.", parse=names)
    accept_difference: bool = option(
        False, "Write the checkpoint even if its 8-bit child is too far from the float model."
    )
    levels: Levels = option(
        HALF,
        "Use of int8 and uint8: half (exact everywhere) or full (closer to the float model, for VNNI, AMX and ARM).",
        parse=one_of("levels", *LEVELS),
    )
    usable_drop: float = option(1.0, "Points of accuracy that a usable child may lose.", least=0)
    expect: float | None = option(
        None,
        "Accuracy in percent that the float model should reach; if it is far below, stop with the likely causes.",
        least=0,
    )
    unlabelled: bool = option(
        False, "Ignore labels that are not the network's classes, and judge by the float model's decisions alone."
    )
    weights_entry: str | None = option(None, "Which weights to take if the file holds several, for example model_ema.")
    data_dir: Path | None = option(None, "Folder with the data set's files.")
    seed: int = option(0, "Seed of the choice of calibration images.")

    def __post_init__(self) -> None:
        """Checks every value; the sentence names the flag."""
        settle(self)
        hold_anywhere(self)
        assert self.trained  # reading them raises what is wrong with them
        if self.unlabelled and self.expect is not None:
            raise UsageError("--expect needs labels, and --unlabelled says that there are none; leave one of them out")

    @property
    def trained(self) -> tuple[Child, ...]:
        """The children that were asked for."""
        return named_children(self.bits, self.activation_bits, self.children)

    @property
    def stored(self) -> tuple[Child, ...]:
        """Those, and the uniform ones between them."""
        return (*self.trained, *unseen_children(self.trained, self.activation_bits))

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return {"method": POST_TRAINING, **plain_values(self), "children": children_tables(self.children)}
