"""What a search for mixed children found, as tables and as a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

from emqdeploy.errors import require, writable_dir
from emqdeploy.files import atomic_path
from emqdeploy.format.card import MOST_DECIBELS
from emqdeploy.format.child import Widths
from emqdeploy.report.colours import of_bits
from emqdeploy.report.curves import SUFFIXES
from emqdeploy.report.fitting import table
from emqdeploy.report.terminal import fidelity_cells
from emqdeploy.report.units import MISSING, percent

MIXED, UNIFORM = "mixed", "uniform"


def mix_parts(result: dict[str, Any]) -> list[Table | str]:
    """The front, the layers, and the children that were made."""
    return [_front(result), _layers(result), _children(result), *result["notes"], *_next(result)]


def _share(result: dict[str, Any], kind: str, row: dict[str, Any]) -> str:
    cost = row["costs"][kind]
    return MISSING if cost is None else f"{100 * cost / result['whole'][kind]:.1f}"


def _front(result: dict[str, Any]) -> Table:
    """Mixes and uniform children, the cheapest first."""
    kinds = result["kinds"]
    shown = table(
        f"The front: {kinds[0]} in percent of child {result['start']}", f"{kinds[0]} %", "", "bits",
        *(f"{kind} %" for kind in kinds[1:]), "signal to noise", "same class", keys=3,
        caption=f"to child {result['start']}, on up to 256 test images; * made for a budget",
    )  # fmt: skip
    rows = [(row, MIXED) for row in result["front"]] + [(row, UNIFORM) for row in result["uniform"]]
    rows += [(row, f"{row['name']} *") for row in result["children"] if row["verdict"] is not None]
    for row, what in sorted(rows, key=lambda one: one[0]["costs"][kinds[0]] or 0):
        shown.add_row(
            _share(result, kinds[0], row),
            what,
            _range(row["weights"]),
            *(_share(result, kind, row) for kind in kinds[1:]),
            *fidelity_cells(row),
        )
    return shown


def _range(weights: Any) -> str:
    found = Widths.read(weights).all
    return f"{min(found)} to {max(found)}" if max(found) > min(found) else str(found[0])


def _layers(result: dict[str, Any]) -> Table:
    """What each layer loses, alone, at every width, and what it weighs."""
    kind = result["kinds"][0]
    widths = sorted({bits for layer in result["layers"] for bits in layer["shown"]})
    made = [row["name"] for row in result["children"] if row["verdict"] is not None]
    shown = table(
        f"What each layer would lose and save, alone at fewer bits: {result['shown']}", "layer",
        *(f"{bits}-bit" for bits in widths), f"{kind} saved at {widths[0]}, %", *made,
        caption=f"on {result['images']} training images; the columns on the right: bits in the children that were made",
    )  # fmt: skip
    for layer in result["layers"]:
        cells = [layer["shown"].get(bits, MISSING) for bits in widths]
        saved = max(layer["saves"][kind].values(), default=0.0)
        share = f"{100 * saved / result['whole'][kind]:.1f}"
        shown.add_row(layer["name"], *cells, share, *(str(layer["bits"][name]) for name in made))
    return shown


def _children(result: dict[str, Any]) -> Table:
    """Every budget and its child."""
    labelled = result["labelled"]
    words = ("accuracy", "lost") if labelled else ("decided otherwise",)
    shown = table(
        f"{result['checkpoint'] or 'nothing written'}: {len(result['children'])} budgets,"
        f" {result['seconds']:.0f} s of search, nothing trained",
        "child", "budget", "cost", *words,
        caption=f"lost: against child {result['start']}"
        + (f" ({percent(result['start_accuracy'])})" if labelled else "")
        + f", bounds of 95 % confidence each, {result['test_images']} test images",
    )  # fmt: skip
    for row in result["children"]:
        cells = [row["name"], row["budget"], row["cost_shown"]]
        one = row["verdict"]
        bounds = MISSING if one is None else f"{one['least']:.1f} to {one['most']:.1f}"
        cells += [percent(row["accuracy"]), bounds] if labelled else [bounds]
        shown.add_row(*cells)
    return shown


def _next(result: dict[str, Any]) -> list[str]:
    made = [row["name"] for row in result["children"] if row["verdict"] is not None]
    files = [f"wrote {file}" for file in result.get("files", ())]
    if not made:
        return files
    return [*files, f"next: emqdeploy export {result['checkpoint']} --bits {made[0]} --target onnx"]


def draw_front(result: dict[str, Any], stem: Path, shown: Callable[[str, float], str]) -> list[str]:
    """Draws signal to noise over cost, mixed beside uniform children, as PNG and SVG; returns the files.

    Args:
        result: of `emqdeploy.workflows.mixing.mix.mix`.
        stem: path of the pictures without suffix.
        shown: a cost of a kind for people.

    Raises:
        EmqError: matplotlib is missing, or a picture cannot be written.
    """
    require("matplotlib", "plot")
    from matplotlib.figure import Figure  # without pyplot: no window, whatever the machine has

    kind = result["kinds"][0]
    stem = stem.with_suffix("") if stem.suffix in SUFFIXES else stem
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axis = figure.subplots()
    made = [row for row in result["children"] if row["verdict"] is not None]
    looks: list[tuple[list[dict[str, Any]], str, dict[str, Any]]] = [
        ([*result["front"], *made], MIXED, {"color": of_bits(8), "marker": "o"}),
        (result["uniform"], UNIFORM, {"color": of_bits(2), "marker": "s", "linestyle": "--"}),
    ]
    for rows, label, look in looks:
        known = sorted((row["costs"][kind], row["snr_db"]) for row in rows if row["costs"][kind] is not None)
        known = [(cost, decibels) for cost, decibels in known if decibels < MOST_DECIBELS]  # not what is equal
        axis.plot(*zip(*known, strict=True), label=label, linewidth=1.4, markersize=4, **look)
    for row in made:
        axis.annotate(row["name"], (row["costs"][kind], row["snr_db"]), xytext=(6, -10), textcoords="offset points",
                      fontsize=8)  # fmt: skip
    axis.xaxis.set_major_formatter(lambda value, _: shown(kind, value))
    axis.set_xlabel(kind)
    axis.set_ylabel(f"signal to noise to child {result['start']}, dB")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    writable_dir(stem.parent)
    files = [stem.with_name(stem.name + suffix) for suffix in SUFFIXES]
    for file in files:
        with atomic_path(file) as temporary:
            figure.savefig(temporary, dpi=150)
    return [str(file) for file in files]
