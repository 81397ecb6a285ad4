"""The paper's table as Markdown, JSON and plots, from rows that `benchmarks.paper_table` finished."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import pyplot_for
from emqdeploy.files import atomic_write_text

UNSEEN = ("3", "5", "6", "7")
BASELINE = "Any-Precision"
TUNED = f"{BASELINE} tuned"
NEAR = 0.2
"""Points within which a shorter schedule of the baseline counts as converged."""

COMPARISONS = (
    ("EMQNet 0.8 el2n", BASELINE),
    ("EMQNet 0.8 el2n, drawn anew", BASELINE),
    ("EMQNet 0.8 el2n, rotating, drawn anew", BASELINE),
    ("EMQNet 0.8 tdds", BASELINE),
    ("EMQNet 0.6 el2n", BASELINE),
    ("EMQNet 0.6 tdds", BASELINE),
    ("control of 0.8", BASELINE),
    ("control of 0.6", BASELINE),
    ("EMQNet 0", BASELINE),
    ("EMQNet now", BASELINE),
    ("EMQNet now, E/8", BASELINE),
    ("EMQNet now, E/8", "EMQNet now, not float first, E/8"),
    ("EMQNet now, E/8", f"{TUNED}, E/8"),
    ("EMQNet now, E/8", f"{TUNED}, E/4"),
    ("EMQNet 0.8 el2n", f"{BASELINE}, E/4"),
    ("EMQNet 0.8 el2n", "control of 0.8"),
    ("EMQNet 0.8 el2n, drawn anew", "control of 0.8"),
    ("EMQNet 0.8 el2n, rotating, drawn anew", "control of 0.8"),
    ("EMQNet 0.8 tdds", "control of 0.8"),
    ("EMQNet 0.6 el2n", "control of 0.6"),
    ("EMQNet 0.6 tdds", "control of 0.6"),
    ("EMQNet 0", "dedicated"),
)
DRAWS = 2000

Hits = dict[str, NDArray[np.bool_]]
Runs = dict[str, list[tuple[dict[str, Any], Hits]]]


@dataclass(frozen=True)
class Group:
    """A part of the table.

    Attributes:
        title: its heading.
        text: what its rows have in common.
        reference: the row that each of them is compared with, at the seeds they share.
    """

    title: str
    text: str
    reference: str | None = None


MAIN = Group("Methods", "Three seeds each, or as many as the last column says until all are done.")
CHOICES = Group(
    "Ways of choosing the images",
    "Prune rate 0.8, all epochs; one seed each, so a direction, not a claim.",
    "EMQNet 0.8 el2n",
)
ABLATIONS = Group(
    "What the parts are worth",
    "All images, as many passes as prune rate 0.8 makes (the last row more); one seed each.",
    "control of 0.8",
)


def write_report(out: Path, title: str, groups: dict[str, Group], quick: bool) -> None:
    """Writes ``paper_table.md``, ``paper_table.json`` and ``paper_table.{png,svg}`` beside the rows."""
    runs = load_rows(out / "rows", list(groups))
    if not runs:
        print("no row is finished yet")
        return
    compared = [compare(runs, *names) for names in COMPARISONS if all(name in runs for name in names)]
    reached = time_to_accuracy(runs)
    table = [_summary(name, entries, runs, groups[name]) for name, entries in runs.items()]
    text = _markdown(title, table, compared, reached, groups, runs, quick)
    atomic_write_text(out / "paper_table.md", text)
    values = {"quick": quick, "rows": table, "comparisons": compared, "time_to_accuracy": reached}
    atomic_write_text(out / "paper_table.json", json.dumps(values, indent=1) + "\n")
    _plot(runs, groups, out)
    print(text)


def load_rows(folder: Path, order: list[str]) -> Runs:
    """Finished rows of a folder, seed by seed."""
    found: Runs = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        figures = json.loads(path.read_text())
        with np.load(path.with_suffix(".npz")) as packed:
            hits = {bits: np.unpackbits(packed[bits]).astype(bool) for bits in packed.files}
        found[figures["row"]].append((figures, hits))
    for entries in found.values():
        entries.sort(key=lambda entry: entry[0]["seed"])
    return {name: found[name] for name in order if name in found}


def average(hits: Hits, images: NDArray[np.int64] | slice = slice(None)) -> float:
    """Percent correct, averaged over all stored bit-widths."""
    return 100 * float(np.mean([right[images].mean() for right in hits.values()]))


def compare(runs: Runs, first: str, second: str) -> dict[str, Any]:
    """Difference of the averages in points, paired by seed, with a 95 % bootstrap over seeds and images."""
    left, right = ({figures["seed"]: hits for figures, hits in runs[name]} for name in (first, second))
    seeds = sorted(left.keys() & right.keys())
    bits = [width for width in left[seeds[0]] if width in right[seeds[0]]]
    # Per seed and image, how many bit-widths the first gets right more than the second.
    gains = np.array([np.mean([left[s][b].astype(float) - right[s][b] for b in bits], axis=0) for s in seeds])
    lowest = 100 * float(np.mean([left[s]["1"].mean() - right[s]["1"].mean() for s in seeds]))
    return {
        **{"first": first, "second": second, "seeds": seeds, "points": round(100 * float(gains.mean()), 3)},
        **{"interval": interval(gains), "points_at_1_bit": round(lowest, 3)},
    }


def interval(gains: NDArray[np.float64]) -> list[float]:
    """95 % bootstrap of the mean of gains ``(seeds, images)``, in points."""
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(DRAWS):
        images = random.integers(gains.shape[1], size=gains.shape[1])
        drawn.append(100 * gains[random.integers(len(gains), size=len(gains))][:, images].mean())
    return [round(float(end), 3) for end in np.quantile(drawn, [0.025, 0.975])]


def time_to_accuracy(runs: Runs) -> dict[str, Any] | None:
    """What it costs to reach the baseline's final validation average.

    The baseline's own cost is that of its shortest schedule within `NEAR` points of its best, calibration included. A
    row counts where the mean of its seeds ends at the goal or above, with all that it took: the rate of learning falls
    to 0 over a schedule, so a point on the way is no run that one could have stopped there.
    """
    if BASELINE not in runs:
        return None
    final = {
        name: float(np.mean([figures["curves"][0][-1]["average"] for figures, _ in entries]))
        for name, entries in runs.items()
        if all(len(figures["curves"]) == 1 and figures["trained_bits"] != [32] for figures, _ in entries)
    }
    schedules = {name: value for name, value in final.items() if name.split(",")[0] == BASELINE and _spread(runs, name)}
    converged = [name for name, value in schedules.items() if value >= max(schedules.values()) - NEAR]
    base = min(converged, key=lambda name: _mean(runs, name, "sample_passes"))
    rows = {
        name: {
            **{"validation": round(value, 2), "reaches": value >= final[BASELINE]},
            **{key: round(_mean(runs, name, key), 1) for key in ("sample_passes", "seconds")},
            **{f"less_{key}": _less(runs, base, name, key) for key in _COSTS},
        }
        for name, value in final.items()
        if _spread(runs, name)
    }
    return {"goal": round(final[BASELINE], 3), "baseline": base, "rows": rows}


_COSTS = ("sample_passes", "seconds")


def _mean(runs: Runs, name: str, key: str) -> float:
    return float(np.mean([figures[key] for figures, _ in runs[name]]))


def _less(runs: Runs, base: str, name: str, key: str) -> float | None:
    """How many times less a row took, over the seeds that both have.

    None for seconds of different processors, which say nothing of one another.
    """
    pair = [{figures["seed"]: figures for figures, _ in runs[row]} for row in (base, name)]
    shared = pair[0].keys() & pair[1].keys()
    processors = {figures[seed]["machine"]["cpu"] for figures in pair for seed in shared}
    if not shared or (key == "seconds" and len(processors) > 1):
        return None
    more, less = (sum(figures[seed][key] for seed in shared) for figures in pair)
    return round(more / less, 2)


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


def _spread(runs: Runs, name: str) -> bool:
    return int(runs[name][0][0]["seeds"]) > 1


def _summary(name: str, entries: list[tuple[dict[str, Any], Hits]], runs: Runs, group: Group) -> dict[str, Any]:
    widths = list(entries[0][1])
    per_seed = {bits: [100 * float(hits[bits].mean()) for _, hits in entries] for bits in widths}
    averages = [average(hits) for _, hits in entries]
    costs = {key: _mean(runs, name, key) for key in _COSTS}
    against = group.reference if group.reference in runs and "32" not in widths else None
    return {
        "row": name,
        "group": group.title,
        "seeds": [figures["seed"] for figures, _ in entries],
        "accuracy": {bits: [round(float(np.mean(v)), 2), round(float(np.ptp(v)), 2)] for bits, v in per_seed.items()},
        "average": [round(float(np.mean(averages)), 2), round(float(np.ptp(averages)), 2)],
        "sample_passes": round(costs["sample_passes"]),
        "seconds": round(costs["seconds"], 1),
        "load_average": max(max(figures["load_average"]) for figures, _ in entries),
        "speed_up": {k: _less(runs, BASELINE, name, k) if BASELINE in runs else None for k in _COSTS},
        "difference": None if against is None else compare(runs, name, against),
    }


def _markdown(
    title: str,
    table: list[dict[str, Any]],
    compared: list[dict[str, Any]],
    reached: dict[str, Any] | None,
    groups: dict[str, Group],
    runs: Runs,
    quick: bool,
) -> str:
    first = next(iter(runs.values()))[0][0]
    config, cpu = first["config"], first["machine"]["cpu"]
    lines = [
        "# EMQNet, its baselines, and the control",
        "",
        f"{title}, {config['limit']} training images (a fixed tenth validates), 10,000 test images read once"
        f" per row; {config['model']}, 8-bit activations, E = {config['epochs']} epochs, one thread of {cpu}. Accuracy"
        " of the deployed network in percent, mean over seeds (± half the range); *unseen* widths in italics."
        " Any-Precision: joint steps, private norms, recursive distillation, nested codes without correction, one"
        " calibration epoch per unseen width. *Control of 0.8*: no pruning and fewer epochs, as many passes.",
        "",
        "Passes: images that went forward and backward, per child. *Fewer passes* and *less time* are against the whole"
        " Any-Precision schedule, calibration included. Seconds are wall time of training; a load of 2 means that two"
        " rows ran side by side, each on its own core, and above that other work disturbed them."
        f"{_elsewhere(runs, cpu)}",
        "",
    ]
    if quick:
        lines += ["**A quick check of the harness; the figures mean nothing.**", ""]
    for group in dict.fromkeys(groups[name] for name in runs):
        lines += _group_table(group, [row for row in table if groups[row["row"]] == group])
    lines += ["## Differences", "", "Paired by seed; 95 % bootstrap over seeds and test images.", ""]
    lines += ["| first | against | points | interval | at 1 bit | seeds |", "|---|---|---|---|---|---|"]
    for entry in compared:
        low, high = entry["interval"]
        numbers = f"{entry['points']:+.2f} | {low:+.2f} to {high:+.2f} | {entry['points_at_1_bit']:+.2f}"
        lines.append(f"| {entry['first']} | {entry['second']} | {numbers} | {len(entry['seeds'])} |")
    if reached is not None:
        lines += ["", "## Time to accuracy", "", _time_text(reached), ""]
        lines += ["| row | validation average | reaches it | passes | seconds | fewer passes | less time |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for name, row in sorted(reached["rows"].items(), key=lambda item: item[1]["sample_passes"]):
            cost = f"{row['sample_passes']:,.0f} | {row['seconds']:.0f}"
            ratios = f"{_times(row['less_sample_passes'])} | {_times(row['less_seconds'])}"
            lines.append(
                f"| {name} | {row['validation']:.2f} | {'yes' if row['reaches'] else 'no'} | {cost} | {ratios} |"
            )
    missing = [name for name in groups if name not in runs]
    if missing:
        lines += ["", f"Not finished yet: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def _elsewhere(runs: Runs, cpu: str) -> str:
    """Which rows another processor trained; their accuracy compares, their seconds do not."""
    others: dict[str, list[str]] = defaultdict(list)
    for name, entries in runs.items():
        for other in sorted({figures["machine"]["cpu"] for figures, _ in entries} - {cpu}):
            others[other].append(f"*{name}*")
    said = (
        f" {' and '.join(names)} ran on {other}, so their seconds compare with no others."
        for other, names in others.items()
    )
    return "".join(said)


def _group_table(group: Group, table: list[dict[str, Any]]) -> list[str]:
    text = group.text
    if group.reference is not None:
        text += (
            f" *Against*: points of the average over `{group.reference}` with the same seed, 95 % interval over images."
        )
    widths = [str(bits) for bits in range(1, 9)]
    heads = [f"*{bits}*" if bits in UNSEEN else bits for bits in widths]
    last = "seeds" if group.reference is None else "against"
    columns = ["row", *heads, "average", "passes", "seconds", "load", "fewer passes", "less time", last]
    lines = [f"## {group.title}", "", text, "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in table:
        values = row["accuracy"].get("32")
        cells = [_cell(row["accuracy"].get(bits)) for bits in widths]
        mean = _cell(row["average"]) if values is None else f"float {_cell(values)}"
        ratios = [f"{row['speed_up'][key]}x" if row["speed_up"][key] else "" for key in _COSTS]
        cost = [f"{row['sample_passes']:,}", f"{row['seconds']:.0f}", f"{row['load_average']:.1f}"]
        end = str(len(row["seeds"])) if group.reference is None else _difference(row["difference"])
        lines.append("| " + " | ".join([row["row"], *cells, mean, *cost, *ratios, end]) + " |")
    return [*lines, ""]


def _difference(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return ""
    low, high = entry["interval"]
    return f"{entry['points']:+.2f} ({low:+.2f} to {high:+.2f})"


def _time_text(reached: dict[str, Any]) -> str:
    return (
        f"Goal: Any-Precision's final average over the trained widths on the validation images, {reached['goal']:.2f} %"
        f" (mean of the seeds). The time that counts for Any-Precision is that of `{reached['baseline']}`, its shortest"
        f" schedule within {NEAR} points of its best. Each row with everything that it took to its end."
    )


def _cell(value: list[float] | None) -> str:
    if value is None:
        return ""
    return f"{value[0]:.2f}" + (f" ± {value[1] / 2:.2f}" if value[1] else "")


def _plot(runs: Runs, groups: dict[str, Group], out: Path) -> None:
    pyplot = pyplot_for("paper_table")
    figure, axis = pyplot.subplots(figsize=(8, 5))
    families = {
        TUNED: "tab:orange",
        BASELINE: "tab:red",
        "EMQNet now": "tab:purple",
        "EMQNet 0.8": "tab:blue",
        "EMQNet 0.6": "tab:cyan",
        "dedicated": "gray",
    }
    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    shown = [name for name, entries in runs.items() if "32" not in entries[0][1] and groups[name] == MAIN]
    for index, name in enumerate(sorted(shown, key=lambda name: _mean(runs, name, "sample_passes"))):
        entries = runs[name]
        x = _mean(runs, name, "sample_passes")
        y = [average(hits) for _, hits in entries]
        family = next((known for known in families if name.startswith(known)), "all images")
        color = families.get(family, "tab:green")
        lines[family].append((x, float(np.mean(y))))
        axis.errorbar(x, np.mean(y), yerr=np.ptp(y) / 2, fmt="o", capsize=3, color=color)
        axis.annotate(
            name,
            (x, float(np.mean(y))),
            textcoords="offset points",
            xytext=(7, (-3, 9, -15, 21)[index % 4]),
            fontsize=7,
        )
    for family in (BASELINE, TUNED, "EMQNet now", "all images"):
        axis.plot(*zip(*sorted(lines[family]), strict=True), color=families.get(family, "tab:green"), alpha=0.4)
    axis.margins(x=0.15)
    axis.set(xscale="log", xlabel="sample passes", ylabel="test accuracy, average over bits 1 to 8 (%)")
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(out / "paper_table.png", dpi=120)
    figure.savefig(out / "paper_table.svg", metadata={"Date": None})
    pyplot.close(figure)
