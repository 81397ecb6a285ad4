"""Models by name: shapes, traceability, and torchvision beside any torch."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import fx, nn

from emqdeploy.data import repair
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.models import MODELS, create_model, import_torchvision, trust
from emqdeploy.quant.tracing import trace

SIZES = {
    **dict.fromkeys(
        ("resnet8", "resnet20", "resnet32", "resnet56", "preact-resnet8", "preact-resnet20", "preact-resnet20-x5"), 8
    ),
    **dict.fromkeys(("mobilenet-micro", "vit-micro"), 8),
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "mobilenet_v2", "vit_b_16"), 32),
}


def test_every_model_is_covered() -> None:
    """A new model must be added to the tests below."""
    assert set(SIZES) == set(MODELS)


LARGE = ("resnet34", "resnet50", "vit_b_16", "preact-resnet20-x5")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in SIZES])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_trace_gives_the_same_logits(name: str, in_channels: int) -> None:
    """Quantizers are inserted into the traced graph, so it has to be the same function."""
    size = SIZES[name]
    model = create_model(name, 7, in_channels, size).eval()
    x = torch.randn(2, in_channels, size, size)
    with torch.no_grad():
        logits = model(x)
        assert logits.shape == (2, 7)
        torch.testing.assert_close(trace(model).module(x), logits, rtol=1e-4, atol=1e-5)


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
        (("vit-b-16", 10, 3, 40), "in multiples of 16, not 40 x 40"),
        (("resnet8", 1, 1, 8), "at least 2 classes"),
        (("resnet8", 10, 0, 8), "1 input channel"),
    ],
)
def test_wrong_arguments(arguments: tuple[str, int, int, int], message: str) -> None:
    """A wrong name or number is answered before training starts."""
    with pytest.raises(UsageError, match=message):
        create_model(*arguments)


def test_dashes_underscores_and_case_do_not_matter() -> None:
    """People write vit-b-16 and MobileNet_V2; the message of a wrong name lists the spellings on file."""
    assert isinstance(create_model("ResNet18", 3, 3, 32), nn.Module)
    assert isinstance(create_model("mobilenet-v2", 3, 3, 32), nn.Module)
    assert isinstance(create_model("preact_resnet20", 3, 1, 8), nn.Module)


@pytest.mark.skipif(not find_spec("timm"), reason="timm is not installed")
def test_any_timm_model() -> None:
    """By its own name, for any channels and size that it takes; a wrong name gets near ones."""
    model = create_model("timm/vit_tiny_patch16_224", 7, 1, 32)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    assert create_model("timm/resnet10t", 7, 3, 32)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    with pytest.raises(UsageError, match="timm has it: --model timm/vit_tiny_patch16_224"):
        create_model("vit_tiny_patch16_224", 7, 3, 224)
    with pytest.raises(UsageError, match=r"has no model 'vit_tiny_patch16'; did you mean timm/vit_tiny_patch16_224"):
        create_model("timm/vit_tiny_patch16", 7, 3, 224)
    with pytest.raises(EmqError, match=r"timm/vit_tiny_patch16_224 does not take images of 3 x 8 x 8: .*; choose"):
        create_model("timm/vit_tiny_patch16_224", 7, 3, 8)


USERS = """
from torch import nn

def net(num_classes, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(image_size**2, num_classes))

def everything(**options):
    assert set(options) == {"num_classes", "in_channels", "image_size"}
    return net(options["num_classes"], options["image_size"])

def number(): return 3
def wrong(): return nn.Flatten()
def broken(): raise ValueError("no weights here")
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module beside the user, not installed."""
    name = f"own_models_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(USERS)
    monkeypatch.chdir(tmp_path)
    return name


def test_the_users_function(own_code: str) -> None:
    """It gets what its signature takes, and nothing imports it but the user's own command."""
    before = list(sys.path)
    for function in ("net", "everything"):
        with pytest.raises(EmqError, match=r"your own function .*: --model"):
            create_model(f"{own_code}:{function}", 5, 1, 8)
        assert own_code not in sys.modules or function == "everything"
        trust(f"{own_code}:{function}")
        model = create_model(f"{own_code}:{function}", 5, 1, 8)
        assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 5)
    assert sys.path == before


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("number", "number returned a int, not a torch.nn.Module"),
        ("wrong", r"answers one image with a tensor of shape \(1, 64\), not with logits \(1, 5\)"),
        ("broken", "broken failed: no weights here"),
        ("absent", "has no 'absent'; name a function of it"),
    ],
)
def test_what_is_wrong_with_the_users_function(own_code: str, function: str, message: str) -> None:
    """One sentence each."""
    trust(f"{own_code}:{function}")
    with pytest.raises(EmqError, match=message) as error:
        create_model(f"{own_code}:{function}", 5, 1, 8)
    assert "\n" not in str(error.value)


def test_a_module_that_is_not_there() -> None:
    """The name of the module stands in the sentence."""
    trust("no_such_module:net")
    with pytest.raises(UsageError, match=r"cannot import 'no_such_module': .*; name a model as pkg.module:function"):
        create_model("no_such_module:net", 5, 1, 8)


def test_timm_with_a_colon_is_told_the_slash() -> None:
    """``timm:NAME`` is what people write who know ``pkg.module:function``."""
    trust("timm:resnet18d")
    with pytest.raises(UsageError, match="write timm/resnet18d for its network of that name"):
        create_model("timm:resnet18d", 5, 3, 32)


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
    declared = list(repair._declared)
    monkeypatch.setattr(repair, "require", lambda *_: healthy)
    assert import_torchvision() is healthy
    assert repair._declared == declared


@pytest.mark.parametrize("reason", ["operator torchvision::roi does not exist", "bad magic"])
def test_unusable_torchvision_is_one_sentence(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    """What the repair cannot mend is reported with the way out."""

    def fail(*_: object) -> ModuleType:
        raise RuntimeError(reason)

    monkeypatch.setattr(repair, "require", fail)
    with pytest.raises(EmqError, match=f"does not load beside this torch .{reason}.; install"):
        import_torchvision()
