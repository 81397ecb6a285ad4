"""CoQuant: who teaches whom, which blocks are borrowed, and that what is left is a network like any other."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.emq import load_checkpoint
from emqdeploy.training.api import TrainResult, train
from emqdeploy.training.loop import Trainer
from emqdeploy.training.methods.coquant import BORROWING, CoQuant
from emqdeploy.training.recipes import resolve

SHORT: dict[str, Any] = {"method": "coquant", "limit": 120, "epochs": 2, "batch_size": 32, "bits": "2,4,8"}
SHORT |= {"label_smoothing": 0.0}


def trained(out: Path, resume: bool = False, **given: Any) -> TrainResult:
    """A short run."""
    config = resolve(None, None, {**SHORT, **given})
    return train(config, out, resume, console=Console(file=io.StringIO()), report_test=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[CoQuant, TrainResult]:
    """A run that nothing disturbed, and its method."""
    made: list[CoQuant] = []
    build = Trainer.__init__

    def noting(self: Trainer, *given: Any, **more: Any) -> None:
        build(self, *given, **more)
        assert isinstance(self.method, CoQuant)
        made.append(self.method)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "__init__", noting)
        result = trained(tmp_path_factory.mktemp("coquant") / "whole")
    return made[0], result


def test_blocks_are_borrowed_whole(whole: tuple[CoQuant, TrainResult], monkeypatch: pytest.MonkeyPatch) -> None:
    """A block has the widths of one of the two, and the widest child borrows nothing; without a share nobody does."""
    method, result = whole
    two, four, eight = method.children
    blocks = method._blocks()
    children = [child for step in method.plan(0) for child in step.children]
    assert [child for child in children if child.name == eight.name] == [eight] * (len(children) // 3)
    narrow = [child for child in children if child.name.removesuffix(BORROWING) == two.name]
    assert any(child != two for child in narrow)
    for child in narrow:
        for layers in blocks.values():
            assert len({child.weights.of(layer) for layer in layers}) == 1
            assert child.weights.of(layers[0]) in (2, method.teachers[two].bits)
    monkeypatch.setattr(method, "options", resolve(None, None, {**SHORT, "swap": 0.0}).method)
    assert {child for step in method.plan(0) for child in step.children} == {two, four, eight}
    assert load_checkpoint(result.checkpoints[0]).network.children[0] == two


def test_the_teacher_is_the_wider_child_of_least_loss(whole: tuple[CoQuant, TrainResult]) -> None:
    """It may be the next one or the top one."""
    method, _ = whole
    two, four, eight = method.children
    method.recent = torch.tensor([1.0, 0.9, 0.5])
    method.begin_epoch(1)
    assert method.teachers == {two: eight, four: eight}
    method.recent = torch.tensor([1.0, 0.4, 0.5])
    method.begin_epoch(1)
    assert method.teachers == {two: four, four: eight}


def test_a_student_learns_from_its_teacher(whole: tuple[CoQuant, TrainResult]) -> None:
    """A share of the target is what the teacher said of the same images; the widest child has labels alone."""
    method, _ = whole
    _, four, eight = method.children
    labels, indices = torch.tensor([0, 1]), torch.tensor([0, 1])
    sure = 9 * torch.eye(10)[[3, 3]]
    hard = torch.nn.functional.cross_entropy(sure, labels, reduction="none")
    assert torch.allclose(method.losses(eight, sure, labels, indices), hard)
    student = method.losses(four, sure, labels, indices)
    assert (student < hard).all()
    assert torch.allclose(student, 0.5 * hard + 0.5 * -(sure.softmax(1) * sure.log_softmax(1)).sum(1))


def test_dying_in_the_middle_changes_nothing(
    whole: tuple[CoQuant, TrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Teachers, losses and the blocks that are drawn come back; the weights are the same to the last bit."""
    updates = 0

    def stops(self: CoQuant) -> None:
        nonlocal updates
        updates += 1
        if updates == 5:
            raise EmqError("power failure")

    monkeypatch.setattr(CoQuant, "after_update", stops)
    with pytest.raises(EmqError, match="power failure"):
        trained(tmp_path / "part", save_every=0)
    monkeypatch.undo()
    again = trained(tmp_path / "part", resume=True, save_every=0)
    name = "latent.safetensors"
    assert (again.run / name).read_bytes() == (whole[1].run / name).read_bytes()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"swap": 1.5}, r"--swap is 1.5; allowed: 0 to 1"),
        ({"bits": "8"}, "--method coquant needs two or more children"),
        ({"step_plan": "interleaved"}, "with --method coquant use joint or sequential"),
        ({"teacher": "best"}, "--teacher is 'best'; allowed: adaptive, next, top"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], sentence: str) -> None:
    """One sentence, before anything starts."""
    with pytest.raises(UsageError, match=sentence):
        resolve(None, None, {**SHORT, **given})
