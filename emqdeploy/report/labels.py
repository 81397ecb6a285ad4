"""Suspicious labels: a table, and a page with thumbnails."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from rich.table import Table

from emqdeploy.files import atomic_write_text
from emqdeploy.report.fitting import table
from emqdeploy.report.html.shell import heading, section, shell, tiles

SHOWN = 20
"""Rows of the table; the page shows all."""


def labels_parts(result: dict[str, Any], page: Path) -> list[Table | str]:
    """The first suspects, and where to look at all of them."""
    rows = table(
        f"{result['run']}: {result['doubted']:,} of {result['images']:,} labels are not believed",
        *("image", "label", "the ensemble says", "odds of the label"),
        caption=f"the first {min(SHOWN, len(result['suspects']))}; odds: the ensemble's probability",
    )
    for one in result["suspects"][:SHOWN]:
        rows.add_row(str(one["image"]), one["label"], one["ensemble"], f"{100 * one['odds']:.1f} %")
    notes = [f"wrote {page}: look at it in a browser"]
    if result["precision"] is not None:
        notes.append(
            f"of the labels that are not believed {result['precision']:.1f} % were made wrong by --flip-labels;"
            f" of those made wrong {result['recall']:.1f} % are not believed"
        )
    return [rows, *notes]


def save_labels(path: Path, result: dict[str, Any]) -> None:
    """Writes the page: every suspect with its picture, the least believed first."""
    figures = [(f"{result['images']:,}", "training images"), (f"{result['doubted']:,}", "labels not believed")]
    if result["precision"] is not None:
        figures.append((f"{result['precision']:.1f} %", "of those made wrong on purpose"))
        figures.append((f"{result['recall']:.1f} %", "of the wrong ones found"))
    cards = "".join(
        f'<figure class="suspect"><img src="{escape(one["thumbnail"])}" alt="image {one["image"]}">'
        f"<figcaption>{escape(one['label'])} <small>rather {escape(one['ensemble'])}, image {one['image']},"
        f" odds {100 * one['odds']:.1f} %</small></figcaption></figure>"
        for one in result["suspects"]
    )
    lead = "What the network said of each image over the course of training, against the label that it was given."
    body = section(
        "The least believed",
        "Odds are the ensemble's probability of the given label. Look before you change anything: a rare or odd picture"
        " of the right class is here as well.",
        f'<div class="suspects">{cards}</div>',
    )
    header = heading("emqdeploy labels", f"Labels of {result['data']}", lead) + tiles(figures)
    data = {**result, "suspects": [{**one, "thumbnail": None} for one in result["suspects"]]}
    atomic_write_text(path, shell(f"labels of {result['data']}", header, body, data))
