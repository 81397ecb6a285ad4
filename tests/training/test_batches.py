"""Batches: the same pixels from memory and files, whatever the number of workers; one sentence for a broken file."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emqdeploy.data import ImageFiles, Preprocessing, Split
from emqdeploy.errors import EmqError
from emqdeploy.training import augment, batches
from emqdeploy.training.augment import AUGMENTATIONS
from emqdeploy.training.batches import BatchRequest, FileSource, ImageSource, MemorySource, as_trained, image_source

CPU = torch.device("cpu")
SIZE = 80
COUNT = 10
COLOUR = Preprocessing(3, SIZE, SIZE, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Ten smooth pictures of several sizes, as real JPEG files."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for number in range(COUNT):
        coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8))
        coarse.resize((100 + 7 * number, 140 - 5 * number), Image.Resampling.BICUBIC).save(root / f"{number}.jpg")
    names = [f"{number}.jpg" for number in range(COUNT)]
    return Split(ImageFiles(root, names, COLOUR), np.arange(COUNT) % 2)


def requests(count: int = 3) -> list[BatchRequest]:
    """Batches of four, every image at least once."""
    order = np.random.default_rng(1).permutation(4 * count) % COUNT
    return [BatchRequest(part, 100 + number) for number, part in enumerate(np.split(order, count))]


def test_statistics_see_what_training_sees(files: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """Augmented images, the same for the same seed, and none that is alone in its batch."""
    source = image_source(files, COLOUR, "crop-flip", CPU)
    first, again, other = (as_trained(source, 8, seed) for seed in (0, 0, 1))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], source.plain(np.arange(8)))
    plain = as_trained(image_source(files, COLOUR, "none", CPU), 99, 0)
    assert torch.equal(plain[0], source.plain(np.arange(COUNT)))
    monkeypatch.setattr(batches, "STATISTICS_BATCH", 4)
    assert [len(batch) for batch in as_trained(source, COUNT, 0)] == [4, 3, 3]
    assert as_trained(source, 1, 0) == []


@pytest.mark.parametrize("name", ["none", "flip", "crop-flip"])
def test_files_and_memory_give_the_same_batches(files: Split, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an augmentation works on decoded images, it must not matter where they come from."""
    memory = image_source(files, COLOUR, name, CPU)
    monkeypatch.setattr(batches, "MEMORY_BUDGET", 0)
    lazy = image_source(files, COLOUR, name, CPU, workers=0)
    assert isinstance(memory, MemorySource)
    assert isinstance(lazy, FileSource)
    for one, other in zip(memory.stream(requests()), lazy.stream(requests()), strict=True):
        assert torch.equal(one, other)
    indices = np.array([3, 0, 9])
    assert torch.equal(memory.plain(indices), lazy.plain(indices))
    assert torch.equal(memory.labels, lazy.labels)
    assert len(memory) == len(lazy) == COUNT


def test_plain_images_are_what_a_device_computes(files: Split) -> None:
    """Training validates on the pixels that numpy makes on a device, to the last bit."""
    source = image_source(files, COLOUR, "resized-crop-flip", CPU)
    np.testing.assert_array_equal(source.plain(np.arange(4)).numpy(), COLOUR.normalize(files.images[:4]))


def test_the_number_of_workers_does_not_matter(files: Split) -> None:
    """Batches come in order and equal, so that a run can be resumed on another machine's workers."""
    found = [
        list(image_source(files, COLOUR, "resized-crop-flip", CPU, workers).stream(requests(4)))
        for workers in (0, 1, 2)
    ]
    assert [len(stream) for stream in found] == [4, 4, 4]
    for alone, one, two in zip(*found, strict=True):
        assert torch.equal(alone, one)
        assert torch.equal(alone, two)
    again = next(iter(image_source(files, COLOUR, "resized-crop-flip", CPU, 0).stream(requests(4)[:1])))
    assert torch.equal(again, found[0][0])
    other = requests(4)[0]._replace(seed=5)
    assert not torch.equal(next(image_source(files, COLOUR, "resized-crop-flip", CPU, 0).stream([other])), again)


def test_requests_may_come_from_a_generator(files: Split) -> None:
    """The loop need not lay out an epoch in advance."""

    def lazily() -> Iterator[BatchRequest]:
        yield from requests(2)

    for name in ("flip", "resized-crop-flip"):
        source = image_source(files, COLOUR, name, CPU, 2)
        assert len(list(source.stream(lazily()))) == 2


def test_memory_matches_the_floating_point_path() -> None:
    """Moving bytes and normalising afterwards equals normalising first, which older runs did."""
    random = np.random.default_rng(3)
    split = Split(random.integers(0, 256, (20, 1, 8, 8), np.uint8), np.zeros(20, np.int64))
    grey = Preprocessing(1, 8, 8, (0.3,), (0.4,))
    source = image_source(split, grey, "shift1", CPU)
    indices = np.array([4, 4, 19, 0])
    expected = AUGMENTATIONS["shift1"](
        torch.from_numpy(grey.normalize(split.images[indices])), torch.Generator().manual_seed(9)
    )
    assert torch.equal(next(source.stream([BatchRequest(indices, 9)])), expected)


def test_blue_goes_first_where_the_network_takes_it_so(files: Split) -> None:
    """On the training device as in numpy, from memory and from files."""
    seen = replace(COLOUR, channel_order="bgr", interpolation="bicubic")
    split = Split(files.images.as_seen(seen), files.labels)
    wanted = torch.from_numpy(seen.normalize(split.images[:]))
    for augmentation in ("none", "resized-crop-flip"):
        source = image_source(split, seen, augmentation, CPU, workers=0)
        assert torch.equal(source.plain(np.arange(COUNT)), wanted)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_is_named(files: Split, workers: int, tmp_path: Path) -> None:
    """One bad file among a million must be found without a search, also from a worker process."""
    assert isinstance(files.images, ImageFiles)
    whole = files.images.path(0).read_bytes()
    (tmp_path / "good.jpg").write_bytes(whole)
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    split = Split(ImageFiles(tmp_path, ["good.jpg", "cut.jpg"], COLOUR), np.array([0, 1]))
    source = image_source(split, COLOUR, "resized-crop-flip", CPU, workers)
    stream = source.stream([BatchRequest(np.array([0, 0]), 0), BatchRequest(np.array([0, 1]), 1)])
    assert next(stream).shape == (2, 3, SIZE, SIZE)
    with pytest.raises(EmqError, match=r"cut.jpg is not a readable image; replace or remove it"):
        next(stream)
    with pytest.raises(EmqError, match=r"cut.jpg is not a readable image"):
        source.plain(np.array([1]))


def test_a_dead_worker_is_one_sentence_with_the_file(files: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that crashes, or the system short of memory, kills a worker; the user learns where."""
    original = augment.random_box

    def crash(width: int, height: int, random: np.random.Generator) -> augment.Box:
        if width == 100 + 7 * 6:  # the seventh picture
            os.kill(os.getpid(), signal.SIGKILL)
        return original(width, height, random)

    deadly = augment.Augmentation(augment.flip, crash)
    monkeypatch.setitem(AUGMENTATIONS._entries, "flip", deadly)
    source: ImageSource = image_source(files, COLOUR, "flip", CPU, workers=1)
    with pytest.raises(EmqError, match=r"a data worker died while it decoded .*6.jpg, perhaps for want of memory"):
        list(source.stream([BatchRequest(np.arange(COUNT), 0)]))
