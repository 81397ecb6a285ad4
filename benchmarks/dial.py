"""The dial of weights and activations on CIFAR-10: what each child costs in accuracy, and gains in time.

ResNet-8, 4,000 training images (a tenth of them validates), eight epochs, the defaults of ``train``: all children
trained together. The test set of 10,000 images is read once per row, by the integer network. Rows are kept when they
are done, and `docs/dial.md` is written when all are. Beside them it shows what this script measured when statistics of
normalizations still came from images without augmentation: the same set, the set without activations of two bits, and
each child alone, with as many passes as it has among the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS as KEPT
from benchmarks.common import pyplot_for, with_table
from benchmarks.methods_table import difference, run_rows, table_options
from benchmarks.paper_report import Hits, Runs, interval, load_rows
from benchmarks.paper_table import RESULTS
from emqdeploy.files import atomic_write_text
from emqdeploy.format.child import parse_children
from emqdeploy.report.colours import of_bits

USUAL, DIAL, TWO = ("8", "4", "2", "1"), ("4a4", "2a4", "1a4"), ("2a2", "1a2")
CHILDREN = (*USUAL, *DIAL, *TWO)
NOW = "now"
ROWS: dict[str, dict[str, Any]] = {NOW: {"bits": CHILDREN}}
EARLIER = ("dial and two-bit activations", "dial")
"""Sets that the version before trained, as it did every child alone: they are read, never trained under these names."""

TOGETHER = (NOW, *EARLIER)

PAGE = Path(__file__).parent.parent / "docs" / "dial.md"

GOALS = {"4a4": 0.3, "2a4": 1.0, "1a4": 2.0, "2a2": 3.0, "1a2": 5.0}
"""Points below W8A8 that a child may lose."""

PROCESSORS = {"avx512vbmi": "AVX-512 VBMI", "avx512vnni": "AVX-512 VNNI", "avx2": "AVX2 alone"}
"""Instruction sets whose times are shown, as the kernels call them."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the rows that are missing, and writes the table and the picture of the page."""
    options = table_options(__doc__, list(ROWS), argv)
    rows = {name: ROWS[name] for name in options.rows}
    run_rows(rows, options.out / "dial", [] if options.report else options.seeds, options.data_dir)
    runs = load_rows(options.out / "dial", [*TOGETHER, *CHILDREN])
    if runs:
        timed = json.loads((KEPT / "native.json").read_text())["rows"]
        print(table(runs, timed))
        if NOW in runs:
            print(f"{NOW} against {EARLIER[0]}, points: {difference(runs, NOW, EARLIER[0])}")
        if options.out == RESULTS and len(runs.get(NOW, ())) == len(options.seeds):
            atomic_write_text(PAGE, with_table(PAGE.read_text(), "dial", table(runs, timed)))
            draw(runs, timed, PAGE.with_suffix(".svg"))


def table(runs: Runs, timed: Sequence[Mapping[str, Any]]) -> str:
    """What each child costs and gains, as Markdown."""
    heads = ["child", "goal"]
    for name in TOGETHER:
        heads += [name, "below `8`"] if name in runs else []
    heads += ["alone", *(f"times as fast, {shown}" for shown in PROCESSORS.values())]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for child in CHILDREN:
        cells = [f"`{child}`", f"{GOALS[child]:g}" if child in GOALS else ""]
        for name in TOGETHER:
            if name in runs:
                entries = [hits for _, hits in runs[name]]
                cells += [_mean(entries, child), _below(entries, child)]
        cells.append(_mean([hits for _, hits in runs.get(child, [])], child))
        cells += [_speed(timed, child, instructions) for instructions in PROCESSORS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(runs: Runs, timed: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Accuracy of the children of `NOW` over the time of an inference, one panel for each processor that gains."""
    pyplot = pyplot_for("dial")
    entries = [hits for _, hits in runs[NOW]]
    figure, panels = pyplot.subplots(1, 2, figsize=(9, 4), sharey=True)
    for axis, instructions in zip(panels, ("avx512vbmi", "avx2"), strict=True):
        for child in CHILDREN:
            time_percent = 100 / _ratio(timed, child, instructions)
            seeds = [100 * float(hits[child].mean()) for hits in entries]
            color = of_bits(parse_children(child)[0].activations.default)
            axis.errorbar(time_percent, np.mean(seeds), np.ptp(seeds) / 2, fmt="o", capsize=3, color=color)
            axis.annotate(child, (time_percent, np.mean(seeds)), textcoords="offset points", xytext=(6, 5), fontsize=8)
        axis.set(title=PROCESSORS[instructions], xlabel="time of an inference, % of 8 bits", xlim=(0, 115))
        axis.grid(alpha=0.3)
    panels[0].set(ylabel="test accuracy, %")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _mean(entries: Sequence[Hits], child: str) -> str:
    found = [100 * float(hits[child].mean()) for hits in entries if child in hits]
    return f"{np.mean(found):.1f}" if found else ""


def _below(entries: Sequence[Hits], child: str) -> str:
    """Points that a child loses against the widest one of its network."""
    if child == "8" or not all(child in hits for hits in entries):
        return ""
    losses = np.array([hits["8"].astype(float) - hits[child] for hits in entries])
    low, high = interval(losses)
    return f"{100 * losses.mean():.2f} ({low:.2f} to {high:.2f})"


def _ratio(timed: Sequence[Mapping[str, Any]], child: str, instructions: str) -> float:
    wanted = {"model": "resnet18", "host": "alone", "threads": 1, "child": child, "instructions": instructions}
    return float(next(one for one in timed if wanted.items() <= one.items())["own_ratio"]["ratio"])


def _speed(timed: Sequence[Mapping[str, Any]], child: str, instructions: str) -> str:
    return f"{_ratio(timed, child, instructions):.2f}x"


if __name__ == "__main__":
    main()
