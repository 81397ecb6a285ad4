"""What a user may ask of `mix`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emqdeploy.data.naming import located
from emqdeploy.errors import UsageError
from emqdeploy.format.child import parse_children
from emqdeploy.format.emq import SUFFIX
from emqdeploy.options import names, option, settle
from emqdeploy.training.mixing.descent import DESCENTS
from emqdeploy.training.mixing.sensitivity import SENSITIVITIES
from emqdeploy.training.settings import entry
from emqdeploy.workflows.mixing.budgets import Budget, read_budgets


def read_widths(value: Any) -> tuple[int, ...]:
    """Reads ``2,4,8`` or ``2-8``: weight widths."""
    text = value if isinstance(value, str) else ",".join(map(str, value))
    return tuple(child.bits for child in parse_children(text, option="--widths")) if text else ()


@dataclass(frozen=True)
class MixSettings:
    """One search for mixed children.

    Attributes:
        path: an ``.emq``, a run, or None for the latest run.
    """

    path: Path | None
    budget: tuple[Budget, ...] = option(
        (), "What a child may cost: size, bitops or latency, as 60%, 2MB, 8ms or 4bits; several by commas.",
        parse=read_budgets
    )  # fmt: skip
    data: str | None = option(None, "Images; the network's own data set by default.")
    data_dir: Path | None = option(None, "Where the data set's files lie.")
    images: int = option(256, "Training images that tell how sensitive layers are, and calibrate.", least=1)
    test_images: int | None = option(None, "Test images that judge the children; all by default.", least=1)
    sensitivity: str = option(
        "sqnr", "What a layer's fewer bits cost: sqnr (noise of the logits) or accuracy (needs labels).",
        parse=entry(SENSITIVITIES)
    )  # fmt: skip
    descent: str = option(
        "sorted", "Order of steps: sorted (the paper's) or gain (least loss for what is saved).", parse=entry(DESCENTS)
    )
    widths: tuple[int, ...] = option((), "Weight widths to mix; all that the file has by default.", parse=read_widths)
    keep: tuple[str, ...] = option((), "Layers that keep the widest width: names from `inspect`.", parse=names)
    points: int = option(8, "Mixes of the front that are measured.", least=2)
    out: Path | None = option(None, "Another .emq to write; the file itself by default.")
    plot: Path | None = option(None, "Pictures of the front, without suffix; 'mix' beside the .emq by default.")
    model: str | None = option(
        None, "Your own pkg.module:function, named again: a file may not have it imported for torch."
    )
    threads: int | None = option(None, "torch's and the kernels' threads; every core by default.", least=1)
    seed: int = option(0, "Which training images are taken.")

    def __post_init__(self) -> None:
        """Checks every value; the sentence names the flag."""
        settle(self)
        if self.out is not None and self.out.suffix != SUFFIX:
            raise UsageError(f"--out is {self.out}; name a file that ends in {SUFFIX}")
        if self.data is not None:
            object.__setattr__(self, "data", located(self.data, self.data_dir))

    def recipe(self) -> dict[str, Any]:
        """What the file remembers of it."""
        return {
            "budgets": [str(budget) for budget in self.budget],
            "sensitivity": self.sensitivity,
            "descent": self.descent,
            "images": self.images,
            "seed": self.seed,
        }
