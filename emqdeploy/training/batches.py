"""Batches of training images: from a set that lives on the device, or from files that are decoded ahead of time."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from emqdeploy.data import Pictures, Preprocessing, Split
from emqdeploy.data.pictures import MEMORY_BUDGET
from emqdeploy.data.workers import usable_cores
from emqdeploy.errors import EmqError
from emqdeploy.training.augment import AUGMENTATIONS, Augmentation

MOST_WORKERS = 8

STATISTICS_BATCH = 256
"""Images that statistics are estimated on at once."""


class BatchRequest(NamedTuple):
    """One batch to prepare.

    Attributes:
        indices: of the images in the split, ``(B,)``.
        seed: of this batch's augmentation, 0 to 2^63 - 1; equal requests give equal pixels.
    """

    indices: NDArray[np.int64]
    seed: int


class ImageSource(Protocol):
    """A split as the training loop reads it; batches are normalised float32 ``(B, C, H, W)`` on the training device.

    Attributes:
        labels: ``(N,)`` int64, on the training device.
    """

    labels: Tensor

    def __len__(self) -> int:
        """Images in the split."""

    def stream(self, requests: Iterable[BatchRequest]) -> Iterator[Tensor]:
        """Yields the augmented batches in the order of the requests; requests may be read ahead."""

    def plain(self, indices: NDArray[np.int64]) -> Tensor:
        """Returns images as a test sees them, without augmentation."""


def image_source(
    split: Split, preprocessing: Preprocessing, augmentation: str, device: torch.device, workers: int | None = None
) -> ImageSource:
    """Opens a split for training.

    Args:
        split: images in memory, or files; files are decoded once and kept where they fit `MEMORY_BUDGET`.
        preprocessing: how pixels become inputs.
        augmentation: a name in `AUGMENTATIONS`.
        device: where batches go; a set in memory moves there as a whole, as bytes.
        workers: processes that decode files; 0 decodes in this one, None takes one per core up to 8.
    """
    augment = AUGMENTATIONS[augmentation]
    files = split.images
    # Crops of random size are cut from the pictures as they are on the disk, whose pixels they need.
    if isinstance(files, Pictures) and (augment.box is not None or files.nbytes > MEMORY_BUDGET):
        return FileSource(split, preprocessing, augment, device, default_workers() if workers is None else workers)
    return MemorySource(split, preprocessing, augment, device)


def default_workers() -> int:
    """One process per usable core up to 8; none where there is one core only."""
    cores = usable_cores()
    return 0 if cores == 1 else min(cores, MOST_WORKERS)


def as_trained(source: ImageSource, count: int, seed: int) -> list[Tensor]:
    """The first images of a split as training sees them, in parts that have statistics.

    Augmented images have other moments than plain ones, and what is learned behind a normalization is right for the
    former: with crops and flips, children of a ResNet-8 are 3 points more accurate on CIFAR-10 (`docs/dial.md`).

    Args:
        source: the split.
        count: how many images, at most.
        seed: of the augmentation.
    """
    places = np.arange(min(count, len(source)))
    parts = np.array_split(places, -(-len(places) // STATISTICS_BATCH))
    requests = [BatchRequest(part, seed + number) for number, part in enumerate(parts) if len(part) > 1]
    return list(source.stream(requests))


class _Normalizer:
    """`Preprocessing.normalize` on the training device, equal to the last bit."""

    def __init__(self, preprocessing: Preprocessing, device: torch.device) -> None:
        self.mean, self.std = (
            torch.tensor(values, dtype=torch.float32, device=device).reshape(1, -1, 1, 1)
            for values in (preprocessing.mean, preprocessing.std)
        )
        # A tensor, because a GPU multiplies by the reciprocal of a plain number, which rounds differently.
        self.full = torch.tensor(255.0, device=device)
        self.blue_first = preprocessing.channel_order == "bgr"

    def __call__(self, images: Tensor) -> Tensor:
        images = images.flip(1) if self.blue_first else images
        return images.to(torch.float32, copy=True).div_(self.full).sub_(self.mean).div_(self.std)


class MemorySource:
    """A split that lives on the device as bytes; a batch is gathered, augmented and normalised in one go.

    Augmentation moves bytes, a quarter of the traffic of floats.
    """

    def __init__(self, split: Split, preprocessing: Preprocessing, augment: Augmentation, device: torch.device) -> None:
        self.images = torch.from_numpy(np.require(split.images[:], requirements=["C", "W"])).to(device)
        self.labels = torch.from_numpy(split.labels).to(device)
        self.normalize = _Normalizer(preprocessing, device)
        self.augment = augment

    def __len__(self) -> int:
        return len(self.labels)

    def stream(self, requests: Iterable[BatchRequest]) -> Iterator[Tensor]:
        """Yields the augmented batches."""
        for indices, seed in requests:
            images = self.images[self._on_device(indices)]
            yield self.normalize(self.augment(images, torch.Generator().manual_seed(seed)))

    def plain(self, indices: NDArray[np.int64]) -> Tensor:
        """Returns images without augmentation."""
        return self.normalize(self.images[self._on_device(indices)])

    def _on_device(self, indices: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(indices).to(self.images.device)


class FileSource:
    """A split in files: worker processes decode batches ahead of the training step.

    The parts of pictures that an augmentation draws depend on the request's seed and the place in the batch alone, so
    the number of workers does not matter.
    """

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        augment: Augmentation,
        device: torch.device,
        workers: int,
    ) -> None:
        assert isinstance(split.images, Pictures)
        self.files = split.images
        self.labels = torch.from_numpy(split.labels).to(device)
        self.device = device
        self.workers = workers
        self.normalize = _Normalizer(preprocessing, device)
        self.augment = augment

    def __len__(self) -> int:
        return len(self.labels)

    def stream(self, requests: Iterable[BatchRequest]) -> Iterator[Tensor]:
        """Yields the augmented batches; while one is in use, the workers decode the next ones."""
        seeds: list[int] = []

        def noted() -> Iterator[BatchRequest]:
            for request in requests:
                seeds.append(request.seed)
                yield request

        reading = torch.full((max(self.workers, 1), 2), -1, dtype=torch.int64).share_memory_()
        loader = DataLoader(
            _DecodedBatches(self.files, self.augment, reading),
            sampler=noted(),
            batch_size=None,
            num_workers=self.workers,
            worker_init_fn=_start_worker if self.workers else None,
            pin_memory=self.device.type == "cuda",
        )
        batches = iter(loader)
        while True:
            try:
                images, failure = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:  # what the loader raises where a worker is gone
                raise self._worker_died(error, reading) from error
            if failure:
                raise EmqError(failure)
            images = images.to(self.device, non_blocking=True)
            yield self.normalize(self.augment.finish(images, torch.Generator().manual_seed(seeds.pop(0))))

    def plain(self, indices: NDArray[np.int64]) -> Tensor:
        """Decodes images now, without augmentation."""
        return self.normalize(torch.from_numpy(self.files[indices]).to(self.device))

    def _worker_died(self, error: RuntimeError, reading: Tensor) -> EmqError:
        gone = {int(number) for number in re.findall(r"\d+", str(error))}
        files = [self.files.name(index) for pid, index in reading.tolist() if pid in gone and index >= 0]
        at = f" while it decoded {files[0]}" if files else ""
        return EmqError(
            f"a data worker died{at}, perhaps for want of memory; check that file, or use fewer --workers or a smaller"
            " --batch-size"
        )


class _DecodedBatches(TorchDataset[Any]):
    """What a worker does: decodes one batch to bytes, or says in one sentence why not.

    Args:
        files: the images.
        augment: whose ``box`` chooses the part of each picture.
        reading: shared ``(workers, 2)``: process and index of the image that each worker has at hand, for the sentence
            that names the file if the worker dies.
    """

    def __init__(self, files: Pictures, augment: Augmentation, reading: Tensor) -> None:
        self.files = files
        self.augment = augment
        self.reading = reading

    def __getitem__(self, request: BatchRequest) -> tuple[Tensor, str]:
        info = torch.utils.data.get_worker_info()
        note = self.reading[0 if info is None else info.id].numpy()
        note[0] = os.getpid()
        images = np.empty((len(request.indices), *self.files.shape[1:]), np.uint8)
        for place, index in enumerate(request.indices.tolist()):
            note[1] = index
            try:
                images[place] = self._decode(index, request.seed, place)
            except EmqError as error:
                return torch.empty(0), str(error)
        note[1] = -1
        return torch.from_numpy(images), ""

    def _decode(self, index: int, seed: int, place: int) -> NDArray[np.uint8]:
        files = self.files
        if self.augment.box is None:
            return files.read(index)
        picture = files.picture(index)
        box = self.augment.box(picture.width, picture.height, np.random.default_rng([seed, place]))
        return files.seen.part_of(picture, box)


def _start_worker(_: int) -> None:
    # Ctrl-C reaches the whole process group; the training process decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
