"""Learned levels: exact gradients, tables that kernels hold, and networks that every runtime computes alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emqdeploy.errors import UsageError
from emqdeploy.exporters.storage import STORAGES
from emqdeploy.format.child import parse_children
from emqdeploy.format.emq import load_checkpoint, save_checkpoint
from emqdeploy.format.grid import TABLE
from emqdeploy.graph.reference import IntegerReference, quantized_tensors
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.families.base import family_options
from emqdeploy.quant.families.levels import LevelsOptions, LevelsQuantizer, closest_levels
from emqdeploy.quant.insertion import InsertionConfig
from emqdeploy.runtimes.adapters.native_runtime import NativeRuntime
from emqdeploy.runtimes.adapters.onnx_runtime import OnnxRuntime
from emqdeploy.runtimes.native_library import library_path
from emqdeploy.runtimes.onnx_session import create_session, session_options

from ...conftest import Deployed, deploy
from ..deployed import assert_deployed

WIDTHS = (1, 2, 3, 4)


def quantizer(
    weight: torch.Tensor, limit: int = 127, per: str = "layer", assignment: str = "direct"
) -> LevelsQuantizer:
    """The quantizer of a layer that has levels for every width."""
    return LevelsOptions(per, assignment).quantizer(weight, limit, WIDTHS)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from(WIDTHS),
    st.sampled_from([127, 64]),
    st.sampled_from(["layer", "channel"]),
    st.sampled_from(["direct", "nearest"]),
)
def test_what_training_sees_is_what_is_deployed(seed: int, bits: int, limit: int, per: str, assignment: str) -> None:
    """The value is ``scale * z`` wherever the levels went; tables ascend and keep the limit."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 12, generator=random)
    one = quantizer(weight, limit, per, assignment)
    with torch.no_grad():  # what training may make of them, out of order too
        for parameter in one.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=random))
    assert_deployed(one, weight, bits, limit, TABLE)


def test_levels_have_their_exact_gradient() -> None:
    """The sum over the weights that have a level, by the root of the weights of a level; other widths have none."""
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    one = quantizer(weight)
    upstream = torch.randn(4, 9, generator=torch.Generator().manual_seed(1))
    one.value(weight, 2).backward(upstream)
    codes = one.scores["2"].detach().argmax(0).reshape(4, 9)
    expected = torch.stack([upstream[codes == level].sum() for level in range(4)]) * (4 / 36) ** 0.5
    torch.testing.assert_close(one.levels["2"].grad, expected[None])
    assert one.levels["1"].grad is None


def test_scores_have_the_gradient_of_the_mixture() -> None:
    """That of ``sum_j p_j L_j`` with ``p`` the softmax of the scores, which autograd takes itself."""
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    one = quantizer(weight, per="channel")
    upstream = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    one.value(weight, 2).backward(upstream)
    scores, levels = one.scores["2"].detach().clone().requires_grad_(), one.levels["2"].detach()
    scale = levels.abs().amax(1, keepdim=True) / 127
    levels = (levels / scale).round() * scale
    distance = (one.levels["2"].amax(1) - one.levels["2"].amin(1)).detach()[:, None] / 3
    mixture = (torch.softmax(scores / (0.5 * distance), 0) * levels.T[..., None]).sum(0)
    mixture.backward(upstream)
    torch.testing.assert_close(one.scores["2"].grad, scores.grad)


def test_quantized_weights_move_without_float_ones() -> None:
    """A step down the gradient of one weight's value takes it to another level, and leaves the float weight alone."""
    weight = torch.randn(2, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    one = quantizer(weight)
    before = one.value(weight, 2)
    for _ in range(30):
        one.zero_grad()
        one.value(weight, 2)[0, 0].backward()
        with torch.no_grad():
            scores = one.scores["2"]
            scores -= 0.5 * scores.grad
    after = one.value(weight, 2)
    assert weight.grad is None
    assert after[0, 0] == before.min()
    torch.testing.assert_close(after.reshape(-1)[1:], before.reshape(-1)[1:])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([2, 4, 8]))
def test_levels_start_where_they_are_nearest(seed: int, count: int) -> None:
    """Each is the mean of the weights nearest to it, and together they beat evenly spaced ones."""
    rows = torch.distributions.Laplace(0.0, 1.0).sample((2, 400)) if seed % 2 else torch.randn(2, 400)
    levels = closest_levels(rows, count)
    assert (levels.diff() >= 0).all()

    def error(levels: torch.Tensor) -> float:
        return float((rows[..., None] - levels[:, None]).abs().amin(-1).square().mean())

    ends = rows.abs().amax(1, keepdim=True)
    spread = torch.linspace(-1, 1, 2 * count + 1)[1::2]
    assert error(levels) < error(ends * spread)


@pytest.fixture(scope="module")
def narrow() -> Deployed:
    """A ResNet-8 of learned levels at two bits, with norms of both signs."""
    spec = NetworkSpec("resnet8", 10, (1, 8, 8), 2.0, parse_children("2,2a4"), (), InsertionConfig(LevelsOptions()))
    return deploy(spec)


def test_files_hold_tables(narrow: Deployed, tmp_path: Path) -> None:
    """Format 4, two planes, and every integer again."""
    path = tmp_path / "model.emq"
    save_checkpoint(path, narrow.checkpoint)
    found = load_checkpoint(path)
    for child in narrow.checkpoint.network.children:
        for name, array in narrow.checkpoint.network.initializers(child).items():
            np.testing.assert_array_equal(found.network.initializers(child)[name], array)
    one = next(layer for layer in found.network.layers.values() if not layer.pinned)
    values = np.unique(np.abs(one.integers(found.network.children[0]).astype(int)))
    assert len(values) <= 4
    assert len(np.unique(np.diff(values))) > 1, "an affine grid would do"


@pytest.mark.parametrize("storage", ["int8", "packed", "master"])
def test_onnx_files_of_every_storage_are_exact(narrow: Deployed, tmp_path: Path, storage: str) -> None:
    """No code of onnxruntime's differs from the reference's, however the weights are stored."""
    checkpoint = narrow.checkpoint
    save_checkpoint(tmp_path / "model.emq", checkpoint)
    for child in checkpoint.network.children:
        reference = IntegerReference(checkpoint.skeleton, checkpoint.network.initializers(child))
        expected, codes = reference.run(narrow.images)
        names = quantized_tensors(checkpoint.skeleton)
        _, found = OnnxRuntime(checkpoint, [child], threads=1, trace=names).run_traced(narrow.images)
        for name in names:
            np.testing.assert_array_equal(found[name], codes[name])
        path = tmp_path / f"{storage}-{child.name}.onnx"
        path.write_bytes(STORAGES[storage](checkpoint, tmp_path / "model.emq", child).data)
        session = create_session(path, session_options(1))
        np.testing.assert_allclose(session.run(None, {"images": narrow.images})[0], expected, rtol=1e-6)


@pytest.mark.skipif(library_path() is None, reason="emqdeploy-native is not installed")
def test_native_kernels_are_exact(narrow: Deployed) -> None:
    """Layers with tables run as int8."""
    checkpoint = narrow.checkpoint
    network = NativeRuntime(checkpoint, threads=1)
    for child in checkpoint.network.children:
        expected, _ = IntegerReference(checkpoint.skeleton, checkpoint.network.initializers(child)).run(narrow.images)
        network.use(child)
        np.testing.assert_array_equal(network(narrow.images), expected)


def test_bad_choices_are_refused() -> None:
    """In one sentence: what, given, allowed."""
    with pytest.raises(UsageError, match="--levels-per is 'row'; allowed: layer, channel"):
        LevelsOptions(per="row")
    weight = torch.randn(4, 9)
    with pytest.raises(UsageError, match="has learned no levels for 3 bits, it has 2; train that width"):
        LevelsOptions().quantizer(weight, 127, (2,))(weight, 3)
    spec = NetworkSpec("resnet8", 10, (1, 8, 8), 2.0, parse_children("8"), (), InsertionConfig(LevelsOptions()))
    with pytest.raises(UsageError, match=r"8-bit weights, which quantizer 'levels' cannot make; allowed: 1\.\.4"):
        spec.build()
    assert family_options(LevelsOptions("channel", "nearest").to_dict()) == LevelsOptions("channel", "nearest")


def test_levels_start_from_the_weights_that_there_are() -> None:
    """A float network that trained alone first hands over what it has become."""
    weight = torch.randn(4, 9)
    one, fresh = quantizer(torch.zeros(4, 9)), quantizer(weight)
    one.start_from(weight)
    for bits in WIDTHS:
        torch.testing.assert_close(one.value(weight, bits), fresh.value(weight, bits), rtol=0, atol=0)
