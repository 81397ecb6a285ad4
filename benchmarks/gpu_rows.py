"""The rows of `benchmarks.gpu`, the most telling first, because time on a GPU may end before the last."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        recipe: its recipe.
        values: what differs from the recipe.
        share: of the longest rows' epochs.
        seeds: how many of them train.
    """

    recipe: str
    values: dict[str, Any] = field(default_factory=dict)
    share: float = 1.0
    seeds: int = 3


OURS = {"optimizer": "muon", "schedule": "linear", "warm_up": 0.15, "label_smoothing": 0.1, "float_first": 0.6}


def _table(model: str) -> dict[str, Row]:
    small: dict[str, Any] = {"model": model}

    def authors(share: float) -> Row:
        return Row("any-precision", small, share)

    def tuned(share: float, **changes: Any) -> Row:
        return Row("any-precision-tuned", small | changes, share)

    def ours(share: float, **changes: Any) -> Row:
        return Row("emqnet", small | OURS | changes, share)

    joint = {"step_plan": "joint", "distill": "recursive"}
    return {
        "EMQNet, ResNet-20": Row("emqnet", OURS | {"model": "resnet20"}, 1.5, seeds=1),
        "Any-Precision": authors(1),
        "EMQNet, E/8": ours(1 / 8),
        "Any-Precision, E/2": authors(1 / 2),
        "Any-Precision tuned, E/2": tuned(1 / 2),
        "EMQNet, E/4": ours(1 / 4),
        "EMQNet, E/2": ours(1 / 2),
        "Any-Precision tuned, E/4": tuned(1 / 4),
        "Any-Precision, E/4": authors(1 / 4),
        "Any-Precision tuned": tuned(1),
        "EMQNet": ours(1),
        "EMQNet paper": Row("emqnet-paper", small, 1),
        "float32": Row("emqnet", small | {"bits": (32,)}, 1),
        "Any-Precision tuned, joint, distilled, E/2": tuned(1 / 2, **joint),
        "EMQNet, not float first, E/4": ours(1 / 4, float_first=0.0),
    }


TABLE = _table("resnet8")
DIAL = {
    "together": Row(
        "emqnet", {"model": "resnet20", **OURS, "bits": ("8", "4", "4a4", "2", "2a4", "2a2", "1", "1a4", "1a2")}, 1
    ),
}
