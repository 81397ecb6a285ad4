"""The classes of a few pictures, without a policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emqdeploy.data.images import SUFFIXES
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.bundle import MANIFEST_FILE, is_bundle
from emqdeploy.format.child import ChildLike
from emqdeploy.format.emq import SUFFIX
from emqdeploy.format.tasks import CLASSIFICATION
from emqdeploy.progress import Report, silent
from emqdeploy.runtimes.source import Source, open_source
from emqdeploy.serving.folder import images_in

BATCH = 16
"""Pictures that are run at once."""

TOP = 5


def is_network(path: Path) -> bool:
    """Whether a path is a checkpoint, an exported file, a bundle or a run."""
    if path.suffix in (SUFFIX, ".onnx") or path.name == MANIFEST_FILE:
        return True
    return path.is_dir() and (is_bundle(path) or any(path.glob(f"*{SUFFIX}")) or any(path.glob(f"*/*{SUFFIX}")))


def separated(items: Sequence[Path]) -> tuple[Path | None, list[Path]]:
    """What of several paths is the network, wherever it stands, and the rest, which are pictures.

    Raises:
        UsageError: two of them are networks.
    """
    networks = [item for item in items if is_network(item)]
    if len(networks) > 1:
        raise UsageError(f"{networks[0]} and {networks[1]} are both networks; name one")
    return next(iter(networks), None), [item for item in items if item not in networks]


def predict(
    path: Path | None, images: Sequence[Path], child: ChildLike | None = None, top: int = TOP, report: Report = silent
) -> dict[str, Any]:
    """Classifies image files, and those of folders.

    Args:
        path: the network; None takes the latest run.
        images: files and folders.
        child: the child; None takes the widest one.
        top: how many classes are told of each picture.
        report: receives what is passed over.

    Returns:
        The network, its child, and per image its class with the best ``top`` of them.

    Raises:
        EmqError: one sentence: there is no such image, or none could be read.
    """
    files = [file for image in images for file in _files(image)]
    if not files:
        raise UsageError("there is nothing to classify; name at least one image or a folder of images")
    source = open_source(path, None if child is None else (child,))
    found, unreadable = [], []
    for start in range(0, len(files), BATCH):
        part = files[start : start + BATCH]
        for file, ranking, why in _classified(source, part, top):
            if why is None:
                found.append({"image": str(file), **ranking[0], "predictions": ranking})
            elif len(files) == 1:
                raise why
            else:
                unreadable.append({"image": str(file), "why": str(why)})
                report(f"{file} is passed over: {why}")
    if not found:
        raise EmqError(f"none of {len(files)} images could be read; {unreadable[0]['why']}")
    network = source.runtime
    about = {"checkpoint": str(source.path), "child": network.child.name, "bits": network.bits}
    return {**about, "images": found, "unreadable": unreadable}


def _files(image: Path) -> list[Path]:
    if not image.is_dir():
        return [image]
    files = images_in(image)
    if not files:
        raise UsageError(f"{image} holds no images ({', '.join(sorted(SUFFIXES))}); name another folder")
    return files


def _classified(
    source: Source, files: Sequence[Path], top: int
) -> list[tuple[Path, list[dict[str, Any]], EmqError | None]]:
    """Each file with its ranking, or with why it has none."""
    inputs, reasons = [], {}
    for file in files:
        try:
            inputs.append(source.preprocessing.load_image(file))
        except EmqError as error:
            reasons[file] = error
    logits = iter(source.runtime(np.concatenate(inputs)) if inputs else ())
    found = []
    for file in files:
        why = reasons.get(file)
        ranking = [] if why is not None else CLASSIFICATION.ranking(next(logits), source.card.classes, top)
        found.append((file, ranking, why))
    return found
