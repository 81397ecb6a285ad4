"""Shards: every image in one of them, as large and as uneven as asked for, and none of them empty."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emqdeploy.data import load_dataset
from emqdeploy.errors import UsageError
from emqdeploy.training.batches import BatchRequest, image_source
from emqdeploy.training.recipes import resolve
from emqdeploy.training.sharding import read_sizes, shard_of, shards

LABELS = np.random.default_rng(0).integers(0, 10, 1000)


@given(st.lists(st.floats(1, 5), min_size=1, max_size=5), st.sampled_from([0.0, 1.0, 50.0]), st.integers(0, 99))
def test_every_image_is_in_one_shard(sizes: list[float], skew: float, seed: int) -> None:
    """Sizes are as asked for, exactly without skew, and drawn anew with another seed."""
    found = shards(LABELS, sizes, skew, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(found)), np.arange(1000))
    if not skew:
        wanted = np.asarray(sizes) / np.sum(sizes) * 1000
        assert np.abs([len(part) for part in found] - wanted).max() <= 1
    assert all(np.array_equal(one, two) for one, two in zip(found, shards(LABELS, sizes, skew, seed), strict=True))


def test_a_small_skew_gives_each_process_classes_of_its_own() -> None:
    """The largest share that a shard has of a class, on average over the classes."""

    def concentration(skew: float) -> float:
        parts = shards(LABELS, (1, 1, 1, 1), skew, 1)
        return float(np.mean([max(np.mean(LABELS[part] == label) for part in parts) for label in range(10)]))

    uneven, even = concentration(0.3), concentration(1000.0)
    assert uneven > 0.2 > 0.13 > even


def test_an_empty_shard_is_refused() -> None:
    """By number of the process, with what to change; also where chance left one empty."""
    with pytest.raises(UsageError, match=r"process 1 of 2 would have no images of its own, .*use other --shards"):
        shards(LABELS, (3, 0), 0.0, 0)
    with pytest.raises(UsageError, match=r"process 0 of 2 would have 1 images of its own"):
        shards(LABELS[:3], (1, 2), 0.0, 0)
    with pytest.raises(UsageError, match="a larger --skew or fewer processes"):
        shards(LABELS[:40], (1,) * 8, 0.01, 0)


def test_sizes_that_are_none() -> None:
    """One sentence each; and shards without rounds say nothing."""
    for wrong in ("3,x", "-1,2", "nan,1", "0,0"):
        with pytest.raises(UsageError, match="--shards is"):
            read_sizes(wrong)
    assert read_sizes("3,1") == read_sizes([3, 1]) == (3.0, 1.0)
    for given_, flag in (({"shards": "3,1"}, "shards"), ({"skew": 1.0}, "skew")):
        with pytest.raises(UsageError, match=f"--{flag} says nothing without --local-steps"):
            resolve(None, None, given_)
    with pytest.raises(UsageError, match="--compress-bucket says nothing without --compress"):
        resolve(None, None, {"compress_bucket": 512})
    with pytest.raises(UsageError, match="--sync-norm does not go together with --local-steps"):
        resolve(None, None, {"sync_norm": True, "local_steps": 2})


def test_a_small_shard_is_repeated() -> None:
    """All processes take as many steps; images and labels stay together, and calibration sees the same everywhere."""
    digits = load_dataset("digits", limit=100)
    whole = image_source(digits.train, digits.preprocessing, "none", torch.device("cpu"))
    large, small = (shard_of(whole, rank, (4, 1), 0.0, 0) for rank in (0, 1))
    assert len(large.source) == len(small.source) == round(0.8 * len(whole))
    assert large.share == pytest.approx(0.8, abs=0.01)
    assert large.share + small.share == pytest.approx(1)
    mine = shards(whole.labels.numpy(), (4, 1), 0.0, 0)[1]
    places = np.array([0, len(mine), len(mine) + 1])
    (images,) = small.source.stream([BatchRequest(places, 0)])
    torch.testing.assert_close(images, whole.plain(mine[[0, 0, 1]]))
    assert torch.equal(small.source.labels[places], whole.labels[mine[[0, 0, 1]]])
    assert torch.equal(small.source.plain(np.arange(5)), large.source.plain(np.arange(5)))
