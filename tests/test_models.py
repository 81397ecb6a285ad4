"""Models by name: shapes, traceability, and torchvision beside any torch."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest
import torch
from torch import fx, nn

from emqdeploy import models
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.models import MODELS, create_model, import_torchvision

SIZES = {"resnet8": 8, "resnet20": 8, "resnet18": 32, "mobilenet_v2": 32}


def test_every_model_is_covered() -> None:
    """A new model must be added to the tests below."""
    assert set(SIZES) == set(MODELS)


@pytest.mark.parametrize("name", list(SIZES))
@pytest.mark.parametrize("in_channels", [1, 3])
def test_trace_gives_the_same_logits(name: str, in_channels: int) -> None:
    """Quantizers are inserted into the traced graph, so it has to be the same function."""
    size = SIZES[name]
    model = create_model(name, 7, in_channels, size).eval()
    x = torch.randn(2, in_channels, size, size)
    with torch.no_grad():
        logits = model(x)
        assert logits.shape == (2, 7)
        assert torch.equal(fx.symbolic_trace(model)(x), logits)


@pytest.mark.parametrize(("name", "convolutions"), [("resnet8", 7), ("resnet20", 19)])
def test_small_resnets_have_their_layers(name: str, convolutions: int) -> None:
    """ResNet-n has n - 1 3x3 convolutions, two 1x1 shortcuts, one linear layer, no conv bias."""
    layers = list(create_model(name, 10, 3, 32).modules())
    convs = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert sum(conv.kernel_size == (3, 3) for conv in convs) == convolutions
    assert sum(conv.kernel_size == (1, 1) for conv in convs) == 2
    assert all(conv.bias is None for conv in convs)
    assert [layer.in_features for layer in layers if isinstance(layer, nn.Linear)] == [64]


def test_residual_sums_are_plain_additions() -> None:
    """Both inputs of each sum get a quantizer, which is found by the addition in the graph."""
    graph = fx.symbolic_trace(create_model("resnet20", 10, 3, 32)).graph
    additions = [node for node in graph.nodes if node.op == "call_function" and "add" in node.name]
    assert len(additions) == 9


def test_the_seed_decides_the_weights() -> None:
    """A run can be repeated: the same seed draws the same network."""

    def draw() -> torch.Tensor:
        torch.manual_seed(3)
        return create_model("resnet8", 10, 1, 8).state_dict()["stage3.0.conv1.weight"]

    assert torch.equal(draw(), draw())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet9", 10, 3, 32), "unknown model 'resnet9'.*did you mean"),
        (("resnet18", 10, 1, 8), "at least 32 x 32 pixels, not 8 x 8"),
        (("resnet8", 10, 1, 2), "at least 4 x 4"),
        (("resnet8", 1, 1, 8), "at least 2 classes"),
        (("resnet8", 10, 0, 8), "1 input channel"),
    ],
)
def test_wrong_arguments(arguments: tuple[str, int, int, int], message: str) -> None:
    """A wrong name or number is answered before training starts."""
    with pytest.raises(UsageError, match=message):
        create_model(*arguments)


def test_torchvision_loads_in_a_fresh_process() -> None:
    """Imported first or after our repair, torchvision gives models and data sets."""
    code = (
        "from emqdeploy.models import import_torchvision as load\n"
        "first = load()\n"
        "assert load() is first\n"
        "first.models.resnet18, first.datasets.CIFAR10\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_healthy_torchvision_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the import works at once, no operator may be declared: it would shadow a real one."""
    healthy = ModuleType("torchvision")
    declared = list(models._declared)
    monkeypatch.setattr(models, "require", lambda *_: healthy)
    assert import_torchvision() is healthy
    assert models._declared == declared


@pytest.mark.parametrize("reason", ["operator torchvision::roi does not exist", "bad magic"])
def test_unusable_torchvision_is_one_sentence(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    """What the repair cannot mend is reported with the way out."""

    def fail(*_: object) -> ModuleType:
        raise RuntimeError(reason)

    monkeypatch.setattr(models, "require", fail)
    with pytest.raises(EmqError, match=f"does not load beside this torch .{reason}.; install"):
        import_torchvision()
