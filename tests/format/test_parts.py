"""A checkpoint in parts: every level is a whole network, the last one is the very file, and nothing else is let in."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.emq import load_checkpoint, read_card, save_checkpoint
from emqdeploy.format.parts import INDEX, Index, apply, enhancement, join, read_index, split

from ..conftest import Deployed


@pytest.fixture(scope="module")
def whole(small: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 1 to 8 bits."""
    path = tmp_path_factory.mktemp("parts") / "net.emq"
    save_checkpoint(path, small.checkpoint)
    return path


@pytest.fixture(scope="module")
def folder(whole: Path) -> Path:
    """Its parts, which end after 1, 2 and 4 bits."""
    split(whole, [1, 2, 4], whole.parent / "in parts")
    return whole.parent / "in parts"


def index_of(folder: Path) -> Index:
    """The list of the parts in a folder."""
    return read_index((folder / INDEX).read_bytes(), "there")


def test_all_parts_give_the_very_file_and_some_a_narrower_one(whole: Path, folder: Path, tmp_path: Path) -> None:
    """Bit for bit; and what is joined up to 4 bits computes what the whole file computes at its children."""
    join(folder, tmp_path / "all.emq")
    assert (tmp_path / "all.emq").read_bytes() == whole.read_bytes()
    join(folder, tmp_path / "four.emq", bits=4)
    four, eight = load_checkpoint(tmp_path / "four.emq").network, load_checkpoint(whole).network
    assert [child.name for child in four.children] == ["1", "2", "3", "4"]
    for child in four.children:
        numbers = eight.initializers(child)
        assert all((array == numbers[name]).all() for name, array in four.initializers(child).items())


def test_the_base_is_a_checkpoint_by_itself(folder: Path) -> None:
    """Whoever has nothing else opens it as any other."""
    base = index_of(folder).parts[0]
    assert list(read_card(folder / base.file)[1]) == list(load_checkpoint(folder / base.file).network.children)


def test_few_bits_cost_few_bytes(whole: Path, folder: Path) -> None:
    """Planes are sent once: what is not codes is at most the tables and headers that each level has anyway."""
    index, saved = index_of(folder), whole.stat().st_size
    codes = sum(layer.codes.size for layer in load_checkpoint(whole).network.layers.values() if not layer.pinned)
    rest = saved - codes
    sent = 0
    for part in index.parts:
        sent += part.size
        assert sent <= 1.05 * (part.bits / 8 * codes) + rest + 12_000 * len(index.parts)


def test_parts_of_others_and_in_another_order_are_refused(whole: Path, folder: Path, tmp_path: Path) -> None:
    """In one sentence, and nothing is written."""
    base, second, third, _ = (folder / part.file for part in index_of(folder).parts)
    with pytest.raises(EmqError, match="third builds on another file than the one that is there; add the parts in"):
        apply(base.read_bytes(), io.BytesIO(third.read_bytes()), "third")
    with pytest.raises(EmqError, match=r"base is no enhancement \(\*.emqx\)"):
        apply(base.read_bytes(), io.BytesIO(base.read_bytes()), "base")
    with pytest.raises(EmqError, match="part is cut off; fetch or split it again"):
        apply(base.read_bytes(), io.BytesIO(second.read_bytes()[:-1]), "part")
    spoiled = tmp_path / "spoiled"
    spoiled.mkdir()
    for path in folder.iterdir():
        (spoiled / path.name).write_bytes(path.read_bytes())
    data = bytearray(second.read_bytes())
    data[-1] ^= 1
    (spoiled / second.name).write_bytes(bytes(data))
    with pytest.raises(EmqError, match=f"{second.name} was altered or is cut off: it does not match its hash"):
        join(spoiled, tmp_path / "out.emq")
    with pytest.raises(EmqError, match="was altered: what it makes does not match its hash"):
        apply(base.read_bytes(), io.BytesIO(bytes(data)), "part")
    assert not (tmp_path / "out.emq").exists()


def test_a_list_of_parts_names_files_beside_it_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    """A name with a slash would reach elsewhere."""
    listed = (folder / INDEX).read_text().replace("net-w2.emqx", "../net.emqx")
    (tmp_path / INDEX).write_text(listed)
    with pytest.raises(EmqError, match=f"{INDEX} is no list of parts"):
        join(tmp_path, tmp_path / "out.emq")


def test_widths_that_add_nothing_are_refused(small: Deployed, whole: Path, folder: Path, tmp_path: Path) -> None:
    """Before anything is written; as are a folder that is not empty, and fewer bits than the base has."""
    gap, network = tmp_path / "gap.emq", small.checkpoint.network
    three_and_eight = tuple(child for child in network.children if child.name in "38")
    save_checkpoint(gap, replace(small.checkpoint, network=replace(network, children=three_and_eight)))
    with pytest.raises(UsageError, match=r"--at 2 would make a part that adds no child; .* has weights of 3, 8 bits"):
        split(gap, [2, 3], tmp_path / "gap")
    assert not (tmp_path / "gap").exists()
    with pytest.raises(UsageError, match="is not empty; name a new directory with --out"):
        split(whole, [2], folder)
    two = tmp_path / "two.emq"
    join(folder, two, bits=2)
    split(two, [], tmp_path / "alone")
    with pytest.raises(UsageError, match=r"ask for as many at least with --bits"):
        join(tmp_path / "alone", tmp_path / "out.emq", bits=1)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_refused_in_a_sentence(folder: Path, data: st.DataObject) -> None:
    """Wherever a byte changes or the end is missing; never another error, and never another network."""
    base, second = ((folder / part.file).read_bytes() for part in index_of(folder).parts[:2])
    made = bytearray(second)
    place = data.draw(st.integers(0, len(made) - 1))
    made[place] ^= data.draw(st.integers(1, 255))
    end = data.draw(st.sampled_from((len(made), place)))
    with pytest.raises(EmqError):
        apply(base, io.BytesIO(bytes(made[:end])), "part")


def test_the_smallest_difference_is_all_that_is_sent(folder: Path) -> None:
    """Of two equal files nothing but the header."""
    base = (folder / index_of(folder).parts[0].file).read_bytes()
    assert len(enhancement(base, base)) < int.from_bytes(base[:8], "little") + 500
