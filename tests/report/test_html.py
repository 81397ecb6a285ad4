"""The HTML report: complete, self-contained, and drawn by a real browser on a phone and on a desk."""

from __future__ import annotations

import base64
import contextlib
import copy
import functools
import gzip
import itertools
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emqdeploy.errors import EmqError
from emqdeploy.measuring.comparison import compare
from emqdeploy.measuring.result import check_result
from emqdeploy.report.html.charts import front
from emqdeploy.report.html.compare import save_comparison
from emqdeploy.report.html.page import render, save_html
from emqdeploy.report.html.shell import carried_data
from emqdeploy.report.html.svg import Scale, place_labels

from .browser import CHROMIUM, Browser

RESULT = Path(__file__).parents[1] / "data" / "bench.json"


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    """A real bench of eight children on a busy machine."""
    loaded: dict[str, Any] = json.loads(RESULT.read_text())
    return loaded


@pytest.fixture(scope="module")
def large(result: dict[str, Any]) -> dict[str, Any]:
    """The same with three baselines and 30,000 samples a row, drawn from the measured ones."""
    grown = copy.deepcopy(result)
    random = np.random.default_rng(0)
    for label, factor in (("float32", 3.0), ("static int8", 1.0), ("dynamic int8", 1.5)):
        row = copy.deepcopy(grown["rows"][-1])
        row |= {"label": label, "kind": "baseline", "bits": None, "trained": None}
        row |= {"child": None, "weights": None, "activations": None}
        row["latency_ms"] = {
            key: value * factor if isinstance(value, float) else value for key, value in row["latency_ms"].items()
        }
        row["samples_ms"] = [sample * factor for sample in row["samples_ms"]]
        grown["rows"].append(row)
    for row in grown["rows"]:
        samples = random.choice(row["samples_ms"], 30_000) * random.normal(1, 0.02, 30_000)
        row["samples_ms"] = [round(float(sample), 5) for sample in samples]
    timed = [0.04 * (1 + index % 7) for index in range(2000)]
    grown["scenarios"]["adaptive"] = {
        "policy": "latency_p99<=0.2ms,prefer=accuracy",
        "limits": [{"quantity": "latency_p99", "limit": 0.2}],
        "settings": [
            {"label": "8 bits, 2 threads", "child": "8", "bits": 8, "mode": "2 threads"},
            {"label": "4 bits, 1 thread", "child": "4", "bits": 4, "mode": "1 thread"},
        ],
        "phases": [
            {
                **{"name": name, "start_s": start, "end_s": start + 1.0, "load": load, "inferences": 1000},
                **{"p50_ms": 0.1, "p99_ms": 0.3, "share_over": 0.02, "switches": 1, "recovery_s": None},
            }
            for name, start, load in (("quiet", 0.0, 0), ("one core taken", 1.0, 1))
        ],
        "t_s": [index / 1000 for index in range(2000)],
        "latency_ms": timed,
        "setting": [index // 1100 for index in range(2000)],
        "decisions": [
            {
                "at_s": 1.1,
                "kind": "switch",
                "setting": "4 bits, 1 thread",
                "previous": "8 bits",
                "reason": "<slow> & late",
            }
        ],
        "state": "met",
    }
    return grown


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all pages."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


_VISIBLE = """
[...document.querySelectorAll('figure.chart')].map(figure => [
  figure.querySelector('figcaption').firstChild.textContent.trim(),
  [...figure.querySelectorAll('svg')].filter(svg => svg.getBoundingClientRect().height > 100)
    .map(svg => svg.querySelectorAll('.mark, .hill, .trace, .dots, .stairs').length)])
"""


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, False), (390, True)])
def test_a_browser_draws_every_chart(
    browser: Browser, large: dict[str, Any], tmp_path: Path, width: int, dark: bool
) -> None:
    """Each figure shows one picture with marks in it, nothing is wider than the window, the console stays silent."""
    page = tmp_path / "report.html"
    save_html(page, large)
    browser.requests.clear()
    browser.complaints.clear()
    browser.open(page, width, dark=dark)
    drawn = dict(browser.run(_VISIBLE))
    assert set(drawn) == {
        *("Accuracy over latency", "Accuracy over size", "Accuracy over memory"),
        *("Distribution", "Steadiness", "Trace", "Timeline", "Images per second"),
    }
    for caption, marks in drawn.items():
        assert len(marks) == 1, f"{caption} shows {len(marks)} pictures at {width} pixels"
        assert marks[0] > 1, f"{caption} is empty at {width} pixels"
    assert browser.run("document.documentElement.scrollWidth") <= width
    hints = browser.run("[...document.querySelectorAll('.sideways')].filter(one => one.offsetHeight).length")
    assert hints == browser.run("document.querySelectorAll('.scroll.more').length") > 0  # a cut table says so
    assert browser.run("document.documentElement.dataset.theme") == ("dark" if dark else "light")
    assert browser.complaints == []
    assert {request.split(":")[0] for request in browser.requests} <= {"file", "data"}


@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_draws_a_comparison(
    browser: Browser, result: dict[str, Any], large: dict[str, Any], tmp_path: Path, width: int
) -> None:
    """Median and tail, a mark per row that both have, nothing wider than the window, a silent console."""
    page = tmp_path / "compare.html"
    few = compare(result, large, ("few.json", "<b>many</b>.json"))
    save_comparison(page, few)
    browser.complaints.clear()
    browser.open(page, width)
    assert browser.run(_VISIBLE) == [["Median latency", [8]]]
    assert "500 samples" in browser.run("document.querySelector('figure.empty').textContent")
    save_comparison(page, compare(large, large, ("a.json", "b.json")))
    browser.open(page, width)
    assert dict(browser.run(_VISIBLE)) == {"Median latency": [11], "99th percentile": [11]}
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.complaints == []


def test_the_page_answers_to_pointer_and_keys(browser: Browser, result: dict[str, Any], tmp_path: Path) -> None:
    """Tooltips, the legend and the theme work without a console message."""
    page = tmp_path / "report.html"
    save_html(page, result)
    browser.complaints.clear()
    browser.open(page, 1280)
    browser.run("document.querySelector('.mark').focus({preventScroll: true})")
    assert "accuracy" in browser.run("document.querySelector('#tip.on').textContent")
    browser.run("document.querySelector('.legend button').click()")
    assert browser.run("document.querySelectorAll('.dim').length") > 0
    browser.run("document.getElementById('theme').click()")
    assert browser.run("document.documentElement.dataset.theme") == "dark"
    browser.run(
        "const make = URL.createObjectURL; URL.createObjectURL = (blob) => {"
        " blob.text().then((text) => { window.saved = text; }); return make.call(URL, blob); };"
        " document.getElementById('save').click()"
    )
    until = time.monotonic() + 60
    while not (saved := browser.run("window.saved || ''")) and time.monotonic() < until:
        time.sleep(0.05)
    assert json.loads(saved) == result
    assert browser.complaints == []


def test_eight_widths_and_three_baselines_stay_below_6_mb(large: dict[str, Any], tmp_path: Path) -> None:
    """With 30,000 raw samples in each of eleven rows, as a minute gives; and everything comes back out of the page."""
    page = tmp_path / "report.html"
    save_html(page, large)
    assert page.stat().st_size < 6_000_000
    assert carried_data(page) == large


def test_nothing_is_fetched_and_nothing_breaks_out(result: dict[str, Any]) -> None:
    """No address but the SVG-free page itself; hostile names stay text."""
    label = json.dumps("<img src=x onerror=alert(1)>")
    hostile = json.loads(json.dumps(result).replace('"1 bit"', label))
    hostile["source"]["path"] = "</script><script>alert(1)</script>"
    page = render(hostile)
    assert "<script>alert" not in page
    assert "<img" not in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    assert "http://" not in page
    assert "https://" not in page


def test_what_is_missing_is_said(result: dict[str, Any]) -> None:
    """An interrupted run without data set, samples and switches is a page, too."""
    poor = copy.deepcopy(result)
    poor |= {"complete": False, "switches": [], "scenarios": {}, "resident": []}
    for row in poor["rows"]:
        row |= {"accuracy": None, "latency_ms": None, "ratio_to_first": None, "samples_ms": [], "per_layer": None}
        row |= {"size_bytes": None, "rss_bytes": None, "load_ms": None, "stored_as": None, "computed_as": None}
    page = render(poor)
    assert "The run was interrupted" in page
    assert page.count("the data set was not at hand") == 3  # there is no empty frame for energy
    assert "Energy is not measured: " in page


def places(value: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """Where every key of a result stands; of a list the first entry stands for all."""
    for key in value if isinstance(value, dict) else range(min(len(value), 1)) if isinstance(value, list) else ():
        if isinstance(value, dict):
            yield (*path, key)
        yield from places(value[key], *path, key)


def test_speed_is_compared_with_what_was_timed(result: dict[str, Any]) -> None:
    """With onnxruntime's int8 and float32 where they ran, else with the first row."""
    result = copy.deepcopy(result)
    assert "the ratio is to the first row" in (page := render(result))
    assert "ratio of p50" in page
    for row, ratio in zip(result["rows"], (2.25, 1.5), strict=False):
        row["times_as_fast"] = {"int8": {"ratio": ratio, "low": ratio - 0.1, "high": ratio + 0.1}}
    page = render(result)
    assert "2.25<small>2.15 to 2.35</small>" in page
    assert "of the same network in onnxruntime as int8" in page
    assert "as fast as float32" not in page
    assert "ratio of p50" not in page


def test_whatever_is_left_out_is_refused_or_shown(result: dict[str, Any]) -> None:
    """A result that others wrote may lack anything: the reader says so, or the page does without."""
    slim = copy.deepcopy(result)
    slim["rows"] = [row | {"samples_ms": row["samples_ms"][:20]} for row in slim["rows"]]
    shown = 0
    for *path, key in list(places(slim)):
        poor = copy.deepcopy(slim)
        holder = functools.reduce(lambda value, step: value[step], path, poor)
        del holder[key]
        with contextlib.suppress(EmqError):
            render(check_result(Path("bench.json"), poor))
            shown += 1
    assert shown > 20


@pytest.fixture(scope="module")
def mixed(result: dict[str, Any]) -> dict[str, Any]:
    """The same with a child of another activation width and one with widths per layer, whose name is long."""
    text = json.dumps(result)
    for bits, name in (("4", "4a2"), ("5", "a-child-with-widths-per-layer")):
        text = text.replace(f'"{bits}"', f'"{name}"').replace(f'"{bits} bits"', f'"{name}"')
    made: dict[str, Any] = json.loads(text)
    made["rows"][3] |= {"activations": 2}
    made["rows"][4] |= {
        **{"bits": 4, "trained": False},
        **{"weights": {"*": 4, "conv1": 8, "fc<b>": 2}, "activations": {"*": 8, "conv1": 4}},
    }
    return made


def test_children_are_told_by_their_names(mixed: dict[str, Any]) -> None:
    """Widths of weights and activations, whatever they are; a row that training never visited is marked."""
    page = render(mixed)
    assert "<th>weights</th><th>activations</th>" in page
    assert '<td><span title="conv1 8, fc&lt;b&gt; 2, every other layer 4">4 and others</span></td>' in page
    assert "<td>2</td>" in page
    unseen = sum(not row["trained"] for row in mixed["rows"])
    assert page.count("<small>unseen in training</small>") == unseen > 1
    assert "int8, 8 b<small>→ int8</small>" in page
    assert "a-child-with-widths-per-layer to" in page  # the tip of a switch
    assert "fc<b>" not in page


def test_a_browser_draws_long_names(browser: Browser, mixed: dict[str, Any], tmp_path: Path) -> None:
    """The trace cuts a name that has no room; nothing is wider than a phone."""
    page = tmp_path / "report.html"
    save_html(page, mixed)
    browser.complaints.clear()
    browser.open(page, 390)
    assert browser.run("document.documentElement.scrollWidth") <= 390
    marks = "[...document.querySelectorAll('svg.narrow .tick')].filter(one => one.getBoundingClientRect().height)"
    assert browser.run(f"{marks}.some(one => one.textContent.endsWith('…'))")
    assert browser.run(f"{marks}.every(one => one.getBoundingClientRect().left >= 0)")
    assert browser.complaints == []


def test_a_file_that_is_no_report_is_refused(tmp_path: Path) -> None:
    """Damaged data is one sentence."""
    damaged = tmp_path / "report.html"
    for content in ("%%%", "e30=", base64.b64encode(gzip.compress(b'{"a": ')).decode()):
        damaged.write_text(f'<script type="application/gzip" id="result">{content}</script>')
        with pytest.raises(EmqError, match="damaged"):
            carried_data(damaged)
    damaged.write_text("<p>something else</p>")
    assert carried_data(damaged) is None


def test_the_front_holds_what_nothing_beats() -> None:
    """Cheaper or more accurate than all others."""
    points = [(3.0, 99.0), (1.0, 97.0), (2.0, 96.0), (2.0, 98.0), (4.0, 99.0)]
    assert front(points) == [(1.0, 97.0), (2.0, 98.0), (3.0, 99.0)]


@pytest.mark.parametrize(("low", "high", "log"), [(0.03, 2.6, True), (11.0, 40.0, True), (97.1, 99.6, False)])
def test_ticks_are_round_and_inside(low: float, high: float, log: bool) -> None:
    """At least two, however short the scale."""
    scale = Scale(low, high, 0, 100, log)
    ticks = scale.ticks(5)
    assert len(ticks) >= 2
    assert all(-0.2 <= scale(tick) <= 100.2 for tick in ticks)


def test_labels_do_not_cover_one_another() -> None:
    """Eight points at one place get eight readable labels."""
    places = place_labels([(100.0, 50.0, 40.0)] * 8, 0, 300, 400)
    heights = sorted(y for _, y in places)
    assert all(below - above >= 14 for above, below in itertools.pairwise(heights))
