"""Messages of few bits: unbiased, as short as they say, and of more levels as the loss falls."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from emqdeploy.errors import UsageError
from emqdeploy.training.compression import (
    Adaptive,
    Compression,
    FixedWidth,
    bits_of,
    compression_of,
    decode,
    encode,
    read_compression,
)
from emqdeploy.training.distributed import World

DRAWS = 5_000


def generator(seed: int = 0) -> torch.Generator:
    """Random choices."""
    return torch.Generator().manual_seed(seed)


def heard(values: Tensor, levels: int, bucket: int = 0, seed: int = 0) -> Tensor:
    """What arrives."""
    return decode(encode(values, levels, generator(seed), bucket), len(values), levels, bucket)


def vectors() -> st.SearchStrategy[list[float]]:
    """A few numbers of any size, zeros among them."""
    return st.lists(st.floats(-1e6, 1e6).map(lambda number: round(number, 3)), min_size=1, max_size=6)


@settings(max_examples=40)
@given(vectors(), st.integers(1, 40), st.integers(0, 9))
def test_the_mean_of_what_arrives_is_what_was_sent(numbers: list[float], levels: int, seed: int) -> None:
    """Unbiased: the mean of many messages comes as near as the variance of rounding allows (six deviations)."""
    values = torch.tensor(numbers)
    many = heard(values.repeat(DRAWS), levels, bucket=len(values), seed=seed).view(DRAWS, -1)
    step = float(values.norm()) / levels
    allowed = 6 * (step / 2) / DRAWS**0.5 + 1e-5 * float(values.abs().max())
    assert (many.double().mean(0) - values.double()).abs().max() <= allowed


@given(vectors(), st.integers(1, 300))
def test_no_number_moves_by_more_than_a_level(numbers: list[float], levels: int) -> None:
    """And none changes its sign; zeros stay zeros."""
    values = torch.tensor(numbers)
    found = heard(values, levels)
    assert (found - values).abs().max() <= float(values.norm()) / levels * 1.0001
    assert (found * values >= 0).all()


@given(st.integers(1, 500), st.integers(1, 2**15 - 1), st.sampled_from([0, 1, 7, 512]))
def test_a_message_is_as_long_as_its_bits(count: int, levels: int, bucket: int) -> None:
    """``d ceil(log2(s + 1)) + d + 32`` bits as the paper counts, in whole bytes; every level arrives as it was."""
    values = torch.randn(count, generator=generator(count))
    message = encode(values, levels, generator(), bucket)
    norms = -(-count // bucket) if bucket else 1
    assert len(message) == 4 * norms + -(-count * bits_of(levels) // 8)
    again = encode(decode(message, count, levels, bucket), levels, generator(1), bucket)
    assert len(again) == len(message)


def test_a_number_alone_arrives_exactly() -> None:
    """It is its own norm, the highest level; and a bucket for each number is as good as no compression."""
    values = torch.tensor([3.0, -2.5, 0.0, 1e-20])
    torch.testing.assert_close(heard(values, 1, bucket=1), values)


def test_what_is_no_number_stays_none() -> None:
    """A run that diverged has to notice."""
    assert not torch.isfinite(heard(torch.tensor([1.0, float("nan")]), 3)).all()


def test_levels_grow_as_the_loss_falls() -> None:
    """``ceil(2 sqrt(F_0 / F))``; they fall again where it rises, and a state goes on where it was."""
    adaptive = Adaptive()
    for loss, levels in ((2.0, 2), (0.5, 4), (0.0201, 20), (2.0, 2), (1e-12, 2**15 - 1)):
        adaptive.hear(torch.tensor(loss), 10_000)
        assert adaptive.levels == levels
    other = Adaptive()
    other.restore(adaptive.state())
    assert other.levels == adaptive.levels
    other.hear(torch.tensor(float("nan")), 1)
    assert other.levels == adaptive.levels
    slow = Adaptive()
    slow.hear(torch.tensor(2.0), 1)
    slow.hear(torch.tensor(0.02), 1)
    assert slow.levels == 3, "one batch is not the loss"


def test_a_process_alone_hears_itself_in_few_bits() -> None:
    """What it learned is quantized, what is plain is not, and the same draw gives the same message."""
    plain, learned = torch.tensor([0.1, 0.2]), [torch.randn(3, 2), torch.randn(5)]
    before = [tensor.clone() for tensor in learned]
    FixedWidth(0, 3).sum_(World(), [plain], learned, (1, 2))
    once = [tensor.clone() for tensor in learned]
    for tensor, values in zip(learned, before, strict=True):
        tensor.copy_(values)
    FixedWidth(0, 3).sum_(World(), [plain], learned, (1, 2))
    assert torch.equal(plain, torch.tensor([0.1, 0.2]))
    assert all(torch.equal(one, two) for one, two in zip(once, learned, strict=True))
    levels = torch.cat([tensor.flatten() for tensor in learned]).abs().unique()
    assert len(levels) <= 4


def test_names() -> None:
    """What can be asked for, and a sentence for what cannot."""
    assert type(compression_of(read_compression("none"), 0)) is Compression
    assert compression_of(read_compression(4), 0).levels == 7
    assert compression_of(read_compression("adaptive"), 512).bucket == 512
    for wrong in ("1", "17", "little", "-4"):
        with pytest.raises(UsageError, match=r"allowed: adaptive, none, or 2 to 16 bits a number"):
            read_compression(wrong)
