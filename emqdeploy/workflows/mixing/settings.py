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
        (),
        "What a child may cost in size, bitops or latency: size=60%, size=2MB, size=4bits or latency=8ms; several"
        " with commas.",
        parse=read_budgets,
    )
    data: str | None = option(None, "Images to use; the network's own data set by default.")
    data_dir: Path | None = option(None, "Folder with the data set's files.")
    images: int = option(
        256, "Number of training images that measure how sensitive layers are, and calibrate.", least=1
    )
    test_images: int | None = option(None, "Number of test images that judge the children; all by default.", least=1)
    sensitivity: str = option(
        "sqnr",
        "How to measure what fewer bits cost a layer: sqnr (noise of the logits) or accuracy (needs labels).",
        parse=entry(SENSITIVITIES),
    )
    descent: str = option(
        "sorted",
        "Order of steps: sorted (as in the paper) or gain (least loss for what is saved).",
        parse=entry(DESCENTS),
    )
    widths: tuple[int, ...] = option((), "Weight widths to mix; by default all that the file has.", parse=read_widths)
    keep: tuple[str, ...] = option((), "Layers that keep the widest width, by their names from `inspect`.", parse=names)
    points: int = option(8, "Number of mixes on the front to measure.", least=2)
    out: Path | None = option(None, "Another .emq to write; by default the children go into the file itself.")
    plot: Path | None = option(
        None, "Path of the pictures of the front, without suffix; 'mix' beside the .emq by default."
    )
    model: str | None = option(
        None, "Your own pkg.module:function; name it again, because no file may decide what is imported."
    )
    threads: int | None = option(None, "Threads of torch and of the kernels; every core by default.", least=1)
    seed: int = option(0, "Seed of the choice of training images.")

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
