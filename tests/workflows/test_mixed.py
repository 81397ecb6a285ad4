"""A child with widths per layer goes through every target and `verify`, in every family of networks."""

from __future__ import annotations

from pathlib import Path

import pytest

from emqdeploy.exporters.settings import ExportSettings
from emqdeploy.format.bundle import Bundle
from emqdeploy.format.child import Child
from emqdeploy.format.emq import save_checkpoint
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.workflows import export as export_workflow
from emqdeploy.workflows.export import export
from emqdeploy.workflows.verify import verify

from ..conftest import deploy

FAMILIES = {
    "residual": "resnet8",
    "depthwise": "mobilenet-micro",
    "pre-activation": "preact-resnet8",
    "transformer": "vit-micro",
}

IMAGES = 8
PROVEN_ON = 40
"""Images that each export is proven on; the usual number is that of a real network."""


def mixed_child(model: str) -> Child:
    """4 bits, one layer at 8 and one at 2, and 4-bit activations in front of one layer."""
    network = NetworkSpec(model, 10, (1, 8, 8), 2.0, (Child.of(8),)).build()
    names = [name for name, layer in network.layers.items() if not layer.pinned]
    return Child("mixed", {"*": 4, names[1]: 8, names[-1]: 2}, {"*": 8, names[2]: 4})


@pytest.mark.parametrize("family", list(FAMILIES))
def test_it_goes_everywhere(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 differing codes in onnxruntime; every file answers as the reference does, by its own rule."""
    monkeypatch.setattr(export_workflow, "PARITY_IMAGES", PROVEN_ON)
    model = FAMILIES[family]
    mixed = mixed_child(model)
    deployed = deploy(NetworkSpec(model, 10, (1, 8, 8), 2.0, (mixed, Child.of(8))))
    network = deployed.checkpoint.network
    assert {network.grid_bits(name, mixed) for name in network.layers} == {2, 4, 8}
    assert {site.bits[mixed] for site in network.sites.values()} == {4, 8}
    save_checkpoint(tmp_path / "model.emq", deployed.checkpoint)
    for settings in (
        ExportSettings(tmp_path, "mixed,8", selector="if"),
        ExportSettings(tmp_path, "mixed,8", kernels="native"),
        ExportSettings(tmp_path, "mixed", storage="packed"),
        ExportSettings(tmp_path, "mixed", storage="master"),
        ExportSettings(tmp_path, "mixed", target="openvino"),
        ExportSettings(tmp_path, "mixed,8", target="tensorrt-onnx", selector="if"),
    ):
        export(settings)
    ids = {artefact.id for artefact in Bundle.open(tmp_path / "bundle").artefacts if artefact.serves(mixed)}
    assert ids == {
        *("onnx-mixed", "onnx-packed-mixed", "onnx-master-mixed", "onnx-selector-if", "onnx-native"),
        *("openvino-mixed", "tensorrt-onnx-mixed", "tensorrt-onnx-selector-if"),
    }
    result = verify(tmp_path / "bundle", "mixed", count=IMAGES)
    (entry,) = result["results"]
    assert result["ok"], {name: rung["wrong"] for name, rung in entry["rungs"].items()}
    rungs = {"onnxruntime", "unfused", "torch", "onnx-reference", "openvino", "native", "onnxruntime-native"}
    assert set(entry["rungs"]) | set(entry["skipped"]) == ids | rungs
    # A transformer's float operators have no kernel of ours.
    assert set(entry["skipped"]) == ({"native"} if family == "transformer" else set())
    assert entry["rungs"]["onnxruntime"]["differing_codes"] == 0
    assert entry["rungs"]["onnxruntime"]["codes"] > 0
    for name in ids:
        if name.startswith("onnx-") and family != "transformer":
            assert entry["rungs"][name]["max_logit_error"] == 0
    assert {layer["grid_bits"] for layer in entry["per_layer"]} == {2, 4, 8}
    assert entry["integer_layers"] == entry["layers"]
