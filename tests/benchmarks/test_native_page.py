"""The page of the native kernels says what was measured."""

from __future__ import annotations

import copy
import json

from benchmarks import native_page
from benchmarks.common import RESULTS


def test_the_page_says_what_was_measured() -> None:
    """Its tables are those of the results, and change with them; ``python -m benchmarks.native --page`` writes them."""
    page = native_page.PAGE.read_text()
    report, costs = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("native", "native_costs"))
    assert native_page.updated(page, report, costs) == page
    assert all(one["machine"]["cpu"] in page for one in (report, costs))
    other, dearer = copy.deepcopy(report), copy.deepcopy(costs)
    other["rows"][0]["ratio"]["ratio"] += 1
    dearer["rows"][0]["eight_widths_mb"] += 1
    assert native_page.updated(page, other, costs) != page
    assert native_page.updated(page, report, dearer) != page
