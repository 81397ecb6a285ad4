"""The onnxruntime adapter: resident sessions, switching, honest precision, one-sentence errors."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.child import Child
from emqdeploy.format.precision import FLOAT32, INT8
from emqdeploy.runtimes.adapters.onnx_runtime import OnnxRuntime
from emqdeploy.runtimes.base import open_runtime
from emqdeploy.runtimes.onnx_kernels import computed_as
from emqdeploy.runtimes.onnx_session import create_session, session_options

from ...conftest import Deployed


def names(children: Iterable[Child]) -> list[str]:
    """What the children are called."""
    return [child.name for child in children]


@pytest.fixture
def runtime(small: Deployed) -> OnnxRuntime:
    """Two children resident, of eight stored."""
    return OnnxRuntime(small.checkpoint, children=[2, 8], threads=1)


def test_switching_changes_the_network(small: Deployed, runtime: OnnxRuntime) -> None:
    """Each child answers with its own logits, whatever was used before."""
    assert runtime.bits == 8
    expected = {bits: OnnxRuntime(small.checkpoint, children=[bits], threads=1)(small.images) for bits in (2, 8)}
    assert not np.array_equal(expected[2], expected[8])
    for bits in (2, 8, 2):
        runtime.set_bits(bits)
        np.testing.assert_array_equal(runtime(small.images), expected[bits])


def test_other_children_are_built_when_asked_for(small: Deployed, runtime: OnnxRuntime) -> None:
    """Without the file, from the codes in memory; memory can be given back, except what is in use."""
    assert names(runtime.resident) == ["2", "8"]
    runtime.set_bits(5)
    assert names(runtime.resident) == ["2", "5", "8"]
    runtime.evict(5)
    runtime.evict(2)
    assert names(runtime.resident) == ["5", "8"]
    assert runtime(small.images).shape == (16, 10)
    assert OnnxRuntime(small.checkpoint, threads=1).resident == small.checkpoint.network.children


def test_every_layer_computes_in_integers(small: Deployed, runtime: OnnxRuntime) -> None:
    """Read from the kernels that ran; a graph that is not optimised must be reported as float."""
    report = runtime.precision(2)
    assert [layer.name for layer in report] == list(small.checkpoint.network.layers)
    assert {(layer.computed_as, layer.integer) for layer in report} == {(INT8, True)}
    assert {layer.grid_bits for layer in report} == {2, 8}
    assert {layer.stored_as for layer in report} == {"2 bit-planes", INT8}
    unfused = OnnxRuntime(small.checkpoint, children=[2], threads=1, optimise=False)
    assert {(layer.computed_as, layer.integer) for layer in unfused.precision(2)} == {(FLOAT32, False)}
    assert computed_as(None) == ("unknown", None)


def test_the_unfused_graph_agrees_up_to_rounding(small: Deployed) -> None:
    """The float rung: the same graph as written decides alike."""
    fused, unfused = (
        OnnxRuntime(small.checkpoint, children=[4], threads=1, optimise=o)(small.images) for o in (True, False)
    )
    assert np.abs(fused - unfused).max() <= 0.1 * np.ptp(fused)


def test_wrong_children_and_images_are_one_sentence(small: Deployed, runtime: OnnxRuntime) -> None:
    """The message lists the children there are, and the shape that is taken."""
    with pytest.raises(UsageError, match="no child '9' here; available: 1, 2, 3, 4, 5, 6, 7, 8; name one of these"):
        runtime.set_bits(9)
    for wrong in (True, 8.0, np.float32(8), None):
        with pytest.raises(UsageError, match=rf"{re.escape(repr(wrong))} names no child; available: 1, 2"):
            runtime.set_bits(wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no child '16' here"):
        OnnxRuntime(small.checkpoint, children=[16])
    for images in (small.images[0], small.images.astype(np.float64), small.images[:, :, :4]):
        with pytest.raises(UsageError, match=r"takes float32 \(N, 1, 8, 8\)"):
            runtime(images)
    assert runtime.bits == 8


def test_a_model_that_does_not_load_is_one_sentence(small: Deployed) -> None:
    """Neither a broken graph nor a missing array ends in onnxruntime's own traceback."""
    with pytest.raises(EmqError, match="onnxruntime cannot load this model") as error:
        create_session(b"no model", session_options(1))
    assert "\n" not in str(error.value)
    with pytest.raises(EmqError, match="cannot load"):
        OnnxRuntime(replace(small.checkpoint, skeleton=small.checkpoint.skeleton[:-100]), children=[2])


def test_closing_drops_the_sessions(small: Deployed) -> None:
    """Memory is given back at the end of the block, and a late call is refused in one sentence."""
    with open_runtime(small.checkpoint, "onnxruntime", children=[2], threads=1) as opened:
        opened(small.images)
    assert opened.resident == ()
    with pytest.raises(EmqError, match="this runtime is closed"):
        opened(small.images)


def test_unknown_runtimes_list_the_known_ones(small: Deployed) -> None:
    """A typing error is answered with the names."""
    with pytest.raises(UsageError, match=r"unknown runtime 'onnx'; known: .*onnxruntime"):
        open_runtime(small.checkpoint, "onnx")
