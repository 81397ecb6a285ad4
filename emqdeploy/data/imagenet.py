"""ImageNet and Tiny ImageNet as they are distributed: folders of JPEG files named after WordNet synsets."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emqdeploy.data.folders import class_files, image_names, labelled_files, notes_on
from emqdeploy.data.formats import damaged
from emqdeploy.data.loading import Dataset
from emqdeploy.data.locations import cache_folder
from emqdeploy.data.naming import DATASETS, DataRequest
from emqdeploy.data.pictures import ImageFiles
from emqdeploy.data.preprocessing import USUAL, Preprocessing
from emqdeploy.data.splits import Split
from emqdeploy.errors import EmqError, UsageError

_TINY = Preprocessing(3, 64, 64, (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821))
_TINY_FOLDER = "tiny-imagenet-200"
_KAGGLE_FOLDER = "ILSVRC/Data/CLS-LOC"
_WORDS = ("words.txt", "synset_words.txt", "LOC_synset_mapping.txt")
_ANNOTATIONS = ("val_annotations.txt", "val_annotations.csv", "LOC_val_solution.csv", "val.txt")


@DATASETS.register("tinyimagenet")
def _tinyimagenet(request: DataRequest) -> Dataset:
    """Tiny ImageNet: 110,000 colour images of 64 x 64 pixels in 200 classes (the ``test`` folder has no labels)."""
    root = _root(request, ("", _TINY_FOLDER), "wnids.txt", "unpack tiny-imagenet-200.zip")
    synsets = sorted((root / "wnids.txt").read_text().split())
    if len(set(synsets)) < max(len(synsets), 2):
        raise damaged(root / "wnids.txt", "it lacks classes or names one twice")
    for synset in synsets:
        if not (root / "train" / synset / "images").is_dir():
            raise EmqError(f"{root / 'train' / synset / 'images'} is missing; unpack tiny-imagenet-200.zip again")
    left_out: Counter[str] = Counter()
    files = {synset: image_names(root, f"train/{synset}/images", left_out) for synset in synsets}
    return Dataset(
        name="tinyimagenet",
        train=labelled_files(root, files, synsets, _TINY),
        test=_annotated(root, "val/images", [root / "val" / "val_annotations.txt"], synsets, _TINY, left_out),
        classes=_class_names([root], synsets),
        preprocessing=_TINY,
        augmentation="",
        notes=notes_on(root, left_out),
    )


@DATASETS.register("imagenet")
def _imagenet(request: DataRequest) -> Dataset:
    """ImageNet (ILSVRC 2012): 1.28 million training and 50,000 validation images in 1,000 classes.

    ``train`` holds a folder per class; ``val`` as well, or all images and a file of annotations beside them or in the
    root (``IMAGE CLASS`` a line). Any other number of classes in this layout serves as well.
    """
    places = ("", "imagenet", "ILSVRC2012", _KAGGLE_FOLDER)
    root = _root(request, places, "train", "get ILSVRC 2012 from image-net.org, unpack it into train/CLASS and val")
    left_out: Counter[str] = Counter()
    files = class_files(root, "train", left_out)
    synsets = list(files)
    if len(synsets) < 2:
        raise UsageError(f"{root / 'train'} holds the single class {synsets[0]!r}; at least two are needed")
    above = [root, *(root.parents[:3] if root.match(_KAGGLE_FOLDER) else ())]
    if not (root / "val").is_dir():
        raise UsageError(f"{root} has no val/; put the validation images there, on which accuracy is measured")
    if any(entry.is_dir() and entry.name in files for entry in os.scandir(root / "val")):
        test = labelled_files(root, class_files(root, "val", left_out), synsets, USUAL)
    else:
        candidates = [place / name for place in (root / "val", *above) for name in _ANNOTATIONS]
        test = _annotated(root, "val", candidates, synsets, USUAL, left_out)
    return Dataset(
        name="imagenet",
        train=labelled_files(root, files, synsets, USUAL),
        test=test,
        classes=_class_names(above, synsets),
        preprocessing=USUAL,
        augmentation="",
        notes=notes_on(root, left_out),
        own_statistics=False,
    )


def _root(request: DataRequest, subfolders: Sequence[str], sign: str, remedy: str) -> Path:
    """Return the first folder that holds ``sign``."""
    base = request.place or cache_folder()
    tried = [base / sub for sub in subfolders]
    found = next((place for place in tried if (place / sign).exists()), None)
    if found is None:
        raise EmqError(
            f"{request.kind} is not in {' nor in '.join(map(str, tried))} (no {sign} there), and its licence leaves the"
            f" download to you; {remedy} and give the folder with --data-dir"
        )
    return found


def _annotated(
    root: Path,
    folder: str,
    candidates: Sequence[Path],
    synsets: Sequence[str],
    seen: Preprocessing,
    left_out: Counter[str],
) -> Split:
    """Return the images of one flat folder with the labels of an annotation file.

    A line is the image's name, with or without its suffix, and its class as synset or number; a comma, tab or space
    between them, and whatever follows, is not read.
    """
    annotations = next((path for path in candidates if path.is_file()), None)
    if annotations is None:
        wanted = " or ".join(dict.fromkeys(path.name for path in candidates))
        raise EmqError(
            f"{root / folder} holds images without a folder per class and there is no {wanted}; add one of these"
            " (IMAGE CLASS a line), or sort the images into folders"
        )
    number = {synset: index for index, synset in enumerate(synsets)}
    labels = {}
    for line in annotations.read_text().splitlines():
        words = re.split(r"[,\t ]+", line.strip())
        image, kind = words[0], words[1] if len(words) > 1 else ""
        label = number.get(kind, int(kind) if kind.isdecimal() else -1)
        if 0 <= label < len(synsets):
            labels[os.path.splitext(image)[0]] = label
        elif labels:  # the first line of a table names its columns
            raise damaged(annotations, f"{line.strip()[:60]!r} names none of the {len(synsets)} training classes")
    names = image_names(root, folder, left_out)
    left_out[annotations.suffix.lower()] -= annotations.parent == root / folder  # that one is read
    stems = [os.path.splitext(os.path.basename(name))[0] for name in names]
    missing = next((name for name, stem in zip(names, stems, strict=True) if stem not in labels), None)
    if missing is not None:
        raise damaged(annotations, f"it says nothing about {missing}")
    return Split(ImageFiles(root, names, seen), np.array([labels[stem] for stem in stems], np.int64))


def _class_names(folders: Sequence[Path], synsets: Sequence[str]) -> tuple[str, ...]:
    """Return what people call the synsets: the first word where a list of words is at hand, else the synset itself."""
    words = next((folder / name for folder in folders for name in _WORDS if (folder / name).is_file()), None)
    if words is None:
        return tuple(synsets)
    known = {}
    for line in words.read_text(encoding="utf-8").splitlines():
        synset, _, text = line.strip().replace("\t", " ").partition(" ")
        known[synset] = text.partition(",")[0].strip()
    names = [known.get(synset) or synset for synset in synsets]
    repeated = Counter(names)
    # Two cranes, a bird and a machine: what is not unique carries its synset.
    return tuple(
        f"{name} ({synset})" if repeated[name] > 1 else name for name, synset in zip(names, synsets, strict=True)
    )
