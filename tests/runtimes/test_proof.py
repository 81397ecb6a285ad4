"""A runtime that is not taken on trust: refused where it answers wrongly, compared once, and never by a wrong cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emqdeploy.errors import EmqError
from emqdeploy.format.child import Child
from emqdeploy.format.emq import save_checkpoint
from emqdeploy.format.grid import Floats
from emqdeploy.runtimes import Runtime, proof
from emqdeploy.runtimes.base import find_adapter
from emqdeploy.runtimes.proof import Disproven, Proof, sample_images

from ..conftest import Deployed

EIGHT = Child.of(8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Answers:
    """The reference's answers, or those of a runtime that turns the classes around; counts how often it is asked."""

    def __init__(self, network: Deployed, turned: bool = False) -> None:
        self._right = find_adapter("onnxruntime")(network.checkpoint, children=[EIGHT], threads=1)
        self._turned, self.asked = turned, 0

    def __call__(self, images: Floats) -> Floats:
        """Logits."""
        self.asked += 1
        logits = self._right(images)
        return np.ascontiguousarray(logits[:, ::-1]) if self._turned else np.asarray(logits)


def prover(network: Deployed) -> Proof:
    """Of a runtime that computes with numpy."""
    return Proof("odd", "numpy", "cpu", lambda: network.checkpoint)


def test_what_answers_otherwise_is_refused(small: Deployed, cache: Path) -> None:
    """In one sentence, each time anew: nothing is remembered of it."""
    answers = Answers(small, turned=True)
    for count in (1, 2):
        with pytest.raises(Disproven, match=r"odd .* does not answer child 8 .* \(logits are off") as error:
            prover(small)(EIGHT, [b"graph"], answers)
        assert "\n" not in str(error.value)
        assert answers.asked == count
    assert not list(cache.rglob("*"))


def test_what_is_right_is_compared_once(small: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another graph, child or version is another matter."""
    answers = Answers(small)
    for _ in range(2):
        prover(small)(EIGHT, [b"graph"], answers)
    assert answers.asked == 1
    prover(small)(EIGHT, [b"gra", b"ph"], answers)
    assert answers.asked == 2
    monkeypatch.setattr(proof, "package_version", lambda name: "next")
    prover(small)(EIGHT, [b"graph"], answers)
    assert answers.asked == 3


@pytest.mark.parametrize("place", ["/dev/null/nowhere", ""])
def test_a_cache_that_cannot_be_kept_costs_only_time(
    small: Deployed, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared each time; a cache that is a file is none."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", place or str(tmp_path / "file"))
    answers = Answers(small)
    for _ in range(2):
        prover(small)(EIGHT, [b"graph"], answers)
    assert answers.asked == 2


def test_without_a_checkpoint_it_is_said(small: Deployed) -> None:
    """The runtime serves, and does not claim to be proven."""
    checks = Proof("odd", "numpy", "cpu", None)
    checks(EIGHT, [b"graph"], Answers(small, turned=True))
    assert checks.missing == "not proven in odd here: the files came without their checkpoint"


def test_images_are_the_same_each_time(small: Deployed) -> None:
    """Over the range of the pixels, and not all alike to a network."""
    images = sample_images(small.checkpoint.card)
    np.testing.assert_array_equal(images, sample_images(small.checkpoint.card))
    assert images.shape == (8, 1, 8, 8)
    assert np.ptp(images) > 3


def test_who_needs_it() -> None:
    """A registered property of each adapter; onnxruntime only where its kernels could saturate."""
    assert find_adapter("openvino").needs_proof("half")
    assert find_adapter("tensorrt").needs_proof("half")
    assert not find_adapter("torch").needs_proof("full")
    assert not find_adapter("onnxruntime").needs_proof("half")


def test_openvino_names_the_file_that_it_gets_wrong(
    small: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever opens it: nothing serves wrong answers."""
    pytest.importorskip("openvino")
    from emqdeploy.runtimes.adapters import openvino_runtime

    path = tmp_path / "model.emq"
    save_checkpoint(path, small.checkpoint)
    run = openvino_runtime._CompiledEngine.run

    def wrong(engine: Any, images: Floats) -> Floats:
        return np.ascontiguousarray(run(engine, images)[:, ::-1])

    monkeypatch.setattr(openvino_runtime._CompiledEngine, "run", wrong)
    with pytest.raises(EmqError, match=r"model\.emq: openvino .* does not answer child 8") as error:
        Runtime.from_bundle(path, "openvino", bits=[8])
    assert "use another runtime" in str(error.value)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert Runtime.from_bundle(path, "openvino", bits=[8]).unproven is None
