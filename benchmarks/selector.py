"""What choosing the child inside the graph costs, on ResNet-18 at 224 pixels: latency and files.

The selector `if` against the separate file of the same child, in turns (bound: 1.02x, upper end of the interval); the
sessions are created anew many times (`interleave_anew`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import arguments, interleave_anew, show, subject, verdict, with_interval, write
from emqdeploy.exporters.selector import SELECTORS
from emqdeploy.exporters.storage import STORAGES
from emqdeploy.format.child import Child, parse_children
from emqdeploy.format.emq import Checkpoint, save_checkpoint
from emqdeploy.format.grid import Floats
from emqdeploy.measuring.statistics import median_ratio, percentiles
from emqdeploy.runtimes.onnx_file import OnnxFileRuntime, OnnxSelectorRuntime

BOUND = 1.02
CHILDREN = parse_children("2,4,8")
THREADS = (1, 2)
BLOCK = 3
SEPARATE, SELECTOR = "separate", "if"


def write_files(checkpoint: Checkpoint, folder: Path) -> tuple[dict[Child, Path], Path]:
    """Writes the separate files and the selector; returns their paths."""
    emq = folder / "model.emq"
    save_checkpoint(emq, checkpoint)
    separate = {child: folder / f"{child.name}.onnx" for child in CHILDREN}
    for child, path in separate.items():
        path.write_bytes(STORAGES["int8"](checkpoint, emq, child).data)
    selector = folder / "selector.onnx"
    selector.write_bytes(SELECTORS[SELECTOR](checkpoint, emq, CHILDREN).data)
    return separate, selector


def open_both(
    separate: dict[Child, Path], selector: Path, threads: int, image: Floats
) -> dict[str, Callable[[], object]]:
    """Opens the separate files as one runtime, and the selector; returns what runs each child of each."""
    networks = {
        SEPARATE: OnnxFileRuntime(separate, threads=threads),
        SELECTOR: OnnxSelectorRuntime(selector, threads=threads),
    }
    return {
        f"{form}, {child}": partial(network.run, image, child)
        for form, network in networks.items()
        for child in CHILDREN
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    options = arguments(__doc__, "selector").parse_args(argv)
    creations, rounds = (2, 1) if options.quick else (15, 3)
    network = subject("resnet18")
    image = network.images(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        separate, selector = write_files(network.checkpoint, Path(folder))
        sizes = {
            SEPARATE: sum(path.stat().st_size for path in separate.values()),
            SELECTOR: selector.stat().st_size,
        }
        for threads in THREADS:
            make = partial(open_both, separate, selector, threads, image)
            samples = interleave_anew(make, creations, rounds, BLOCK)
            for form, bound in ((SEPARATE, None), (SELECTOR, BOUND)):
                for child in CHILDREN:
                    taken = samples[f"{form}, {child}"]
                    ratio = median_ratio(taken, samples[f"{SEPARATE}, {child}"], rounds * BLOCK)
                    rows.append(
                        {
                            "form": form,
                            "child": child.name,
                            "threads": threads,
                            "latency_ms": percentiles(taken),
                            "size_bytes": sizes[form],
                            "ratio_to_separate": ratio,
                            "bound": bound,
                            "holds": None if bound is None else ratio["high"] <= bound,
                        }
                    )
    shown = [
        (
            f"{row['form']}, child {row['child']}, {row['threads']} threads",
            row["latency_ms"]["p50"],
            with_interval(row["ratio_to_separate"]),
            "" if row["bound"] is None else verdict(row["ratio_to_separate"]["high"], row["bound"]),
            f"{row['size_bytes'] / 1e6:.1f} MB",
        )
        for row in rows
    ]
    show("Selector graph, ResNet-18 at 224", ("form", "p50 ms", "ratio to separate [95 %]", "bound", "files"), shown)
    write(options.json, "selector", options.quick, rows)


if __name__ == "__main__":
    main()
