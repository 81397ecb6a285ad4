"""A multi-bit network's structure by name, so that a checkpoint can describe it and a reference can be rebuilt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from emqdeploy.format.child import Child
from emqdeploy.models import create_model, trust
from emqdeploy.models.described import DescribedNetwork
from emqdeploy.options import plain_values
from emqdeploy.quant.families.base import family_options
from emqdeploy.quant.insertion import InsertionConfig, insert_quantizers
from emqdeploy.quant.network import MultiBitNetwork


@dataclass(frozen=True)
class NetworkSpec:
    """Everything that fixes a network but its numbers.

    Attributes:
        model: a name that `emqdeploy.models` knows.
        classes: number of classes.
        input_shape: ``(C, H, W)`` of one image.
        input_range: the largest absolute value of a normalised image.
        trained: the children that training visits.
        unseen: those that come with them.
        insertion: where and how quantizers stand.
        description: the network itself, as plain data, where it came from a file and ``model`` is only its name.
    """

    model: str
    classes: int
    input_shape: tuple[int, int, int]
    input_range: float
    trained: tuple[Child, ...]
    unseen: tuple[Child, ...] = ()
    insertion: InsertionConfig = field(default_factory=InsertionConfig)
    description: dict[str, Any] | None = None

    def float_model(self) -> nn.Module:
        """Creates the float model with fresh weights."""
        if self.description is not None:
            return DescribedNetwork(self.description)
        return create_model(self.model, self.classes, *self.input_shape)

    def build(self, initial: Callable[[nn.Module], object] | None = None, users_code: bool = False) -> MultiBitNetwork:
        """Creates the network with fresh float weights.

        Args:
            initial: changes the float model, weights from a file for example, before quantizers are inserted.
            users_code: whether a model ``pkg.module:function`` may be imported; only where the user named it.
        """
        if users_code:
            trust(self.model)
        model = self.float_model()
        if initial is not None:
            initial(model)
        children = (self.trained, self.unseen)
        return insert_quantizers(model, self.insertion, *children, self.input_range, self.input_shape)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for metadata."""
        insertion = plain_values(self.insertion)
        children = {name: [child.to_dict() for child in getattr(self, name)] for name in ("trained", "unseen")}
        return plain_values(self) | {"insertion": insertion, **children}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NetworkSpec:
        """The inverse of `to_dict`, also after a round trip through JSON."""
        insertion = dict(values["insertion"])
        insertion["quantizer"] = family_options(insertion["quantizer"])
        for names in ("keep_8bit", "keep_float"):
            insertion[names] = tuple(insertion[names])
        return cls(
            model=values["model"],
            classes=values["classes"],
            input_shape=tuple(values["input_shape"]),
            input_range=values["input_range"],
            trained=tuple(Child.from_dict(child) for child in values["trained"]),
            unseen=tuple(Child.from_dict(child) for child in values["unseen"]),
            insertion=InsertionConfig(**insertion),
            description=values.get("description"),
        )
