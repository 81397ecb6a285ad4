"""Tables about checkpoints in parts."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from emqdeploy.report.fitting import table
from emqdeploy.report.units import of_bytes, percent


def split_parts(result: dict[str, Any]) -> list[Table | str]:
    """What each part holds, and how much has to be sent until it is there."""
    stored = of_bytes([row["sent_bytes"] for row in result["parts"]])
    rows = table(
        f"{result['checkpoint']} in {len(result['parts'])} parts, {result['folder']}",
        *("file", f"size {stored.name}", f"until then {stored.name}", "of the whole file", "new children"),
    )
    for row in result["parts"]:
        new = ", ".join(row["new"])
        rows.add_row(row["file"], stored(row["bytes"]), stored(row["sent_bytes"]), percent(100 * row["share"]), new)
    return [
        rows,
        f"next: emqdeploy serve-planes {result['folder']}",
        f"      emqdeploy join {result['folder']} --out whole.emq",
    ]


def stream_parts(result: dict[str, Any]) -> list[Table | str]:
    """What a client could do after each part."""
    stored = of_bytes([row["bytes_read"] for row in result["moments"]])
    rows = table(
        "A network that gets better while it comes",
        *("after s", f"came {stored.name}", "of all bytes", "child", "accuracy", "images classified"),
    )
    for row in result["moments"]:
        came = (stored(row["bytes_read"]), percent(100 * row["share"]))
        rows.add_row(f"{row['seconds']:.1f}", *came, row["child"], percent(row["accuracy"]), f"{row['answered']:,}")
    return [
        rows,
        f"next: emqdeploy serve-planes {result['folder']} --rate 20",
        f"      emqdeploy join {result['folder']} --out whole.emq",
    ]
