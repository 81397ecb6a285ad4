"""Networks that others wrote go all the way, or are refused by name before any work: one small one of every kind."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.architecture_page import loss
from benchmarks.architecture_trial import attempt
from benchmarks.outcomes import INTEGER
from benchmarks.pictures import Counts, make_pictures
from benchmarks.zoo import CNN, TRANSFORMER, Architecture, architectures

if importlib.util.find_spec("timm") is None:
    pytest.skip("timm is not installed", allow_module_level=True)

SMALL = {
    "torchvision/squeezenet1_1": CNN,  # no normalization, a convolution as its last layer
    "timm/resnet10t": CNN,  # average pooling in the shortcuts
    "timm/test_byobnet": CNN,  # blocks of several kinds
    "timm/test_convnext2": CNN,  # layer normalization over channels, scales of layers
    "timm/test_convnext3": CNN,  # the same with a normalization of another kind
    "timm/test_efficientnet": CNN,  # stochastic depth, squeeze and excitation
    "timm/test_efficientnet_gn": CNN,  # group normalization
    "timm/test_efficientnet_ln": CNN,  # layer normalization over images
    "timm/test_mambaout": CNN,  # gates
    "timm/test_nfnet": CNN,  # standardized weights
    "timm/test_resnet": CNN,  # residual sums
    "timm/test_vit": TRANSFORMER,  # attention
}
"""Each at 32 pixels, and what it has that others have not."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few pictures: what is tested is the way, not the last decibel."""
    return make_pictures(tmp_path_factory.mktemp("pictures"), counts=Counts(40, 10, 20))


@pytest.mark.parametrize("name", SMALL)
def test_networks_of_others_go_all_the_way(name: str, pictures: Path) -> None:
    """Every layer in integers, no code different, and as close to the float model as a naive int8."""
    found = attempt(Architecture(name.replace("torchvision/", "benchmarks.zoo:"), SMALL[name], 32), pictures)
    assert (found.outcome, found.sentence) == (INTEGER, "")
    assert found.codes
    assert not found.differing
    assert loss(asdict(found)) <= 2.5  # so small, the last decibels are chance


def test_the_list_is_long_and_names_each_once() -> None:
    """At least 80 architectures, so that a page with fewer is a page of a run that was cut short."""
    names = [one.name for one in architectures()]
    assert len(names) == len(set(names)) >= 80
