"""HASB: the trace of a Hessian that is known, the law of the draw, the search, and a run that leaves what it found."""

from __future__ import annotations

import io
import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.child import FLOAT, Child, parse_children
from emqdeploy.format.emq import load_checkpoint
from emqdeploy.quant.insertion import InsertionConfig, insert_quantizers
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.training.api import train
from emqdeploy.training.hessian import mean_traces
from emqdeploy.training.methods.hasb import Hasb, allocate
from emqdeploy.training.recipes import resolve
from emqdeploy.training.steps import DRAWN


class TwoLayers(nn.Module):
    """Linear layers alone, whose loss has a Hessian that can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5, bias=False)
        self.last = nn.Linear(5, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of flat images."""
        return self.last(self.first(x.flatten(1)))


def two_layers() -> MultiBitNetwork:
    """Both layers switch."""
    torch.manual_seed(0)
    children = parse_children("8,4,2")
    return insert_quantizers(
        TwoLayers(), InsertionConfig(keep_8bit=(), small_groups="layer"), children, (), 2.0, (1, 2, 2)
    )


def test_the_trace_is_that_of_the_hessian() -> None:
    """Against autograd's own second derivatives; the estimate of random signs comes near."""
    network = two_layers()
    images, labels = torch.randn(12, 1, 2, 2), torch.randint(0, 3, (12,))
    first, last = (network.layers[name].weight.detach() for name in ("first", "last"))

    def loss(one: Tensor, other: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(F.linear(images.flatten(1), one), other), labels)

    found = mean_traces(network, images, labels, probes=150)
    for name, weight, of in (("first", first, lambda w: loss(w, last)), ("last", last, lambda w: loss(first, w))):
        hessian = torch.autograd.functional.hessian(of, weight).reshape(weight.numel(), -1)
        assert found[name] == pytest.approx(float(hessian.trace()) / weight.numel(), rel=0.25)
    assert network.child == FLOAT


def test_statistics_stay_as_they_were(small: Any) -> None:
    """Estimating trains nothing, draws nothing, and normalizes by the batch."""
    network, images = small.network, torch.from_numpy(small.images)
    before, random = {k: v.clone() for k, v in network.state_dict().items()}, torch.get_rng_state()
    traces = mean_traces(network, images, torch.arange(16) % 10, probes=2)
    assert list(traces) == list(network.switchable)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert not network.training
    assert mean_traces(network, images, torch.arange(16) % 10, probes=2) == traces


def test_an_operator_without_a_second_derivative_is_named() -> None:
    """One sentence with the way out; torch's fused attention is such an operator."""
    network = two_layers()

    def attend(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        rows = output[None, None]
        return F.scaled_dot_product_attention(rows, rows, rows)[0, 0]

    network.graph.register_forward_hook(attend)
    with pytest.raises(EmqError, match="without a second derivative, which traces of its Hessian need"):
        mean_traces(network, torch.randn(4, 1, 2, 2), torch.zeros(4, dtype=torch.long), probes=1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 5), st.floats(2, 8))
def test_the_search_is_exact(seed: int, layers: int, mean: float) -> None:
    """As good as trying all, and within the budget."""
    widths = (2, 4, 6, 8)
    costs = np.random.default_rng(seed).random((layers, len(widths)))
    budget = int(mean * layers)
    found = allocate(costs, widths, budget)
    places = [p for p in itertools.product(range(4), repeat=layers) if sum(widths[i] for i in p) <= budget]
    best = min(sum(costs[layer, i] for layer, i in enumerate(p)) for p in places)
    assert sum(found) <= budget
    assert sum(costs[layer, widths.index(bits)] for layer, bits in enumerate(found)) == pytest.approx(best)


def hasb(tmp_path: Path, **more: Any) -> Any:
    """A run on a few digits."""
    given = {"method": "hasb", "bits": "8,4,2", "limit": 100, "batch_size": 16, "epochs": 1, "lr": 0.01, **more}
    return train(resolve(None, None, given), tmp_path / "run", console=Console(file=io.StringIO()))


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch) -> list[Hasb]:
    """The methods that runs make."""
    made: list[Hasb] = []
    begin = Hasb.__init__

    def keep(self: Hasb, *arguments: Any) -> None:
        begin(self, *arguments)
        made.append(self)

    monkeypatch.setattr(Hasb, "__init__", keep)
    return made


def test_layers_draw_widths_and_the_search_leaves_children(method: list[Hasb], tmp_path: Path) -> None:
    """Curved layers draw wide children, the highest and the lowest child train as they are, targets are met."""
    result = hasb(tmp_path, target_bits="3,4", switch_rate=1.0)
    (one,) = method
    layers = one.setting.network.switchable
    steps = one.plan(1)
    assert all([child.name for child in step.children] == ["8", DRAWN, "2"] for step in steps)
    drawn = [step.children[1] for epoch in range(1, 9) for step in one.plan(epoch)]
    assert all({child.weights.of(layer) for child in drawn} == {8, 4, 2} for layer in layers)
    assert [s.children for s in one.plan(1)] == [s.children for s in steps], "the same again after a resume"
    random = np.random.default_rng(0)
    one.traces = dict.fromkeys(layers, 0.0) | {layers[0]: 1.0}
    some = [one._drawn(Child.of(4), 1.0, random) for _ in range(800)]
    for layer, odds in ((layers[0], 8 / 14), (layers[1], 1 / 3)):
        assert np.mean([child.weights.of(layer) == 8 for child in some]) == pytest.approx(odds, abs=0.06)
    assert {one._drawn(Child.of(4), 0.0, random).weights.of(layer) for layer in layers} == {4}
    checkpoint = load_checkpoint(result.checkpoints[0])
    assert [child.name for child in checkpoint.network.children] == [
        "2",
        "3",
        "4",
        "5",
        "6",
        "7",
        "8",
        "mean3",
        "mean4",
    ]
    for target in (3, 4):
        widths = [checkpoint.network.find(f"mean{target}").weights.of(layer) for layer in layers]
        assert target - 2 / len(layers) < np.mean(widths) <= target
    assert result.wrong is None
    # Estimates on a batch may be negative: errors of weights still ask for the bits that there are.
    for traces in (dict.fromkeys(layers, -1.0), dict.fromkeys(layers, -1.0) | {layers[0]: 2.0}):
        one.traces = traces
        found = allocate(one._costs((2, 4, 8)), (2, 4, 8), 4 * len(layers))
        assert 4 * len(layers) - 2 <= sum(found) <= 4 * len(layers)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"bits": "8,2"}, "--method hasb needs three or more weight widths to draw from, and --bits has 2"),
        ({"target_bits": "9"}, "--target-bits is 9; allowed: 2 to 8, the widths of --bits"),
        ({"target_bits": "3,x"}, "--target-bits is ['3', 'x']; write a mean width"),
        ({"target_bits": "3,3.0"}, "--target-bits has a width twice: 3, 3"),
        ({"switch_rate": 2.0}, "--switch-rate is 2.0; allowed: 0 to 1"),
    ],
)
def test_wrong_options_are_named(values: dict[str, Any], sentence: str) -> None:
    """Each message says what was given and what is allowed."""
    with pytest.raises(UsageError, match=re.escape(sentence)):
        resolve(None, None, {"method": "hasb", "bits": "8,4,2", **values})
