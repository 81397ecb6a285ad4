"""Wrong labels: an ensemble of earlier predictions finds them, and training goes on without them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from rich.console import Console
from torch.nn.functional import cross_entropy

from emqdeploy.cli import main
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.child import Child
from emqdeploy.training.api import train
from emqdeploy.training.cleaning import Cleaning, SelfEnsemble, lower_part
from emqdeploy.training.coreset import choose_coresets
from emqdeploy.training.dynamics import SHARED, Dynamics
from emqdeploy.training.recipes import resolve
from emqdeploy.training.run import LABELS_FILE
from emqdeploy.workflows.labels import labels

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
RIGHT = 4 * torch.eye(3)[[0, 1, 2, 0, 1, 1]]
"""What is said of six images: the last one is no 2."""


def told() -> SelfEnsemble:
    """An ensemble that heard the same thing three times."""
    ensemble = SelfEnsemble(LABELS, 3)
    for _ in range(3):
        ensemble.remember(torch.arange(6), RIGHT)
    return ensemble


def test_a_label_that_the_ensemble_does_not_share_is_not_believed() -> None:
    """From a fifth of the run on; its image then learns from what the ensemble says of it, the others from labels."""
    ensemble, logits = told(), torch.zeros(6, 3)
    given = cross_entropy(logits + RIGHT, LABELS, reduction="none")
    ensemble.start_epoch(0.1)
    assert torch.equal(ensemble.losses(given, logits + RIGHT, torch.arange(6)), given)
    ensemble.start_epoch(0.2)
    assert ensemble.believed().tolist() == [True] * 5 + [False]
    cleaned = ensemble.losses(given, logits + RIGHT, torch.arange(6))
    assert torch.equal(cleaned[:5], given[:5])
    assert cleaned[5] < 0.3 < 4 < given[5]
    verdicts = ensemble.verdicts()
    assert verdicts["decided"].tolist() == [0, 1, 2, 0, 1, 1]
    assert verdicts["odds"][5] < 0.05


def test_what_was_never_seen_is_believed() -> None:
    """An image that a coreset left out is no suspect, and nothing divides by zero."""
    ensemble = SelfEnsemble(LABELS, 3)
    ensemble.judge()
    assert ensemble.believed().all()
    ensemble.remember(torch.arange(5), RIGHT[:5])
    ensemble.judge()
    assert ensemble.believed().all()
    assert torch.isfinite(ensemble.losses(torch.ones(6), RIGHT, torch.arange(6))).all()


def test_its_state_goes_on_where_it_was() -> None:
    """Average, counts and judgement: the same losses afterwards."""
    ensemble, other = told(), SelfEnsemble(LABELS, 3)
    ensemble.judge()
    other.restore(ensemble.state())
    given = torch.ones(6)
    assert torch.equal(other.losses(given, RIGHT, torch.arange(6)), ensemble.losses(given, RIGHT, torch.arange(6)))
    assert Cleaning(LABELS, 3).believed() is None


@pytest.mark.parametrize("wrong", [0.05, 0.4])
def test_losses_fall_into_two_parts(wrong: float) -> None:
    """However many are wrong; all are in the lower part where there is but one."""
    random = np.random.default_rng(0)
    high = random.random(2000) < wrong
    values = np.where(high, random.normal(5, 1, 2000), np.abs(random.normal(0, 0.5, 2000)))
    assert (lower_part(values) != high).mean() > 0.98
    assert lower_part(np.full(5, 2.0)).all()


def test_coresets_leave_out_what_is_not_believed() -> None:
    """Scores love wrong labels: without this they would be the first to be picked."""
    labels_ = np.repeat(np.arange(3), 10)
    dynamics = Dynamics("el2n", (SHARED,), labels_, 3, 0)
    believed = np.arange(30) >= 6
    chosen = choose_coresets(dynamics, 12, "top", "all", (), (0,), False, believed)
    assert chosen == {}
    child = Child.of(2)
    core = choose_coresets(dynamics, 12, "sampled", "all", (child,), (0,), False, believed)[child]
    assert len(core.indices) == 12
    assert (core.indices >= 6).sum() >= 11  # odds of a millionth are still odds


def test_a_run_finds_labels_that_were_made_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four of ten: most of them, and few others; the command lists them with pictures, and says how many it found."""
    given = {"limit": 700, "epochs": 4, "bits": "4,8", "flip_labels": 0.4, "clean": "ensemble"}
    config = resolve(None, None, given)
    train(config, tmp_path / "run", console=Console(file=io.StringIO()), report_test=False)
    found = labels(tmp_path / "run", 5)
    assert found["images"] == 630
    assert found["precision"] > 60  # four of ten would be so by chance; a whole data set tells more
    assert found["recall"] > 80
    with pytest.raises(SystemExit, match="0"):
        main(["labels", str(tmp_path / "run"), "--count", "5", "--json"])
    printed = json.loads(capsys.readouterr().out)
    page = Path(printed["page"]).read_text()
    assert page.count("data:image/png") == 5
    assert printed["suspects"][0]["label"] != printed["suspects"][0]["ensemble"]
    file = tmp_path / "run" / LABELS_FILE
    whole = safetensors.numpy.load_file(file)
    for name, wrong in (("decided", 99), ("decided", -1), ("odds", np.nan)):
        spoiled = {**whole, name: np.full_like(whole[name], wrong)}
        file.write_bytes(safetensors.numpy.save(spoiled))
        with pytest.raises(EmqError, match=r"labels.safetensors is damaged; train again"):
            labels(tmp_path / "run", 5)
    file.write_bytes(b"no tensors")
    with pytest.raises(EmqError, match=r"labels.safetensors is damaged; train again"):
        labels(tmp_path / "run", 5)


def test_a_run_that_did_not_look_has_nothing_to_list(tmp_path: Path) -> None:
    """One sentence says how it would; a share of all labels cannot be wrong."""
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(UsageError, match="did not look at its labels; train with --clean ensemble"):
        labels(tmp_path, 5)
    with pytest.raises(UsageError, match=r"--flip-labels is 1.0; allowed: 0 up to, not including, 1"):
        resolve(None, None, {"flip_labels": 1.0})
