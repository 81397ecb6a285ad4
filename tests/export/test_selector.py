"""One graph for several children answers exactly as the separate files do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.exporters.selector import SELECTORS, several
from emqdeploy.exporters.storage import store_int8
from emqdeploy.format.child import Child
from emqdeploy.format.seal import read_seal
from emqdeploy.graph.selector import selection
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.runtimes.adapters.onnx_runtime import OnnxRuntime
from emqdeploy.runtimes.onnx_session import create_session, session_options

from ..conftest import Deployed, deploy
from ..mixing import MIXED

WIDTHS = (2, 4, 5, 8)

NETWORKS = {
    "resnet8": ("resnet8", (1, 8, 8), [Child.of(bits) for bits in WIDTHS]),
    "narrow": ("resnet8", (1, 8, 8), [Child.of(2, "same"), Child.of(4, 8), MIXED, Child.of(5, "same")]),
    "mobilenet": ("mobilenet_v2", (1, 32, 32), [Child.of(bits) for bits in WIDTHS]),
}


@pytest.fixture(scope="module", params=list(NETWORKS))
def deployed(request: pytest.FixtureRequest) -> Deployed:
    """A residual net with shared and with varying activation scales and widths per layer, and a depthwise one."""
    model, shape, children = NETWORKS[request.param]
    return deploy(NetworkSpec(model, 10, shape, 2.0, tuple(children)))


def test_it_answers_like_the_separate_files(deployed: Deployed) -> None:
    """Every exported child to the last bit; absent values as the next higher, beyond the ends as the nearest."""
    children = deployed.checkpoint.network.children
    session = create_session(SELECTORS["if"](deployed.checkpoint, Path(), children).data, session_options(1))
    values = several(children)
    runtime = OnnxRuntime(deployed.checkpoint, threads=1)
    for value in range(-1, max(values.values()) + 2):
        answering = next((child for child, own in values.items() if value <= own), children[-1])
        logits = session.run(None, {"images": deployed.images, **selection(value)})[0]
        np.testing.assert_array_equal(logits, runtime.run(deployed.images, answering))


def test_all_eight_widths_in_one_graph(small: Deployed) -> None:
    """Every choice among many branches, in any order and at any batch size."""
    children = small.checkpoint.network.children
    session = create_session(SELECTORS["if"](small.checkpoint, Path(), children[::-1]).data, session_options(1))
    runtime = OnnxRuntime(small.checkpoint, threads=1)
    for bits, images in ((8, small.images), (1, small.images[:3]), (4, small.images), (2, small.images[:1])):
        logits = session.run(None, {"images": images, "bits": np.array([bits], np.int64)})[0]
        np.testing.assert_array_equal(logits, runtime.run(images, bits))


def test_sizes(small: Deployed) -> None:
    """Branches hold the weights of each child, but pinned layers only once."""
    children = [small.checkpoint.network.find(bits) for bits in WIDTHS]
    one = len(store_int8(small.checkpoint, Path(), children[-1]).data)
    data = SELECTORS["if"](small.checkpoint, Path(), children).data
    assert 2 * one < len(data) < 4.2 * one
    pinned = [tensor.name for tensor in onnx.load_from_string(data).graph.initializer]
    assert [name for name in pinned if name.endswith("/conv1.weight")] == ["w2/conv1.weight"]


def test_the_seal_says_what_a_graph_holds(small: Deployed) -> None:
    """Children in the order of the input, and of the card only what belongs to them."""
    children = [small.checkpoint.network.find(bits) for bits in (8, 3, 2)]
    about = read_seal(Path(), SELECTORS["if"](small.checkpoint, Path(), children).data)
    assert [child.name for child in about.read_children()] == ["2", "3", "8"]
    assert (about.selector, about.stored_as, about.card.trained) == ("if", "int8", ("2", "8"))
    assert about.grid_bits["3"]["stage1.0.conv1"] == 3
    assert about.card.structure == {}


def test_one_child_is_no_choice(small: Deployed) -> None:
    """Refused in one sentence."""
    with pytest.raises(UsageError, match="only 4 is given; name several: --bits 2,4,8"):
        SELECTORS["if"](small.checkpoint, Path(), [small.checkpoint.network.find(4)])
    with pytest.raises(EmqError, match="unknown selector 'swith'; known: if"):
        SELECTORS["swith"]
