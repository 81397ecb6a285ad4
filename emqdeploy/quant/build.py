"""A multi-bit network's structure by name, so that a checkpoint can describe it and a reference can be rebuilt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from emqdeploy.models import create_model, trust
from emqdeploy.quant.insertion import InsertionConfig, insert_quantizers
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.quant.weights import WeightConfig


@dataclass(frozen=True)
class NetworkSpec:
    """Everything that fixes a network but its numbers.

    Attributes:
        model: a name that `emqdeploy.models` knows.
        classes: number of classes.
        input_shape: ``(C, H, W)`` of one image.
        input_range: the largest absolute value of a normalised image.
        trained_bits: the weight bit-widths that training visits.
        insertion: where and how quantizers stand.
    """

    model: str
    classes: int
    input_shape: tuple[int, int, int]
    input_range: float
    trained_bits: tuple[int, ...]
    insertion: InsertionConfig = field(default_factory=InsertionConfig)

    def build(self, initial: Callable[[nn.Module], object] | None = None, users_code: bool = False) -> MultiBitNetwork:
        """Creates the network with fresh float weights.

        Args:
            initial: changes the float model, weights from a file for example, before quantizers are inserted.
            users_code: whether a model ``pkg.module:function`` may be imported; only where the user named it.
        """
        channels, height, _ = self.input_shape
        if users_code:
            trust(self.model)
        model = create_model(self.model, self.classes, channels, height)
        if initial is not None:
            initial(model)
        return insert_quantizers(model, self.insertion, self.trained_bits, self.input_range)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for metadata."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NetworkSpec:
        """The inverse of `to_dict`, also after a round trip through JSON."""
        insertion = dict(values["insertion"])
        insertion["weights"] = WeightConfig(**insertion["weights"])
        for names in ("keep_8bit", "keep_float"):
            insertion[names] = tuple(insertion[names])
        return cls(
            model=values["model"],
            classes=values["classes"],
            input_shape=tuple(values["input_shape"]),
            input_range=values["input_range"],
            trained_bits=tuple(values["trained_bits"]),
            insertion=InsertionConfig(**insertion),
        )
