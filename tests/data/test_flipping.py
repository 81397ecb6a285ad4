"""Labels that are made wrong on purpose: as many as asked for, of every class alike, and the same ones every time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emqdeploy.data.flipping import FLIPS, flip
from emqdeploy.errors import UsageError


@given(st.integers(2, 12), st.floats(0, 0.95), st.sampled_from(sorted(FLIPS)), st.integers(0, 5))
def test_a_share_of_every_class_is_wrong(classes: int, share: float, kind: str, seed: int) -> None:
    """No label leaves the range, and none of those that are flipped stays."""
    labels = np.repeat(np.arange(classes), 20)
    wrong = flip(labels, classes, share, kind, seed)
    assert wrong.min() >= 0
    assert wrong.max() < classes
    for label in range(classes):
        assert (wrong[labels == label] != label).sum() == round(20 * share)
    assert np.array_equal(wrong, flip(labels, classes, share, kind, seed))


def test_pairs_go_to_the_next_class() -> None:
    """Errors with a system; those without one spread over all others."""
    labels = np.zeros(100, np.int64)
    assert set(flip(labels, 5, 0.5, "pairs", 0)) == {0, 1}
    assert set(flip(labels, 5, 0.5, "symmetric", 0)) == {0, 1, 2, 3, 4}


def test_other_seeds_flip_others() -> None:
    """So that three seeds are three trials."""
    labels = np.repeat(np.arange(4), 50)
    assert not np.array_equal(flip(labels, 4, 0.3, "pairs", 0), flip(labels, 4, 0.3, "pairs", 1))
    with pytest.raises(UsageError, match="unknown kind of wrong labels 'odd'"):
        flip(labels, 4, 0.3, "odd", 0)
    with pytest.raises(UsageError, match="labels of a single class cannot be wrong"):
        flip(np.zeros(3, np.int64), 1, 0.3, "pairs", 0)
