"""What coresets go by: probes ask one network of every image, and a score phase that cannot score is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from emqdeploy.data import load_dataset
from emqdeploy.errors import UsageError
from emqdeploy.format.child import FLOAT, Child
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.training.api import train
from emqdeploy.training.batches import ImageSource, image_source
from emqdeploy.training.distributed import World
from emqdeploy.training.dynamics import SHARED, Dynamics
from emqdeploy.training.recipes import resolve
from emqdeploy.training.resampling import RESAMPLINGS, probe

CHILDREN = (Child.of(2), Child.of(8))
PRUNED: dict[str, Any] = {"prune_rate": 0.5, "bits": "2,8"}


@pytest.fixture(scope="module")
def network() -> MultiBitNetwork:
    """An untrained network of two children for the digits."""
    torch.manual_seed(0)
    digits = load_dataset("digits")
    pre = digits.preprocessing
    made = NetworkSpec("resnet8", 10, (1, 8, 8), pre.input_range, CHILDREN, ()).build()
    made.initialise_clips(torch.from_numpy(pre.normalize(digits.train.images[:64])))
    return made


@pytest.fixture(scope="module")
def source() -> ImageSource:
    """Some of the digits: more than one batch of a probe, and a last one of a single image."""
    digits = load_dataset("digits", limit=257)
    return image_source(digits.train, digits.preprocessing, "none", torch.device("cpu"))


def dynamics(source: ImageSource, score: str, *keys: str) -> Dynamics:
    """Empty records of the digits."""
    return Dynamics(score, keys, source.labels.numpy(), 10)


def test_a_probe_says_what_the_network_says(network: MultiBitNetwork, source: ImageSource) -> None:
    """Every image in its place at every child, in evaluation mode, whatever the batch."""
    known = dynamics(source, "el2n", "2", "8")
    network.train()
    probe(network, source, known, None, CHILDREN)
    for child in CHILDREN:
        with torch.no_grad(), network.at(child):
            odds = network(source.plain(np.arange(len(source)))).softmax(1).numpy()
        odds[np.arange(len(odds)), source.labels.numpy()] -= 1
        found = known.importance(child, np.random.default_rng(0))
        assert found == pytest.approx(np.linalg.norm(odds, axis=1), abs=1e-5)


def test_processes_share_a_probe(network: MultiBitNetwork, source: ImageSource) -> None:
    """Each runs its part of every batch, and what they gather is what one process records."""
    whole = dynamics(source, "el2n", SHARED)
    probe(network, source, whole, None, CHILDREN[1:])
    rows: dict[tuple[int, int], torch.Tensor] = {}

    class Part(World):
        """One of two, whose rows are kept; what is not its own stays zero, as before the sum over processes."""

        def gather(self, own: torch.Tensor, start: int, count: int) -> torch.Tensor:
            rows[self.rank, len([key for key in rows if key[0] == self.rank])] = own
            everything = torch.zeros(count, own.shape[1])
            everything[start : start + len(own)] = own
            return everything

    for rank in (0, 1):
        probe(network, source, dynamics(source, "el2n", SHARED), None, CHILDREN[1:], world=Part(rank, 2))
    said = torch.cat([rows[rank, number] for number in (0, 1) for rank in (0, 1)])
    assert [len(rows[key]) for key in sorted(rows)] == [128, 0, 128, 1]
    together = dynamics(source, "el2n", SHARED)
    together.record(CHILDREN[1], np.arange(257), said, None)
    found, wanted = (known.importance(CHILDREN[1], np.random.default_rng(0)) for known in (together, whole))
    assert found == pytest.approx(wanted, abs=1e-5)


def test_who_is_asked() -> None:
    """The widest child speaks for all of them."""
    asked = {name: one.asked(CHILDREN) for name, one in RESAMPLINGS.items() if one.asked is not None}
    assert asked == {"probe": CHILDREN, "widest": CHILDREN[1:]}
    assert [name for name, one in RESAMPLINGS.items() if one.shared] == ["widest"]


def test_the_widest_child_scores_for_all(tmp_path: Path) -> None:
    """One record, no matter what passes said, and from it coresets of their own for every child."""
    given = {**PRUNED, "score_from": "widest", "limit": 120, "epochs": 2, "batch_size": 16}
    train(resolve("emqnet", None, given), tmp_path / "run", console=Console(file=io.StringIO()))
    scores = torch.load(tmp_path / "run" / "scores.pt", weights_only=True)
    assert scores["score"] == "el2n"
    assert list(scores["records"]) == [SHARED]
    assert scores["records"][SHARED]["times"].unique().tolist() == [1]
    coresets = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["method"]["coresets"]
    assert coresets["2"]["indices"].tolist() != coresets["8"]["indices"].tolist()


def test_the_float_network_scores_until_children_had_steps(tmp_path: Path) -> None:
    """The statistics of a child that had no step are those of its first random weights."""
    given = {**PRUNED, "score_from": "widest", "float_first": 0.5, "limit": 120, "epochs": 2, "batch_size": 16}
    asked: list[Child] = []
    with pytest.MonkeyPatch.context() as patch:
        record = Dynamics.record
        patch.setattr(Dynamics, "record", lambda self, child, *said: (asked.append(child), record(self, child, *said)))
        train(resolve("emqnet", None, given), tmp_path / "run", console=Console(file=io.StringIO()))
    assert asked == [FLOAT]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"score": "tdds", "score_epochs": 2}, "--score tdds needs 3 epochs on all images, and there are 2"),
        ({"score": "forgetting", "epochs": 1}, "--score forgetting needs 2 epochs on all images, and there are 1"),
        ({"score": "tdds", "score_from": "probe"}, "of which --score-from probe sees one moment; use --score-from rec"),
        ({"unbiased": True, "weigh_by_score": True}, "leave one of them out"),
    ],
)
def test_a_score_without_what_it_needs_is_refused(given: dict[str, Any], sentence: str) -> None:
    """Another score in its place would be called by its name."""
    with pytest.raises(UsageError, match=sentence):
        resolve("emqnet", None, {**PRUNED, **given})


def test_the_score_phase_is_as_long_as_the_score_needs() -> None:
    """Where nobody says how long, the default does not end in a refusal."""
    for score, epochs in (("el2n", 1), ("moderate", 2), ("tdds", 3)):
        config = resolve("emqnet", None, {**PRUNED, "score": score})
        assert config.method.full_epochs(config.epochs) == epochs  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"step_plan": "progressive"}, "--step-plan progressive shows child 2 108 of 108 images less than 1 times"),
        ({"score_plan": "rotating"}, "--step-plan rotating shows child 2"),
        ({"float_first": 0.5}, "--float-first 0.5 shows child 2 108 of 108"),
        (
            {"float_first": 0.5, "score_from": "probe"},
            "leaves the children no step before epoch 1, in which probe asks",
        ),
    ],
)
def test_a_score_phase_that_leaves_images_unscored_is_refused(
    given: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    """What was never seen would be chosen by chance, under the name of a score."""
    config = resolve("emqnet", None, {**PRUNED, "limit": 120, "batch_size": 16, "epochs": 4, **given})
    with pytest.raises(UsageError, match=sentence):
        train(config, tmp_path / "run", console=Console(file=io.StringIO()))
