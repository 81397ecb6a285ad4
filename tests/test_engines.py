"""Engines are built from what a bundle holds, once for each GPU; TensorRT-RTX stands in, for it builds without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from emqdeploy.bundle import NOT_RUN, Bundle
from emqdeploy.export.settings import ExportSettings
from emqdeploy.workflows.engines import build_missing_engines
from emqdeploy.workflows.export import export


def test_missing_engines_are_built_once(digits: Path, tmp_path: Path) -> None:
    """The bundle gains an engine per form and keeps everything else; a second call finds nothing to do."""
    pytest.importorskip("tensorrt_rtx")
    bundle = tmp_path / "bundle"
    export(ExportSettings(digits, (4,), target="tensorrt-onnx", out=bundle))
    before = Bundle.open(bundle)
    gpu = {"device": "NVIDIA RTX A4000", "compute_capability": "8.6"}
    said: list[str] = []
    (built,) = build_missing_engines(bundle, gpu, said.append, flavour="tensorrt-rtx")
    after = Bundle.open(bundle)
    assert after.artefacts == (*before.artefacts, built)
    assert (after.classes, after.accuracy, after.files) == (before.classes, before.accuracy, before.files)
    assert (built.bits, built.role, built.status) == ((4,), "width", NOT_RUN)
    assert built.built_for["compute_capability"] == ["8.6"]
    assert after.file_of(built).stat().st_size > 1000
    assert "NVIDIA RTX A4000" in said[0]
    assert build_missing_engines(bundle, gpu, flavour="tensorrt-rtx") == []
    (second,) = build_missing_engines(bundle, gpu | {"compute_capability": "8.9"}, flavour="tensorrt-rtx")
    assert second.built_for["compute_capability"] == ["8.9"]
