"""What a bundle offers is measured side by side, and opened again in a fresh process; what it lacks is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.exporters.settings import ExportSettings
from emqdeploy.measuring.bench import bench
from emqdeploy.measuring.settings import BenchSettings
from emqdeploy.workflows.export import export


@pytest.fixture(scope="module")
def bundle(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two children in two forms, and a selector."""
    out = tmp_path_factory.mktemp("bundle") / "bundle"
    for options in ({"storage": "packed"}, {"selector": "if"}):
        export(ExportSettings(digits, bits="8,2", out=out, **options))  # type: ignore[arg-type]
    return out


@pytest.fixture(scope="module")
def measured(bundle: Path) -> dict[str, Any]:
    """A short measurement of all of it."""
    return bench(BenchSettings(str(bundle), samples=20, switches=10, limit=40, energy="none"))


def test_forms_and_selector_stand_side_by_side(measured: dict[str, Any]) -> None:
    """Each row is of the file that it names: its size, its memory, its accuracy."""
    rows = {row["label"]: row for row in measured["rows"]}
    names = {f"{bits} bits ({form})" for bits in (2, 8) for form in ("packed", "int8", "selector if")}
    assert set(rows) == names
    assert rows["2 bits (packed)"]["size_bytes"] < rows["2 bits (int8)"]["size_bytes"]
    assert rows["2 bits (int8)"]["size_bytes"] < rows["2 bits (selector if)"]["size_bytes"]
    for row in rows.values():
        assert row["kind"] == ("selector" if "selector" in row["label"] else "child")
        assert row["accuracy"] == rows[f"{row['child']} bits (int8)"]["accuracy"]
        assert row["accuracy_drop"] is None  # of 40 images, not comparable with the whole test set
        assert row["rss_bytes"] > 0
    assert {one["flavour"] for one in measured["resident"]} == {"packed", "int8", "if"}
    assert {one["kind"] for one in measured["switches"]} == {"child", "selector"}
    assert measured["source"]["kind"] == "bundle"


def test_one_exported_file_is_measured(bundle: Path) -> None:
    """Without its bundle."""
    (file,) = bundle.glob("*-w2.onnx")
    result = bench(BenchSettings(str(file), samples=10, limit=40, energy="none"))
    (row,) = result["rows"]
    assert (row["child"], row["size_bytes"]) == ("2", file.stat().st_size)
    assert result["scenarios"]["switch"]["rows"] == []


def test_what_a_bundle_lacks_is_said(bundle: Path) -> None:
    """One sentence for a child, a runtime, an engine and a name that are not there."""
    with pytest.raises(UsageError, match="no child '4' here; available: 2, 8"):
        bench(BenchSettings(str(bundle), bits="4"))
    with pytest.raises(UsageError, match="unknown runtime 'tvm'"):
        bench(BenchSettings(str(bundle), runtimes=("tvm",)))
    with pytest.raises(UsageError, match="names child '8' twice"):
        bench(BenchSettings(str(bundle), bits="8,8"))
    with pytest.raises(UsageError, match="named twice"):
        bench(BenchSettings(str(bundle), runtimes=("onnxruntime", "onnxruntime")))
    with pytest.raises(EmqError, match=rf"on this device with: emqdeploy export {bundle} --target tensorrt"):
        bench(BenchSettings(str(bundle), runtimes=("tensorrt",)))


def test_two_runtimes_are_compared(bundle: Path) -> None:
    """The same child in both, in turns, with a verdict that a person can read."""
    pytest.importorskip("openvino")
    result = bench(
        BenchSettings(
            str(bundle.parent / "bundle" / "model.emq") if (bundle / "model.emq").exists() else str(bundle),
            bits="2",
            runtimes=("onnxruntime", "openvino"),
            scenarios=("single",),
            samples=40,
            limit=40,
            energy="none",
        )
    )
    assert [row["label"] for row in result["rows"]] == ["2 bits (onnxruntime)", "2 bits (openvino)"]
    (compared,) = result["scenarios"]["single"]["runtimes"]
    assert compared["low"] <= compared["ratio"] <= compared["high"]
    assert any(note.startswith("2 bits: ") and "openvino" in note for note in result["notes"])


def test_a_comparison_of_runtimes_names_the_form(bundle: Path) -> None:
    """Of two files of one child each is compared with the other runtime, and the sentence says which."""
    pytest.importorskip("openvino")
    short: dict[str, Any] = {"scenarios": ("single",), "samples": 20, "limit": 20, "energy": "none", "baselines": False}
    result = bench(BenchSettings(str(bundle), bits="2", runtimes=("onnxruntime", "openvino"), **short))
    notes = [note for note in result["notes"] if note.startswith("2 bits: ")]
    assert len(notes) == 2
    for form in ("packed", "int8"):
        assert sum(f"onnxruntime ({form})" in note and "openvino" in note for note in notes) == 1
