"""What a report advises: the setting, why, and how sure; from the figures of one and the same row."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from emqdeploy.measuring.rows import rows_of
from emqdeploy.report.colours import DARK, LIGHT, of_bits, style
from emqdeploy.report.html.page import render
from emqdeploy.report.recommendation import Recommendation, accuracy_interval, recommend

RESULT = Path(__file__).parents[1] / "data" / "bench.json"


def made(*rows: tuple[str, float, float, int], images: int = 1000, limit: float | None = None) -> dict[str, Any]:
    """A real result with other figures: label, accuracy, p50 in ms and bytes of every row."""
    result: dict[str, Any] = json.loads(RESULT.read_text())
    shapes = result["rows"]
    result["rows"] = []
    for shape, (label, accuracy, p50, count) in zip(shapes, rows, strict=False):
        row = copy.deepcopy(shape) | {"label": label, "accuracy": accuracy, "size_bytes": count, "disturbed": []}
        row["latency_ms"] |= {"p50": p50, "p99": 2 * p50, "interval": None}
        result["rows"].append(row)
    result["source"]["images"] = images
    result["switches"], result["scenarios"] = [], {}
    if limit is not None:
        result["scenarios"]["adaptive"] = {"limits": [{"quantity": "latency_p99", "limit": limit}]}
    return result


def advised(result: dict[str, Any]) -> Recommendation:
    """What it says."""
    found = recommend(result, rows_of(result))
    assert found is not None
    return found


def test_the_smallest_of_those_that_are_as_good() -> None:
    """Where all are equally fast, bytes decide among those within half a point of the best."""
    found = advised(made(("1", 90.0, 1.0, 100), ("2", 97.8, 1.01, 200), ("4", 98.2, 1.0, 400), ("8", 98.1, 1.02, 800)))
    assert found.row.label == "2"
    saved = "200 B instead of 800 B for the largest"
    assert found.why == f"0.40 points below the most accurate, no child is faster, {saved}."
    assert found.sure.startswith("1000 images leave the accuracy between 96.7 and 98.5 %, which 2 of 3 other children")


def test_time_decides_before_bytes() -> None:
    """A child that is really faster is taken, though another is smaller."""
    found = advised(made(("1", 98.0, 1.0, 100), ("2", 98.0, 0.5, 200), ("8", 98.1, 1.0, 800)))
    assert found.row.label == "2"
    assert "the fastest" in found.why


def test_a_budget_comes_first() -> None:
    """Of what meets the policy's budget the best; where nothing does, that is said."""
    rows = (("1", 80.0, 1.0, 100), ("8", 98.0, 5.0, 800))
    assert advised(made(*rows, limit=3.0)).row.label == "1"
    assert "Its p99 is 2 ms and the budget 3 ms." in advised(made(*rows, limit=3.0)).why
    assert advised(made(*rows)).row.label == "8"
    assert "Nothing meets the budget: its p99 is 2 ms and the budget 500 µs." in advised(made(*rows, limit=0.5)).why


def test_doubt_is_said() -> None:
    """Disturbed, interrupted, or nothing to advise."""
    result = made(("1", 98.0, 1.0, 100), ("8", 98.1, 1.0, 800))
    result["rows"][0]["disturbed"] = ["a neighbour"]
    assert "Other work disturbed the run" in advised(result).sure
    result["complete"] = False
    assert "The run was interrupted" in advised(result).sure
    assert recommend(result, rows_of(result)[:1]) is None
    result["rows"][0]["accuracy"] = None
    assert recommend(result, rows_of(result)) is None


@pytest.mark.parametrize(("percent", "images", "low", "high"), [(98.0, 1000, 96.9, 98.7), (100.0, 359, 98.9, 100.0)])
def test_accuracy_has_an_interval(percent: float, images: int, low: float, high: float) -> None:
    """Wilson's: never beyond what is possible; none where nobody knows the number of images."""
    found = accuracy_interval(percent, images)
    assert found is not None
    assert found == pytest.approx((low, high), abs=0.06)
    assert accuracy_interval(percent, None) is None
    assert accuracy_interval(None, images) is None


def test_the_page_speaks_of_one_setting() -> None:
    """Headline and tiles are of the same row, and there is no frame for what was not measured."""
    page = render(made(("1 bit", 90.0, 1.0, 100), ("2 bits", 97.8, 1.01, 200), ("8 bits", 98.1, 1.0, 800)))
    header = page[page.index('class="advice') : page.index("<main>")]
    assert "<b>Deploy 2 bits</b>" in header
    assert header.count(" of 2 bits") == 4
    assert "of 8 bits</span>" not in header
    assert "97.80 %" in header
    assert "Accuracy over energy" not in page
    assert "96.7 to 98.5 %" in page


def test_colours_are_one_ordered_scale() -> None:
    """Every step is further from the paper than the one before, enough to be seen, on white and on black."""

    def light(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
        return sum(weight * one for weight, one in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for scale, paper in ((LIGHT, 1.0), (DARK, light("#12151b"))):
        contrast = [(max(light(one), paper) + 0.05) / (min(light(one), paper) + 0.05) for one in scale]
        assert contrast == sorted(contrast)
        assert contrast[0] >= 2.99
    assert of_bits(1) == LIGHT[0]
    assert of_bits(99) == LIGHT[-1]
    assert style().count("--b8: ") == 2
