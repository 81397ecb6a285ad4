"""The architectures that `benchmarks.architectures` tries: torchvision's families, timm's, and one-feature networks.

Each is named as a user names it with ``--model``. torchvision's that emqdeploy does not build by name are functions of
this module, ``benchmarks.zoo:alexnet``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from emqdeploy.data.repair import import_torchvision

CNN, TRANSFORMER, FEATURE = "CNN", "transformer or mixer", "one feature"

ONE_FEATURE = "benchmarks.one_feature"
"""Module of networks that have one feature each; its ``NETWORKS`` maps names to functions of ``num_classes``."""


@dataclass(frozen=True)
class Architecture:
    """One network to try.

    Attributes:
        model: as ``--model`` names it.
        kind: what it is made of: `CNN`, `TRANSFORMER` or `FEATURE`.
        size: height and width of its images in pixels, the smallest that show what it does.
    """

    model: str
    kind: str
    size: int = 64

    @property
    def name(self) -> str:
        """Unique and short: where it is from, and its name there."""
        module, _, function = self.model.rpartition(":")
        return self.model if self.model.startswith("timm/") else f"{_SOURCES[module]}/{function}"


_SOURCES = {"": "torchvision", __name__: "torchvision", ONE_FEATURE: "one-feature"}

_TORCHVISION = {
    CNN: "alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3@80 mnasnet0_5"
    " mobilenet_v2 mobilenet_v3_small mobilenet_v3_large regnet_x_400mf regnet_y_400mf resnet18 resnet50"
    " resnext50_32x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 squeezenet1_0 squeezenet1_1 vgg11 vgg11_bn wide_resnet50_2",
    TRANSFORMER: "maxvit_t swin_t swin_v2_t vit_b_16",
}

_TIMM = {
    CNN: "convnext_atto convnextv2_atto cs3darknet_focus_s cspnext_tiny dla46_c dpn48b ecaresnet26t efficientnet_b0_gn"
    " efficientnet_lite0 ese_vovnet19b_slim fasternet_t0 gcresnext26ts gernet_s ghostnet_050 hgnetv2_b0 hrnet_w18_small"
    " inception_next_atto lcnet_050 legacy_seresnet18 legacy_xception mixnet_s mobilenetv4_conv_small_035 mobileone_s0"
    " nf_regnet_b0 repghostnet_050 repvgg_a0 res2net50_14w_8s resnest14d resnet10t resnetv2_50 rexnet_100 selecsls42"
    " skresnet18 starnet_s050 test_byobnet test_efficientnet test_nfnet test_resnet tf_efficientnet_b0 tinynet_e",
    TRANSFORMER: "botnet26t_256 edgenext_xx_small efficientformerv2_s0 efficientvit_b0 efficientvit_m0 fastvit_t8"
    " levit_conv_128s mambaout_femto maxvit_pico_rw_256 mixer_s32_224 mobilevit_xxs mobilevitv2_050 pit_ti_224"
    " poolformer_s12 pvt_v2_b0 repvit_m0_9 resmlp_12_224 shvit_s1 swiftformer_xs swin_tiny_patch4_window7_224"
    " swinv2_tiny_window8_256 test_vit tiny_vit_5m_224 visformer_tiny vit_tiny_patch16_224 xcit_nano_12_p16_224",
}

_BY_NAME = ("mobilenet_v2", "resnet18", "resnet50", "vit_b_16")
"""torchvision's networks that emqdeploy builds by their plain names."""

_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
}


def architectures() -> list[Architecture]:
    """All architectures, those with one feature last."""
    found = list(_parsed(_TORCHVISION, _torchvision))
    found += _parsed(_TIMM, lambda name: f"timm/{name}")
    if importlib.util.find_spec(ONE_FEATURE) is not None:
        features = importlib.import_module(ONE_FEATURE).NETWORKS
        found += [Architecture(f"{ONE_FEATURE}:{name}", FEATURE, 32) for name in features]
    return found


def _torchvision(name: str) -> str:
    return name if name in _BY_NAME else f"{__name__}:{name}"


def _parsed(names: dict[str, str], model: Callable[[str], str]) -> Iterator[Architecture]:
    """Architectures of lists such as ``"alexnet inception_v3@80"``, where a size other than 64 stands behind an @."""
    for kind, listed in names.items():
        for entry in listed.split():
            name, _, size = entry.partition("@")
            yield Architecture(model(name), kind, int(size or 64))


def __getattr__(name: str) -> Callable[..., Any]:
    """Networks of torchvision as functions that ``--model benchmarks.zoo:NAME`` names."""
    if all(f"{__name__}:{name}" != one.model for one in _parsed(_TORCHVISION, _torchvision)):
        raise AttributeError(name)

    def build(num_classes: int, image_size: int) -> Any:
        models = import_torchvision().models
        if name in _SMALL_WINDOWS:
            return _SMALL_WINDOWS[name](models, num_classes, image_size)
        return getattr(models, name)(weights=None, num_classes=num_classes, **_OPTIONS.get(name, {}))

    return build


def _maxvit_t(models: Any, num_classes: int, image_size: int) -> Any:
    """MaxViT-T with windows of 2 x 2 pixels: those of 7 x 7 need images of 224."""
    return models.MaxVit(
        input_size=(image_size, image_size),
        stem_channels=64,
        partition_size=2,
        block_channels=[64, 128, 256, 512],
        block_layers=[2, 2, 5, 2],
        head_dim=32,
        stochastic_depth_prob=0.2,
        num_classes=num_classes,
    )


def _swin_v2_t(models: Any, num_classes: int, image_size: int) -> Any:
    """Swin-V2-T with windows of 2 x 2 tokens: of 8 x 8, the last ones are padding but for a sixteenth at 64 pixels."""
    swin = models.swin_transformer
    return swin.SwinTransformer(
        patch_size=[4, 4],
        embed_dim=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=[2, 2],
        stochastic_depth_prob=0.2,
        num_classes=num_classes,
        block=swin.SwinTransformerBlockV2,
        downsample_layer=swin.PatchMergingV2,
    )


_SMALL_WINDOWS: dict[str, Callable[[Any, int, int], Any]] = {"maxvit_t": _maxvit_t, "swin_v2_t": _swin_v2_t}
