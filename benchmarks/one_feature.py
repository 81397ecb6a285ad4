"""Small networks with one feature each that converters stumble over; all take images ``(N, 3, H, W)`` of any even size.

``NETWORKS`` maps names to functions of ``num_classes``; each is also an attribute of this module, so that
``--model benchmarks.one_feature:NAME`` names it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from einops.layers.torch import Rearrange, Reduce
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from emqdeploy.data.repair import import_torchvision

WIDTH = 8


class Body(nn.Module):
    """Modules, and a function that says how they work together.

    Args:
        compute: ``(self, x) -> tensor``.
        modules: by name.
    """

    def __init__(self, compute: Callable[[Any, Tensor], Any], **modules: nn.Module | nn.Parameter | Tensor) -> None:
        super().__init__()
        self.compute = compute
        for name, value in modules.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        """Computes the function."""
        return self.compute(self, x)


def conv(
    inputs: int = WIDTH, outputs: int = WIDTH, size: int = 3, kind: type[nn.Conv2d] = nn.Conv2d, **options: Any
) -> Any:
    """A convolution that keeps height and width unless it is told otherwise."""
    return kind(inputs, outputs, size, **{"padding": size // 2, **options})


def images(*body: nn.Module, width: int = WIDTH) -> Callable[[int], nn.Module]:
    """A stem, something that maps ``(N, 8, H, W)`` to maps of ``width`` channels, ReLU, the mean and a classifier."""

    def build(num_classes: int) -> nn.Module:
        stem = nn.Sequential(conv(3, WIDTH, stride=2, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())
        tail = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))
        return nn.Sequential(stem, nn.Sequential(*body), tail)

    return build


def rows(body: nn.Module, width: int = WIDTH) -> Callable[[int], nn.Module]:
    """The same for something that maps the means ``(N, 8)`` to ``(N, width)``."""

    def build(num_classes: int) -> nn.Module:
        head = nn.Linear(width, num_classes)
        return nn.Sequential(images()(WIDTH), nn.ReLU(), body, nn.ReLU(), head)

    return build


def tokens(body: nn.Module) -> Callable[[int], nn.Module]:
    """The same for something that maps tokens ``(N, T, 8)`` to tokens."""

    def compute(self: Any, x: Tensor) -> Tensor:
        return self.body(x.flatten(2).transpose(1, 2)).transpose(1, 2).unsqueeze(-1)

    return images(Body(compute, body=body))


class Plain(nn.Conv2d):
    """Only another constructor."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)


class Standardized(nn.Conv2d):
    """Computes its weights from others (Qiao et al., 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolves with standardized weights."""
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        std = self.weight.std((1, 2, 3), keepdim=True) + 1e-5
        return self._conv_forward(x, (self.weight - mean) / std, self.bias)


class DropPath(nn.Module):
    """Stochastic depth as people copy it."""

    def forward(self, x: Tensor) -> Tensor:
        """Drops whole images in training."""
        if not self.training:
            return x
        return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(0.5) / 0.5


def _auxiliary(num_classes: int) -> nn.Module:
    def compute(self: Any, x: Tensor) -> Any:
        x = self.stem(x).mean((2, 3))
        return (self.head(x), self.aux(x)) if self.training else self.head(x)

    parts = {name: nn.Linear(WIDTH, num_classes) for name in ("aux", "head")}
    return Body(compute, stem=nn.Sequential(conv(3, stride=2), nn.ReLU()), **parts)


def _answering(pack: Callable[[Tensor], Any]) -> Callable[[int], nn.Module]:
    def build(num_classes: int) -> nn.Module:
        return Body(lambda self, x: pack(self.net(x)), net=images()(num_classes))

    return build


class TwoInputs(nn.Module):
    """Takes something beside the images."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.net = images()(num_classes)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Maps (N, 3, H, W) and a mask to logits."""
        return self.net(x * mask)


def _tied() -> nn.Module:
    a, b = conv(), conv()
    b.weight = a.weight
    return nn.Sequential(a, nn.ReLU(), b)


def _split_and_shuffle() -> nn.Module:
    def compute(self: Any, x: Tensor) -> Tensor:
        a, b, c = torch.split(x, [2, 2, 4], 1)
        x = torch.cat([F.relu(self.a(c)), a, F.relu(self.b(b))], 1)
        n, k, h, w = x.shape
        return x.view(n, 4, k // 4, h, w).transpose(1, 2).reshape(n, k, h, w)

    return Body(compute, a=conv(4, 4, padding=2, dilation=2, groups=2), b=conv(2, 2))


def _flattened_norm() -> nn.Module:
    def compute(self: Any, x: Tensor) -> Tensor:
        x = self.fc(x)
        return self.norm(x.flatten(0, 1)).reshape_as(x)

    return Body(compute, fc=nn.Linear(WIDTH, WIDTH), norm=nn.BatchNorm1d(WIDTH))


def _attention(self: Any, x: Tensor) -> Tensor:
    q, k, v = self.qkv(x).chunk(3, -1)
    return x + self.out((q @ k.transpose(-2, -1) * WIDTH**-0.5).softmax(-1) @ v)


def _attention_in_words(self: Any, x: Tensor) -> Tensor:
    x = torch.cat([repeat(self.token, "1 1 c -> b 1 c", b=x.shape[0]), rearrange(x, "b c h w -> b (h w) c")], 1)
    q, k, v = (rearrange(part, "b n (h c) -> b h n c", h=2) for part in self.qkv(x).chunk(3, -1))
    attended = torch.einsum("bhij,bhjc->bhic", torch.einsum("bhic,bhjc->bhij", q, k).softmax(-1), v)
    return reduce(rearrange(attended, "b h n c -> b n (h c)"), "b n c -> b c 1 1", "mean")


def _frozen() -> nn.Module:
    norm = import_torchvision().ops.FrozenBatchNorm2d(WIDTH)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


def _drop_in_place(self: Any, x: Tensor) -> Tensor:
    x = self.conv(x)
    x[:, :2].mul_(0.5)
    return x


def _relu_in_place(self: Any, x: Tensor) -> Tensor:
    x = self.conv(x)
    return self.next(F.relu(x, inplace=True)) + x


def _norm_and(*before: nn.Module) -> nn.Module:
    return nn.Sequential(*before, nn.BatchNorm2d(WIDTH))


def _modules() -> dict[str, Callable[[], Callable[[int], nn.Module]]]:
    stochastic_depth = lambda: import_torchvision().ops.StochasticDepth(0.5, "row")  # noqa: E731
    table = torch.linspace(-1, 1, WIDTH).reshape(WIDTH, 1)
    return {
        "padding_same": lambda: images(conv(padding="same")),
        "padding_same_uneven": lambda: images(conv(size=4, padding="same", dilation=(1, 3))),
        "padding_valid": lambda: images(conv(padding="valid")),
        "padding_reflect": lambda: images(conv(padding_mode="reflect")),
        "padding_replicate": lambda: images(conv(padding_mode="replicate")),
        "padding_circular": lambda: images(conv(padding_mode="circular")),
        "padding_function": lambda: images(Body(lambda self, x: self.conv(F.pad(x, (0, 1, 2, 1))), conv=conv())),
        "padding_channels": lambda: images(
            Body(lambda self, x: self.conv(x) + F.pad(x, (0, 0, 0, 0, 4, 4)), conv=conv(8, 16)), width=16
        ),
        "convolution_subclass": lambda: images(_norm_and(conv(kind=Plain, bias=False))),
        "standardized_weights": lambda: images(_norm_and(conv(kind=Standardized))),
        "weight_norm_hook": lambda: images(_norm_and(weight_norm(conv()))),
        "weight_norm_parametrized": lambda: images(parametrizations.weight_norm(conv())),
        "spectral_norm_hook": lambda: images(spectral_norm(conv())),
        "spectral_norm_parametrized": lambda: images(parametrizations.spectral_norm(conv())),
        "pruned": lambda: images(prune.l1_unstructured(conv(), "weight", 0.5)),
        "norm_of_rows": lambda: rows(nn.Sequential(nn.Linear(WIDTH, 16), nn.BatchNorm1d(16)), 16),
        "norm_of_rows_alone": lambda: rows(nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, WIDTH))),
        "norm_of_flattened_tokens": lambda: tokens(_flattened_norm()),
        "norm_frozen": lambda: images(nn.Sequential(conv(bias=False), _frozen())),
        "norm_synchronized": lambda: images(nn.Sequential(conv(), nn.SyncBatchNorm(WIDTH))),
        "norm_without_affine": lambda: images(conv(), nn.BatchNorm2d(WIDTH, affine=False)),
        "norm_called_twice": lambda: images(
            Body(
                lambda self, x: F.relu(self.norm(self.b(F.relu(self.norm(self.a(x)))))),
                **{"a": conv(), "b": conv(), "norm": nn.BatchNorm2d(WIDTH)},
            )
        ),
        "norm_before_convolution": lambda: images(
            Body(lambda self, x: x + self.conv(F.relu(self.norm(x))), norm=nn.BatchNorm2d(WIDTH), conv=conv())
        ),
        "norm_without_statistics": lambda: images(conv(), nn.BatchNorm2d(WIDTH, track_running_stats=False)),
        "norm_of_groups": lambda: images(conv(), nn.GroupNorm(2, WIDTH)),
        "norm_of_images": lambda: images(conv(), nn.InstanceNorm2d(WIDTH, affine=True)),
        "functional_convolution": lambda: images(
            Body(
                lambda self, x: F.conv2d(x, self.weight, self.bias, padding=1),
                **{"weight": nn.Parameter(torch.randn(8, 8, 3, 3) / 9), "bias": nn.Parameter(torch.randn(8))},
            )
        ),
        "functional_linear": lambda: rows(
            Body(lambda self, x: F.linear(x, self.weight), weight=nn.Parameter(torch.randn(WIDTH, WIDTH)))
        ),
        "matrix_parameter": lambda: rows(
            Body(lambda self, x: x @ self.weight, weight=nn.Parameter(torch.randn(WIDTH, WIDTH)))
        ),
        "convolution_1d": lambda: images(
            Body(
                lambda self, x: x * self.conv(x.mean((2, 3)).unsqueeze(1)).sigmoid().view(x.shape[0], -1, 1, 1),
                conv=nn.Conv1d(1, 1, 3, padding=1, bias=False),
            )
        ),
        "convolution_3d": lambda: images(
            Body(lambda self, x: self.conv(x.unsqueeze(1)).flatten(1, 2), conv=nn.Conv3d(1, 1, 3, padding=1))
        ),
        "convolution_transposed": lambda: images(nn.ConvTranspose2d(WIDTH, WIDTH, 2, 2)),
        "convolution_last": lambda: lambda n: Body(
            lambda self, x: self.head(F.relu(self.net(x))).mean((2, 3)), net=conv(3), head=conv(8, n, 1)
        ),
        "convolution_of_logits": lambda: lambda n: nn.Sequential(
            *(conv(3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), conv(8, n, 1), nn.Flatten())
        ),
        "pool_adaptive_max": lambda: images(conv(), nn.AdaptiveMaxPool2d(2)),
        "pool_adaptive_mean": lambda: images(nn.AdaptiveAvgPool2d(2), conv()),
        "pool_adaptive_uneven": lambda: images(nn.AdaptiveAvgPool2d(3), conv()),
        "pool_mean_ceil": lambda: images(nn.AvgPool2d(3, 2, 1, ceil_mode=True), conv()),
        "pool_mean_without_padding": lambda: images(nn.AvgPool2d(3, 2, 1, count_include_pad=False), conv()),
        "pool_max_ceil": lambda: images(nn.MaxPool2d(3, 2, ceil_mode=True), conv()),
        "pool_max_global": lambda: images(Body(lambda self, x: self.conv(x).amax((2, 3), keepdim=True), conv=conv())),
        "stochastic_depth": lambda: images(
            Body(lambda self, x: x + self.drop(self.conv(x)), conv=conv(), drop=stochastic_depth())
        ),
        "drop_path": lambda: images(Body(lambda self, x: x + self.drop(self.conv(x)), conv=conv(), drop=DropPath())),
        "functional_dropout": lambda: images(
            Body(lambda self, x: F.dropout2d(self.conv(x), 0.3, self.training), conv=conv())
        ),
        "dropout_in_evaluation": lambda: images(Body(lambda self, x: F.dropout(self.conv(x), 0.3), conv=conv())),
        "branch_on_training": lambda: images(Body(lambda self, x: x if self.training else self.conv(x), conv=conv())),
        "branch_on_size": lambda: images(
            Body(lambda self, x: self.conv(x) if x.shape[-1] % 2 == 0 else x, conv=conv(groups=2))
        ),
        "auxiliary_head": lambda: _auxiliary,
        "logits_by_name": lambda: _answering(lambda logits: {"loss": None, "logits": logits}),
        "logits_in_a_tuple": lambda: _answering(lambda logits: (logits,)),
        "several_answers": lambda: _answering(lambda logits: (logits, logits.softmax(1))),
        "several_inputs": lambda: TwoInputs,
        "softmax_last": lambda: _answering(lambda logits: logits.softmax(1)),
        "layer_on_a_constant": lambda: images(
            Body(
                lambda self, x: self.conv(x) + self.mlp(self.table).reshape(1, -1, 1, 1),
                **{"conv": conv(), "table": table, "mlp": nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1))},
            )
        ),
        "weights_tied": lambda: images(_tied()),
        "layer_called_twice": lambda: images(Body(lambda self, x: self.conv(F.relu(self.conv(x))), conv=conv())),
        "prelu_shared": lambda: images(
            Body(lambda self, x: self.act(self.b(self.act(self.a(x)))), a=conv(), b=conv(), act=nn.PReLU(WIDTH))
        ),
        "relu_in_place": lambda: images(Body(_relu_in_place, conv=conv(), next=conv())),
        "part_in_place": lambda: images(Body(_drop_in_place, conv=conv())),
        "names_of_ours": lambda: images(
            Body(lambda self, x: self.aliases(F.relu(self.sites(x))) + self.learned, sites=conv(), aliases=conv(),
                 learned=nn.Parameter(torch.randn(8, 1, 1)))
        ),
        "names_of_python": lambda: tokens(
            Body(
                lambda self, x: self.to_(F.relu(self.values(F.relu(self.keys(x))))),
                **{name: nn.Linear(WIDTH, WIDTH) for name in ("keys", "values", "to_")},
            )
        ),
        "split_and_shuffle": lambda: images(_split_and_shuffle()),
        "pixel_shuffle": lambda: images(nn.PixelUnshuffle(2), conv(32, 32, 1), nn.PixelShuffle(2)),
        "upsampling": lambda: images(nn.Upsample(scale_factor=2), conv()),
        "squeeze_and_excite": lambda: images(
            Body(
                lambda self, x: x * self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid(),
                **{"down": conv(8, 4, 1), "up": conv(4, 8, 1)},
            )
        ),
        "leaky_relu": lambda: images(conv(), nn.LeakyReLU(0.1), conv()),
        "clamp": lambda: images(Body(lambda self, x: self.b(self.a(x).clamp(0, 1)), a=conv(), b=conv())),
        "attention": lambda: tokens(
            Body(_attention, qkv=nn.Linear(WIDTH, 3 * WIDTH), out=nn.Linear(WIDTH, WIDTH))
        ),
        "einops_layers": lambda: lambda n: nn.Sequential(
            *(Rearrange("b c (h p) (w q) -> b (h w) (p q c)", p=4, q=4), nn.Linear(48, WIDTH), nn.ReLU()),
            *(Reduce("b t c -> b c", "mean"), nn.Linear(WIDTH, n)),
        ),
        "einops_functions": lambda: images(
            Body(
                _attention_in_words, qkv=nn.Linear(WIDTH, 3 * WIDTH), token=nn.Parameter(torch.randn(1, 1, WIDTH))
            )
        ),
        "einsum_of_a_parameter": lambda: tokens(
            Body(
                lambda self, x: torch.einsum("btc,dc->btd", x, self.weight),
                weight=nn.Parameter(torch.randn(WIDTH, WIDTH)),
            )
        ),
        "attention_of_torch": lambda: tokens(
            Body(lambda self, x: self.mha(x, x, x)[0], mha=nn.MultiheadAttention(WIDTH, 2, batch_first=True))
        ),
    }  # fmt: skip


def _build(name: str, num_classes: int) -> nn.Module:
    return _modules()[name]()(num_classes)


NETWORKS: dict[str, Callable[[int], nn.Module]] = {name: partial(_build, name) for name in _modules()}
"""Functions of the number of classes, by name."""


def __getattr__(name: str) -> Callable[[int], nn.Module]:
    """Networks as functions of this module."""
    if name in NETWORKS:
        build = NETWORKS[name]
        return lambda num_classes: build(num_classes)
    raise AttributeError(name)
