"""Decoded pictures on the disk: the same pixels without decoding, and never those of other pictures."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emqdeploy.data import Dataset, load_dataset
from emqdeploy.data.cache import HEADER, CachedPictures, cached
from emqdeploy.errors import EmqError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of five small noisy pictures each."""
    random = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(5):
            pixels = random.integers(0, 256, (12, 12, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{number}.png")
    return tmp_path / "pictures"


def loaded(folder: Path, size: int = 8) -> Dataset:
    """The folder as a network sees it."""
    return load_dataset(str(folder), image_size=size)


def caches(place: Path) -> list[Path]:
    """The files of the cache."""
    return sorted(place.glob("*.pixels"))


def test_pixels_come_from_the_cache(folder: Path, tmp_path: Path) -> None:
    """The same as decoded, made once, in parts and in workers too; the files are not read again."""
    said: list[str] = []
    train = loaded(folder).train
    expected = train.images[:]
    kept = cached(train, tmp_path / "cache", said.append)
    assert isinstance(kept.images, CachedPictures)
    assert [sentence.partition(" into ")[0] for sentence in said] == ["decoding 8 pictures once"]
    for path in folder.rglob("*.png"):  # what is no picture any more, and cannot be told from the one before
        times = path.stat()
        path.write_bytes(bytes(times.st_size))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    again = cached(loaded(folder).train, tmp_path / "cache", said.append)
    assert len(said) == len(caches(tmp_path / "cache")) == 1
    images = again.images
    np.testing.assert_array_equal(images[:], expected)
    np.testing.assert_array_equal(images[3], expected[3])
    np.testing.assert_array_equal(again.subset([5, 1]).subset([1]).images[:], expected[[1]])
    worker: CachedPictures = pickle.loads(pickle.dumps(images))
    np.testing.assert_array_equal(worker.read(2), expected[2])
    assert again.labels.tolist() == train.labels.tolist()


def test_other_pictures_are_another_cache(folder: Path, tmp_path: Path) -> None:
    """A changed file, another size or other images: nobody gets pixels of before; a mean does not change pixels."""
    place = tmp_path / "cache"
    cached(loaded(folder).train, place)
    cached(loaded(folder).test, place)
    assert len(caches(place)) == 2
    large = cached(loaded(folder, 10).train, place)
    assert large.images.shape == (8, 3, 10, 10)
    path = next(folder.rglob("*.png"))
    Image.new("RGB", (12, 12), "white").save(path)
    changed = [cached(split, place).images[:] for split in (loaded(folder).train, loaded(folder).test)]
    assert sum((images == 255).all(axis=(1, 2, 3)).sum() for images in changed) == 1
    assert len(caches(place)) == 4
    split = loaded(folder).train
    seen = replace(split.images.seen, mean=(0.1, 0.2, 0.3))  # type: ignore[union-attr]
    cached(replace(split, images=split.images.as_seen(seen)), place)  # type: ignore[union-attr]
    assert len(caches(place)) == 4


def test_a_damaged_cache_is_made_anew_or_refused(folder: Path, tmp_path: Path) -> None:
    """A torn file is noticed when it is opened, a flipped bit when its picture is read."""
    said: list[str] = []
    train = loaded(folder).train
    expected = train.images[:]
    cached(train, tmp_path)
    (path,) = caches(tmp_path)
    whole = path.read_bytes()
    for wrong, why in (
        (whole[:-5], "is incomplete and is made anew"),
        (whole.replace(b'"key"', b'"KEY"'), "is of other pictures"),
    ):
        path.write_bytes(wrong)
        np.testing.assert_array_equal(cached(train, tmp_path, said.append).images[:], expected)
        assert f"{path} {why}" in said[-1]
        assert path.read_bytes() == whole
    flipped = bytearray(whole)
    flipped[HEADER + 3 * expected[0].size] ^= 1
    path.write_bytes(flipped)
    images = cached(train, tmp_path).images
    np.testing.assert_array_equal(images[:3], expected[:3])
    with pytest.raises(EmqError, match=r"is damaged at \S+\.png; remove it, and it is made anew"):
        images[2:5]


def test_what_has_nothing_to_decode_stays_as_it_is(folder: Path, tmp_path: Path) -> None:
    """Pixels in memory, and a validation split of no images."""
    none = loaded(folder).train.subset(np.arange(0))
    for split in (load_dataset("digits").train, none):
        assert cached(split, tmp_path / "cache") is split
    assert not (tmp_path / "cache").exists()


def test_a_picture_that_cannot_be_read_leaves_no_cache(folder: Path, tmp_path: Path) -> None:
    """Half of one would be taken for whole by the next run."""
    train = loaded(folder).train
    path = train.images.path(4)  # type: ignore[union-attr]
    path.write_bytes(b"no picture")
    with pytest.raises(EmqError, match=f"{path.name} is not a readable image"):
        cached(train, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    path.unlink()
    with pytest.raises(EmqError, match="No such file or directory; restore or remove it"):
        cached(train, tmp_path / "cache")
