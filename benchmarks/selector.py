"""What choosing the bit-width inside the graph costs, on ResNet-18 at 224 pixels: latency, memory, file, switch.

The selector `if` against the separate file of the same bit-width, in turns (bound: 1.02x, upper end of the interval);
`derive`, the small one, beside it. Sessions are created anew many times, see `benchmarks/latency.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Samples, arguments, interleave, ratio_interval, show, subject, summary, verdict, write
from emqdeploy.checkpoint import save_checkpoint
from emqdeploy.export.selector import SELECTORS
from emqdeploy.export.storage import STORAGES
from emqdeploy.runtimes.base import Runtime
from emqdeploy.runtimes.onnx_file import OnnxFileRuntime, OnnxSelectorRuntime

BOUND = 1.02
WIDTHS = (2, 4, 8)
THREADS = (1, 2)


def write_files(checkpoint: Any, folder: Path) -> dict[str, dict[int, Path] | Path]:
    """Writes the separate files and both selectors; returns their paths."""
    emq = folder / "model.emq"
    save_checkpoint(emq, checkpoint)
    files: dict[str, dict[int, Path] | Path] = {}
    separate = {}
    for width in WIDTHS:
        separate[width] = folder / f"w{width}.onnx"
        separate[width].write_bytes(STORAGES["int8"](checkpoint, emq, width).data)
    files["separate"] = separate
    for name in SELECTORS:
        path = folder / f"{name}.onnx"
        path.write_bytes(SELECTORS[name](checkpoint, emq, WIDTHS).data)
        files[name] = path
    return files


def open_all(files: dict[str, dict[int, Path] | Path], threads: int) -> dict[str, Runtime]:
    """Opens the separate files as one runtime, and each selector."""
    return {
        name: OnnxSelectorRuntime(path, threads=threads)
        if isinstance(path, Path)
        else OnnxFileRuntime(path, threads=threads)
        for name, path in files.items()
    }


def time_group(
    files: dict[str, dict[int, Path] | Path], threads: int, image: Any, creations: int, rounds: int
) -> dict[tuple[str, int], Samples]:
    """Milliseconds by form and bit-width, ``(creations, calls)``."""
    parts: dict[tuple[str, int], list[Samples]] = {}
    for _ in range(creations):
        networks = open_all(files, threads)
        calls: dict[str, Callable[[], object]] = {}
        for name, network in networks.items():
            for width in WIDTHS:
                calls[f"{name} {width}"] = lambda network=network, width=width: network.run(image, width)  # type: ignore[misc]
        for key, samples in interleave(calls, rounds, 3).items():
            name, _, width_text = key.partition(" ")
            parts.setdefault((name, int(width_text)), []).append(samples.reshape(1, -1))
        for network in networks.values():
            network.close()
    return {key: np.concatenate(rows) for key, rows in parts.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    options = arguments(__doc__, "selector").parse_args(argv)
    creations, rounds = (2, 1) if options.quick else (15, 3)
    network = subject("resnet18")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(network.checkpoint, Path(folder))
        sizes = {
            name: path.stat().st_size if isinstance(path, Path) else sum(file.stat().st_size for file in path.values())
            for name, path in files.items()
        }
        for threads in THREADS:
            samples = time_group(files, threads, network.images(1), creations, rounds)
            for (name, width), times in samples.items():
                ratio = ratio_interval(times, samples["separate", width])
                bound = BOUND if name == "if" else None
                rows.append(
                    {
                        "form": name,
                        "bits": width,
                        "threads": threads,
                        **summary(times),
                        "size_bytes": sizes[name],
                        "ratio_to_separate": ratio.to_dict(),
                        "shown": str(ratio),
                        "bound": bound,
                        "holds": None if bound is None else ratio.high <= bound,
                    }
                )
    shown = [
        (
            f"{row['form']}, {row['bits']} bit, {row['threads']} threads",
            row["p50_ms"],
            row["shown"],
            "" if row["bound"] is None else verdict(row["ratio_to_separate"]["high"], row["bound"]),
            f"{row['size_bytes'] / 1e6:.1f} MB",
        )
        for row in rows
    ]
    show("Selector graphs, ResNet-18 at 224", ("form", "p50 ms", "ratio to separate [95 %]", "bound", "files"), shown)
    write(options.json, "selector", options.quick, rows)


if __name__ == "__main__":
    main()
