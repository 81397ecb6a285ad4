"""A network that is not the one that it was made from, and where that begins."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emqdeploy.errors import EmqError
from emqdeploy.format.child import Child
from emqdeploy.quant import insertion
from emqdeploy.quant.deploy import deployed_reference
from emqdeploy.quant.faults import first_fault, rewritten
from emqdeploy.quant.insertion import InsertionConfig, insert_quantizers
from emqdeploy.quant.network import MultiBitNetwork

from ..conftest import Deployed

EIGHT = Child.of(8)


class Branching(nn.Module):
    """A network that does something else where `busy` is set, as many do in training mode."""

    busy = False

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        stem = F.relu(self.stem(images))
        body = self.body(stem)
        if self.busy:
            body = body * 0.5
        return self.head((stem + body).mean((2, 3)))


@pytest.fixture
def images() -> Tensor:
    """Eight of them, normalised."""
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1)).clamp(-2, 2)


def insert(model: nn.Module) -> MultiBitNetwork:
    """At 8 bits."""
    return insert_quantizers(model, InsertionConfig(), (EIGHT,), (), 2.0)


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[nn.Module], object]], None]:
    """Spoils what insertion gets from tracing: the given function changes a copy of the model before."""
    real = insertion.trace

    def spoil(change: Callable[[nn.Module], object]) -> None:
        def trace(model: nn.Module, *rest: Any) -> Any:
            other = copy.deepcopy(model)
            change(other)
            return real(other, *rest)

        monkeypatch.setattr(insertion, "trace", trace)

    return spoil


def test_a_good_rewrite_is_the_same_function(small: Deployed, images: Tensor) -> None:
    """Of every module; the mode, and the child in use, are left as they were."""
    model = Branching()
    network = insert(model).train()
    network.use(EIGHT)
    assert rewritten(model, network, images) is None
    assert network.training
    assert network.child == EIGHT


def test_a_branch_that_was_traced_in_another_mode_is_named(
    images: Tensor, traces: Callable[[Callable[[nn.Module], object]], None]
) -> None:
    """The first module that all later ones differ from reads something else."""
    traces(lambda model: setattr(model, "busy", True))
    model = Branching()
    assert rewritten(model, insert(model), images) == "head"


def test_a_module_that_became_another_function_is_named(
    images: Tensor, traces: Callable[[Callable[[nn.Module], object]], None]
) -> None:
    """An epsilon that is lost is enough, and what comes before is not blamed."""
    traces(lambda model: setattr(model.get_submodule("body.1"), "eps", 1e-2))
    model = Branching()
    assert rewritten(model, insert(model), images) == "body.1"


def test_answers_of_another_shape_are_another_function(
    images: Tensor, traces: Callable[[Callable[[nn.Module], object]], None]
) -> None:
    """Two heads in training mode: the traced network answers with a pair."""

    class TwoHeads(Branching):
        def forward(self, images: Tensor) -> Tensor:
            """Logits, or those of two heads."""
            answer = super().forward(images)
            return (answer, answer) if self.training else answer  # type: ignore[return-value]

    model = TwoHeads()
    network = insert(model)
    network.graph.register_forward_hook(lambda module, inputs, answer: (answer, answer))
    assert rewritten(model, network, images) == "head"


def test_random_answers_are_the_models_own_fault(images: Tensor) -> None:
    """No rewrite could give them again."""

    class Random(Branching):
        def forward(self, images: Tensor) -> Tensor:
            """Logits, with noise whatever the mode is."""
            return super().forward(F.dropout(images, 0.5, training=True))

    model = Random()
    with pytest.raises(EmqError, match="answers the same images differently each time"):
        rewritten(model, insert(Branching()), images)


def test_what_overflows_in_float_says_nothing(images: Tensor) -> None:
    """A fresh network may have no finite answers before its statistics are settled."""
    model = Branching()
    with torch.no_grad():
        model.head.bias.fill_(torch.inf)
    assert rewritten(model, insert(model), images) is None


@pytest.mark.parametrize("name", ["stage1.0.conv1", "stage2.0.conv2", "fc"])
def test_the_layer_with_wrong_numbers_is_named(small: Deployed, name: str) -> None:
    """First, though all behind it are wrong with it; in a residual network what leads around it is not."""
    frozen = small.checkpoint.network
    layer = frozen.layers[name]
    spoiled = replace(layer, codes=np.ascontiguousarray(layer.codes[::-1]))
    wrong = replace(frozen, layers={**frozen.layers, name: spoiled})
    child = frozen.find(8)
    deployed = deployed_reference(small.network, wrong, child)
    fault = first_fault(small.network, deployed, torch.from_numpy(small.images), child)
    assert fault.layer == name
    assert fault.given_db < 15 < fault.read_db
    assert str(fault).startswith(f"layer {name!r}, which reads ")


def test_without_a_wrong_layer_the_one_that_loses_most_is_named(small: Deployed) -> None:
    """For someone who asks all the same."""
    child = small.checkpoint.network.find(8)
    deployed = deployed_reference(small.network, small.checkpoint.network, child)
    fault = first_fault(small.network, deployed, torch.from_numpy(small.images), child)
    assert fault.layer in small.network.layers
    assert fault.given_db > 15
