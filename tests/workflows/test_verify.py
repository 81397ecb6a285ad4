"""Verify: every rung and every file of a bundle, what a difference looks like, and what a lying manifest gets."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.exporters.settings import ExportSettings
from emqdeploy.format.bundle import MANIFEST_FILE, NOT_RUN, VERIFIED, Bundle, sha256
from emqdeploy.format.emq import save_checkpoint
from emqdeploy.format.precision import LayerPrecision
from emqdeploy.format.seal import read_seal, seal
from emqdeploy.graph.parity import Parity, may_round, must_agree, must_be_exact
from emqdeploy.workflows.export import export, materialize
from emqdeploy.workflows.verify import verify

from ..conftest import Deployed

IMAGES = 24

EVERY_RUNG = {"onnxruntime", "unfused", "torch", "onnx-reference", "openvino", "native", "onnxruntime-native"}
"""All of them can run where these tests run; one that was left out would prove nothing."""


@pytest.fixture(scope="module")
def exported(small: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a bundle: two children as int8, packed, and behind a selector."""
    run = tmp_path_factory.mktemp("run")
    save_checkpoint(run / "model.emq", small.checkpoint)
    for settings in (ExportSettings(selector="if"), ExportSettings(storage="packed")):
        export(replace(settings, path=run, bits="2,8"))
    return run / "bundle"


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


def _edit(bundle: Path, artefact: str, **changes: Any) -> dict[str, Any]:
    """Changes what the manifest says about an artefact; returns what it said."""
    path = bundle / MANIFEST_FILE
    manifest = json.loads(path.read_text())
    (entry,) = (entry for entry in manifest["artefacts"] if entry["id"] == artefact)
    before = dict(entry)
    entry.update(changes)
    path.write_text(json.dumps(manifest))
    return before


def test_every_file_and_every_rung(exported: Path) -> None:
    """All answer as the reference does; the files of a bundle are exact, selector and packed ones too."""
    result = verify(exported, count=IMAGES)
    assert result["ok"]
    assert [entry["child"] for entry in result["results"]] == ["2", "8"]
    for entry in result["results"]:
        files = {f"onnx-w{entry['child']}", f"onnx-packed-w{entry['child']}", "onnx-selector-if"}
        assert set(entry["rungs"]) == files | EVERY_RUNG
        assert entry["skipped"] == entry["failed"] == {}
        for name in files:
            assert entry["rungs"][name]["max_logit_error"] == 0
            assert entry["rungs"][name]["images"] == IMAGES
        assert entry["rungs"]["onnxruntime"]["differing_codes"] == 0
        for name in EVERY_RUNG - {"openvino"}:
            assert entry["rungs"][name]["codes"] > 0


def test_openvino_agrees_up_to_its_own_rounding(exported: Path) -> None:
    """Close, not equal: a rung that compared OpenVINO with itself would be exact."""
    (entry,) = verify(exported, bits=[8], count=IMAGES)["results"]
    rung = entry["rungs"]["openvino"]
    assert rung["wrong"] is None
    assert 0 < rung["max_output_steps"] < 10
    assert abs(rung["accuracy_points"]) <= 100 / IMAGES


def test_a_wrong_weight_is_found_and_its_layer_named(bundle: Path) -> None:
    """A file with a valid seal and a matching hash, but one layer's weights shuffled."""
    path = bundle / "model-w2.onnx"
    data = path.read_bytes()
    model = onnx.load_from_string(data)
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "stage2.0.conv1.weight")
    values = onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values[::-1]), weight.name))
    about = read_seal(path, data)
    del model.metadata_props[:]
    path.write_bytes(seal(model, about))
    _edit(bundle, "onnx-w2", sha256=sha256(path), size_bytes=path.stat().st_size)
    result = verify(bundle, bits=[2], count=IMAGES)
    assert not result["ok"]
    rungs = result["results"][0]["rungs"]
    assert [name for name, rung in rungs.items() if rung["wrong"]] == ["onnx-w2"]
    assert rungs["onnx-w2"]["first_layer"].startswith("stage2_0")


def test_an_altered_file_fails_the_rest_is_still_verified(bundle: Path) -> None:
    """One sentence stands where the rung would."""
    path = bundle / "model-w8.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    result = verify(bundle, bits=[8], count=IMAGES)
    (entry,) = result["results"]
    assert not result["ok"]
    assert set(entry["failed"]) == {"onnx-w8"}
    assert "does not match its hash" in entry["failed"]["onnx-w8"]
    assert entry["rungs"]["onnx-packed-w8"]["wrong"] is None


def test_what_was_built_elsewhere_is_completed(bundle: Path) -> None:
    """A file that was built, not run, is run, and the manifest then says what computes each layer."""
    held = Bundle.open(bundle).find("onnx", 2, flavour="packed")
    unknown = [LayerPrecision(layer.name, layer.grid_bits, layer.stored_as).to_dict() for layer in held.layers]
    _edit(bundle, held.id, status=NOT_RUN, layers=unknown, parity={})
    assert verify(bundle, bits=[8], count=IMAGES)["completed"] == []
    assert verify(bundle, bits=[2], count=IMAGES)["completed"] == [held.id]
    (after,) = (artefact for artefact in Bundle.open(bundle).artefacts if artefact.id == held.id)
    assert after.status == VERIFIED
    assert after.layers == held.layers
    assert after.integer_layers == len(held.layers)
    assert after.parity["images_from"] == f"{IMAGES} test images"


def test_an_engine_for_another_machine_is_not_run_and_says_why(bundle: Path) -> None:
    """It says nothing about the other files, and it is not called verified."""
    _edit(bundle, "onnx-w8", target="tensorrt", status=NOT_RUN, built_for={"runtime": "tensorrt-rtx", "version": "0"})
    result = verify(bundle, bits=[8], count=IMAGES)
    (entry,) = result["results"]
    assert result["ok"]
    assert "onnx-w8" in entry["skipped"]
    assert result["completed"] == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"file": "model-w3.onnx"}, "is missing"),
        ({"file": "../model.emq"}, "outside the bundle"),
        ({"size_bytes": 7}, "altered or truncated"),
        ({"role": "king"}, "is damaged"),
    ],
)
def test_a_manifest_that_lies_is_one_sentence(bundle: Path, changes: dict[str, Any], sentence: str) -> None:
    """Before anything runs."""
    _edit(bundle, "onnx-w2", **changes)
    with pytest.raises(EmqError, match=sentence) as error:
        verify(bundle, count=1)
    assert "\n" not in str(error.value)


def test_a_manifest_that_swaps_children_is_noticed(bundle: Path) -> None:
    """Hashes match, but the file is another network than the manifest says."""
    other = Bundle.open(bundle).find("onnx", 8, flavour="int8")
    _edit(bundle, "onnx-w2", file=other.file, sha256=other.sha256, size_bytes=other.size_bytes)
    (entry,) = verify(bundle, bits=[2], count=1)["results"]
    assert "holds child 8, not 2" in entry["failed"]["onnx-w2"]


def test_single_files_are_refused(exported: Path) -> None:
    """The sentence says what to name instead."""
    with pytest.raises(UsageError, match="name its bundle"):
        verify(exported / "model-w2.onnx")


def test_judges() -> None:
    """What is wrong with a comparison, and what is not."""
    exact = Parity(images=1000, codes=10)
    assert must_be_exact(exact, None) is None
    assert must_be_exact(Parity(images=1, codes=10, differing_codes=1), None) == "1 of 10 codes differ"
    off = Parity(images=1, max_logit_error=0.01, max_float_error=1e-6)
    assert must_be_exact(off, None) == "logits differ by 1 %"
    assert must_be_exact(replace(off, float_logits=True), None) is None
    few, many = (Parity(images=1000, flips=flips, _margins=[1.0] * flips) for flips in (5, 6))
    assert must_agree(few, 0.3) is None
    assert must_agree(many, 0.0) == "6 of 1000 images change their class, and rounding does not explain it"
    assert must_agree(few, -0.4) == "accuracy differs by -0.40 points"
    assert must_agree(Parity(images=100, flips=2, _margins=[0.0] * 2), 2.0) is None
    noisy = Parity(images=10, max_float_error=0.1, signal=1.0, noise=0.04, logits=10)
    assert must_agree(noisy, None) == "logits are off by 20 % of their spread, rounding explains 10 %"
    ties = Parity(images=10, codes=1000, differing_codes=10, max_step_error=1)
    assert may_round(ties, 0.5) is None
    assert may_round(replace(ties, differing_codes=11), 0.5) == "1.1 % of the codes differ, more than stand near a tie"
    assert may_round(replace(ties, max_step_error=2), 0.5) == "codes differ by up to 2 steps, more than a rounding"


def test_children_that_are_not_there_are_refused_with_those_that_are(exported: Path) -> None:
    """Everywhere a person names some."""
    sentence = "no child '9' here; available: 1, 2, 3, 4, 5, 6, 7, 8; name one of these"
    with pytest.raises(UsageError, match=sentence):
        verify(exported, bits="2,9")
    with pytest.raises(UsageError, match=sentence):
        export(ExportSettings(exported, bits="9"))
    with pytest.raises(UsageError, match=sentence):
        materialize(exported, "9", None)


def test_the_form_for_tensorrt_is_judged_as_it_was_exported(bundle: Path) -> None:
    """As written, with every code visible; what TensorRT will compute in stays open."""
    export(ExportSettings(bundle, bits="2,8", target="tensorrt-onnx", selector="if"))
    (entry,) = verify(bundle, bits="8", count=IMAGES)["results"]
    for name in ("tensorrt-onnx-w8", "tensorrt-onnx-selector-if"):
        assert entry["rungs"][name]["wrong"] is None
        held = next(one for one in Bundle.open(bundle).artefacts if one.id == name)
        assert held.status == NOT_RUN
        assert held.computed_as == "unknown until loaded"
    assert entry["rungs"]["tensorrt-onnx-w8"]["codes"] == entry["rungs"]["onnxruntime"]["codes"]
    # Branches hide their codes: the logits stand for them.
    assert entry["rungs"]["tensorrt-onnx-selector-if"]["codes"] == 0
    assert verify(bundle, bits="2,8", count=1)["completed"] == []
