"""Dataclass fields that are options too: one declaration for the command line, a TOML file and the program.

A field made with `option` says what the help says and how a person writes the value; commands take their flags from
such fields (`emqdeploy.cli.generated`), and `from_flags` and `from_table` check what was given.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from emqdeploy.errors import UsageError

_PLAIN = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text in quotes",
    Path: "text in quotes",
}

Parse = Callable[[Any], Any]
"""Makes a field's value of what a person wrote: text on a command line, text, a number or a list in a file.

Raises `UsageError` with the sentence for a person.
"""


def option(
    default: Any,
    text: str,
    *,
    flag: str | None = None,
    also: Sequence[str] = (),
    panel: str | None = None,
    parse: Parse | None = None,
    least: float | None = None,
) -> Any:
    """A dataclass field that is an option.

    Args:
        default: its value where nothing else is said.
        text: what the help says.
        flag: its flag without dashes where that is not the field's name.
        also: other names of that flag, without dashes.
        panel: heading in the help.
        parse: reads what is not a plain number, switch, text or path.
        least: the smallest value allowed.
    """
    about = {"option": True, "help": text, "flag": flag, "panel": panel, "parse": parse, "least": least, "also": also}
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class Option:
    """An option of a class.

    Attributes:
        name: of the field.
        flag: without dashes in front.
        kind: ``int``, ``float``, ``bool``, ``str`` or ``Path``: what the command line takes.
        default: of the field.
        help: what the help says.
        panel: heading in the help, None for the common one.
        parse: see `option`.
        least: see `option`.
        also: see `option`.
    """

    name: str
    flag: str
    kind: type
    default: Any
    help: str
    panel: str | None
    parse: Parse | None
    least: float | None
    also: Sequence[str] = ()

    @property
    def argument(self) -> str:
        """The flag as a name of Python."""
        return self.flag.replace("-", "_")

    def read(self, value: Any, where: str = "") -> Any:
        """Checks a value from a flag or a file and returns what the field takes.

        Args:
            value: what was given.
            where: the name of the file, empty for a flag.
        """
        named = f"{where}: {self.name}" if where else f"--{self.flag}"
        if self.parse is not None:
            try:
                return self.parse(value)
            except UsageError as error:
                raise UsageError(f"{where}: {error}" if where else str(error)) from error
        if self.kind is Path and isinstance(value, (str, Path)):
            return Path(value)
        if type(value) is not self.kind and not (self.kind is float and type(value) is int):
            raise UsageError(f"{named} is {value!r}; it must be {_PLAIN[self.kind]}")
        if self.least is not None and isinstance(value, (int, float)) and not value >= self.least:
            raise UsageError(f"{named} is {value}; it must be at least {self.least:g}")
        return value


def options_of(*classes: type) -> list[Option]:
    """The options of classes, in order; of two with one flag the first."""
    found: dict[str, Option] = {}
    for one in classes:
        hints = typing.get_type_hints(one)
        for item in sorted(fields(one), key=lambda item: item.kw_only is True):  # last, as where they are given
            about = item.metadata
            if "option" in about:
                flag = about["flag"] or item.name.replace("_", "-")
                kind = str if about["parse"] else _plain_type(hints[item.name])
                rest = (about["help"], about["panel"], about["parse"], about["least"], about["also"])
                found.setdefault(flag, Option(item.name, flag, kind, item.default, *rest))
    return list(found.values())


def from_flags(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a class from flags as a command received them; what was not given (None) is left out.

    Args:
        kind: the dataclass.
        given: by `Option.argument`; what belongs to no option of the class is left out too.
    """
    return {one.name: one.read(given[one.argument]) for one in options_of(kind) if given.get(one.argument) is not None}


def from_table(kind: type, values: Mapping[str, Any], where: str, also: Iterable[str] = ()) -> dict[str, Any]:
    """Fields of a class from a table of a file.

    Args:
        kind: the dataclass.
        values: by name of the field.
        where: the file, for sentences.
        also: keys that are somebody else's.

    Raises:
        UsageError: an unknown key (the nearest known one is named), or a value of the wrong type.
    """
    known = {one.name: one for one in options_of(kind)}
    strange = [key for key in values if key not in known and key not in set(also)]
    if strange:
        raise UsageError(f"{where}: unknown key {strange[0]!r}{nearest(strange[0], [*known, *also])}")
    return {key: known[key].read(value, where) for key, value in values.items() if key in known}


def settle(settings: Any) -> None:
    """Reads every option of a frozen dataclass as if it were given, in place; what ``__post_init__`` begins with."""
    for one in options_of(type(settings)):
        value = getattr(settings, one.name)
        if value is not None:
            object.__setattr__(settings, one.name, one.read(value))


def nearest(name: str, known: Iterable[str]) -> str:
    """``(did you mean ...?)``, or nothing where no known name is near."""
    plain = {entry.replace("-", "_"): entry for entry in known}
    near = difflib.get_close_matches(name.lower().replace("-", "_"), list(plain), n=1)
    return f" (did you mean {plain[near[0]]!r}?)" if near else ""


def plain_values(settings: Any) -> dict[str, Any]:
    """The fields of a dataclass as values for JSON and TOML: paths as text, tuples as lists."""
    return {item.name: _plain(getattr(settings, item.name)) for item in fields(settings)}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return value.to_dict() if hasattr(value, "to_dict") else plain_values(value)
    return value


def names(value: Any) -> tuple[str, ...]:
    """Reads ``first,last``, a list of names, or ``none``."""
    if isinstance(value, str):
        return () if value == "none" else tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise UsageError(f"{value!r} is no list of names; write for example first,last")


def numbers(value: Any) -> tuple[int, ...]:
    """Reads ``1,8,32`` or a list of whole numbers."""
    try:
        parts = value.split(",") if isinstance(value, str) else list(value)
        return tuple(int(part) for part in parts)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{value!r} is no list of whole numbers; write for example 1,8,32") from error


def _plain_type(hint: Any) -> type:
    """``int`` of ``int | None``; anything else that is not plain is text."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        hint = kinds[0] if len(kinds) == 1 else str
    return hint if hint in _PLAIN else str
