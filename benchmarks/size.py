"""Bytes: of a file with all eight weight widths, and of what a load of one child really reads.

* The ``.emq`` against the 8-bit weights and the layers that stay in float (bound: 1.05x on ResNet-18).
* Bytes that the kernel counts for this process (``rchar`` of ``/proc/self/io``) during a load of a child of ``b`` bits,
  against what it needs: the header, ``b`` of 8 bit-planes, the layers kept at 8 bits, one set of per-channel numbers
  and the graph (bound: 1.05x). The ratio without the header is shown too; it says how little else there is.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import EVERY, arguments, show, subject, verdict, write
from emqdeploy.format.child import Child
from emqdeploy.format.emq import Checkpoint, load_checkpoint, save_checkpoint

BOUND = 1.05
BOUND_MODEL = "resnet18"

_PER_CHANNEL = {False: 4 + 4 + 1 + 3, True: 4 + 4 + 1}
"""Bytes per output channel: scale, bias and sign of a child, and of switchable layers slope, offset and used bits."""


def kernel_bytes_read(action: Callable[[], Any]) -> tuple[int | None, Any]:
    """Bytes that read calls of this process returned during an action; None where the system does not count them."""
    counter = Path("/proc/self/io")
    if not counter.exists():
        return None, action()

    def count() -> int:
        return int(counter.read_text().split()[1])

    before = count()
    own = count() - before  # reading the counter is counted as well
    start = count()
    result = action()
    return count() - start - own, result


def header_bytes(path: Path) -> int:
    """The length field and the header that it announces."""
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def payload_bytes(checkpoint: Checkpoint, child: Child) -> int:
    """What a uniform child needs beside the header, from the network alone, not from the file."""
    layers = checkpoint.network.layers.values()
    switchable = sum(layer.codes.size for layer in layers if not layer.pinned)
    pinned = sum(layer.codes.size for layer in layers if layer.pinned)
    columns = sum(len(layer.codes) * _PER_CHANNEL[layer.pinned] for layer in layers)
    floats = sum(array.nbytes for array in checkpoint.network.floats.values())
    return -(-switchable // 8) * child.bits + pinned + columns + floats + len(zlib.compress(checkpoint.skeleton, 9))


def weigh(model: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Weighs one network; returns the row of its file and the rows of its loads."""
    checkpoint = subject(model).checkpoint
    weights = checkpoint.network.weight_count()
    floats = sum(array.nbytes for array in checkpoint.network.floats.values())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{model}.emq"
        size = save_checkpoint(path, checkpoint)
        header = header_bytes(path)
        load_checkpoint(path)  # imports that happen on first use must not be counted
        whole = {
            "model": model,
            "file_bytes": size,
            "weights": weights,
            "float_bytes": floats,
            "header_bytes": header,
            "ratio": size / (weights + floats),
            "bound": BOUND if model == BOUND_MODEL else None,
        }
        loads = []
        for child in EVERY:
            read, loaded = kernel_bytes_read(partial(load_checkpoint, path, child))
            payload = payload_bytes(checkpoint, child)
            loads.append(
                {
                    "model": model,
                    "child": child.name,
                    "read_bytes": read,
                    "reader_says_bytes": loaded.bytes_read,
                    "needed_bytes": header + payload,
                    "ratio": (read or loaded.bytes_read) / (header + payload),
                    "ratio_without_header": (read or loaded.bytes_read) / payload,
                    "share_of_file": (read or loaded.bytes_read) / size,
                    "bound": BOUND,
                }
            )
    return whole, loads


def _holds(ratio: float, bound: float | None) -> str:
    return "" if bound is None else verdict(ratio, bound)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = arguments(__doc__, "size")
    parser.add_argument("--models", nargs="+", default=None)
    options = parser.parse_args(argv)
    models = options.models or (["resnet20"] if options.quick else ["resnet18", "resnet20", "mobilenet_v2"])
    files, loads = [], []
    for model in models:
        whole, parts = weigh(model)
        files.append(whole)
        loads += parts
    shown = [
        (*(row[key] for key in ("model", "file_bytes", "weights", "ratio")), _holds(row["ratio"], row["bound"]))
        for row in files
    ]
    show("Files with eight weight widths", ("network", "bytes", "8-bit weights", "ratio", "bound"), shown)
    columns = ("network", "child", "kernel counted", "reader counted", "needed", "ratio", "without header", "of file")
    keys = ("model", "child", "read_bytes", "reader_says_bytes", "needed_bytes", "ratio", "ratio_without_header")
    table = [(*(row[key] for key in (*keys, "share_of_file")), _holds(row["ratio"], BOUND)) for row in loads]
    show("Bytes read for one child", (*columns, "bound"), table)
    write(options.json, "size", options.quick, files + loads)


if __name__ == "__main__":
    main()
