"""Methods: the networks that each trains, and all that a new one can decide without a change to the loop."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from emqdeploy.format.child import Child
from emqdeploy.format.emq import load_checkpoint
from emqdeploy.format.tasks import CLASSIFICATION
from emqdeploy.options import option
from emqdeploy.training.api import TrainResult, train
from emqdeploy.training.config import TrainConfig
from emqdeploy.training.methods import METHODS, Method, MethodOptions, Setting
from emqdeploy.training.recipes import resolve
from emqdeploy.training.steps import Indices, Step


def names(children: Sequence[Child]) -> list[str]:
    """What the children are called."""
    return [child.name for child in children]


@pytest.mark.parametrize(
    ("recipe", "given", "expected"),
    [
        ("emqnet", {}, {"": (["2", "4"], ["3"])}),
        ("emqnet", {"bits": "2,4,4a2"}, {"": (["2", "4", "4a2"], ["3"])}),
        ("emqnet", {"partition": "dorefa"}, {"": (["2", "4"], [])}),
        ("emqnet", {"quantizer": "lsq"}, {"": (["2", "4"], [])}),
        ("any-precision", {}, {"": (["2", "4"], ["3"])}),
        ("any-precision", {"calibrate_epochs": 0}, {"": (["2", "4"], [])}),
        ("any-precision", {"quantizer": "lsq"}, {"": (["2", "4"], [])}),
        ("truncquant", {"calibrate_epochs": 0}, {"": (["2", "4"], ["3"])}),
        ("adabits", {}, {"": (["2a2", "4a4"], ["3a3"])}),
        ("dedicated", {}, {"w2": (["2"], []), "w4": (["4"], [])}),
        ("dedicated", {"bits": "4"}, {"": (["4"], [])}),
    ],
)
def test_which_children_share_a_network(recipe: str, given: dict[str, Any], expected: dict[str, Any]) -> None:
    """Codes that nest give the children between; what was not trained otherwise needs calibration, and a step."""
    plans = resolve(recipe, None, {"bits": "2,4", **given}).networks()
    assert {plan.folder: (names(plan.trained), names(plan.unseen)) for plan in plans} == expected


@dataclass(frozen=True)
class SearchOptions(MethodOptions):
    """Options of the method below."""

    name = "search"
    price: float = option(0.1, "What a wide child costs.", least=0)


class Search(Method):
    """Learns whether the wide child is worth its price, and trains the one that it prefers at the moment."""

    Options = SearchOptions

    def __init__(self, options: SearchOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        self.taste = torch.nn.Parameter(torch.zeros(()))
        self.asked: list[float] = []
        self.updates = 0

    def length(self, epoch: int) -> int:
        """Four steps."""
        return 4

    def plan(self, epoch: int) -> Sequence[Step]:
        """Images now, children later."""
        images: Indices = np.random.default_rng(epoch).permutation(len(self.setting.source))[: 4 * 16]
        return [Step((), part) for part in images.reshape(4, 16)]

    def next_step(self, planned: Step) -> Step:
        """Asks what was learned."""
        self.asked.append(float(self.taste.detach()))
        narrow, wide = self.setting.network.trained
        return planned._replace(children=(wide if self.taste >= 0 else narrow,))

    def losses(self, child: Child, logits: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Of the labels."""
        losses: Tensor = CLASSIFICATION.losses(logits, labels)
        return losses

    def cost(self, child: Child) -> Tensor:
        """Pulls the taste away from whichever child runs."""
        return self.options.price * self.taste if child.bits == 8 else -self.options.price * self.taste

    def parameters(self) -> list[dict[str, Any]]:
        """The taste learns fast."""
        return [{"params": [self.taste], "lr_scale": 3.0, "weight_decay": 0.0}]

    def after_update(self) -> None:
        """Counts."""
        self.updates += 1

    def phase(self, epoch: int) -> str:
        """Always the same."""
        return "search"

    def finish(self, console: Console) -> int:
        """As many images as there were updates."""
        return self.updates

    def leaves(self) -> tuple[Child, ...]:
        """The narrow child."""
        return self.setting.network.trained[:1]

    def state(self) -> dict[str, Any]:
        """The count."""
        return {"updates": self.updates}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse."""
        self.updates = state["updates"]


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> list[Search]:
    """Registers the method; returns its instances."""
    made: list[Search] = []

    class Kept(Search):
        def __init__(self, options: SearchOptions, setting: Setting) -> None:
            super().__init__(options, setting)
            made.append(self)

    monkeypatch.setitem(METHODS._entries, "search", Kept)
    return made


def _train(out: Path, resume: bool = False) -> TrainResult:
    config = TrainConfig(bits=(2, 8), epochs=3, batch_size=16, limit=120, method=SearchOptions(), learning_rate=0.01)
    return train(config, out, resume, Console(file=io.StringIO()))


def test_a_method_decides_everything(search: list[Search], tmp_path: Path) -> None:
    """Children by what was just learned, a cost, a parameter with a rate of its own, an end of its own."""
    result = _train(tmp_path / "run")
    (method,) = search
    assert len(method.asked) == method.updates == 12
    assert len(set(method.asked)) > 6, "every step was asked for after the update before"
    assert any(taste < 0 for taste in method.asked)
    assert result.sample_passes == 12 * 16 + 12
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {line["phase"] for line in lines} == {"search"}
    assert {child for line in lines for child in line["loss"]} == {"2", "8"}
    card = load_checkpoint(result.checkpoints[0]).card
    assert (card.method, list(card.accuracy), card.recipe["method"]["price"]) == ("search", ["2"], 0.1)


def test_what_a_method_learned_survives_a_resume(
    search: list[Search], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parameter, its rate and its state continue exactly."""
    _train(tmp_path / "whole")

    def die(self: Search) -> None:
        if self.updates == 6:
            raise RuntimeError("killed")
        Search.after_update(self)

    monkeypatch.setattr(METHODS["search"], "after_update", die)
    with pytest.raises(RuntimeError, match="killed"):
        _train(tmp_path / "part")
    monkeypatch.delattr(METHODS["search"], "after_update")
    _train(tmp_path / "part", resume=True)
    whole, _, resumed = search
    assert torch.equal(whole.taste, resumed.taste)
    assert whole.updates == resumed.updates
    name = "latent.safetensors"
    assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
