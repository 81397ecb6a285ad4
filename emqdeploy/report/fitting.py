"""Tables that 80 columns show whole: by shorter headings, by saying once what every row shares, in parts."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from emqdeploy.errors import plain_text
from emqdeploy.report.units import MISSING

ENDLESS = 1 << 16
"""Columns where there is no terminal: nothing is parted or wrapped."""


class Sheet(Table):
    """A table that knows which of its columns tell its rows apart.

    Attributes:
        keys: how many columns on the left do; every part of a parted table has them.
    """

    keys = 1


def table(title: str, *columns: str, caption: str | None = None, keys: int = 1) -> Sheet:
    """A table whose first columns are text and whose others are numbers.

    Args:
        title: above it.
        *columns: their headings, the most important first.
        caption: below it.
        keys: see `Sheet`.
    """
    result = Sheet(title=title, caption=caption, caption_justify="left")
    result.keys = keys
    for index, column in enumerate(columns):
        result.add_column(column, justify="left" if index < keys else "right", no_wrap=True)
    return result


def styled(words: object, style: str = "") -> Text:
    """Words as they are, whatever brackets and control characters are in them; a style comes from here alone."""
    return words if isinstance(words, Text) else Text(plain_text(words), style)


def fitting(found: Table, console: Console) -> Iterator[Table | Text]:
    """A table as it is where it fits; else one that says the same on less space.

    What no row has is left out. Headings go over several lines. What every row has in common becomes a line below. A
    single row is turned: one line for each of its figures. What is too wide even so comes in parts, each with the
    columns that tell rows apart, and a name or a sentence that is too wide by itself is folded.
    """
    columns, keys = list(found.columns), getattr(found, "keys", 1)

    def wide(columns: Sequence[Column]) -> bool:
        endless = console.options.update(max_width=ENDLESS)
        return Measurement.get(console, endless, _of_columns(columns)).maximum > console.width

    def figures() -> bool:
        return all(column.no_wrap for column in columns)

    if wide(columns) and found.row_count > 1:
        known = [column for column in columns[keys:] if any(str(cell) != MISSING for cell in column.cells)]
        columns = [*columns[:keys], *known]
    if wide(columns) and figures():
        columns = [_stacked(column) for column in columns]
    shared: list[str] = []
    if wide(columns) and figures() and found.row_count == 1:
        columns, keys = _turned(columns), 1
    elif wide(columns) and figures():
        # The columns on the right matter least.
        for column in reversed([one for one in columns[keys:] if len({str(cell) for cell in one.cells}) == 1]):
            if wide(columns):
                shared.insert(0, f"{_heading(column)} {next(iter(column.cells))}".strip())
                columns = [one for one in columns if one is not column]
    parts = [columns[:keys]]
    for column in columns[keys:]:
        if column.no_wrap and len(parts[-1]) > keys and wide([*parts[-1], column]):
            parts.append(columns[:keys])
        parts[-1] = [*parts[-1], column]
    yield from (_of_columns(part, fold=wide(part)) for part in parts)
    if shared:
        yield styled(f"every row: {', '.join(shared)}")


def _heading(column: Column) -> str:
    return " ".join(str(column.header).split())


def _stacked(column: Column) -> Column:
    """The heading on as many lines as it takes to be no wider than what is below it."""
    width = max([len(str(cell)) for cell in column.cells] + [len(word) for word in _heading(column).split()], default=1)
    lines = "\n".join(textwrap.wrap(_heading(column), width))
    return _column(lines, list(column.cells), column)


def _turned(columns: Sequence[Column]) -> list[Column]:
    names = _column("", [styled(_heading(column)) for column in columns], columns[0])
    values = _column("", [cell for column in columns for cell in column.cells], columns[-1])
    return [names, values]


def _column(header: str, cells: list[Any], like: Column) -> Column:
    return Column(header=header, _cells=cells, justify=like.justify, no_wrap=like.no_wrap, overflow=like.overflow)


def _of_columns(columns: Sequence[Column], fold: bool = False) -> Table:
    made = Table(show_header=any(str(column.header) for column in columns))
    for column in columns:
        made.add_column(
            styled(column.header),
            justify=column.justify,
            no_wrap=column.no_wrap and not fold,
            overflow="fold" if fold else column.overflow,
        )
    for cells in zip(*(column.cells for column in columns), strict=True):
        made.add_row(*map(styled, cells))
    return made
