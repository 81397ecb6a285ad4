"""Engines are built from what a bundle holds, once for each GPU; TensorRT-RTX stands in, for it builds without one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.exporters.settings import ExportSettings
from emqdeploy.format.bundle import CHILD, NOT_RUN, VERIFIED, Artefact, Bundle
from emqdeploy.format.child import Child
from emqdeploy.format.emq import save_checkpoint
from emqdeploy.format.grid import Floats
from emqdeploy.format.precision import LayerPrecision
from emqdeploy.runtimes.adapters.onnx_runtime import OnnxRuntime
from emqdeploy.workflows.export import export
from emqdeploy.workflows.targets import tensorrt
from emqdeploy.workflows.verify import verify

from ..conftest import Deployed


@pytest.fixture(scope="module")
def exported(small: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the ONNX form of one child."""
    pytest.importorskip("tensorrt_rtx")
    run = tmp_path_factory.mktemp("run")
    save_checkpoint(run / "model.emq", small.checkpoint)
    export(ExportSettings(run, "4", target="tensorrt-onnx"))
    return run / "bundle"


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


def test_missing_engines_are_built_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle gains an engine per form and keeps everything else; a second call finds nothing to do.

    A device has no onnx package, so what needs it is not touched.
    """
    monkeypatch.setattr(tensorrt, "symmetric_model", None)
    before = Bundle.open(bundle)
    settings = ExportSettings(bundle, target="tensorrt-rtx", compute_capabilities=("8.6",))
    said: list[str] = []
    result = export(settings, said.append)
    assert [artefact["id"] for artefact in result["artefacts"]] == ["tensorrt-rtx-w4"]
    after = Bundle.open(bundle)
    *kept, built = after.artefacts
    assert tuple(kept) == before.artefacts
    assert (after.card, after.children, after.files) == (before.card, before.children, before.files)
    assert (built.children, built.role, built.status) == (("4",), CHILD, NOT_RUN)
    assert built.built_for["compute_capability"] == ["8.6"]
    assert after.file_of(built).stat().st_size > 1000
    assert "compute capability 8.6" in said[0]
    assert export(settings)["artefacts"] == []
    other = ExportSettings(bundle, "4", target="tensorrt-rtx", compute_capabilities=("8.9",))
    (second,) = export(other)["artefacts"]
    assert second["built_for"]["compute_capability"] == ["8.9"]


def test_a_device_needs_no_checkpoint(bundle: Path) -> None:
    """Forms are enough for engines; for anything else one sentence says what is missing."""
    manifest = bundle / "manifest.json"
    values = json.loads(manifest.read_text())
    values |= {"checkpoint": None, "files": {}}
    manifest.write_text(json.dumps(values))
    (bundle / "model.emq").unlink()
    (built,) = export(ExportSettings(bundle, target="tensorrt-rtx", compute_capabilities=("8.6",)))["artefacts"]
    assert built["id"] == "tensorrt-rtx-w4"
    for settings in (ExportSettings(bundle), ExportSettings(bundle, "8", target="tensorrt-rtx")):
        with pytest.raises(EmqError, match="holds no checkpoint to export from"):
            export(settings)


def test_what_the_forms_are_not_comes_from_the_checkpoint(bundle: Path) -> None:
    """A child without a form, and a GPU that TensorRT does not know."""
    settings = ExportSettings(bundle, "2", target="tensorrt-rtx", compute_capabilities=("8.6",))
    (built,) = export(settings)["artefacts"]
    assert list(built["children"]) == ["2"]
    assert built["parity"]["unsafe_flips"] == 0
    with pytest.raises(UsageError, match=r"--compute-capability is '1\.0'"):
        export(ExportSettings(bundle, target="tensorrt-rtx", compute_capabilities=("1.0",)))


class _OnGpu:
    """Stands where TensorRT would: answers as onnxruntime does, or wrongly, and says what computed it."""

    wrong = False
    why_not = staticmethod(lambda: None)

    def __init__(self, bundle: Bundle, artefacts: list[Artefact]) -> None:
        (self.artefact,) = artefacts
        assert bundle.file_of(self.artefact).stat().st_size == self.artefact.size_bytes
        self.network = _OnGpu.inside
        self.find = self.network.find
        self.close = lambda: None

    inside: OnnxRuntime

    def run(self, images: Floats, child: Child) -> Floats:
        """Logits of a child."""
        logits = self.network.run(images, child)
        return np.ascontiguousarray(logits[:, ::-1]) if self.wrong else logits

    def precision(self, child: Child) -> list[LayerPrecision]:
        """All but one layer in integers."""
        return [
            LayerPrecision(layer.name, layer.grid_bits, layer.stored_as, "float16" if index == 0 else "int8", index > 0)
            for index, layer in enumerate(self.artefact.layers)
        ]


def test_an_engine_that_runs_here_is_proven_here(
    small: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the rule that `verify` has for it; the export needs no second step then."""
    pytest.importorskip("tensorrt_rtx")
    save_checkpoint(tmp_path / "model.emq", small.checkpoint)
    _OnGpu.inside = OnnxRuntime(small.checkpoint, [4], threads=1)
    monkeypatch.setattr(tensorrt, "TensorRtRuntime", _OnGpu)
    monkeypatch.setattr(tensorrt, "built_elsewhere", lambda artefact: None)
    settings = ExportSettings(tmp_path, "4", target="tensorrt-rtx", compute_capabilities=("8.6",))
    with pytest.raises(EmqError, match=r"runs 1 of 10 layers in float \(conv1\)"):
        export(settings)
    (built,) = export(replace(settings, allow_float=True))["artefacts"]
    assert (built["status"], built["integer_layers"]) == (VERIFIED, 9)
    assert built["parity"]["runtime"] == "TensorRT on this GPU"
    (entry,) = verify(tmp_path, "4", count=8)["results"]
    assert entry["rungs"]["tensorrt-rtx-w4"]["wrong"] is None
    monkeypatch.setattr(_OnGpu, "wrong", True)
    with pytest.raises(EmqError, match=r"at 4 bits .* it was not kept, use --target onnx"):
        export(replace(settings, allow_float=True))
    (entry,) = verify(tmp_path, "4", count=64)["results"]
    assert "of their spread, rounding explains" in entry["rungs"]["tensorrt-rtx-w4"]["wrong"]
