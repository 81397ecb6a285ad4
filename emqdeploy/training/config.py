"""Everything that decides a training run: common options, a quantizer family and a method, each with its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from emqdeploy.errors import UsageError
from emqdeploy.options import options_of, plain_values
from emqdeploy.quant.families.base import family_options
from emqdeploy.training.children import children_tables
from emqdeploy.training.methods import METHODS, MethodOptions, NetworkPlan, method_options
from emqdeploy.training.settings import CommonOptions


@dataclass(frozen=True)
class TrainConfig(CommonOptions):
    """One training run.

    Attributes:
        method: the training method with its options.
    """

    method: MethodOptions = field(default_factory=lambda: method_options({"name": "emqnet"}))

    def __post_init__(self) -> None:
        """Checks the method against the rest."""
        super().__post_init__()
        self.method.check(self)

    def networks(self) -> list[NetworkPlan]:
        """The networks that the method trains."""
        return METHODS[self.method.name].networks(self.method, self)

    def only(self, plan: NetworkPlan) -> TrainConfig:
        """The run that trains one of the networks alone; where there is but one, all of the run."""
        if plan.trained == self.trained or not plan.folder:
            return self
        named = tuple(child for child in plan.trained if child in self.children)
        bits = tuple(child.name for child in plan.trained if child not in named)
        others = {child.name for child in self.trained} - {child.name for child in plan.trained}
        scales = tuple(part for part in self.lr_scale if part.split("=")[0] not in others)
        return replace(self, bits=bits, children=named, lr_scale=scales)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values: tables by name for children, method and quantizer."""
        return plain_values(self) | {"children": children_tables(self.children)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The inverse of `to_dict`, also after a round trip through JSON or TOML, which leaves out None."""
        plain = dict(values)
        for key, read in (("method", method_options), ("quantizer", family_options)):
            if key in plain:
                plain[key] = read(plain[key])
        return cls(**plain)

    def by_flag(self) -> dict[str, Any]:
        """Every option's value by its flag, without dashes in front."""
        values: dict[str, Any] = {}
        for part in (self, self.method, self.quantizer):
            values |= {one.flag: getattr(part, one.name) for one in options_of(type(part))}
        return values | {"method": self.method.name, "quantizer": self.quantizer.name}

    def check_resumes(self, stored: TrainConfig, path: Path) -> None:
        """Raises where this is not how the run in ``path`` was configured; the sentence names what differs."""
        now, was = self.by_flag(), stored.by_flag()
        flags = [flag for flag in was | now if was.get(flag) != now.get(flag)]
        if flags:
            named = ", ".join(f"--{flag} {was.get(flag)} (now {now.get(flag)})" for flag in flags)
            raise UsageError(f"{path} was configured with {named}; leave these out, or start a new run with --out")
