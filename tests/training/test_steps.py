"""The order of steps: complete, interleaved, reproducible."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from emqdeploy.training.steps import interleaved_epoch, steps_in_epoch


@given(
    sizes=st.lists(st.integers(2, 40), min_size=1, max_size=4),
    batch=st.integers(2, 9),
    epoch=st.integers(0, 5),
)
def test_every_bit_width_passes_once_over_its_subset(sizes: list[int], batch: int, epoch: int) -> None:
    """No image is lost or seen twice, except a last single one, and the schedule's count is the real one."""
    subsets = {bits: np.arange(size) + 100 * bits for bits, size in enumerate(sizes, start=1)}
    steps = interleaved_epoch(subsets, batch, seed=0, epoch=epoch)
    for bits, subset in subsets.items():
        mine = [step.indices for step in steps if step.bits == bits]
        seen = np.concatenate(mine)
        assert len(mine) == steps_in_epoch(len(subset), batch)
        assert len(set(seen.tolist())) == len(seen)
        assert set(seen.tolist()) <= set(subset.tolist())
        assert len(subset) - len(seen) == (len(subset) % batch == 1)


def test_bit_widths_take_turns() -> None:
    """Shared statistics would drift if one bit-width trained alone for long."""
    subsets = {bits: np.arange(64) for bits in (1, 2, 4, 8)}
    order = [step.bits for step in interleaved_epoch(subsets, 8, seed=0, epoch=0)]
    rounds = [order[start : start + 4] for start in range(0, len(order), 4)]
    assert all(sorted(turn) == [1, 2, 4, 8] for turn in rounds)
    assert len({tuple(turn) for turn in rounds}) > 1


def test_order_depends_on_seed_and_epoch_only() -> None:
    """Resuming rebuilds the order of an interrupted epoch from these two numbers."""
    subsets = {2: np.arange(50), 8: np.arange(50)}

    def order(seed: int, epoch: int) -> list[tuple[int, list[int]]]:
        return [(step.bits, step.indices.tolist()) for step in interleaved_epoch(subsets, 10, seed, epoch)]

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)
