"""Pictures of training: accuracy per child over sample passes and over time, from the metrics of runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from emqdeploy.errors import EmqError, UsageError, require, writable_dir
from emqdeploy.files import atomic_path
from emqdeploy.format.child import MASTER_BITS, in_words
from emqdeploy.report.colours import of_bits

METRICS_FILE = "metrics.jsonl"
SUFFIXES = (".png", ".svg")
LINE_STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P")


def plot_runs(paths: list[Path], out: Path | None = None) -> dict[str, Any]:
    """Draws validation accuracy per child, the curves of several runs over one another.

    Args:
        paths: run directories.
        out: path of the pictures without suffix; ``accuracy`` in the run directory by default, in the working directory
            where there are several runs.

    Returns:
        ``files`` written, and per run the last accuracy by child.

    Raises:
        UsageError: a path holds no metrics, or none yet with an accuracy.
        EmqError: matplotlib is missing, or a picture cannot be written.
    """
    runs = {path: read_curves(path) for path in paths}
    stem = out or (paths[0] / "accuracy" if len(paths) == 1 else Path("accuracy"))
    stem = stem.with_suffix("") if stem.suffix in SUFFIXES else stem
    figure = _draw(dict(zip(_labels(paths), runs.values(), strict=True)))
    writable_dir(stem.parent)
    files = [stem.with_name(stem.name + suffix) for suffix in SUFFIXES]
    for file in files:
        with atomic_path(file) as temporary:
            figure.savefig(temporary, dpi=150)
    last = {str(path): {child: points[-1]["accuracy"] for child, points in run.items()} for path, run in runs.items()}
    return {"files": [str(file) for file in files], "accuracy": last}


def read_curves(run: Path) -> dict[str, list[dict[str, float]]]:
    """Returns per child the points ``passes``, ``minutes``, ``accuracy`` of a run that validated at least once.

    Networks that were trained one by one lie in folders of their own, ``RUN/w1``, ``RUN/w2``, ...; their curves stand
    side by side.
    """
    files = [file for file in (run / METRICS_FILE, *sorted(run.glob(f"*/{METRICS_FILE}"))) if file.is_file()]
    if not files:
        raise UsageError(f"{run} holds no {METRICS_FILE}; name the directory of a run, such as runs/digits-resnet8-001")
    curves: dict[str, list[dict[str, float]]] = {}
    for file in files:
        for record in _records(file):
            for child, accuracy in record["validation_accuracy"].items():
                point = {"passes": record["sample_passes"], "minutes": record["seconds"] / 60, "accuracy": accuracy}
                curves.setdefault(child, []).append(point)
    if not curves:
        raise UsageError(f"{files[0]} holds no accuracy yet; plot again after the first validation")
    return {child: curves[child] for child in sorted(curves, key=_order)}


def _order(child: str) -> tuple[int, int, str]:
    """Sorts names as children are sorted: by weight width, then activation width; names without widths last."""
    found = re.fullmatch(r"(\d+)(?:a(\d+))?", child)
    return (99, 0, child) if found is None else (int(found[1]), int(found[2] or MASTER_BITS), child)


def _records(file: Path) -> list[dict[str, Any]]:
    lines = file.read_text().splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            _ = record["validation_accuracy"].items(), record["sample_passes"] + record["seconds"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):
                break  # a run that is writing just now
            raise EmqError(f"line {number} of {file} is damaged; remove that line") from error
        records.append(record)
    return records


def _labels(paths: list[Path]) -> list[str]:
    """The shortest names that tell runs apart."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _time_unit(longest: float) -> tuple[str, float]:
    """The unit in which ``longest`` minutes are easy to read, and the minutes in it."""
    if longest < 3:
        return "seconds", 1 / 60
    return ("minutes", 1) if longest < 180 else ("hours", 60)


def _draw(runs: dict[str, dict[str, list[dict[str, float]]]]) -> Any:
    require("matplotlib", "plot")
    from matplotlib.figure import Figure  # without pyplot: no window, whatever the machine has
    from matplotlib.lines import Line2D

    children = sorted({child for run in runs.values() for child in run}, key=_order)
    colour = {child: of_bits(_order(child)[0]) for child in children}
    looks: list[dict[str, Any]] = [
        {"linestyle": LINE_STYLES[index % 4], "marker": MARKERS[index % 6], "markersize": 3.5}
        for index in range(len(runs))
    ]
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    unit, minutes = _time_unit(
        max(point["minutes"] for run in runs.values() for curve in run.values() for point in curve)
    )
    for axis, key, divisor, label in zip(
        axes, ("passes", "minutes"), (1, minutes), ("sample passes", unit), strict=True
    ):
        for look, run in zip(looks, runs.values(), strict=True):
            for child, points in run.items():
                x, y = [point[key] / divisor for point in points], [point["accuracy"] for point in points]
                axis.plot(x, y, color=colour[child], linewidth=1.4, **look)
        axis.set_xlabel(label)
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
    axes[0].set_ylabel("validation accuracy, %")
    handles = [Line2D([], [], color=colour[child], label=in_words(child)) for child in children]
    if len(runs) > 1:
        handles += [Line2D([], [], color="grey", label=name, **look) for look, name in zip(looks, runs, strict=True)]
    else:
        figure.suptitle(next(iter(runs)), fontsize=11)
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    return figure
