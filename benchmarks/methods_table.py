"""The methods of docs/methods.md on CIFAR-10, each beside the plain way at as many passes, as deployed.

ResNet-8, 4,000 training images (a tenth of them validates), eight epochs, activations of 8 bits where the method does
not choose them, optimizer and schedule of the recipe ``emqnet``, and the float network first unless the method has a
course of its own. Rows are independent and kept when they are done, so the table can be finished over several sittings:
run the same command again. The test set of 10,000 images is read once per finished row, by the integer network.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import federated, mixed_precision, noisy_labels, subspaces
from benchmarks.common import RESULTS as KEPT
from benchmarks.paper_report import Hits, Runs, interval, load_rows
from benchmarks.paper_table import RESULTS, row_path, store, train_row
from emqdeploy.files import atomic_write_text
from emqdeploy.format.child import FLOAT_BITS
from emqdeploy.training.api import train
from emqdeploy.training.recipes import resolve

BASE: dict[str, Any] = {
    **{"data": "cifar10", "model": "resnet8", "limit": 4000, "epochs": 8},
    **{"threads": 1, "channels_last": True},
}


@dataclass(frozen=True)
class Section:
    """A table of another script, made from the results that it kept.

    Attributes:
        title: its heading.
        text: what was measured, and what its paper reports.
        lines: of the table.
    """

    title: str
    text: str
    lines: Callable[[], list[str]]


def _rows(name: str) -> list[dict[str, Any]]:
    """Of a file in ``benchmarks/results``."""
    rows: list[dict[str, Any]] = json.loads((KEPT / f"{name}.json").read_text())["rows"]
    return rows


def _mixes(name: str) -> list[str]:
    return mixed_precision.table(_rows(name))


SECTIONS = (
    *(
        Section(
            f"Widths per layer after training: {name}",
            f"`emqdeploy mix` on {about}, quantized with `--reconstruct none`, against the uniform child of the same"
            " size; in brackets points, with bounds of 95 % confidence each (`python -m benchmarks.mixed_precision`)."
            " `gain` is ours, `sorted` the paper's order (arXiv 2302.05397).",
            partial(_mixes, file),
        )
        for name, about, file in (
            ("ResNet-20", "CIFAR-10, 4,000 test images", "mixed_precision"),
            ("ResNet-56", "CIFAR-10, 2,000 test images", "mixed_precision_resnet56"),
            (
                "EfficientNet-Lite0",
                "122 ImageNet photos, by agreement with the float network's decisions",
                "mixed_precision_lite0",
            ),
        )
    ),
    Section(
        "Wrong labels",
        "`--clean ensemble` on the embedded digits, some of whose labels were made wrong, those that validate included;"
        " ResNet-8, three seeds, test accuracy in percent (mean ± half the range), 359 test images"
        " (`python -m benchmarks.noisy_labels`). The paper (arXiv 2207.10354) makes coresets from the labels that it"
        " believes; its figures could not be read.",
        lambda: noisy_labels.table(_rows("noisy_labels")).splitlines(),
    ),
    Section(
        "Coresets from wrong labels",
        "The same with 60 % of the images left out (`--prune-rate 0.6`), by their error (EL2N) or at random.",
        lambda: noisy_labels.coreset_table(_rows("noisy_labels")).splitlines(),
    ),
    Section(
        "Subspaces",
        "`--subspace` on 300 digits, ResNet-8, 1 and 2 bits, 12 epochs, three seeds (`python -m benchmarks.subspaces`)."
        " The paper (arXiv 2102.10472) reports of float networks that the middle is better than a network that was"
        " trained alone, and than averaged weights.",
        lambda: subspaces.table(_rows("subspaces")).splitlines(),
    ),
    Section(
        "Updates of few bits",
        "`--compress`, ResNet-8 on the digits, 4 bits, one seed; bits are those of the messages that one process sent"
        " until the training loss was 0.5 (`python -m benchmarks.federated`). The paper (arXiv 2102.04487) reports"
        " fewer bits to reach an error than with any fixed width.",
        lambda: federated.table(_rows("federated")).splitlines(),
    ),
)


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        values: what differs from the plain way; ``recipe`` names the recipe that it differs from, and `TRAINED` as
            ``pretrained`` trains a float network first, for as many epochs.
        beside: the row that it is compared with; None for the plain way itself.
        method: the method of training.
        claim: what its paper reports.
    """

    values: dict[str, Any] = field(default_factory=dict)
    beside: str | None = None
    method: str = "emqnet"
    claim: str = ""


def _family(name: str, bits: int, beside: str | None, claim: str = "", **more: Any) -> Row:
    return Row({"bits": (bits,), "quantizer": name, **more}, beside, claim=claim)


TRAINED = "trained first"
CPQ_CLAIM = "ResNet-20 on all of CIFAR-10: 7.08 % error at 3 bits, 6.94 % with DropBits"
ROUNDING_CLAIM = "ResNet-18, ImageNet, 8, 4 and 2 bits: 70.7, 70.4 and 66.4 %"
ALRS = ("quantizer=alrs-fixed", "clips=alrs-fixed")
ROUNDING_RECIPE = {"recipe": "double-rounding", "bits": (8, 4, 2), "activation_bits": 8, "pretrained": TRAINED}
LINE_CLAIM = "float: above a network trained alone, and above averaged weights"
COQUANT_CLAIM = "ResNet-18, ImageNet, 8, 6, 4 and 2 bits: 67.9, 67.6, 66.6 and 57.1 %"

ROWS: dict[str, Row] = {
    "tanh, 2 bits": _family("tanh", 2, None),
    "LSQ, 2 bits": _family("lsq", 2, "tanh, 2 bits"),
    "CPQ, 2 bits": _family("cpq", 2, "LSQ, 2 bits", CPQ_CLAIM),
    "CPQ, 2 bits, noise 0.15": _family("cpq", 2, "LSQ, 2 bits", CPQ_CLAIM, cpq_noise=0.15),
    "levels, 2 bits": _family("levels", 2, "tanh, 2 bits", levels_assignment="nearest"),
    "tanh, 2 bits, moving average": _family("tanh", 2, "tanh, 2 bits", ema=0.98),
    "tanh, 2 bits, middle of a line": _family("tanh", 2, "tanh, 2 bits", LINE_CLAIM, subspace="line"),
    "tanh, 2 bits, growing images": _family("tanh", 2, "tanh, 2 bits", resize_from=0.5),
    "tanh, 3 bits": _family("tanh", 3, None),
    "LSQ, 3 bits": _family("lsq", 3, "tanh, 3 bits"),
    "CPQ, 3 bits": _family("cpq", 3, "LSQ, 3 bits", CPQ_CLAIM),
    "tanh, 1 bit": _family("tanh", 1, None),
    "levels, 1 bit": _family("levels", 1, "tanh, 1 bit", levels_assignment="nearest"),
    "DropBits, from 4 bits": Row({"bits": (4,), "quantizer": "cpq"}, "LSQ, 3 bits", "dropbits", CPQ_CLAIM),
    "tanh, 3 bits, activations 3": Row({"bits": ("3a3",)}),
    "tanh, 4 bits, activations 2": Row({"bits": ("4a2",)}),
    "AdaQAT, 3 bits": Row({"bits": (8,), "target_bits": (3.0,)}, "tanh, 3 bits", "adaqat"),
    "EMQNet, 8, 4 and 2 bits": Row({"bits": (8, 4, 2)}),
    "Double Rounding, 8, 4 and 2 bits": Row(
        {"bits": (8, 4, 2), "quantizer": "double-rounding"}, "EMQNet, 8, 4 and 2 bits", claim=ROUNDING_CLAIM
    ),
    "Double Rounding, ALRS": Row(
        {"bits": (8, 4, 2), "quantizer": "double-rounding", "scale_gradient": "authors", "lr_scale": ALRS},
        "Double Rounding, 8, 4 and 2 bits",
        claim=ROUNDING_CLAIM,
    ),
    "EMQNet, from trained weights": Row({"bits": (8, 4, 2), "pretrained": TRAINED, "float_first": 0.0}),
    "Double Rounding's recipe, from trained weights": Row(
        {**ROUNDING_RECIPE, "lr_scale": ALRS}, "EMQNet, from trained weights", claim=ROUNDING_CLAIM
    ),
    "the same without ALRS": Row({**ROUNDING_RECIPE, "lr_scale": ()}, "Double Rounding's recipe, from trained weights"),
    "vertical layers, 8, 4 and 2 bits": Row(
        {
            "bits": (8, 4, 2),
            "quantizer": "vertical",
            "norm": "private",
            "norm_adaptation": "none",
            "step_plan": "joint",
        },
        "EMQNet, 8, 4 and 2 bits",
        claim="ResNet-18, ImageNet, 4, 3 and 2 bits: 69.2, 68.8 and 66.6 %",
    ),
    "HASB, 3 and 4 bits": Row(
        {"bits": (8, 6, 4, 2), "target_bits": (3.0, 4.0), "norm": "transitional"}, "EMQNet, 8, 4 and 2 bits", "hasb"
    ),
    "EMQNet, 8, 2 and 1 bits": Row({"bits": (8, 2, 1)}),
    "CoQuant, 8, 2 and 1 bits": Row({"bits": (8, 2, 1)}, "EMQNet, 8, 2 and 1 bits", "coquant", COQUANT_CLAIM),
    "CoQuant, nothing swapped": Row({"bits": (8, 2, 1), "swap": 0.0}, "EMQNet, 8, 2 and 1 bits", "coquant"),
    "CoQuant, the widest teaches": Row({"bits": (8, 2, 1), "teacher": "top"}, "EMQNet, 8, 2 and 1 bits", "coquant"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the rows that are missing and writes the page."""
    options = table_options(__doc__, list(ROWS), argv)
    values = {name: {**ROWS[name].values, "method": ROWS[name].method} for name in options.rows}
    run_rows(values, options.out / "methods", [] if options.report else options.seeds, options.data_dir)
    runs = load_rows(options.out / "methods", list(ROWS))
    if runs:
        text = page(runs)
        atomic_write_text(options.out / "methods.md", text)
        print(text)


def table_options(about: str | None, rows: list[str], argv: Sequence[str] | None) -> argparse.Namespace:
    """What a table of rows and seeds is asked for."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="where CIFAR-10 lies")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the page goes; rows lie in a folder beside it")
    parser.add_argument("--rows", nargs="*", choices=rows, default=rows, help="only these")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--report", action="store_true", help="train nothing; write the page of what there is")
    return parser.parse_args(argv)


def run_rows(rows: Mapping[str, Mapping[str, Any]], folder: Path, seeds: Sequence[int], data_dir: Path) -> None:
    """Trains the rows that a folder lacks; ``rows`` are what each has beside `BASE`."""
    for seed in seeds:
        for name, values in rows.items():
            path = row_path(folder, name, seed)
            if not path.exists():
                print(f"{name}, seed {seed}", flush=True)
                with tempfile.TemporaryDirectory() as work:
                    store(path, *_trained_row(name, {**values, "seed": seed, "data_dir": data_dir}, Path(work)))


def _trained_row(name: str, values: dict[str, Any], work: Path) -> tuple[dict[str, Any], Hits]:
    recipe, base = values.pop("recipe", None), {**BASE, "seed": values["seed"], "data_dir": values["data_dir"]}
    about = {"row": name, "seed": values["seed"]}
    if values.get("pretrained") == TRAINED:
        start = resolve(None, None, {**base, "bits": (FLOAT_BITS,)})
        train(start, work / "float", console=Console(file=io.StringIO()), report_test=False)
        about["float_first_epochs"], values["pretrained"] = start.epochs, work / "float"
    return train_row(about, resolve(recipe, None, {**base, **values}))


def page(runs: Runs) -> str:
    """The table as Markdown, and those that other scripts made."""
    lines = [
        "# Methods beside the plain way",
        "",
        "Generated by `python -m benchmarks.methods_table`; [methods.md](../methods.md) says what each row is, and what"
        " to make of it.",
        "",
        *(__doc__ or "").split("\n\n", 1)[1].strip().splitlines(),
        "",
        "Accuracy of the deployed network in percent, mean and range over the seeds, by child; bits of a weight and of"
        " an activation where they were learned. The difference is that of the averages over the children that both"
        " rows have, paired by seed, with a 95 % bootstrap over seeds and test images. *Last* is the average on the"
        " validation images after the last epoch: a run from trained weights leaves these, rounded, where no epoch was"
        " better.",
        "",
        "All rows are by a version that took the statistics of normalizations from images without augmentation after"
        " training. Where a row does so at all (not Double Rounding's recipe, not the vertical layers), it would be"
        " better today; see [the dial](../dial.md).",
        "",
        "| row | seeds | accuracy by child | last | passes | difference | beside | the paper |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, entries in runs.items():
        row = ROWS[name]
        passes = f"{entries[0][0]['sample_passes']:,}"
        gained = difference(runs, name, row.beside) if row.beside in runs else ""
        last = f"{np.mean([figures['curves'][-1][-1]['average'] for figures, _ in entries]):.1f}"
        cells = (name, len(entries), _children(entries), last, passes, gained, row.beside or "", row.claim)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    for section in SECTIONS:
        lines += ["", f"## {section.title}", "", section.text, "", *section.lines()]
    return "\n".join(lines) + "\n"


def difference(runs: Runs, first: str, second: str) -> str:
    """Of the averages over the children of both, or over all where they have none in common, in points."""
    left, right = ({one["seed"]: _trained(one, hits) for one, hits in runs[name]} for name in (first, second))
    seeds = sorted(left.keys() & right.keys())
    if not seeds:
        return ""
    gains = []
    for seed in seeds:
        common = left[seed].keys() & right[seed].keys()
        means = [np.mean([side[name] for name in common or side], 0) for side in (left[seed], right[seed])]
        gains.append(means[0] - means[1])
    low, high = interval(np.array(gains))
    return f"{100 * np.mean(gains):+.2f} ({low:+.2f} to {high:+.2f})"


def _trained(figures: Mapping[str, Any], hits: Hits) -> Hits:
    """Without the widths between those that were trained, which come for free with some quantizers only.

    A child whose width was learned may have one that nobody asked for.
    """
    trained = {name: one for name, one in hits.items() if not name.isdigit() or int(name) in figures["trained_bits"]}
    return trained or dict(hits)


def _children(entries: Sequence[tuple[dict[str, Any], Hits]]) -> str:
    """Accuracy of every child over the seeds, under the names that it has there."""
    by_place = zip(*([*_trained(*entry)] for entry in entries), strict=True)
    said = []
    for names in by_place:
        values = [100 * float(hits[name].mean()) for name, (_, hits) in zip(names, entries, strict=True)]
        bits = [figures["mean_bits"][name] for name, (figures, _) in zip(names, entries, strict=True)]
        spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
        learned = "" if names[0].isdigit() else f", {' and '.join(f'{mean:.2f}' for mean in np.mean(bits, 0))} bits"
        said.append(f"{' / '.join(dict.fromkeys(names))}: {np.mean(values):.1f}{spread}{learned}")
    return "; ".join(said)


if __name__ == "__main__":
    main()
