"""Results that show themselves: as text where they are printed, as tables in a notebook."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from emqdeploy.errors import plain_text
from emqdeploy.report.fitting import fitting, styled

WIDTH = 100
"""Columns of a printed result where nothing says how wide it may be."""

Part = Table | str


class Shown:
    """A result of a call of ours.

    Attributes:
        values: everything that the command of the same name prints with ``--json``.
    """

    def __init__(self, values: Mapping[str, Any], parts: Iterable[Part]) -> None:
        self.values = dict(values)
        self._parts = list(parts)

    def __str__(self) -> str:
        """The tables and lines that the command prints."""
        return as_text(self._parts)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        return as_html(self._parts)


def as_text(parts: Iterable[Part], width: int = WIDTH) -> str:
    """Tables and lines as plain text of a width."""
    console = Console(file=io.StringIO(), width=width, color_system=None, markup=False, highlight=False, emoji=False)
    for part in parts:
        if isinstance(part, str):
            console.print(styled(part), soft_wrap=True)
            continue
        for piece in (part.title, *fitting(part, console), part.caption):
            if piece:
                console.print(styled(piece) if isinstance(piece, str) else piece)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text.rstrip("\n")


def as_html(parts: Iterable[Part]) -> str:
    """Tables and lines as HTML without a style of its own: a notebook has one."""
    return "\n".join(_table(part) if isinstance(part, Table) else f"<div>{_escaped(part)}</div>" for part in parts)


def _table(found: Table) -> str:
    heads = "".join(f"<th>{_escaped(column.header)}</th>" for column in found.columns)
    rows = zip(*(column.cells for column in found.columns), strict=True)
    body = "".join("<tr>" + "".join(f"<td>{_escaped(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    title = f"<caption>{_escaped(found.title)}</caption>" if found.title else ""
    note = f"<div><em>{_escaped(found.caption)}</em></div>" if found.caption else ""
    return f"<table>{title}<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>{note}"


def _escaped(words: object) -> str:
    return html.escape(plain_text(words)).replace("\n", "<br>")
