"""The page of the dial says what was measured."""

from __future__ import annotations

import json

from benchmarks import dial
from benchmarks.common import RESULTS, with_table
from benchmarks.paper_report import load_rows


def test_the_page_says_what_was_measured() -> None:
    """Its table is that of three seeds of every row, and changes with them; ``--report`` writes it."""
    page = dial.PAGE.read_text()
    runs = load_rows(dial.RESULTS / "dial", [*dial.TOGETHER, *dial.CHILDREN])
    assert {len(entries) for entries in runs.values()} == {3}
    timed = json.loads((RESULTS / "native.json").read_text())["rows"]
    assert with_table(page, "dial", dial.table(runs, timed)) == page
    runs[dial.NOW] = runs[dial.NOW][:1]
    assert with_table(page, "dial", dial.table(runs, timed)) != page
