"""A target is one class in one file: it is exported, proven, refused where it is wrong, and verified again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from emqdeploy.errors import EmqError
from emqdeploy.exporters.products import Job, Product, tag
from emqdeploy.exporters.settings import ExportSettings
from emqdeploy.format.bundle import VERIFIED, Artefact, Bundle
from emqdeploy.format.child import Child
from emqdeploy.format.emq import Checkpoint, save_checkpoint
from emqdeploy.format.precision import LayerPrecision
from emqdeploy.graph.parity import must_be_exact
from emqdeploy.graph.reference import IntegerReference
from emqdeploy.workflows.export import export
from emqdeploy.workflows.handlers import TARGETS, Target
from emqdeploy.workflows.rungs import Rung
from emqdeploy.workflows.verify import verify

from ..conftest import Deployed


class Numpy(Target):
    """The numbers of a child, run by the integer reference itself; a wrong bias where a test wants one."""

    name = "numpy"
    runtime = "numpy"
    computed = ("int8", True)
    error = 0
    missing: str | None = None

    def products(self, job: Job) -> Iterator[Product]:
        """One archive per child."""
        for child in job.children:
            path = job.staging / f"{tag(child)}.npz"
            arrays = dict(job.checkpoint.network.initializers(child))
            arrays["fc.bias"] = arrays["fc.bias"] + np.int32(self.error)
            np.savez(path, **arrays)
            stored = dict.fromkeys(job.checkpoint.network.layers, "int8")
            yield Product(f"numpy-{tag(child)}", (child,), self.name, "int8", path, path.name, stored)

    def why_not(self, artefact: Artefact) -> str | None:
        """As a test says."""
        return self.missing

    def open(self, bundle: Bundle, artefact: Artefact, child: Child, checkpoint: Checkpoint) -> Rung:
        """In numpy."""
        with np.load(bundle.file_of(artefact)) as archive:
            reference = IntegerReference(checkpoint.skeleton, dict(archive))
        layers = [LayerPrecision(one.name, one.grid_bits, "x", *self.computed) for one in artefact.layers]
        return Rung(lambda images: (reference.run(images)[0], {}), must_be_exact, precision=lambda: layers)


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> type[Numpy]:
    """The target, for one test."""

    class Own(Numpy):
        """A class that a test may change."""

    monkeypatch.setitem(TARGETS._entries, "numpy", Own)
    return Own


@pytest.fixture
def run(small: Deployed, tmp_path: Path) -> Path:
    """A run."""
    save_checkpoint(tmp_path / "model.emq", small.checkpoint)
    return tmp_path


def test_a_target_is_exported_proven_and_verified(run: Path, target: type[Numpy]) -> None:
    """By its own rule, in its own runtime."""
    said: list[str] = []
    export(ExportSettings(run, (2, Child.of(4)), target="numpy"), said.append)
    assert [line.split()[:2] for line in said] == [["proving", "numpy-w2"], ["proving", "numpy-w4"]]
    held = Bundle.open(run / "bundle").find("numpy", 4)
    assert (held.status, held.stored_as, held.computed_as) == (VERIFIED, "int8", "int8")
    assert held.parity["runtime"] == "numpy"
    assert held.parity["max_logit_error"] == 0
    (entry,) = verify(run, "4", count=4)["results"]
    assert entry["rungs"]["numpy-w4"]["wrong"] is None
    target.missing = "there is no numpy here"
    (entry,) = verify(run, "4", count=4)["results"]
    assert entry["skipped"] == {"numpy-w4": "there is no numpy here"}


def test_what_is_wrong_is_not_kept(run: Path, target: type[Numpy]) -> None:
    """A file that answers otherwise, and layers in float that nobody allowed."""
    target.error = 1000
    with pytest.raises(
        EmqError, match=r"w4\.npz differs from what was trained at 4 bits \(logits differ by .*not kept"
    ):
        export(ExportSettings(run, "4", target="numpy"))
    target.error = 0
    target.computed = ("float16", False)
    settings = ExportSettings(run, "4", target="numpy")
    with pytest.raises(EmqError, match=r"runs 10 of 10 layers in float \(conv1, .*pass --allow-float"):
        export(settings)
    assert not (run / "bundle").exists()
    export(ExportSettings(run, "4", target="numpy", allow_float=True))
    assert Bundle.open(run / "bundle").artefacts[0].integer_layers == 0


def test_an_unknown_target_lists_the_known_ones(run: Path) -> None:
    """Before anything is read."""
    with pytest.raises(EmqError, match="known: onnx, openvino, tensorrt, tensorrt-onnx, tensorrt-rtx"):
        export(ExportSettings(run / "nothing", target="tflite"))
