"""Networks with float operators between their layers: what is quantized, what stays, and the kernels that run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from emqdeploy.errors import EmqError
from emqdeploy.format.child import Child, parse_children
from emqdeploy.graph.floating import float_operators
from emqdeploy.models.small import SmallViT
from emqdeploy.quant.deploy import deployed_reference, freeze
from emqdeploy.quant.insertion import InsertionConfig, insert_quantizers
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.quant.skeleton import export_skeleton

from ..conftest import settled
from .fused import kernels_that_run

SHAPE = (3, 8, 8)


class Patches(nn.Module):
    """Patches of 4 x 4 pixels as tokens, something on them, a classifier on the first token."""

    def __init__(self, inner: nn.Module, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.inner = inner
        self.fc = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, 3, 8, 8) to (N, 5)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(tokens.shape[0], -1, -1), tokens], 1)
        return self.fc(self.inner(tokens)[:, 0])


class TorchAttention(nn.Module):
    """torch's own attention module behind a LayerNorm, as in torchvision's transformers."""

    def __init__(self, width: int = 32, batch_first: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=batch_first, dropout=dropout)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, T, C) to (N, T, C)."""
        y = self.norm(x)
        y = y if self.batch_first else y.transpose(0, 1)
        y, _ = self.attention(y, y, y, need_weights=False)
        return x + (y if self.batch_first else y.transpose(0, 1))


class MixedTokens(nn.Module):
    """Linear layers over tokens with a ReLU between them: codes from layer to layer, in three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc1, self.relu, self.fc2 = nn.LayerNorm(32), nn.Linear(32, 40), nn.ReLU(), nn.Linear(40, 32)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, T, C) to (N, T, C)."""
        return x + self.fc2(self.relu(self.fc1(self.norm(x))))


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution that reads the float stream, LayerNorm and linear layers with channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.dw = nn.Conv2d(3, 32, 2, 2), nn.Conv2d(32, 32, 7, padding=3, groups=32)
        self.norm, self.fc1, self.gelu, self.fc2 = nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)
        self.gamma = nn.Parameter(torch.full((32,), 0.5))
        self.last, self.fc = nn.LayerNorm(32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, 3, H, W) to (N, 5)."""
        x = self.stem(x)
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        y = self.gamma * self.fc2(self.gelu(self.fc1(y)))
        x = x + y.permute(0, 3, 1, 2)
        return self.fc(self.last(x.mean((-2, -1))))


@dataclass(frozen=True)
class Pattern:
    """A model and what becomes of it."""

    build: Callable[[], nn.Module]
    sites: str
    pinned: str
    kernels: str
    floats: str


ATTENTION = "FusedMatMul:1 LayerNorm:1 MatMul:1 Q:4 QGemm:3 QLinearConv:1 Softmax:1"
ATTENTION_FLOATS = "Add:1 LayerNormalization:1 MatMul:2 Mul:1 Softmax:1"
PATTERNS = {
    "vit": Pattern(
        lambda: SmallViT(1, 5, 3, 8),
        sites="input patches blocks_0_norm1 transpose_1 blocks_0_norm2 blocks_0_gelu mean",
        pinned="patches fc",
        kernels="Add:3 DQ:1 FusedMatMul:1 Gelu:1 LayerNorm:3 MatMul:1 Q:6 QGemm:5 QLinearConv:1 ReduceMean:1 Softmax:1",
        floats="Add:3 Gelu:1 LayerNormalization:3 MatMul:2 Mul:1 ReduceMean:1 Softmax:1",
    ),
    "torch attention": Pattern(
        lambda: Patches(TorchAttention()),
        sites="input patches inner_norm transpose_1 getitem_4",
        pinned="patches fc",
        kernels=f"Add:1 DQ:1 {ATTENTION}",
        floats=ATTENTION_FLOATS,
    ),
    "attention, tokens first": Pattern(
        lambda: Patches(TorchAttention(batch_first=False)),
        sites="input patches transpose_2 transpose_3 getitem_4",
        pinned="patches fc",
        kernels=f"Add:1 DQ:1 {ATTENTION}",
        floats=ATTENTION_FLOATS,
    ),
    "attention with dropout": Pattern(
        lambda: Patches(TorchAttention(dropout=0.2)),
        sites="input patches inner_norm transpose_2 getitem_5",
        pinned="patches fc",
        kernels=f"Add:1 DQ:1 {ATTENTION}",
        floats=ATTENTION_FLOATS,
    ),
    "tokens": Pattern(
        lambda: Patches(MixedTokens()),
        sites="input patches inner_norm inner_relu getitem_1",
        pinned="patches fc",
        kernels="Add:1 DQ:1 LayerNorm:1 Q:3 QGemm:3 QLinearConv:1",
        floats="Add:1 LayerNormalization:1",
    ),
    "convnext": Pattern(
        ConvNeXtBlock,
        sites="input stem dw norm gelu last",
        pinned="stem fc",
        kernels="Add:1 DQ:2 Gelu:1 GlobalAveragePool:1 LayerNorm:2 Mul:1 Q:4 QGemm:3 QLinearConv:2",
        floats="Add:1 Gelu:1 GlobalAveragePool:1 LayerNormalization:2 Mul:1",
    ),
}
pattern = pytest.mark.parametrize("name", list(PATTERNS))


def inserted(name: str, activation_bits: int | str = 8) -> tuple[nn.Module, MultiBitNetwork]:
    """The float model and its multi-bit copy."""
    torch.manual_seed(0)
    model = PATTERNS[name].build()
    return model, insert_quantizers(model, InsertionConfig(), parse_children("2,8", activation_bits), (), 2.0)


def images(count: int) -> Tensor:
    """Normalised images."""
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(count)).clamp(-2, 2)


@pattern
def test_without_quantization_nothing_changes(name: str) -> None:
    """At 32 bits the rewritten network is the original; attention only adds in another order."""
    model, network = inserted(name)
    model.eval()
    network.eval()
    torch.testing.assert_close(network(images(4)), model(images(4)), rtol=1e-5, atol=1e-5)


@pattern
def test_every_layer_is_an_integer_kernel(name: str, tmp_path: Path) -> None:
    """Codes stand where layers read; what stays in float is counted, and nothing else does."""
    _, network = inserted(name)
    golden = PATTERNS[name]
    assert " ".join(network.sites) == golden.sites
    assert " ".join(key for key, layer in network.layers.items() if layer.pinned) == golden.pinned
    frozen = freeze(settled(network, images(16)), network.known)
    assert kernels_that_run(network, frozen, SHAPE, tmp_path) == golden.kernels
    counts = float_operators(export_skeleton(network, frozen, SHAPE))
    assert " ".join(f"{kind}:{count}" for kind, count in counts.items()) == golden.floats


def test_float_parameters_travel(tmp_path: Path) -> None:
    """Embeddings and gains of layer normalizations belong to the deployed network, whatever structure it fills."""
    _, network = inserted("vit")
    settled(network, images(16))
    with torch.no_grad():
        for name, tensor in network.float_parameters().items():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name))))
    frozen = freeze(network, (Child.of(4),))
    assert set(frozen.floats) == {
        "positions",
        "norm.weight",
        "norm.bias",
        *(f"blocks.0.norm{index}.{kind}" for index in (1, 2) for kind in ("weight", "bias")),
    }
    _, fresh = inserted("vit")
    with torch.no_grad(), network.at(Child.of(4)):
        expected = network(images(4))
        found = deployed_reference(fresh, frozen, Child.of(4))(images(4))
    assert (found - expected).abs().max() <= 0.02 * (expected.max() - expected.min())


def test_attention_keeps_its_parameters_names() -> None:
    """Weights go back into the model that they came from."""
    model, network = inserted("torch attention")
    state = network.float_state()
    assert set(state) == set(model.state_dict())
    model.load_state_dict(state)


def test_activation_bits_are_those_of_what_layers_read() -> None:
    """The patches only go into a float stream, so that 8 bits cost nothing there."""
    _, network = inserted("vit", 4)
    widths = {name: site.bits_of(network.known[0]) for name, site in network.sites.items()}
    assert {name for name, bits in widths.items() if bits == 8} == {"input", "patches", "mean"}


class CrossAttention(nn.Module):
    """Attends from one tensor to another."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.other = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(3, 8, 4, 4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, 3, 8, 8) to (N, 8)."""
        a, b = (conv(x).flatten(2).transpose(1, 2) for conv in (self.patches, self.other))
        return self.attention(a, b, b)[0].mean(1)


class OwnMatrix(nn.Module):
    """Multiplies with a parameter that no layer owns."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.matrix = nn.Linear(192, 8), nn.Parameter(torch.ones(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, 3, 8, 8) to (N, 5)."""
        return self.fc(x.flatten(1)) @ self.matrix


class OwnTensor(OwnMatrix):
    """Multiplies with a parameter in a way that no layer has."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, 3, 8, 8) to (N, 5)."""
        return torch.einsum("nc,cc->nc", self.fc(x.flatten(1)), self.matrix)


def recurrent() -> nn.Sequential:
    """A kind of layer without integer kernels."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 8, 3), nn.Flatten(), nn.Linear(512, 5))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (CrossAttention(), "attention 'attention' reads more than one tensor; only self-attention"),
        (
            OwnTensor(),
            "'einsum' multiplies with a parameter outside of any .*leave it in float with --keep-float einsum",
        ),
        (recurrent(), "layer '2' is a ConvTranspose2d, .*--keep-float 2"),
    ],
)
def test_weights_that_would_silently_stay_in_float(model: nn.Module, message: str) -> None:
    """No silent float layer: each is named, with the way out."""
    with pytest.raises(EmqError, match=message) as error:
        insert_quantizers(model, InsertionConfig(), (Child.of(2),), (), 2.0)
    assert "\n" not in str(error.value)


def plain_stack() -> nn.Sequential:
    """A convolution in the middle, which could be quantized."""
    stem, last = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(512, 5)
    return nn.Sequential(stem, nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Flatten(), last)


@pytest.mark.parametrize(("model", "kept"), [(OwnMatrix(), "matmul"), (recurrent(), "2"), (plain_stack(), "2")])
def test_layers_stay_in_float_when_asked(model: nn.Module, kept: str) -> None:
    """And only those."""
    network = insert_quantizers(model, InsertionConfig(keep_float=(kept,)), (Child.of(2),), (), 2.0)
    network.initialise_clips(images(4))
    frozen = freeze(network.eval(), network.known)
    counts = float_operators(export_skeleton(network, frozen, SHAPE))
    assert sum(counts.values()) == 1
