"""One graph for several bit-widths answers exactly as the separate files do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.export.selector import SELECTORS, answering_width
from emqdeploy.export.storage import store_int8
from emqdeploy.grid import ALL_BITS
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.insertion import InsertionConfig
from emqdeploy.runtimes.onnx_runtime import OnnxRuntime
from emqdeploy.runtimes.onnx_session import create_session, session_options

from ..conftest import Deployed, deploy

WIDTHS = (2, 4, 5, 8)


@pytest.fixture(scope="module", params=["resnet8", "resnet8-act-same", "mobilenet"])
def deployed(request: pytest.FixtureRequest) -> Deployed:
    """A residual net with shared and with varying activation scales, and a depthwise one."""
    if request.param == "mobilenet":
        return deploy(NetworkSpec("mobilenet_v2", 4, (1, 32, 32), 2.0, WIDTHS), WIDTHS)
    activation_bits = "same" if request.param == "resnet8-act-same" else 8
    insertion = InsertionConfig(activation_bits=activation_bits)
    return deploy(NetworkSpec("resnet8", 10, (1, 8, 8), 2.0, WIDTHS, insertion), WIDTHS)


@pytest.mark.parametrize("kind", ["if", "derive"])
def test_it_answers_like_the_separate_files(deployed: Deployed, kind: str) -> None:
    """Every exported bit-width to the last bit; absent ones as the next higher, beyond the ends as the nearest."""
    session = create_session(SELECTORS[kind](deployed.checkpoint, Path(), WIDTHS).data, session_options(1))
    for bits in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9):
        expected = OnnxRuntime(deployed.checkpoint, bits=[answering_width(WIDTHS, bits)], threads=1)(deployed.images)
        logits = session.run(None, {"images": deployed.images, "bits": np.array([bits], np.int64)})[0]
        np.testing.assert_array_equal(logits, expected)


def test_all_eight_widths_in_one_graph(small: Deployed) -> None:
    """Every choice among many branches, in any order and at any batch size."""
    session = create_session(SELECTORS["if"](small.checkpoint, Path(), ALL_BITS).data, session_options(1))
    runtime = OnnxRuntime(small.checkpoint, threads=1)
    for bits, images in ((8, small.images), (1, small.images[:3]), (4, small.images), (2, small.images[:1])):
        logits = session.run(None, {"images": images, "bits": np.array([bits], np.int64)})[0]
        np.testing.assert_array_equal(logits, runtime.run(images, bits))


def test_the_next_higher_width_answers() -> None:
    """The rule that the documents state."""
    assert [answering_width((8, 2, 4), bits) for bits in (0, 2, 3, 4, 5, 8, 9)] == [2, 2, 4, 4, 8, 8, 8]


def test_sizes(small: Deployed) -> None:
    """Deriving holds the weights once; branches hold each of them, but pinned layers only once."""
    one = len(store_int8(small.checkpoint, Path(), 8).data)
    sizes = {kind: len(SELECTORS[kind](small.checkpoint, Path(), WIDTHS).data) for kind in SELECTORS}
    assert sizes["derive"] < 1.6 * one
    assert 2 * one < sizes["if"] < 4.2 * one
    model = onnx.load_from_string(SELECTORS["if"](small.checkpoint, Path(), WIDTHS).data)
    pinned = [tensor.name for tensor in model.graph.initializer if tensor.name.endswith("conv1.weight")]
    assert [name for name in pinned if "/conv1" in name] == ["w2/conv1.weight"]


def test_one_width_is_no_choice(small: Deployed) -> None:
    """Refused in one sentence."""
    for kind in SELECTORS:
        with pytest.raises(UsageError, match="only 4 is given; name several: --bits 2,4,8"):
            SELECTORS[kind](small.checkpoint, Path(), [4])
    with pytest.raises(EmqError, match="unknown selector 'swith'; known: derive, if"):
        SELECTORS["swith"]
