"""A bundle that was copied to a machine without its data set: it brings test images along, or is told of others."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emqdeploy.data import load_dataset
from emqdeploy.errors import EmqError
from emqdeploy.exporters.settings import ExportSettings
from emqdeploy.format.bundle import Bundle
from emqdeploy.format.card import DataSource
from emqdeploy.format.emq import read_card
from emqdeploy.measuring.bench import bench
from emqdeploy.measuring.settings import BenchSettings
from emqdeploy.runtimes import test_images
from emqdeploy.runtimes.test_images import BUNDLED, PUBLIC_IMAGES, bundled_images, find_test_set
from emqdeploy.runtimes.use import evaluate
from emqdeploy.workflows.comparing import parity_images
from emqdeploy.workflows.export import export
from emqdeploy.workflows.verify import verify


@pytest.fixture(scope="module")
def bundle(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One exported child of the digits."""
    path = tmp_path_factory.mktemp("copied") / "bundle"
    export(ExportSettings(path=digits, bits="8", out=path))
    return path


@pytest.fixture
def elsewhere(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, where its data set is not at hand."""

    def missing(*arguments: Any) -> None:
        raise EmqError("the data set is not at hand")

    for name in ("dataset_of", "images_of"):
        monkeypatch.setattr(test_images, name, missing)
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def test_a_copy_is_measured_on_the_images_in_it(elsewhere: Path) -> None:
    """Accuracy, latency and parity, and each says on which images; no drop to figures of other images is told."""
    note = f"accuracy is on the {PUBLIC_IMAGES} test images in the bundle: the data set is not at hand"
    found = evaluate(elsewhere, None, "onnxruntime", None)
    assert (found["images"], found["data"], found["note"]) == (PUBLIC_IMAGES, "digits", note)
    assert found["accuracy"]["8"] > 50
    measured = bench(BenchSettings(str(elsewhere), samples=10, scenarios=("single",), energy="none"))
    assert measured["rows"][0]["accuracy"] == found["accuracy"]["8"]
    assert measured["rows"][0]["accuracy_drop"] is None
    assert note in measured["notes"]
    assert not any("noise" in one for one in measured["notes"])
    proven = verify(elsewhere, count=8)
    assert proven["ok"]
    assert proven["images"] == "8 test images"
    (again,) = export(ExportSettings(path=elsewhere, bits="4"))["artefacts"]
    assert again["parity"]["images_from"] == f"{PUBLIC_IMAGES} test images"
    assert BUNDLED in Bundle.open(elsewhere).files


def test_images_can_be_named(elsewhere: Path, tmp_path: Path) -> None:
    """Those of a bundle, or a data set by name; what is not there is an error, never noise."""
    found = evaluate(elsewhere, "8", "onnxruntime", None, data="digits")
    assert found["images"] == len(load_dataset("digits").test)
    assert found["note"] is None
    moved = shutil.copy(elsewhere / BUNDLED, tmp_path / "moved.npz")
    assert evaluate(elsewhere, "8", "onnxruntime", None, data=str(moved))["images"] == PUBLIC_IMAGES
    with pytest.raises(EmqError, match=r"nowhere\.npz"):
        verify(elsewhere, count=8, data=str(tmp_path / "nowhere.npz"))


def test_altered_images_are_refused(elsewhere: Path) -> None:
    """They are named in the manifest by their hash."""
    data = bytearray((elsewhere / BUNDLED).read_bytes())
    data[-1] ^= 1
    (elsewhere / BUNDLED).write_bytes(data)
    with pytest.raises(EmqError, match="was altered"):
        evaluate(elsewhere, "8", "onnxruntime", None)


def test_without_images_noise_is_called_noise(elsewhere: Path, digits: Path) -> None:
    """A checkpoint outside of a bundle has none; accuracy is not measured then, and the way out is said."""
    card = read_card(digits)[0]
    with pytest.raises(EmqError, match="not at hand; or name other images with --data"):
        find_test_set(card, path=digits)
    images = parity_images(card, 4, None, path=digits)
    assert images.labels is None
    assert images.origin == "4 noise images, because the data set is not at hand"


def test_own_pictures_travel_only_when_asked() -> None:
    """Nobody's photos are handed on by default; as many as asked for, spread over the classes."""
    from msgspec.structs import replace

    digits = load_dataset("digits")
    test = test_images.TestSet("photos", digits.test, tuple(digits.classes), whole=True)
    card = read_card(Path(__file__).parents[1] / "data" / "format3.emq")[0]
    own = replace(card, data=DataSource("imagefolder:/photos"))
    assert bundled_images(test, own, None) is None
    some = bundled_images(test, own, 60)
    assert some is not None
    assert (len(some.split), some.whole) == (60, False)
    assert len(np.unique(some.split.labels)) == 10
    assert bundled_images(test, replace(card, data=DataSource("digits")), 0) is None
