"""Without a runtime named, the best one that can compute the network, beside onnxruntime's int8 and float32 of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emqdeploy.data import Preprocessing
from emqdeploy.errors import Unsupported
from emqdeploy.format.emq import load_checkpoint
from emqdeploy.graph.unquantized import unquantized
from emqdeploy.measuring.bench import bench
from emqdeploy.measuring.references import open_reference
from emqdeploy.measuring.result import check_result
from emqdeploy.measuring.settings import BenchSettings
from emqdeploy.report.bench_table import bench_parts
from emqdeploy.report.fitting import fitting
from emqdeploy.runtimes import native_library
from emqdeploy.runtimes.base import open_runtime
from emqdeploy.runtimes.native_library import library_path
from emqdeploy.runtimes.onnx_session import SessionEngine, create_session, session_options

SHORT: dict[str, Any] = {"scenarios": ("single",), "samples": 20, "limit": 20, "energy": "none"}
needs_native = pytest.mark.skipif(library_path() is None, reason="emqdeploy-native is not installed")


def measured(path: Path, **more: Any) -> dict[str, Any]:
    """A short bench, as a reader gets it."""
    result = bench(BenchSettings(str(path), bits="8,2", **SHORT, **more))
    return check_result(path, json.loads(json.dumps(result)))


@needs_native
def test_native_is_measured_beside_int8_and_float32(digits: Path) -> None:
    """Every child in the native runtime, with its ratio to both, and one table that fits 80 columns."""
    from rich.console import Console

    result = measured(digits)
    rows = {row["label"]: row for row in result["rows"]}
    assert {label: row["runtime"] for label, row in rows.items()} == {
        **dict.fromkeys(("8 bits", "2 bits"), "native"),
        **dict.fromkeys(("int8", "float32"), "onnxruntime"),
    }
    assert [note for note in result["notes"] if note.startswith("this is")] == []
    assert (rows["int8"]["computed_as"], rows["float32"]["computed_as"]) == ("int8", "float32")
    for label, row in rows.items():
        for name in ("int8", "float32"):
            ratio = row["times_as_fast"][name]
            assert ratio["low"] <= ratio["ratio"] <= ratio["high"]
            expected = rows[name]["latency_ms"]["p50"] / row["latency_ms"]["p50"]
            assert ratio["ratio"] == pytest.approx(expected, rel=1e-6), label
    speed, *_ = bench_parts(result)
    console = Console(width=80)
    shown = list(fitting(speed, console))  # type: ignore[arg-type]
    headings = " ".join(str(column.header) for column in shown[0].columns)  # type: ignore[union-attr]
    assert "int8" in headings
    assert "float32" in headings


def test_why_it_is_onnxruntime_is_said(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package that is missing, or the operator that has no kernel; int8 is then the widest child."""
    reasons = ("is not installed", "operator Erf (gelu) has no integer kernel")

    def refuse(*_: object) -> None:
        raise Unsupported(reasons[1])

    monkeypatch.setattr("emqdeploy.runtimes.adapters.native_runtime.NativeNetwork", refuse)
    for reason in reasons[library_path() is not None :]:
        result = measured(digits)
        assert [row["label"] for row in result["rows"]] == ["8 bits", "2 bits", "float32"]
        assert {row["runtime"] for row in result["rows"]} == {"onnxruntime"}
        assert any(note.startswith("this is onnxruntime, not native: ") and reason in note for note in result["notes"])
        assert result["rows"][0]["times_as_fast"]["int8"]["ratio"] == 1


def test_named_runtimes_are_measured_alone(digits: Path) -> None:
    """``--runtime`` means those and no others, and ``--no-baselines`` nothing to compare with."""
    result = measured(digits, runtimes=("onnxruntime",))
    assert [row["label"] for row in result["rows"]] == ["8 bits", "2 bits"]
    assert all(row["times_as_fast"] == {} for row in result["rows"])
    alone = measured(digits, baselines=False)
    assert [row["label"] for row in alone["rows"]] == ["8 bits", "2 bits"]
    assert "--no-baselines" in alone["command"]


def test_the_float_network_is_the_child_without_rounding(digits: Path) -> None:
    """Its logits are near the child's own, and nothing of it is computed in integers."""
    checkpoint = load_checkpoint(digits)
    child = checkpoint.network.children[-1]
    graph = unquantized(checkpoint.skeleton, checkpoint.network, child)
    pixels = np.random.default_rng(0).integers(0, 256, (16, *checkpoint.card.input_shape)).astype(np.uint8)
    images = Preprocessing.of(checkpoint.card.preprocessing).normalize(pixels)
    floats = SessionEngine(create_session(graph, session_options(1)), 0).run(images)
    integers = open_runtime(checkpoint, "onnxruntime", children=[child], threads=1).run(images)
    assert 0 < np.abs(floats - integers).max() < 0.1 * np.abs(integers).max()
    layers = open_reference(digits, "float32", 1).runtime.precision(child)
    assert {(layer.computed_as, layer.integer) for layer in layers} == {("float32", False)}


def test_a_missing_library_is_no_error(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without the native package measures as before."""
    from emqdeploy.runtimes.adapters.native_runtime import NativeRuntime

    monkeypatch.setattr(NativeRuntime, "why_not", classmethod(lambda _: "emqdeploy_native is not installed"))
    monkeypatch.setattr(native_library, "library_path", lambda: None)
    assert "emqdeploy_native is not installed" in " ".join(measured(digits)["notes"])
