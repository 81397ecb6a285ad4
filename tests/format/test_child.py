"""Children as people write them, and as a key that stays what it was."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emqdeploy.errors import UsageError
from emqdeploy.format.child import (
    FLOAT,
    Child,
    check_unique,
    children_between,
    find_child,
    in_order,
    parse_children,
    select_children,
)

MIXED = Child("mixed", {"*": 4, "conv1": 8, "conv2": 2}, {"*": 8, "conv2": 4})
STORED = in_order((*parse_children("8,4,2,2a4"), MIXED))


def names(children: Any) -> list[str]:
    """Their names, in order."""
    return [child.name for child in children]


@pytest.mark.parametrize(
    ("text", "activations", "expected"),
    [
        ("4", 8, ["4"]),
        ("W4A8", 8, ["4"]),
        ("w2a4", 8, ["2a4"]),
        ("8,4,2a2", 8, ["8", "4", "2a2"]),
        ("2-4", 8, ["2", "3", "4"]),
        ("2-3a4, 8", 8, ["2a4", "3a4", "8"]),
        ("1,2,8", "same", ["1a2", "2a2", "8"]),
        ("4,8a8", 4, ["4a4", "8"]),
        ("32", 8, ["float"]),
    ],
)
def test_short_forms(text: str, activations: int | str, expected: list[str]) -> None:
    """Every form of the module's table."""
    assert names(parse_children(text, activations)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--bits has ''"),
        ("4,x", "--bits has 'x'; give weight widths 1..8, for example 8,4,2a4 or 2-8"),
        ("9", "child '9' has weight width 9; allowed: 1..8"),
        ("0", "weight width 0"),
        ("4a1", "activation width 1; allowed: 2..8"),
        ("8-2", "has the range '8-2'; write the smaller width first"),
        ("4,4", "names child '4' twice; name each once"),
        ("4,w4a8", "names child '4' twice"),
        ("32a8", "the float network is 32 in weights and activations, write 32"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_sentence(text: str, message: str) -> None:
    """What, given, allowed."""
    with pytest.raises(UsageError) as error:
        parse_children(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("weights", "activations", "message"),
    [
        ({"*": 4, "conv1": 9}, 8, "weight width 9 of conv1; allowed: 1..8"),
        (4, {"conv1": 1}, "activation width 1 of conv1; allowed: 2..8"),
        (True, 8, "weight width True"),
        (32, 8, "weight width 32"),
    ],
)
def test_widths_out_of_range_name_the_layer(weights: Any, activations: Any, message: str) -> None:
    """A child that no kernel could run is never made."""
    with pytest.raises(UsageError, match=message):
        Child("odd", weights, activations)


@pytest.mark.parametrize("name", ["", "a b", "../x", "all", "x" * 65, "-x", "a\n"])
def test_names_are_safe_as_keys_and_file_names(name: str) -> None:
    """They stand in files, tables and paths."""
    with pytest.raises(UsageError, match="cannot name a child"):
        Child(name, 4)


@pytest.mark.parametrize(("name", "weights"), [("5", 2), ("w4", 2), ("2-4", 2), ("4a2", 4), ("float", 4), ("Float", 4)])
def test_a_name_means_what_it_says(name: str, weights: int) -> None:
    """``--bits 5`` must never give a network of 2 bits."""
    with pytest.raises(UsageError, match="reads as other widths than the child has"):
        Child(name, weights)


def test_names_that_differ_in_case_alone_are_one() -> None:
    """They become file names."""
    with pytest.raises(UsageError, match="names child 'big' twice"):
        check_unique([Child("big", 4), Child("BIG", 2)])


def test_a_map_that_leaves_a_layer_out_takes_the_default() -> None:
    """The star, or 8 bits without one."""
    assert [MIXED.weights.of(layer) for layer in ("conv1", "conv2", "other")] == [8, 2, 4]
    assert Child("some", {"conv1": 2}).weights.of("other") == 8
    assert MIXED.bits == 4
    assert not MIXED.uniform


@given(
    st.dictionaries(st.text("abc.", min_size=1, max_size=6) | st.just("*"), st.integers(1, 8), max_size=5),
    st.integers(2, 8),
)
def test_a_child_survives_plain_values_and_is_a_key(weights: dict[str, int], activations: int) -> None:
    """The order in which layers are named does not matter."""
    child = Child("x", weights or 4, activations)
    again = Child.from_dict(child.to_dict())
    backwards = Child("x", dict(reversed(weights.items())) or 4, activations)
    assert child == again == backwards
    assert len({child, again, backwards}) == 1


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [(4, "4"), ("4", "4"), ("W4A8", "4"), ("2a4", "2a4"), (2, "2"), ("mixed", "mixed"), (MIXED, "mixed"), ("8", "8")],
)
def test_finding(wanted: Any, expected: str) -> None:
    """A width alone is the child with 8-bit activations."""
    assert find_child(STORED, wanted).name == expected


def test_a_width_alone_means_the_only_child_of_that_width() -> None:
    """Where every child has narrow activations, people still say 4."""
    narrow = parse_children("2,4,8", "same")
    assert names(select_children(narrow, "4,2")) == ["4a4", "2a2"]
    with pytest.raises(UsageError, match="'4' may mean 4a2, 4a4 here; name one of them"):
        find_child(parse_children("4a2,4a4"), 4)


@pytest.mark.parametrize("wanted", [3, "3", "8a4", "x", True, 8.0, Child("mixed", 4)])
def test_what_is_not_there_lists_what_is(wanted: Any) -> None:
    """One sentence, and what to name instead."""
    with pytest.raises(UsageError, match="available: 2a4, 2, 4, mixed, 8"):
        find_child(STORED, wanted)


def test_selecting() -> None:
    """All, lists, ranges and names on a file."""
    assert select_children(STORED, "all") == STORED
    assert names(select_children(STORED, "mixed,2a4")) == ["mixed", "2a4"]
    eight = parse_children("1-8")
    assert names(select_children(eight, "2-4,8")) == ["2", "3", "4", "8"]
    with pytest.raises(UsageError, match="no child '3' here"):
        select_children(STORED, "2-4")


def test_what_comes_between_trained_children() -> None:
    """Only those that follow the setting span a range; one that was written out stands alone."""
    assert names(children_between(parse_children("8,4,2a4,1a2"), 8)) == ["5", "6", "7"]
    assert names(children_between(parse_children("1,4", "same"), "same")) == ["2a2", "3a3"]
    assert children_between((MIXED,), 8) == ()
    assert children_between((FLOAT,), 8) == ()


def test_words_for_people() -> None:
    """Tables say bits where the name is a number."""
    assert [str(child) for child in (Child.of(1), Child.of(4), Child.of(2, 4), MIXED)] == [
        *("1 bit", "4 bits", "2a4", "mixed"),
    ]
