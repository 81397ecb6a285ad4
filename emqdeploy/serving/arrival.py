"""One picture to classify, wherever it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from emqdeploy.data import Preprocessing
from emqdeploy.errors import EmqError


class SourceEnded(EmqError):
    """A source that should go on gives no more pictures; what it gave until then counts."""


@dataclass(frozen=True, eq=False)
class Arrival:
    """A picture to classify.

    Attributes:
        name: what it is called: its file, or its place in a video.
        label: index of its class, or None.
        frame: its pixels (H, W, 3), uint8, blue first; None where they are read from the file of its name.
    """

    name: str
    label: int | None = None
    frame: npt.NDArray[np.uint8] | None = None

    def read(self, preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
        """Returns it as a network input (1, C, H, W)."""
        if self.frame is None:
            return preprocessing.load_image(Path(self.name))
        return preprocessing.prepare(self.frame, "bgr")
