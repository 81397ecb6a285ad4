"""What a mixed child may cost, as people write it: ``size=60%``, ``size=2MB``, ``size=4bits``, ``latency=8ms``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from emqdeploy.errors import UsageError
from emqdeploy.format.child import WEIGHT_BITS
from emqdeploy.registry import load_package
from emqdeploy.workflows.mixing.costs.base import COSTS, CostModel

load_package("emqdeploy.workflows.mixing.costs")

SHARE, LIKE = "%", "bits"
"""Units of any kind of budget: of the widest child's cost, and what all layers at so many bits cost."""

_VALUE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z%]*)")
_EXAMPLE = "for example size=60%, size=2MB, size=4bits, bitops=50% or latency=8ms"


@dataclass(frozen=True)
class Budget:
    """One budget.

    Attributes:
        kind: a name in `COSTS`.
        value: a number in `unit`.
        unit: one of the kind's, ``%``, or ``bits``.
    """

    kind: str
    value: float
    unit: str

    @classmethod
    def read(cls, text: str) -> Budget:
        """Reads one; raises `UsageError` with what is allowed."""
        kind, _, value = text.partition("=")
        found = _VALUE.fullmatch(value.strip())
        if kind.strip() not in COSTS or found is None:
            raise UsageError(f"--budget has {text!r}; give {', '.join(COSTS)} and a value, {_EXAMPLE}")
        kind, unit = kind.strip(), found[2]
        units = (SHARE, LIKE, *COSTS[kind].units)
        if unit not in units:
            raise UsageError(f"--budget has {text!r}; units of {kind}: {', '.join(units)}; {_EXAMPLE}")
        number = float(found[1])
        if unit == LIKE and number not in WEIGHT_BITS:
            raise UsageError(f"--budget has {text!r}; allowed: {WEIGHT_BITS[0]}bits..{WEIGHT_BITS[-1]}bits")
        if not 0 < number < math.inf:
            raise UsageError(f"--budget has {text!r}; it must be more than 0")
        return cls(kind, number, unit)

    @property
    def model(self) -> CostModel:
        """What it is counted in."""
        return COSTS[self.kind]()

    def limit(self, whole: float, at_bits: Callable[[int], float]) -> float:
        """The most that a child may cost.

        Args:
            whole: what the widest child costs.
            at_bits: what all layers at a width cost.
        """
        if self.unit == LIKE:
            return at_bits(int(self.value))
        return self.value * (whole / 100 if self.unit == SHARE else self.model.units[self.unit])

    @property
    def child(self) -> str:
        """What a child that meets it is called: ``mix-size-60``, ``mix-size-2MB``."""
        unit = "" if self.unit == SHARE else self.unit
        return f"mix-{self.kind}-{self.value:g}{unit}"

    def __str__(self) -> str:
        return f"{self.kind}={self.value:g}{self.unit}"


def read_budgets(value: str | Sequence[str | Budget]) -> tuple[Budget, ...]:
    """Reads ``size=60%,latency=8ms``, or a list of such; each may be there once."""
    parts = (value if isinstance(value, str) else ",".join(map(str, value))).split(",")
    budgets = tuple(Budget.read(part.strip()) for part in parts if part.strip())
    if not budgets:
        raise UsageError(f"--budget is empty; {_EXAMPLE}")
    twice = next((one for one in budgets if budgets.count(one) > 1), None)
    if twice is not None:
        raise UsageError(f"--budget has {twice} twice; give each once")
    return budgets
