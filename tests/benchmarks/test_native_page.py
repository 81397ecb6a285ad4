"""The page of the native kernels says what was measured."""

from __future__ import annotations

import copy
import json

from benchmarks import native_page
from benchmarks.common import RESULTS


def test_the_page_says_what_was_measured() -> None:
    """Its tables are those of the results, and change with them; ``python -m benchmarks.native --page`` writes them."""
    page, report = native_page.PAGE.read_text(), json.loads((RESULTS / "native.json").read_text())
    assert native_page.updated(page, report) == page
    assert report["machine"]["cpu"] in page
    other = copy.deepcopy(report)
    other["rows"][0]["ratio"]["ratio"] += 1
    assert native_page.updated(page, other) != page
