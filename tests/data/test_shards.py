"""Tar files of samples: every picture is found with its label, and a file that ends early is named."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emqdeploy.data import load_dataset
from emqdeploy.data.naming import located
from emqdeploy.errors import EmqError, UsageError


def picture(number: int) -> bytes:
    """A PNG whose pixels say which it is."""
    written = io.BytesIO()
    Image.new("RGB", (16, 16), (number, number, number)).save(written, "PNG")
    return written.getvalue()


def write_shard(path: Path, files: dict[str, bytes]) -> None:
    """Writes a tar file."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            head = tarfile.TarInfo(name)
            head.size = len(data)
            tar.addfile(head, io.BytesIO(data))


def samples(first: int, count: int) -> dict[str, bytes]:
    """Pictures of two classes in turn, one kind of label or the other."""
    files = {}
    for number in range(first, first + count):
        files[f"./part/{number:04}.png"] = picture(number)
        label = number % 2
        files |= (
            {f"./part/{number:04}.cls": str(label).encode()}
            if number % 3
            else {f"./part/{number:04}.json": json.dumps({"label": label, "width": 16}).encode()}
        )
    return files


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory, where what tar files hold is remembered."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three training shards of ten and a test shard of four."""
    for number in range(3):
        write_shard(tmp_path / "set" / f"train-{number:03}.tar", samples(10 * number, 10))
    write_shard(tmp_path / "set" / "val-000.tar", samples(100, 4))
    return tmp_path / "set"


@pytest.mark.parametrize("pattern", ["", "/train-{000..002}.tar", "/train-*.tar", "/train-00{0..1}.tar"])
def test_every_picture_is_found_with_its_label(shards: Path, pattern: str) -> None:
    """By folder, range and wildcard; any picture can be asked for, in a worker too."""
    dataset = load_dataset(f"wds:{shards}{pattern}", image_size=16)
    assert dataset.classes == ("0", "1")
    total = 10 * (2 if "{0..1}" in pattern else 3)
    assert (len(dataset.train), len(dataset.test)) == ((30, 4) if not pattern else (total * 4 // 5, total // 5))
    for split in (dataset.train, dataset.test):
        read = pickle.loads(pickle.dumps(split.images))[::-1]
        assert (read == read[:, :1, :1, :1]).all()
        numbers = read[:, 0, 0, 0].astype(int)
        assert (numbers % 2 == split.labels[::-1]).all()
        assert len(set(numbers.tolist())) == len(split)


@pytest.mark.parametrize("kept", [2000, 9000, -10240])
def test_a_shard_that_ends_early_is_named(shards: Path, kept: int) -> None:
    """In a picture, between samples or where only the end is missing; on request what is there is taken."""
    path = shards / "train-001.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        ends = tar.getmembers()[-1].offset_data + 512
    path.write_bytes(whole[:kept] if kept > 0 else whole[:ends])
    with pytest.raises(EmqError, match=r"train-001.tar is damaged or ends early, behind \d+ pictures; fetch it again"):
        load_dataset(f"wds:{shards}")
    dataset = load_dataset(f"wds-partial:{shards}", image_size=16)
    assert 20 <= len(dataset.train) < 30
    assert [note for note in dataset.notes if "ends early, behind" in note]


def test_a_damaged_head_is_not_taken_for_the_end(shards: Path) -> None:
    """Without a check, reading stops there without a word."""
    path = shards / "train-002.tar"
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        data[tar.getmembers()[6].offset + 100] ^= 0x55
    path.write_bytes(data)
    with pytest.raises(EmqError, match=r"train-002.tar is damaged or ends early, behind 2 pictures"):
        load_dataset(f"wds:{shards}")


def test_a_damaged_picture_is_named_when_it_is_read(shards: Path) -> None:
    """By its file and place."""
    path = shards / "val-000.tar"
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        start = tar.getmembers()[2].offset_data
    data[start : start + 30] = bytes(30)
    path.write_bytes(data)
    with pytest.raises(EmqError, match=rf"the picture at byte {start} of \S*val-000.tar is not a readable image"):
        load_dataset(f"wds:{shards}", image_size=16).test.images[:]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"1.png": picture(1), "1.cls": b"0", "2.png": picture(2)}, "no class for the picture 2; put its number into"),
        ({"1.png": picture(1), "1.cls": b"cat"}, "no class for the picture 1"),
        ({"1.png": picture(1), "1.json": b'{"label": "cat"}'}, "no class for the picture 1"),
        ({"1.png": picture(1), "1.cls": b"0"}, "hold 1 labelled pictures; at least two are needed"),
    ],
)
def test_shards_without_what_training_needs_are_refused(tmp_path: Path, files: dict[str, bytes], sentence: str) -> None:
    """In one sentence that says what to do."""
    write_shard(tmp_path / "a.tar", files)
    with pytest.raises(UsageError, match=sentence):
        load_dataset(f"wds:{tmp_path}/a.tar")


def test_what_is_not_there_is_said(tmp_path: Path, shards: Path) -> None:
    """A missing number of a range is not passed over; a compressed file cannot be searched."""
    with pytest.raises(UsageError, match=r"there is no tar file \S*train-003.tar; fetch it, or leave it out"):
        load_dataset(f"wds:{shards}/train-{{000..003}}.tar")
    with pytest.raises(UsageError, match="put a pattern in quotes"):
        load_dataset(f"wds:{shards}/nothing-*.tar")
    with pytest.raises(UsageError, match=r"write wds:PATTERN"):
        load_dataset("wds")
    (tmp_path / "a.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    with pytest.raises(UsageError, match="is compressed"):
        load_dataset(f"wds:{tmp_path}/a.tar")


def test_a_pattern_holds_in_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is resumed from elsewhere."""
    monkeypatch.chdir(tmp_path)
    assert located("wds:set/train-*.tar", None) == f"wds:{tmp_path}/set/train-*.tar"
    assert located("wds:train-*.tar", Path("set")) == f"wds:{tmp_path}/set/train-*.tar"


def test_labels_follow_limits(shards: Path) -> None:
    """The first few images are of all classes, as of any data set."""
    dataset = load_dataset(f"wds:{shards}", image_size=16, limit=10)
    assert np.bincount(dataset.train.labels).tolist() == [5, 5]


def test_heads_are_read_once(shards: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million of them take minutes; a changed file, a damaged table and a home without space are read anew."""
    expected = load_dataset(f"wds:{shards}", image_size=16).train.images[:]
    kept = sorted((home / ".cache" / "emqdeploy" / "shards").iterdir())
    assert len(kept) == 2
    with monkeypatch.context() as patch:
        patch.setattr("emqdeploy.data.shards._samples", None)
        np.testing.assert_array_equal(load_dataset(f"wds:{shards}", image_size=16).train.images[:], expected)
    for path in kept:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    np.testing.assert_array_equal(load_dataset(f"wds:{shards}", image_size=16).train.images[:], expected)
    write_shard(shards / "train-001.tar", samples(200, 12))
    assert len(load_dataset(f"wds:{shards}").train) == 32
    (home / "file").write_text("")
    monkeypatch.setenv("HOME", str(home / "file"))
    assert len(load_dataset(f"wds:{shards}").train) == 32
