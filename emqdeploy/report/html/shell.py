"""The frame of a page: head, style, script, the data it carries; and reading that data back."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from emqdeploy.errors import EmqError
from emqdeploy.files import LARGEST_TEXT, read_bytes
from emqdeploy.report.colours import style as scale

_OPEN = '<script type="application/gzip" id="result">'
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
"""What the browser may load: nothing but what stands in the file."""


def shell(title: str, header: str, body: str, data: Any) -> str:
    """A whole page.

    Args:
        title: of the browser's tab, and the name under which the data is saved.
        header: HTML above the line.
        body: HTML of the sections.
        data: what JSON can hold; the page carries it and offers it as a file.
    """
    files = resources.files("emqdeploy.report.html")
    style, script = (files.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    # Raw samples are most of a page; packed, they take a third of the room, and no string of theirs ends the element.
    carried = base64.b64encode(gzip.compress(json.dumps(data).encode(), mtime=0)).decode()
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<link rel="icon" href="data:,"><title>{escape(title)}</title>
<style>{scale()}{style}</style></head>
<body><header><div>{header}</div></header>
<main>{body}</main>
<footer>Made by emqdeploy. This file holds every raw sample and needs no network.</footer>
<div id="tip" role="status"></div>
{_OPEN}{carried}</script>
<script>{script}</script></body></html>
"""


def carried_data(path: Path) -> Any:
    """Returns the data that a page carries.

    Raises:
        EmqError: the file is no page of ours, or damaged.
    """
    page = read_bytes(path, LARGEST_TEXT, "name a report that bench --html wrote")
    try:
        text = page.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EmqError(f"cannot read {path}: it is not text; name a report that bench --html wrote") from error
    _, found, rest = text.partition(_OPEN)
    if not found:
        return None
    inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        data = inflater.decompress(base64.b64decode(rest.partition("</script>")[0], validate=True), LARGEST_TEXT)
        if not inflater.eof:
            raise ValueError("it is cut off, or too large")
        return json.loads(data)
    except (ValueError, RecursionError, zlib.error) as error:
        raise EmqError(f"{path} is damaged: the data in it cannot be read; measure again") from error


def heading(brand: str, title: str, lead: str) -> str:
    """The head of a page with its buttons."""
    return (
        f'<div class="top"><div><p class="brand">{escape(brand)}</p><h1>{escape(title)}</h1>'
        f'<p class="lead">{escape(lead)}</p></div><div class="buttons">'
        '<button id="theme" type="button">Light / dark</button>'
        '<button id="save" type="button">Save the data</button></div></div>'
    )


def advice(kind: str, what: str, reasons: Iterable[tuple[str, str]]) -> str:
    """What a reader should do, in big letters, with a word and a sentence for every reason.

    Args:
        kind: the class that colours it.
        what: the setting.
        reasons: name and sentence of each.
    """
    said = "".join(f"<p><span>{escape(name)}:</span> {escape(sentence)}</p>" for name, sentence in reasons)
    return f'<div class="advice {kind}"><b>{escape(what)}</b>{said}</div>'


def tiles(entries: Iterable[tuple[str, str]]) -> str:
    """Big figures with their names."""
    boxes = (f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in entries)
    return f'<div class="tiles">{"".join(boxes)}</div>'


def findings_list(sentences: Sequence[str]) -> str:
    """What the figures say."""
    return f'<ul class="findings">{"".join(f"<li>{escape(one)}</li>" for one in sentences)}</ul>' if sentences else ""


def caution(sentences: Sequence[str]) -> str:
    """What a reader should know before believing them."""
    return f'<div class="caution">{"".join(f"<p>{escape(one)}</p>" for one in sentences)}</div>' if sentences else ""


def section(title: str, why: str, content: str) -> str:
    """A part of the page; nothing at all without content."""
    return f'<section><h2>{escape(title)}</h2><p class="why">{escape(why)}</p>{content}</section>' if content else ""


def figure(caption: str, chart: str | None, missing: str = "not measured", hint: str = "") -> str:
    """A chart in its frame, or the reason why there is none."""
    small = f" <small>{escape(hint)}</small>" if hint else ""
    head = f"<figcaption>{escape(caption)}{small}</figcaption>"
    if chart is None:
        return f'<figure class="empty">{head}<p class="missing">{escape(missing)}</p></figure>'
    return f'<figure class="chart">{head}{chart}</figure>'


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], text_columns: Sequence[int] = (0,)) -> str:
    """A table that scrolls sideways on a phone; cells are HTML, columns are text."""
    left = set(text_columns)

    def cell(tag: str, index: int, content: str) -> str:
        kind = ' class="text"' if index in left else ""
        return f"<{tag}{kind}>{content}</{tag}>"

    head = "".join(cell("th", index, escape(name)) for index, name in enumerate(columns))
    body = "".join(
        f"<tr>{''.join(cell('td', index, content) for index, content in enumerate(row))}</tr>" for row in rows
    )
    made = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return (
        f'<div class="scroll"><div tabindex="0">{made}</div></div>'
        '<p class="sideways">the table goes on: scroll it sideways →</p>'
    )


def facts(entries: Iterable[tuple[str, Any]]) -> str:
    """Names and values, one below the other."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>' for name, value in entries)}</dl>"
