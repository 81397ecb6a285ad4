"""What a checkpoint holds, said without loading it into a runtime."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from msgspec import structs
from rich.table import Table

from emqdeploy.format.card import FidelityRecord
from emqdeploy.format.emq import load_checkpoint, save_checkpoint
from emqdeploy.report.terminal import inspect_parts
from emqdeploy.workflows.inspection import inspect

from ..conftest import Deployed
from ..mixing import COARSE, MIXED, NARROW, WIDE, mixed_network


def test_every_child_is_described(small: Deployed, tmp_path: Path) -> None:
    """Its widths, how it came about, what it costs to load, and what each layer really needs."""
    save_checkpoint(tmp_path / "model.emq", small.checkpoint)
    result = inspect(tmp_path)
    assert [child["name"] for child in result["children"]] == [str(bits) for bits in range(1, 9)]
    assert [child["name"] for child in result["children"] if child["trained"]] == ["2", "4", "8"]
    for child in result["children"]:
        assert child["size_bytes"] == load_checkpoint(tmp_path / "model.emq", child["name"]).bytes_read
        assert child["by_default"] == {}
    layers = {layer["name"]: layer for layer in result["layers"]}
    assert layers["conv1"]["pinned"]
    inner = layers["stage1.0.conv1"]["effective_bits"]
    assert inner["2"] < inner["4"] < inner["8"]
    assert json.loads(json.dumps(result))["card"]["model"] == "resnet8"


def test_layers_that_a_map_leaves_out_are_named(tmp_path: Path) -> None:
    """They took the default, which whoever wrote the map may not have meant."""
    mixed = mixed_network()
    save_checkpoint(tmp_path / "model.emq", mixed.checkpoint)
    children = {child["name"]: child for child in inspect(tmp_path)["children"]}
    assert children["4"]["by_default"] == {}
    default = children["mixed"]["by_default"]
    switchable = [name for name, layer in mixed.checkpoint.network.layers.items() if not layer.pinned]
    assert default["weights"] == [name for name in switchable if name not in (WIDE, NARROW)]
    assert default["activations"] == [name for name in mixed.checkpoint.network.layers if name != COARSE]
    assert children["mixed"]["weights"] == MIXED.to_dict()["weights"]


def test_how_far_every_child_is_from_its_model_is_shown(small: Deployed, tmp_path: Path) -> None:
    """What the card has of it, in the words of `quantize` and `train`; nothing where it has none."""
    found = FidelityRecord("float model", 21.25, 99.5, 200, 256)
    card = structs.replace(small.checkpoint.card, fidelity={"8": found})
    save_checkpoint(tmp_path / "model.emq", replace(small.checkpoint, card=card))
    children = inspect_parts(inspect(tmp_path))[1]
    assert isinstance(children, Table)
    cells = {str(column.header): [str(cell) for cell in column.cells] for column in children.columns}
    assert cells["signal to noise"][-2:] == ["", "21.2 dB"]
    assert cells["same class"][-1] == "99.5 %"
    assert "to the float model, 256 images" in str(children.caption)
