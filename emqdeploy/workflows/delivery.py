"""Delivering a network in parts: splitting and joining files, serving them, and a client that gets better meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emqdeploy.errors import UsageError
from emqdeploy.format import parts
from emqdeploy.format.child import MASTER_BITS
from emqdeploy.format.runs import find_checkpoint
from emqdeploy.progress import Report, silent
from emqdeploy.runtimes.download import Download
from emqdeploy.runtimes.test_images import find_test_set
from emqdeploy.runtimes.use import measured_accuracy
from emqdeploy.serving.planes import PlaneServer

STREAM_S = 8.0
"""How long the line of the demo takes for all parts."""


def read_ends(text: str) -> list[int]:
    """Weight widths as a person writes them, ``2,4``, ascending.

    Raises:
        UsageError: one is no number from 1 to 8, or is there twice.
    """
    words = [word.strip() for word in text.split(",")]
    ends = [int(word) for word in words if word.isdecimal() and 1 <= int(word) <= MASTER_BITS]
    if len(ends) < len(words) or len(set(ends)) < len(ends):
        raise UsageError(f"--at is {text!r}; allowed: weight widths from 1 to {MASTER_BITS}, each once, such as 2,4")
    return sorted(ends)


def split(path: Path | None, at: str, out: Path | None) -> dict[str, Any]:
    """Splits a checkpoint; ``out`` is ``parts`` beside it by default."""
    checkpoint = find_checkpoint(path)
    folder = out or checkpoint.parent / "parts"
    index = parts.split(checkpoint, read_ends(at), folder)
    whole = checkpoint.stat().st_size
    return {"checkpoint": str(checkpoint), "folder": str(folder), "bytes": whole, "parts": _rows(index, whole)}


def join(folder: Path, out: Path, bits: int | None) -> dict[str, Any]:
    """Puts the parts in a folder together again."""
    last = parts.join(folder, out, bits)
    return {"checkpoint": str(out), "bytes": out.stat().st_size, "children": list(last.children)}


def _rows(index: parts.Index, whole: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    sent, known = 0, 0
    for part in index.parts:
        sent += part.size
        rows.append(
            {
                "file": part.file,
                "bits": part.bits,
                "bytes": part.size,
                "sent_bytes": sent,
                "share": sent / whole,
                "children": list(part.children),
                "new": list(part.children[known:]),
            }
        )
        known = len(part.children)
    return rows


@dataclass(frozen=True)
class Moment:
    """What a client of the demo could do once a part had come.

    Attributes:
        seconds: since it asked for the base.
        bytes_read: over the line.
        share: of the bytes of all parts and their list.
        child: the widest that was there.
        accuracy: percent of the test set at that child.
        answered: images that were classified by then.
    """

    seconds: float
    bytes_read: int
    share: float
    child: str
    accuracy: float | None
    answered: int


def stream_demo(out: Path, report: Report = silent, ends: Sequence[int] = (1, 2, 4)) -> dict[str, Any]:
    """Trains on the embedded digits, serves the parts over a slow line, and classifies while they come."""
    from emqdeploy.training.api import train
    from emqdeploy.training.config import TrainConfig

    report("training one network for 1, 2, 4 and 8 bits on the embedded digits")
    checkpoint = train(TrainConfig(), out).checkpoints[0]
    folder = checkpoint.parent / "parts"
    index = parts.split(checkpoint, ends, folder)
    everything = sum(path.stat().st_size for path in folder.iterdir())
    server = PlaneServer(folder, rate=everything / STREAM_S)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    report(f"serving {len(index.parts)} parts at {server.url}, {everything / STREAM_S / 1000:.1f} kB a second")
    try:
        moments = _watch(server.url, everything, report)
    finally:
        server.shutdown()
        server.server_close()
    return {
        "checkpoint": str(checkpoint),
        "folder": str(folder),
        "parts": _rows(index, checkpoint.stat().st_size),
        "moments": [asdict(moment) for moment in moments],
    }


def _watch(url: str, everything: int, report: Report) -> list[Moment]:
    """Classifies the test set over and over while the parts come; notes what each part made possible."""
    began, answered, moments = time.monotonic(), 0, []
    with Download(url, threads=1) as download:
        card = download.network.card
        test = find_test_set(card)
        arrived = 0
        while arrived < len(download.index.parts):
            now, child = download.arrived, download.network.child
            accuracy = measured_accuracy(download.network, test.split, download.network.preprocessing)
            answered += len(test.split)
            if now > arrived and child == download.network.child:
                seconds, count = time.monotonic() - began, download.bytes_read
                moments.append(Moment(seconds, count, count / everything, child.name, accuracy, answered))
                report(f"{seconds:.1f} s: {count / everything:.0%} of the bytes, child {child.name}")
                arrived = now
            if download.error is not None:
                raise download.error
    return moments
