"""Files of every format since the third are kept and go on being readable, whatever changes.

``python -m tests.format.test_kept FOLDER`` makes those of the present version; a kept file is never made anew.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from emqdeploy.format.bundle import VERIFIED, Bundle
from emqdeploy.format.child import Child
from emqdeploy.format.emq import Checkpoint, load_checkpoint, places_in, save_checkpoint
from emqdeploy.format.grid import TABLE
from emqdeploy.format.seal import read_seal
from emqdeploy.graph.reference import IntegerReference
from emqdeploy.runtimes import Runtime

if TYPE_CHECKING:
    from emqdeploy.quant.insertion import InsertionConfig

DATA = Path(__file__).parent.parent / "data"
SCHEMAS = (2,)

CHILDREN = (Child.of(2), Child("mixed", {"*": 4, "3": 8, "6": 2}, {"*": 8, "6": 4}), Child.of(8))
TABLED = (Child("narrow", {"*": 2, "6": 3}, {"*": 8, "6": 4}), Child("wide", {"*": 2, "6": 3}, 8))
IMAGES = np.linspace(-2, 2, 128, dtype=np.float32).reshape(2, 1, 8, 8)


def test_checkpoints_stay_readable() -> None:
    """Every child, its card, and the very answers that it gave when the file was made."""
    path = DATA / "format3.emq"
    checkpoint = load_checkpoint(path)
    assert checkpoint.network.children == CHILDREN
    assert checkpoint.trained == (CHILDREN[0], CHILDREN[2])
    assert (checkpoint.card.model, checkpoint.card.classes) == ("tiny", ("a", "b", "c"))
    assert checkpoint.card.accuracy == {"8": 87.5}
    assert list(places_in(path).layer_bytes) == ["3", "6"]
    answers = json.loads((DATA / "format3.json").read_text())
    for child in CHILDREN:
        np.testing.assert_allclose(logits(checkpoint, child), answers[child.name], rtol=1e-6)
        np.testing.assert_allclose(logits(load_checkpoint(path, child), child), answers[child.name], rtol=1e-6)


def test_tables_stay_readable() -> None:
    """A file of format 4, whose codes stand for numbers of tables, at two widths of activations."""
    path = DATA / "format4.emq"
    checkpoint = load_checkpoint(path)
    assert checkpoint.network.children == TABLED
    assert [layer.grids[TABLED[0]].kind for layer in checkpoint.network.layers.values()] == ["odd", TABLE, TABLE, "odd"]
    answers = json.loads((DATA / "format4.json").read_text())
    for child in TABLED:
        np.testing.assert_allclose(logits(checkpoint, child), answers[child.name], rtol=1e-6)
        np.testing.assert_allclose(logits(load_checkpoint(path, child), child), answers[child.name], rtol=1e-6)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_bundles_stay_readable(schema: int) -> None:
    """The manifest, and a file that runs."""
    bundle = Bundle.open(DATA / f"schema{schema}")
    assert bundle.children == CHILDREN
    artefact = bundle.find("onnx", "mixed")
    assert (artefact.status, artefact.parity["differing_codes"]) == (VERIFIED, 0)
    assert artefact.integer_layers == len(artefact.layers) == 4
    path = bundle.file_of(artefact)
    assert read_seal(path, path.read_bytes()).read_children() == (CHILDREN[1],)
    assert bundle.checkpoint_path is not None
    expected = logits(load_checkpoint(bundle.checkpoint_path), CHILDREN[1])
    for options in ({}, {"flavour": "int8"}):
        with Runtime.from_bundle(bundle.path, bits="mixed", threads=1, **options) as network:
            np.testing.assert_allclose(network(IMAGES), expected, rtol=1e-6)


def logits(checkpoint: Checkpoint, child: Child) -> np.ndarray:
    """What the integer reference answers, which is exact on every machine."""
    reference = IntegerReference(checkpoint.skeleton, checkpoint.network.initializers(child))
    return reference.run(IMAGES)[0]


def make(folder: Path) -> None:
    """Writes the files of the present version."""
    from emqdeploy.exporters.settings import ExportSettings
    from emqdeploy.format.bundle import SCHEMA
    from emqdeploy.quant.families.levels import LevelsOptions
    from emqdeploy.quant.insertion import InsertionConfig
    from emqdeploy.workflows.export import export

    path = _write(folder, "format3", InsertionConfig(), CHILDREN, {"8": 87.5}, ("2", "8"))
    _write(folder, "format4", InsertionConfig(LevelsOptions("channel")), TABLED, {}, ("narrow", "wide"))
    export(ExportSettings(path, "mixed", out=folder / f"schema{SCHEMA}"))


def _write(
    folder: Path,
    name: str,
    config: InsertionConfig,
    children: tuple[Child, ...],
    accuracy: dict[str, float],
    trained: tuple[str, ...],
) -> Path:
    """Writes a small network at some children, and what it answers."""
    import torch
    from torch import nn

    from emqdeploy.format.card import Card, DataSource, Pixels
    from emqdeploy.quant.deploy import freeze
    from emqdeploy.quant.insertion import insert_quantizers
    from emqdeploy.quant.skeleton import export_skeleton
    from tests.conftest import settled

    torch.manual_seed(3)
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 8), (8, 12), (12, 12)):
        layers += [nn.Conv2d(inputs, outputs, 3, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3))
    network = settled(insert_quantizers(model, config, children, (), 2.0), torch.randn(16, 1, 8, 8))
    frozen = freeze(network, children)
    card = Card(
        model="tiny",
        classes=("a", "b", "c"),
        preprocessing=Pixels(1, 8, 8, (0.5,), (0.25,)),
        data=DataSource("digits"),
        accuracy=accuracy,
        trained=trained,
    )
    checkpoint = Checkpoint(frozen, export_skeleton(network, frozen, (1, 8, 8)), card)
    path = folder / f"{name}.emq"
    save_checkpoint(path, checkpoint)
    answers = {child.name: logits(checkpoint, child).tolist() for child in children}
    (folder / f"{name}.json").write_text(json.dumps(answers) + "\n")
    return path


def make_branches(folder: Path) -> None:
    """Writes `branches.emq`: every operator that has an integer kernel, for `benchmarks.soak_files` to damage."""
    import torch
    from torch import Tensor, nn

    from emqdeploy.format.card import Card, DataSource, Pixels
    from emqdeploy.format.child import parse_children
    from emqdeploy.quant.deploy import freeze
    from emqdeploy.quant.insertion import InsertionConfig, insert_quantizers
    from emqdeploy.quant.skeleton import export_skeleton
    from tests.conftest import settled

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3, padding=1)
            self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
            self.grouped = nn.Conv2d(4, 6, 3, 2, 1, groups=2)
            self.beside = nn.Conv2d(4, 3, 1, 2)
            self.mix = nn.Conv2d(9, 5, 1)
            self.head = nn.Linear(5, 3)

        def forward(self, images: Tensor) -> Tensor:
            hidden = torch.relu(self.first(images))
            hidden = torch.relu(hidden + self.depthwise(hidden))
            pooled = nn.functional.max_pool2d(hidden, 3, 1, 1)
            both = torch.cat([torch.relu(self.grouped(pooled)), self.beside(hidden)], 1)
            mean = nn.functional.adaptive_avg_pool2d(torch.relu(self.mix(both)), 1)
            logits: Tensor = self.head(torch.flatten(mean, 1))
            return logits

    torch.manual_seed(5)
    children = parse_children("1a2,2a2,4a4,8", 8)
    images = torch.randn(16, 3, 6, 6).clamp(-2, 2)
    network = settled(insert_quantizers(Branches(), InsertionConfig(small_groups="layer"), children, (), 2.0), images)
    frozen = freeze(network, children)
    pixels = Pixels(3, 6, 6, (0.5,) * 3, (0.25,) * 3)
    names = tuple(child.name for child in children)
    card = Card(
        model="branches", classes=("a", "b", "c"), preprocessing=pixels, data=DataSource("digits"), trained=names
    )
    checkpoint = Checkpoint(frozen, export_skeleton(network, frozen, (3, 6, 6)), card)
    save_checkpoint(folder / "branches.emq", checkpoint)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
    make_branches(Path(sys.argv[1]))
