"""What training remembers of every image: one score per child, or one for all, fed with what passes say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from emqdeploy.errors import UsageError
from emqdeploy.format.child import Child
from emqdeploy.training.scores import SCORES, Importance, Said, Size

SHARED = "all"
"""The record that every child writes to where they share one; no child has this name."""


class Dynamics:
    """The records of a run.

    Args:
        score: a name in `SCORES`.
        keys: one record per key: names of children, or `SHARED` alone where all of them write to one record.
        labels: of all training images, ``(N,)``.
        classes: number of classes.
        width: length of the penultimate features, for scores that ask for them.
    """

    def __init__(
        self, score: str, keys: Iterable[str], labels: NDArray[np.int64], classes: int, width: int = 0
    ) -> None:
        self.score = score
        self.labels = labels
        self.records = {key: SCORES[score](Size(len(labels), classes, width)) for key in keys}

    def open_epoch(self) -> None:
        """Starts an epoch; an image that it does not visit keeps what was known of it before."""
        for record in self.records.values():
            record.open_epoch()

    def record(self, child: Child, indices: NDArray[np.int64], logits: Tensor, features: Tensor | None) -> None:
        """Takes in what a forward pass said of the images ``indices``: logits ``(B, classes)``, features ``(B, D)``."""
        odds = logits.detach().float().softmax(1).cpu().numpy()
        kept = None if features is None else features.detach().float().cpu().numpy()
        self.records[self.key(child)].update(Said(indices, odds, self.labels[indices], kept))

    def key(self, child: Child) -> str:
        """The record that a child writes to."""
        return child.name if child.name in self.records else SHARED

    def importance(self, child: Child, random: np.random.Generator) -> Importance:
        """Importance of every image for a child, ``(N,)``."""
        return self.records[self.key(child)].importance(random)

    def state(self) -> dict[str, Any]:
        """Plain tensors and the name of the score, for saving."""
        return {"score": self.score, "records": {key: record.state() for key, record in self.records.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`.

        Raises:
            UsageError: the records are of another score, of other children or of other images.
        """
        saved, score = state.get("records", {}), state.get("score")
        if score != self.score:
            other = f"--score {score}" if score else "an earlier version of emqdeploy"
            raise UsageError(
                f"the saved scores are of {other}, this run asks for --score {self.score}; score anew or use theirs"
            )
        if saved.keys() != self.records.keys():
            found, wanted = (", ".join(keys) for keys in (saved, self.records))
            raise UsageError(f"the saved scores are of records {found}, this run needs {wanted}; score anew")
        for key, record in self.records.items():
            record.restore(saved[key])


class FeatureTap:
    """Reads the input of a network's last linear layer as it runs: the penultimate features."""

    def __init__(self, last: nn.Linear) -> None:
        self.latest: Tensor | None = None
        self.handle = last.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        self.latest = inputs[0].detach()
