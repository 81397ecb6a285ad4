"""Things chosen by name that have options of their own, a method and a quantizer family: their flags and tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emqdeploy.errors import UsageError
from emqdeploy.options import Option, nearest, options_of
from emqdeploy.quant.families.base import load_families
from emqdeploy.registry import Registry
from emqdeploy.training.methods import METHODS

Table = dict[str, Any]
"""``{"name": ..., option: value, ...}``."""


@dataclass(frozen=True)
class Choice:
    """A kind of thing to choose.

    Attributes:
        key: of its table, and its flag.
        registry: what there is.
        options: the class of options of every name, the default first.
    """

    key: str
    registry: Registry[Any]
    options: Mapping[str, type]

    def own(self, name: str) -> dict[str, Option]:
        """The options of a name, by field."""
        self.registry[name]  # an unknown name raises the sentence that lists the known ones
        return {one.name: one for one in options_of(self.options[name])}

    def check(self, table: Any, where: str) -> Table:
        """Checks a table of a file; one without a name belongs to whatever is chosen before."""
        if not isinstance(table, Mapping):
            raise UsageError(f"{where}: {self.key} is {table!r}; write a table [{self.key}] with its name and options")
        name = table.get("name")
        every = {one.name: one for one in options_of(*self.options.values())}
        known = every if name is None else self.own(str(name))
        values: Table = {}
        for key, value in table.items():
            if key == "name":
                values[key] = value
            elif key in known:
                values[key] = known[key].read(value, where)
            else:
                unknown = f"unknown key {key!r} in [{self.key}]{nearest(key, ['name', *known])}"
                raise UsageError(f"{where}: {self._stranger(key, name) or unknown}")
        return values

    def merge(self, below: Table, above: Table) -> Table:
        """Puts a table over another one; options of something else that was chosen below are dropped."""
        name = str(above.get("name", below["name"]))
        kept = below if name == below["name"] else {}
        merged = {**kept, **above, "name": name}
        own = self.own(name)
        for key in above:
            if key != "name" and key not in own:
                raise UsageError(str(self._stranger(key, name)))
        return merged

    def from_flags(self, given: Mapping[str, Any], chosen: str) -> Table:
        """The table of what was given, by name of the flag or of the field.

        Args:
            given: values that are None count as not given; what belongs to none of the options is left out.
            chosen: the name before.

        Raises:
            UsageError: an option belongs to something that is not chosen; both are named.
        """
        name = given.get(self.key) or chosen
        table: Table = {} if given.get(self.key) is None else {"name": name}
        own = self.own(name)
        for one in options_of(*self.options.values()):
            mine = one.name in own and own[one.name].flag == one.flag
            # A field of that name may stand under another flag elsewhere.
            value = given.get(one.argument, given.get(one.name) if mine or one.name not in own else None)
            if value is None:
                continue
            if not mine:
                raise UsageError(str(self._stranger(one.name, name, one.flag)))
            table[one.name] = one.read(value)
        return table

    def _stranger(self, key: str, name: Any, flag: str | None = None) -> str | None:
        """The sentence for an option that belongs to others; ``flag`` says which, where several have that field."""
        owners = [other for other in self.options if key in self.own(other)]
        owners = [other for other in owners if flag in (None, self.own(other)[key].flag)]
        if name is None or not owners:
            return None
        *most, last = owners
        return (
            f"--{self.own(owners[0])[key].flag} is an option of {self.key}"
            f" {' and '.join([', '.join(most), last] if most else [last])}, but {self.key} {name} was chosen; leave it"
            f" out, or use --{self.key} {owners[0]}"
        )


def choices() -> tuple[Choice, ...]:
    """What a run chooses: its method and its quantizer family."""
    methods = {name: METHODS[name].Options for name in METHODS}
    families = load_families()
    return (
        Choice("method", METHODS, {"emqnet": methods["emqnet"], **methods}),
        Choice("quantizer", families, {"tanh": families["tanh"], **families}),
    )


def option_classes() -> list[type]:
    """The classes of all their options."""
    return [kind for choice in choices() for kind in choice.options.values()]
