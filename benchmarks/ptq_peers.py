"""A trained network of yours, quantized without training by the tools that others use, and by ours.

All get the same float network, the same calibration images and the same test images (`benchmarks.ptq_tools` has the
settings). A row is one tool at one weight width: accuracy, and agreement with the float network. Every row is written
at once, and ``--resume`` keeps what is there, so that tools that need an environment each can be measured one after the
other (``--only``); one that is not installed is named as not measured.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.brought import add_options, images_of, networks_of, public_name
from benchmarks.common import arguments, earlier, show, with_table, write
from benchmarks.ptq_tools import TOOLS, WIDTHS, Answer, Given, of_module
from emqdeploy.data import Dataset
from emqdeploy.format.child import Child
from emqdeploy.format.grid import Floats
from emqdeploy.format.tasks import CLASSIFICATION
from emqdeploy.graph.fidelity import FLOAT_MODEL, compare
from emqdeploy.options import names
from emqdeploy.training.posttraining.answering import varied
from emqdeploy.training.posttraining.given import calibration_batches

PAGE = Path(__file__).parent.parent / "docs" / "quantize.md"
BATCH = 100

DIGITS = {"accuracy": 2, "snr_db": 1}
"""Of figures that are shown."""


def widths_of(text: str) -> tuple[int, ...]:
    """Widths with commas between."""
    return tuple(int(part) for part in names(text))


def answers(answer: Answer, dataset: Dataset) -> Floats:
    """Logits ``(N, classes)`` of all test images."""
    images = dataset.test.images
    parts = range(0, len(dataset.test), BATCH)
    return np.concatenate([answer(dataset.preprocessing.normalize(images[start : start + BATCH])) for start in parts])


def percent(logits: Floats, dataset: Dataset) -> float:
    """Test images that logits decide rightly."""
    return round(100 * CLASSIFICATION.correct(logits, dataset.test.labels[:]) / len(dataset.test), 4)


def mean(rows: Sequence[Mapping[str, Any]], tool: str, bits: int, key: str) -> str:
    """A figure of a tool at a width, over all seeds; a dash where the tool does not offer that width."""
    found = [row[key] for row in rows if (row["tool"], row["bits"]) == (tool, bits)]
    return f"{np.mean(found):.{DIGITS[key]}f}" if found else "-"


def table(report: Mapping[str, Any]) -> str:
    """What the page shows of a report: every tool at every width."""
    rows = report["rows"]
    versions = {row["tool"]: "" if row["tool"].startswith("ours") else f" {row['version']}" for row in rows}
    lines = ["| | " + " | ".join(f"{bits} bits" for bits in WIDTHS) + " |", "|---" * (len(WIDTHS) + 1) + "|"]
    for tool in TOOLS:
        if tool in versions:
            cells = (f"{mean(rows, tool, bits, 'accuracy')}, {mean(rows, tool, bits, 'snr_db')} dB" for bits in WIDTHS)
            lines.append(f"| {tool}{versions[tool]} | " + " | ".join(cells).replace("-, - dB", "-") + " |")
    return "\n".join(lines) + "\n"


def updated(page: str, report: Mapping[str, Any]) -> str:
    """The page with its table made anew, behind the comment that marks its place."""
    return with_table(page, "peers", table(report))


def measure(
    name: str, given: Given, widths: Sequence[int], dataset: Dataset, wanted: Floats
) -> Iterator[dict[str, Any]]:
    """Quantizes with one tool; gives a row for every width.

    Args:
        name: of the tool.
        given: what it quantizes.
        widths: of weights.
        dataset: its test images measure.
        wanted: what the float network answers on these.
    """
    tool, started = TOOLS[name], time.perf_counter()
    for bits, answer in tool.quantize(given, widths):
        seconds = round(time.perf_counter() - started, 1)
        logits = answers(answer, dataset)
        yield {
            "tool": name, "version": version(tool.package), "settings": tool.settings, "effort": given.effort,
            "bits": bits, "accuracy": percent(logits, dataset), "seconds": seconds,
            **compare(wanted, logits, FLOAT_MODEL).to_dict(),
        }  # fmt: skip
        started = time.perf_counter()


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = arguments(__doc__, "ptq_peers")
    add_options(parser)
    parser.add_argument("--images", type=int, default=512, help="that calibrate")
    parser.add_argument("--test-images", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=1, help="choices of calibration images")
    parser.add_argument("--only", type=names, help=f"tools, with commas between: {', '.join(TOOLS)}")
    parser.add_argument("--bits", type=widths_of, default=WIDTHS, help="weight widths")
    parser.add_argument("--effort", type=float, default=1.0, help="share of the steps that AdaRound recommends")
    parser.add_argument("--resume", action="store_true", help="keep the rows that the report has")
    parser.add_argument("--page", action="store_true", help="write the table into docs/quantize.md as well")
    options = parser.parse_args(argv)
    dataset = images_of(options)
    some = np.arange(min(100 if options.quick else options.test_images, len(dataset.test)))
    dataset = replace(dataset, test=dataset.test.subset(some))
    chosen = options.only or tuple(TOOLS)
    for name in chosen:
        assert TOOLS[name]  # an unknown one is refused before anything is measured
    missing = [name for name in TOOLS if importlib.util.find_spec(TOOLS[name].module) is None]
    network = partial(networks_of, options, dataset)
    wanted = answers(of_module(network([Child.of(WIDTHS[0])])[0]), dataset)
    settings = {"model": public_name(options.model), "data": options.data, "images": options.images}
    settings |= {"test_images": len(some), "float_accuracy": percent(wanted, dataset)}
    rows = earlier(options.json, settings) if options.resume else []
    for seed, name in itertools.product(range(options.seeds), chosen):
        known = {row["bits"] for row in rows if (row["tool"], row["seed"]) == (name, seed)}
        widths = [bits for bits in TOOLS[name].widths if bits in options.bits and bits not in known]
        if widths and name not in missing:
            batches = calibration_batches(dataset, options.images, seed)
            given = Given(network, batches, varied(dataset.augmentation), options.effort)
            for row in measure(name, given, widths, dataset, wanted):
                rows.append({"seed": seed} | row)
                write(options.json, "ptq_peers", options.quick, rows, **settings)
    measured = {row["tool"] for row in rows}
    shown = [
        (tool, *(f"{mean(rows, tool, bits, 'accuracy')} / {mean(rows, tool, bits, 'snr_db')}" for bits in WIDTHS))
        for tool in TOOLS
        if tool in measured
    ]
    show(
        f"{settings['model']} on {options.data}, float {settings['float_accuracy']:.2f} %: accuracy in % / dB to float",
        ("tool", *(f"{bits} bits" for bits in WIDTHS)), shown,
    )  # fmt: skip
    for name in TOOLS:
        if name not in measured:
            absent = f"is not installed; emqdeploy[peers] brings {TOOLS[name].package}"
            print(f"{name} was not measured: it {absent if name in missing else 'was left out'}")
    if options.page:
        PAGE.write_text(updated(PAGE.read_text(), json.loads(options.json.read_text())))


if __name__ == "__main__":
    main()
