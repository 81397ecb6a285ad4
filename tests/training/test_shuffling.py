"""Orders of an epoch: every image once, drawn anew, and with blocks few places of the disk at a time."""

from __future__ import annotations

import numpy as np
import pytest

from emqdeploy.training.shuffling import OPEN_BLOCKS, shuffled


@pytest.mark.parametrize("block", [0, 1, 7, 100, 10_000])
def test_every_image_once_in_a_new_order(block: int) -> None:
    """Of a coreset too, which has gaps."""
    indices = np.sort(np.random.default_rng(0).permutation(5000)[:1234])
    first, second = (shuffled(indices, np.random.default_rng(seed), block) for seed in (1, 2))
    assert (np.sort(first) == indices).all()
    assert (first != second).any()
    assert (first != indices).any()


def test_few_blocks_are_open_at_a_time() -> None:
    """So that a disk reads on instead of searching; blocks come in any order, images of a window in any order."""
    order = shuffled(np.arange(10_000), np.random.default_rng(0), 50)
    window = OPEN_BLOCKS * 50
    for start in range(0, len(order), window):
        assert len(set((order[start : start + window] // 50).tolist())) == min(OPEN_BLOCKS, (len(order) - start) // 50)
    assert np.corrcoef(np.arange(len(order)), order)[0, 1] == pytest.approx(0, abs=0.3)
    assert len(set((order[:64] // 50).tolist())) > 8
