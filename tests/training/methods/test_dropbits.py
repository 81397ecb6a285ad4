"""DropBits: gates that drop the outer points of a grid, and a file at the widths that they leave."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from emqdeploy.errors import UsageError
from emqdeploy.format.emq import load_checkpoint
from emqdeploy.graph.reference import IntegerReference
from emqdeploy.quant.families.cpq import CpqOptions
from emqdeploy.quant.families.lsq import LsqOptions
from emqdeploy.runtimes.adapters.onnx_runtime import OnnxRuntime
from emqdeploy.training.api import train
from emqdeploy.training.config import TrainConfig
from emqdeploy.training.methods.dropbits import BitGate, DropBitsOptions, bits_of


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 3), st.integers(4, 6))
def test_factors_fall_from_the_core_outwards(seed: int, least: int, most: int) -> None:
    """Points of the narrowest grid are never dropped; those of one bit share a factor, at most that of fewer bits."""
    torch.manual_seed(seed)
    gate = BitGate(least, most, 100)
    low, high = -(2 ** (most - 1)), 2 ** (most - 1) - 1
    factors = gate(low, high)
    by_bits = {bits: set() for bits in range(1, most + 1)}
    for point, factor in zip(range(low, high + 1), factors.tolist(), strict=True):
        by_bits[bits_of(point)].add(factor)
    assert all(by_bits[bits] == {1.0} for bits in range(1, least + 1))
    shared = [by_bits[bits].pop() for bits in range(least, most + 1) if len(by_bits[bits]) == 1]
    assert len(shared) == most - least + 1
    assert shared == sorted(shared, reverse=True)
    assert [bits_of(point) for point in (-8, -5, -4, -2, -1, 0, 1, 3, 4)] == [4, 4, 3, 2, 1, 1, 2, 3, 4]


def test_gates_are_open_as_often_as_they_say() -> None:
    """In a thousand draws; and the width is what is open more often than not, up to the first gate that is not."""
    torch.manual_seed(0)
    gate = BitGate(2, 4, 100)
    assert gate.open().tolist() == pytest.approx([0.9, 0.9])
    drawn = torch.stack([gate(-8, 7) for _ in range(1000)])
    assert float((drawn[:, 12 - 1] > 0).float().mean()) == pytest.approx(0.9, abs=0.03)
    assert float((drawn[:, -1] > 0).float().mean()) == pytest.approx(0.81, abs=0.04)
    assert gate.width() == 4
    with torch.no_grad():
        gate.place[0] = -5 / gate.unit
    assert gate.width() == 2
    gate.settled = True
    assert gate(-8, 7) is None


def test_what_open_bits_cost_closes_them() -> None:
    """Where nothing speaks for a bit, the cost alone brings a layer to its narrowest width."""
    for steps in (20, 500):
        gate = BitGate(2, 4, steps)
        for _ in range(steps):
            gate.zero_grad()
            (0.2 * gate.open().sum()).backward()
            with torch.no_grad():
                gate.place -= 0.1 * gate.place.grad
        assert gate.width() == 2


def test_learned_widths_are_exact_in_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that keep other numbers of bits make one child, whose every logit is the reference's.

    Which bits stay is chance in so short a run, so that alone is given.
    """
    widths = iter([2, 3, 4] * 100)
    monkeypatch.setattr(BitGate, "width", lambda gate: next(widths))
    config = TrainConfig(
        bits=(4,), epochs=2, limit=320, batch_size=64, quantizer=CpqOptions(), method=DropBitsOptions()
    )
    told = io.StringIO()
    result = train(config, tmp_path / "run", console=Console(file=told))
    assert result.wrong is None
    assert " 3 bits" in told.getvalue()
    checkpoint = load_checkpoint(result.checkpoints[0])
    (child,) = checkpoint.network.children
    assert child.name == "learned"
    assert {bits for _, bits in child.weights.layers} == {2, 3, 4}
    images = np.random.default_rng(0).normal(size=(8, 1, 8, 8)).astype(np.float32).clip(-1, 1)
    expected, _ = IntegerReference(checkpoint.skeleton, checkpoint.network.initializers(child)).run(images)
    np.testing.assert_allclose(OnnxRuntime(checkpoint, [child], threads=1)(images), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"quantizer": LsqOptions()}, "which quantizer 'lsq' has not; add --quantizer cpq"),
        ({"bits": (3, 4)}, "learns the widths of one child; give --bits one width"),
        ({"bits": (2,)}, "--least-bits is 2; allowed: 2 to 1, below the width of --bits"),
        ({"method": DropBitsOptions(search_share=1.0)}, r"--search-share is 1\.0; allowed: 0 up to"),
    ],
)
def test_bad_choices_are_refused(changes: dict[str, object], sentence: str) -> None:
    """In one sentence: what, given, allowed."""
    with pytest.raises(UsageError, match=sentence):
        TrainConfig(**{"bits": (4,), "quantizer": CpqOptions(), "method": DropBitsOptions(), **changes})
