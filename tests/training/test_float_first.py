"""``--float-first``: the float network trains alone before its children do."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from emqdeploy.errors import UsageError
from emqdeploy.format.child import FLOAT, Child
from emqdeploy.format.emq import load_checkpoint
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.insertion import InsertionConfig
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.training.api import train
from emqdeploy.training.config import TrainConfig
from emqdeploy.training.loop import Trainer, TrainingStopped
from emqdeploy.training.methods.emqnet import FLOAT_SHARE, EMQNet
from emqdeploy.training.recipes import resolve
from emqdeploy.training.run import METRICS_FILE


def config_of(**given: object) -> TrainConfig:
    """A short run whose first epoch and a half are the float network's."""
    return resolve(
        None, None, {"limit": 200, "epochs": 3, "batch_size": 20, "bits": "2,8", "float_first": 0.5, **given}
    )


def steps_of(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[list[str], list[int]]:
    """The children in the order in which they run, and before which steps clips start anew."""
    ran: list[str] = []
    started: list[int] = []
    next_step, initialise = EMQNet.next_step, MultiBitNetwork.initialise_clips

    def noted(self, planned):  # type: ignore[no-untyped-def]
        step = next_step(self, planned)
        ran.extend(child.name for child in step.children)
        return step

    def begun(self, images):  # type: ignore[no-untyped-def]
        started.append(len(ran))
        return initialise(self, images)

    monkeypatch.setattr(EMQNet, "next_step", noted)
    monkeypatch.setattr(MultiBitNetwork, "initialise_clips", begun)
    train(config, tmp_path / "run", console=Console(file=io.StringIO()))
    return ran, started


def test_children_follow_the_float_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its share of all steps comes first, and clips start from what it has become, once."""
    ran, started = steps_of(config_of(), monkeypatch, tmp_path)
    half = len(ran) // 2
    assert ran[:half] == [FLOAT.name] * half
    assert set(ran[half:]) == {"2", "8"}
    assert started == [0, half]
    lines = [json.loads(line) for line in (tmp_path / "run" / METRICS_FILE).read_text().splitlines()]
    assert [line["phase"] for line in lines] == ["float", "train", "train"]
    assert not lines[0]["validation_accuracy"], "children that never trained are not worth a validation"


def test_a_resumed_run_ends_alike(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stopped before, at and behind the switch, a run ends with the weights of an undisturbed one."""
    console = Console(file=io.StringIO())
    config = config_of(optimizer="muon", label_smoothing=0.1, ema=0.9, clip_norm=5.0, save_every=0)
    train(config, tmp_path / "whole", console=console)
    expected = load_checkpoint(tmp_path / "whole" / "model.emq").network
    steps = Trainer._step
    for stop in (3, 27, 28, 40):
        path = tmp_path / f"stopped-{stop}"

        def stopping(self: Trainer, *rest: object, stop: int = stop) -> None:
            steps(self, *rest)  # type: ignore[arg-type]
            self.stopping |= self.progress.step == stop

        with monkeypatch.context() as patched:
            patched.setattr(Trainer, "_step", stopping)
            with pytest.raises(TrainingStopped):
                train(config, path, console=console)
        train(config, path, resume=True, console=console)
        one, other = (torch.load(run / "state.pt", weights_only=True) for run in (tmp_path / "whole", path))
        assert one["weights"].keys() == other["weights"].keys()
        assert all(torch.equal(one["weights"][name], other["weights"][name]) for name in one["weights"]), stop
        found = load_checkpoint(path / "model.emq").network
        for child in expected.children:
            numbers = found.initializers(child)
            assert all((array == numbers[name]).all() for name, array in expected.initializers(child).items()), stop


def test_shares_that_leave_no_steps_are_refused(tmp_path: Path) -> None:
    """The sentence says what to change."""
    with pytest.raises(UsageError, match=r"--float-first is 1.0; allowed: 0 up to, not including, 1"):
        config_of(float_first=1.0)
    with pytest.raises(UsageError, match=r"--float-first 0.999 leaves the children no step in 3 epochs of .* images"):
        train(config_of(float_first=0.999), tmp_path / "run", console=Console(file=io.StringIO()))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("policy", ["private", "transitional"])
def test_norms_of_their_own_start_from_the_float_network_s(policy: str) -> None:
    """Else children would have to learn again what the first part of the run has learned."""
    network = NetworkSpec("resnet8", 10, (1, 8, 8), 2.0, (Child("2", 2, 8),), (), InsertionConfig(norm=policy)).build()
    norm = next(iter(network.norms.values()))
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.uniform_(-1, 1)
    norm.start_from_float()
    network.use(Child("2", 2, 8))
    network.train()
    gain, shift = norm._affine(norm._row)
    assert torch.equal(gain, norm.weight)
    assert torch.equal(shift, norm.bias)


def test_it_is_an_option_of_every_planned_method() -> None:
    """Joint plans have it too."""
    assert resolve("any-precision", None, {"float_first": 0.5}).method.to_dict()["float_first"] == 0.5


def test_by_default_fresh_weights_learn_in_float_first() -> None:
    """Not where they have learned already, nor where coresets or a single epoch leave no time for it; EMQNet alone."""

    def share(recipe: str = "emqnet", **given: Any) -> float:
        return float(resolve(recipe, None, given).method.to_dict()["float_first"])

    assert share() == FLOAT_SHARE
    assert share(float_first=0.3) == 0.3
    assert share(recipe="truncquant") == 0
    for given in ({"pretrained": "a.pth"}, {"prune_rate": 0.8}, {"epochs": 1}, {"step_plan": "joint"}, {"bits": (32,)}):
        assert share(**given) == 0
