"""A child with widths per layer through bench, table, reports, policy and a stream, by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emqdeploy.errors import UsageError
from emqdeploy.format.child import Child, parse_children
from emqdeploy.format.emq import save_checkpoint
from emqdeploy.measuring.bench import bench
from emqdeploy.measuring.choices import options_of_result
from emqdeploy.measuring.comparison import compare
from emqdeploy.measuring.result import load_result, save_result
from emqdeploy.measuring.rows import rows_of
from emqdeploy.measuring.scenarios.switch import TRACES, read_trace
from emqdeploy.measuring.settings import BenchSettings
from emqdeploy.report.bench_table import bench_parts
from emqdeploy.report.html.page import render
from emqdeploy.runtimes.policy import Setting
from emqdeploy.serving.serve import serve
from emqdeploy.serving.settings import ServeSettings
from emqdeploy.workflows.inspection import inspect
from tests.mixing import MIXED, NARROW, WIDE, mixed_network
from tests.serving.test_serve import picture


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with the children 4, ``mixed`` and 8."""
    path = tmp_path_factory.mktemp("mixed") / "model.emq"
    save_checkpoint(path, mixed_network().checkpoint)
    return path


@pytest.fixture(scope="module")
def measured(network: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A bench of ``mixed`` and 8 as it comes back from its file, with every scenario of ours."""
    settings = BenchSettings(
        str(network), "mixed,8", scenarios=("single", "offline", "switch", "adaptive"), samples=20, seconds=0.2,
        limit=40, switches=8, batches=(2,), energy="none", threads=1, policy="latency_p99=5s",
        baselines=False,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("result") / "bench.json"
    save_result(path, bench(settings))
    return load_result(path)


def test_a_row_says_what_its_child_is(measured: dict[str, Any]) -> None:
    """Its name, its widths as they are, its nominal width to sort by, and every layer's own bits."""
    mixed, eight = rows_of(measured)
    assert (mixed.label, mixed.child, mixed.bits, mixed.trained) == ("mixed", "mixed", 4, True)
    assert (mixed.weights, mixed.activations) == (MIXED.weights.plain(), MIXED.activations.plain())
    assert mixed.find_child() == MIXED
    assert (eight.label, eight.child, eight.weights, eight.activations) == ("8 bits", "8", 8, 8)
    grids = {layer.name: layer.grid_bits for layer in mixed.per_layer or []}
    assert (grids[WIDE], grids[NARROW], grids["stage1.0.conv1"]) == (8, 2, 4)
    assert mixed.accuracy is not None
    assert mixed.size_bytes


def test_scenarios_switch_by_name(measured: dict[str, Any]) -> None:
    """Traces, summaries, the policy's settings and what stays resident."""
    assert {one["to"] for one in measured["switches"]} == {"mixed", "8"}
    assert [(row["label"], row["child"]) for row in measured["scenarios"]["switch"]["rows"]] == [
        ("mixed", "mixed"),
        ("8 bits", "8"),
    ]
    assert measured["resident"][0]["children"] == ["mixed", "8"]
    run = measured["scenarios"]["adaptive"]
    assert [(one["label"], one["child"], one["bits"]) for one in run["settings"]] == [
        ("mixed", "mixed", 4),
        ("8 bits", "8", 8),
    ]
    assert BenchSettings.from_dict(measured["settings"]).bits == "mixed,8"
    assert "--bits mixed,8" in measured["command"]


def test_reports_name_it(measured: dict[str, Any]) -> None:
    """Page, table and comparison."""
    page = render(measured)
    assert f"{WIDE} 8, {NARROW} 2, every other layer 4" in page
    assert "The policy at work" in page
    assert any("all 2 children resident" in part for part in bench_parts(measured) if isinstance(part, str))
    compared = compare(measured, measured, ("a", "b"))
    assert [row["child"] for row in compared["rows"]] == ["mixed", "8"]
    assert inspect(Path(measured["source"]["path"]))["children"][1]["name"] == "mixed"


def test_a_stream_chooses_it_from_a_table(network: Path, measured: dict[str, Any], tmp_path: Path) -> None:
    """The settings of a result are the network's own children; a table of another network is refused."""
    assert [option.setting for option in options_of_result(measured)] == [Setting(MIXED), Setting(Child.of(8))]
    picture(tmp_path / "photos" / "one.png", 1)
    settings = ServeSettings(network, (str(tmp_path / "photos"),), bits="mixed", threads=1, energy="none")
    told = serve(settings, measured)
    assert list(told["by_setting"]) == ["mixed"]
    other = json.loads(json.dumps(measured).replace(f'"{NARROW}": 2', f'"{NARROW}": 3'))
    with pytest.raises(UsageError, match="none of this network's children"):
        serve(settings, other)


def test_a_child_that_is_not_there_is_one_sentence(network: Path) -> None:
    """Those that the file has are listed."""
    with pytest.raises(UsageError, match="no child '2' here; available: 4, mixed, 8; name one of these"):
        bench(BenchSettings(str(network), "8,2"))


def test_traces_are_of_children(tmp_path: Path) -> None:
    """Generated ones never stand still and depend on the seed; a file may hold short forms."""
    children = (*parse_children("8,4,4a2"), MIXED)
    for name in TRACES:
        trace = read_trace(name, children, 40, seed=3)
        assert set(trace) == set(children)
        assert all(one != other for one, other in zip((children[0], *trace), trace, strict=False))
        assert trace == read_trace(name, children, 40, seed=3)
    file = tmp_path / "trace.txt"
    file.write_text("W4A2\n\nmixed\n8\n")
    assert [child.name for child in read_trace(str(file), children, 99, 0)] == ["4a2", "mixed", "8"]
