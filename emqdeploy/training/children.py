"""Which children a run is about: as a command line and a file name them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.files import LARGEST_TEXT, read_bytes
from emqdeploy.format.child import (
    ACTIVATION_BITS,
    ALL,
    FLOAT,
    SAME,
    WEIGHT_BITS,
    Child,
    check_unique,
    children_between,
    parse_children,
)
from emqdeploy.options import nearest

Bits = tuple[int | str, ...]
"""Children as they are written: ``(8, 4, "2a4")``."""

SETS = {"dial": "4a4,2a4,1a4,2a2,1a2"}
"""Children by the name of the set: narrow activations, with which few bits of weights are faster natively."""

_EXAMPLE = "[children.mixed] with weights = {'*' = 4, 'conv1' = 8} and activations = 8"


def read_bits(value: Any) -> Bits:
    """Reads ``8,4,2a4``, ``[8, 4, "2a4"]``, ``all`` or ``none``; what the parts mean is seen with activation bits."""
    if isinstance(value, str):
        value = f"{WEIGHT_BITS[0]}-{WEIGHT_BITS[-1]}" if value == ALL else value
        parts = [] if value == "none" else [part.strip() for part in value.split(",")]
        return tuple(int(part) if part.isdecimal() else part for part in parts)
    parts = [value] if type(value) is int else value
    if isinstance(parts, (list, tuple)) and all(type(part) in (int, str) for part in parts):
        return tuple(parts)
    raise UsageError(f'bits is {value!r}; it must be a list of children, for example [1, 2, "2a4"], or text like "2-8"')


def read_activation_bits(value: Any) -> int | str:
    """Reads ``2`` to ``8``, or ``same``."""
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if number != SAME and (type(number) is not int or number not in ACTIVATION_BITS):
        raise UsageError(f"--act-bits is {number!r}; allowed: 2..8, or 'same' to follow the weight bits")
    return number


def read_children(value: Any) -> tuple[Child, ...]:
    """Reads children by name: a TOML file with ``[children.NAME]`` tables, what lies in such tables, or a set.

    Raises:
        UsageError: the file cannot be read, or a table is not that of a child.
    """
    if isinstance(value, tuple):
        return value
    if str(value) in SETS:
        return parse_children(SETS[str(value)])
    where = "children"
    if isinstance(value, (str, Path)):
        where, value = str(value), _tables(Path(value))
    if not isinstance(value, Mapping):
        raise UsageError(f"{where} is {value!r}; write tables, for example {_EXAMPLE}")
    return tuple(_child(name, table, where) for name, table in value.items())


def _tables(path: Path) -> Any:
    try:
        values = tomllib.loads(read_bytes(path, LARGEST_TEXT, "name a TOML file of children, or dial").decode())
    except EmqError as error:
        raise UsageError(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    if list(values) != ["children"]:
        raise UsageError(f"{path} must hold children and nothing else, for example {_EXAMPLE}")
    return values["children"]


def _child(name: str, table: Any, where: str) -> Child:
    known = ("weights", "activations")
    if not isinstance(table, Mapping) or "weights" not in table:
        raise UsageError(f"{where}: child {name!r} needs weights, a number or a map; for example {_EXAMPLE}")
    strange = next((key for key in table if key not in known), None)
    if strange is not None:
        raise UsageError(f"{where}: child {name!r} has the unknown key {strange!r}{nearest(strange, known)}")
    for key, widths in table.items():
        if not isinstance(widths, (int, Mapping)):
            raise UsageError(
                f"{where}: {key} of child {name!r} is {widths!r}; give a number or a map of layers to numbers"
            )
    try:
        return Child(name, table["weights"], table.get("activations", ACTIVATION_BITS[-1]))
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def children_tables(children: Sequence[Child]) -> dict[str, dict[str, Any]]:
    """The tables that `read_children` reads."""
    plain = (child.to_dict() for child in children)
    return {values.pop("name"): values for values in plain}


def named_children(bits: Bits, activation_bits: int | str, children: Sequence[Child]) -> tuple[Child, ...]:
    """The children that options name, each once; the float network may be among them, and no file holds it.

    Args:
        bits: uniform ones.
        activation_bits: of those whose text says none.
        children: those with a table.
    """
    uniform = parse_children(",".join(map(str, bits)), activation_bits) if bits else ()
    found = check_unique([*uniform, *children], "--bits with --children" if children else "--bits")
    return found


def unseen_children(trained: Sequence[Child], activation_bits: int | str) -> tuple[Child, ...]:
    """The children that come for free between those, without names that are taken."""
    taken, quantized = {child.name for child in trained}, [child for child in trained if child != FLOAT]
    return tuple(child for child in children_between(quantized, activation_bits) if child.name not in taken)
