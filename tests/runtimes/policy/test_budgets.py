"""Policies as text: what parses means what it says, what does not parse is one sentence that helps."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emqdeploy.errors import UsageError
from emqdeploy.runtimes.policy.budgets import PREFERENCES, UNITS, Budget, Goals, parse_policy


@pytest.mark.parametrize(
    ("text", "quantity", "limit"),
    [
        ("latency_p99=20ms", "latency_p99", 20.0),
        ("latency_p50 <= 500us", "latency_p50", 0.5),
        ("LATENCY_P95=0.02s", "latency_p95", 20.0),
        ("power=7.5W", "power", 7.5),
        ("power<900mW", "power", 0.9),
        ("temperature=80C", "temperature", 80.0),
        ("memory=200MB", "memory", 200e6),
        ("memory=1GiB", "memory", 2.0**30),
        ("energy=3mJ", "energy", 3.0),
        ("accuracy>=97", "accuracy", 97.0),
        ("accuracy=97.5%", "accuracy", 97.5),
    ],
)
def test_units_are_converted(text: str, quantity: str, limit: float) -> None:
    """Every quantity in its own unit."""
    (budget,) = parse_policy(text).budgets
    assert budget.quantity == quantity
    assert budget.limit == pytest.approx(limit)


def test_several_budgets_and_a_preference() -> None:
    """In one text, separated by commas."""
    goals = parse_policy("latency_p99=20ms, accuracy>=97, prefer=energy")
    assert [budget.quantity for budget in goals.budgets] == ["latency_p99", "accuracy"]
    assert goals.prefer == "energy"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no budget"),
        ("fast", "is no budget"),
        ("latency_p99=", "is no budget"),
        ("latency_p99=20", "no unit"),
        ("latency_p99=20W", "the unit 'w'"),
        ("latency_p98=20ms", "did you mean"),
        ("latency_p99>=20ms", "wrong sign"),
        ("accuracy<=97", "wrong sign"),
        ("accuracy>=101", "out of range"),
        ("latency_p99=-3ms", "out of range"),
        ("latency_p99=0ms", "out of range"),
        ("latency_p99=1e999ms", "out of range"),
        ("latency_p99=1..2ms", "not a number"),
        ("latency_p99=20ms,latency_p99=30ms", "twice"),
        ("prefer=beauty", "allowed: accuracy"),
        ("prefer=latency,prefer=energy", "twice"),
    ],
)
def test_what_does_not_parse_is_one_helpful_sentence(text: str, says: str) -> None:
    """It names the part and shows what is allowed."""
    with pytest.raises(UsageError, match=says) as caught:
        parse_policy(text)
    assert "\n" not in str(caught.value)


@settings(max_examples=50)
@given(st.text(max_size=60))
def test_any_text_parses_or_is_refused(text: str) -> None:
    """Nothing but a usage error, whatever is typed."""
    with contextlib.suppress(UsageError):
        parse_policy(text)


_LIMITS = st.floats(min_value=1e-3, max_value=100, allow_nan=False)


@given(st.dictionaries(st.sampled_from(sorted(UNITS)), _LIMITS, min_size=1), st.sampled_from(PREFERENCES))
def test_a_printed_policy_reads_back(limits: dict[str, float], prefer: str) -> None:
    """What a report stores can be given again."""
    goals = Goals(tuple(Budget(quantity, limit) for quantity, limit in limits.items()), prefer)
    again = parse_policy(str(goals))
    assert [budget.quantity for budget in again.budgets] == list(limits)
    assert [budget.limit for budget in again.budgets] == pytest.approx(list(limits.values()))
    assert again.prefer == prefer
