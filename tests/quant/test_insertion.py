"""Where quantizers stand: one golden record per pattern, from the float graph to the kernels that really run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emqdeploy.errors import EmqError
from emqdeploy.format.child import Child, parse_children
from emqdeploy.quant.deploy import freeze
from emqdeploy.quant.insertion import InsertionConfig, insert_quantizers
from emqdeploy.quant.network import MultiBitNetwork

from ..conftest import settled
from .fused import kernels_that_run

SHAPE = (3, 8, 8)
TWO_AND_EIGHT = parse_children("2,8")


def conv(inputs: int, outputs: int, size: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution that keeps height and width."""
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


class Residual(nn.Module):
    """A stem and one residual block; with or without a projection; its ReLUs as modules, functions or methods."""

    def __init__(self, projection: bool = False, style: str = "module") -> None:
        super().__init__()
        self.style = style
        self.relu = nn.ReLU()
        self.stem, self.bn = conv(3, 8, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = conv(8, 8, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = conv(8, 8, bias=False), nn.BatchNorm2d(8)
        self.down, self.bn_down = conv(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.projection = projection
        self.fc = nn.Linear(8, 5)

    def activation(self, x: Tensor) -> Tensor:
        """Computes ReLU."""
        return {"module": self.relu, "function": F.relu, "method": lambda y: y.relu()}[self.style](x)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to the output."""
        x = self.activation(self.bn(self.stem(x)))
        shortcut = self.bn_down(self.down(x)) if self.projection else x
        y = self.bn2(self.conv2(self.activation(self.bn1(self.conv1(x)))))
        y += shortcut
        y = self.activation(y)
        if self.style == "method":
            return self.fc(y.mean((2, 3)))
        if self.style == "function":
            return self.fc(F.adaptive_avg_pool2d(y, 1).flatten(1))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(y, 1), 1))


class PreActivation(nn.Module):
    """A block whose normalizations follow a shared tensor and a sum, so that no layer of the model absorbs them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1 = conv(3, 8, bias=False), conv(8, 8, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to the output."""
        x = self.stem(x)
        x = x + self.conv1(F.relu(self.bn1(x)))
        return self.fc(self.pool(F.relu(self.bn2(x))).flatten(1))


class Concat(nn.Module):
    """Two branches side by side, and a functional dropout before the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.join = conv(3, 4), conv(3, 4), conv(8, 8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to the output."""
        x = torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1)
        x = F.adaptive_avg_pool2d(F.relu(self.join(x)), 1).flatten(1)
        return self.fc(F.dropout(x, 0.5, self.training))


class Shuffle(nn.Module):
    """ShuffleNet's unit: half of the channels passes by, and both halves are mixed by reshaping with traced sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.fc = conv(3, 8), conv(4, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to the output."""
        left, right = F.relu(self.stem(x)).chunk(2, 1)
        x = torch.cat([left, F.relu(self.branch(right))], 1)
        count, channels, high, wide = x.size()
        x = x.view(count, 2, channels // 2, high, wide).transpose(1, 2).reshape(count, channels, high, wide)
        return self.fc(F.adaptive_avg_pool2d(x.chunk(2, 1)[0], 1).flatten(1))


def plain(*between: nn.Module, bias: bool = False) -> nn.Sequential:
    """A stem, something, a convolution and a classifier."""
    stem = [conv(3, 8, bias=bias), nn.BatchNorm2d(8)]
    tail = [conv(8, 8, bias=bias), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*stem, *between, *tail, nn.Linear(8, 5))


def depthwise() -> nn.Sequential:
    """MobileNet's pattern."""
    return nn.Sequential(
        *(conv(3, 8, bias=False), nn.BatchNorm2d(8), nn.ReLU6()),
        *(conv(8, 8, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6()),
        *(conv(8, 8, 1, bias=False), nn.BatchNorm2d(8)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 5)),
    )


@dataclass(frozen=True)
class Pattern:
    """A model and what becomes of it: sites, pinned layers, and the operators that onnxruntime runs, but for moves."""

    build: Any
    signed: str
    unsigned: str
    pinned: str
    operators: str


def mlp() -> nn.Sequential:
    """Linear layers only."""
    layers = [nn.Linear(192, 40), nn.ReLU(), nn.Linear(40, 33), nn.ReLU(), nn.Linear(33, 5)]
    return nn.Sequential(nn.Flatten(), *layers)


PATTERNS = {
    "residual": Pattern(
        Residual,
        signed="input bn2",
        unsigned="relu relu_1 relu_2 adaptive_avg_pool2d",
        pinned="stem fc",
        operators="Q:1 QGemm:1 QLinearAdd:1 QLinearConv:3 QPool:1",
    ),
    "residual with projection": Pattern(
        lambda: Residual(True),
        signed="input bn_down bn2",
        unsigned="relu relu_1 relu_2 adaptive_avg_pool2d",
        pinned="stem down fc",
        operators="Q:1 QGemm:1 QLinearAdd:1 QLinearConv:4 QPool:1",
    ),
    "functional": Pattern(
        lambda: Residual(True, "function"),
        signed="input bn_down bn2",
        unsigned="relu relu_1 relu_2 adaptive_avg_pool2d",
        pinned="stem down fc",
        operators="Q:1 QGemm:1 QLinearAdd:1 QLinearConv:4 QPool:1",
    ),
    "methods": Pattern(
        lambda: Residual(False, "method"),
        signed="input bn2",
        unsigned="relu relu_1 relu_2 adaptive_avg_pool2d",
        pinned="stem fc",
        operators="Q:1 QGemm:1 QLinearAdd:1 QLinearConv:3 QPool:1",
    ),
    "depthwise": Pattern(
        depthwise,
        signed="input _7 _8",
        unsigned="_2 _5",
        pinned="0 3 6 11",
        operators="Q:1 QGemm:1 QLinearConv:3 QPool:1",
    ),
    "max-pool": Pattern(
        lambda: plain(nn.ReLU(), nn.MaxPool2d(2)),
        signed="input",
        unsigned="_2 _6 _7",
        pinned="0 9",
        operators="NhwcMaxPool:1 Q:1 QGemm:1 QLinearConv:2 QPool:1",
    ),
    "conv bias": Pattern(
        lambda: plain(nn.ReLU(), bias=True),
        signed="input",
        unsigned="_2 _5 _6",
        pinned="0 8",
        operators="Q:1 QGemm:1 QLinearConv:2 QPool:1",
    ),
    "silu": Pattern(
        lambda: plain(nn.SiLU()),
        signed="input _1 _2",
        unsigned="_5 _6",
        pinned="0 8",
        operators="DQ:2 Mul:1 Q:2 QGemm:1 QLinearConv:2 QPool:1 Sigmoid:1",
    ),
    "hardswish": Pattern(
        lambda: plain(nn.Hardswish()),
        signed="input _1 _2",
        unsigned="_5 _6",
        pinned="0 8",
        operators="DQ:1 HardSigmoid:1 Mul:1 Q:2 QGemm:1 QLinearConv:2 QPool:1",
    ),
    "pre-activation": Pattern(
        PreActivation,
        signed="input stem conv1 add",
        unsigned="relu relu_1 pool",
        pinned="stem bn1_as_conv bn2_as_conv fc",
        operators="Q:1 QGemm:1 QLinearAdd:1 QLinearConv:4 QPool:1",
    ),
    "dropout": Pattern(
        lambda: plain(nn.ReLU(), nn.Dropout(0.3)),
        signed="input",
        unsigned="_2 _6 _7",
        pinned="0 9",
        operators="Q:1 QGemm:1 QLinearConv:2 QPool:1",
    ),
    "concat": Pattern(
        Concat,
        signed="input",
        unsigned="relu relu_1 cat relu_2 adaptive_avg_pool2d",
        pinned="left right fc",
        operators="Q:1 QGemm:1 QLinearConcat:1 QLinearConv:3 QPool:1",
    ),
    "shuffle": Pattern(
        Shuffle,
        signed="input",
        unsigned="relu getitem_1 relu_1 adaptive_avg_pool2d",
        pinned="stem fc",
        operators="DQ:3 GlobalAveragePool:1 Q:3 QGemm:1 QLinearConv:2",
    ),
    "mlp": Pattern(
        mlp,
        signed="input",
        unsigned="_2 _4",
        pinned="1 5",
        operators="Q:1 QGemm:3",
    ),
}

pattern = pytest.mark.parametrize("name", list(PATTERNS))


def inserted(name: str) -> tuple[nn.Module, MultiBitNetwork]:
    """The float model and its multi-bit copy."""
    torch.manual_seed(0)
    model = PATTERNS[name].build()
    return model, insert_quantizers(model, InsertionConfig(), TWO_AND_EIGHT, (), 2.0)


def batch(count: int = 16) -> Tensor:
    """Normalised images in the range of the input site."""
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(count)).clamp(-2, 2)


@pattern
def test_without_quantization_nothing_changes(name: str) -> None:
    """At 32 bits the rewritten network is the original, to the last bit, in training as well as in evaluation."""
    model, network = inserted(name)
    for training in (False, True):
        model.train(training)
        network.train(training)
        torch.manual_seed(1)
        expected = model(batch())
        torch.manual_seed(1)
        assert torch.equal(network(batch()), expected)


@pattern
def test_sites_and_pinned_layers(name: str) -> None:
    """Quantizers stand where integer kernels want them, and a never-negative tensor spends no level on a sign."""
    _, network = inserted(name)
    golden = PATTERNS[name]
    sites = network.sites.items()
    assert " ".join(key for key, site in sites if site.signed) == golden.signed
    assert " ".join(key for key, site in sites if not site.signed) == golden.unsigned
    assert " ".join(key for key, layer in network.layers.items() if layer.pinned) == golden.pinned
    for key, layer in network.layers.items():
        signed = network.sites[network.layer_input[key]].signed
        assert layer.quantizer.limit == (64 if signed else 127)


@pattern
def test_fused_graph(name: str, tmp_path: Path) -> None:
    """Every layer is one integer kernel, with any batch size, and the codes are those of the integer reference."""
    _, network = inserted(name)
    frozen = freeze(settled(network, batch()), TWO_AND_EIGHT)
    assert kernels_that_run(network, frozen, SHAPE, tmp_path) == PATTERNS[name].operators


def test_relu6_bounds_the_clip() -> None:
    """The range of the site is the activation, so its clip may not pass six."""
    _, network = inserted("depthwise")
    assert [key for key, site in network.sites.items() if site.ceiling == 6.0] == ["_2", "_5"]


def test_functional_dropout_follows_the_mode() -> None:
    """Tracing freezes ``self.training``; the network must still drop in training and be exact in evaluation."""
    for training in (False, True):
        torch.manual_seed(0)
        network = insert_quantizers(Concat().train(training), InsertionConfig(), (Child.of(8),), (), 2.0)
        with torch.no_grad():
            network.train()
            assert not torch.equal(network(batch()), network(batch()))
            network.eval()
            assert torch.equal(network(batch()), network(batch()))


def test_the_users_model_is_left_alone() -> None:
    """Inserting works on a copy."""
    model, network = inserted("residual")
    assert type(model.conv1) is nn.Conv2d
    assert network.layers["conv1"].weight is not model.conv1.weight
    torch.testing.assert_close(network.layers["conv1"].weight, model.conv1.weight)


def test_what_stays_at_eight_bits_can_be_chosen() -> None:
    """By name, not at all, and small groups may share the layer's statistics instead."""
    config = InsertionConfig(keep_8bit=("conv2",))
    network = insert_quantizers(Residual(), config, (Child.of(2),), (), 2.0)
    assert [name for name, layer in network.layers.items() if layer.pinned] == ["stem", "conv2", "fc"]
    config = InsertionConfig(keep_8bit=(), small_groups="layer")
    network = insert_quantizers(Residual(), config, (Child.of(2),), (), 2.0)
    assert not any(layer.pinned for layer in network.layers.values())
    groups = {name: layer.quantizer.config.group for name, layer in network.layers.items()}  # type: ignore[union-attr]
    assert groups == {"stem": "layer", "conv1": "channel", "conv2": "channel", "fc": "layer"}


class Branching(nn.Module):
    """Depends on the values of a tensor."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to the output."""
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "keep", "message"),
    [
        (Branching(), (), "cannot trace Branching: .*; make its forward free of branches"),
        (nn.Sequential(nn.ReLU()), (), "no Conv2d or Linear layer"),
        (plain(), ("head",), "cannot keep 'head' at 8 bits: no such layer; layers: 0, 2, 7"),
    ],
)
def test_models_that_cannot_be_quantized(model: nn.Module, keep: tuple[str, ...], message: str) -> None:
    """Each has a sentence that says what to change."""
    with pytest.raises(EmqError, match=message) as error:
        insert_quantizers(model, InsertionConfig(keep_8bit=keep), (Child.of(2),), (), 2.0)
    assert "\n" not in str(error.value)


def test_a_tensor_has_the_width_of_the_reader_that_needs_most() -> None:
    """Layers that read it decide; a sum passes the question on, and 8 bits are left where nobody asks for fewer."""
    child = Child("mixed", 4, {"*": 4, "conv1": 2, "conv2": 6})
    network = insert_quantizers(Residual(True), InsertionConfig(keep_8bit=("first", "last")), (child,), (), 2.0)
    widths = {name: site.bits_of(child) for name, site in network.sites.items()}
    # `relu` is read by conv1 (2 bits) and by the pinned projection, which does not ask; the sum by nobody but the head.
    assert widths == {
        **{"input": 8, "relu": 2, "relu_1": 6, "bn_down": 8, "bn2": 8, "relu_2": 8, "adaptive_avg_pool2d": 8},
    }
    named = Child("named", 4, {"*": 4, "down": 5})
    widths = {name: site.bits_of(named) for name, site in network.sites.items()}
    assert widths["relu"] == 5


def test_the_layers_before_are_those_of_the_graph() -> None:
    """Not the one that ran last: behind a sum stand both of its branches."""
    network = insert_quantizers(Residual(True), InsertionConfig(norm="transitional"), TWO_AND_EIGHT, (), 2.0)
    sources = {norm.layer: norm.sources for norm in network.norms.values()}
    assert sources == {"stem": (), "down": ("stem",), "conv1": ("stem",), "conv2": ("conv1",)}
