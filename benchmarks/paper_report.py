"""The paper's table as Markdown, JSON and plots, from rows that `benchmarks.paper_table` finished."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emqdeploy.files import atomic_write_text

TRAINED, UNSEEN = ("1", "2", "4", "8"), ("3", "5", "6", "7")
BASELINE = "Any-Precision"
COMPARISONS = (
    ("EMQNet 0.8 el2n", BASELINE),
    ("EMQNet 0.8 el2n", "control of 0.8"),
    ("EMQNet 0.8 el2n, drawn anew", BASELINE),
    ("EMQNet 0.8 el2n, drawn anew", "control of 0.8"),
    ("EMQNet 0.8 tdds", "control of 0.8"),
    ("EMQNet 0.6 el2n", "control of 0.6"),
    ("EMQNet 0.6 tdds", "control of 0.6"),
    ("EMQNet 0.8 el2n", f"{BASELINE}, E/4"),
    ("EMQNet 0", BASELINE),
)
DRAWS = 2000

Hits = dict[str, NDArray[np.bool_]]
Runs = dict[str, list[tuple[dict[str, Any], Hits]]]


def write_report(out: Path, order: list[str], quick: bool) -> None:
    """Writes ``paper_table.md``, ``paper_table.json`` and ``paper_table.{png,svg}`` beside the rows."""
    runs = _load(out / "rows", order)
    if not runs:
        print("no row is finished yet")
        return
    compared = [compare(runs, *names) for names in COMPARISONS if all(name in runs for name in names)]
    reached = time_to_accuracy(runs)
    table = [_summary(name, entries, runs) for name, entries in runs.items()]
    text = _markdown(table, compared, reached, [name for name in order if name not in runs], runs, quick)
    atomic_write_text(out / "paper_table.md", text)
    values = {"quick": quick, "rows": table, "comparisons": compared, "time_to_accuracy": reached}
    atomic_write_text(out / "paper_table.json", json.dumps(values, indent=1) + "\n")
    _plot(runs, out)
    print(text)


def _load(folder: Path, order: list[str]) -> Runs:
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
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(DRAWS):
        images = random.integers(gains.shape[1], size=gains.shape[1])
        drawn.append(100 * gains[random.integers(len(seeds), size=len(seeds))][:, images].mean())
    low, high = np.quantile(drawn, [0.025, 0.975])
    lowest = 100 * float(np.mean([left[s]["1"].mean() - right[s]["1"].mean() for s in seeds]))
    return {
        **{"first": first, "second": second, "seeds": seeds, "points": round(100 * float(gains.mean()), 3)},
        **{"interval": [round(float(low), 3), round(float(high), 3)], "points_at_1_bit": round(lowest, 3)},
    }


def time_to_accuracy(runs: Runs) -> dict[str, Any] | None:
    """Cost at which each row's validation average reaches that of the baseline's last epoch, in passes and seconds."""
    if BASELINE not in runs:
        return None
    goal = float(np.mean([figures["curves"][0][-1]["average"] for figures, _ in runs[BASELINE]]))
    reached = {}
    for name, entries in runs.items():
        points = []
        for figures, _ in entries:
            over = [point for point in figures["curves"][0] if point["average"] >= goal]
            if over and len(figures["curves"]) == 1:
                points.append((over[0]["sample_passes"], over[0]["seconds"]))
        if points and len(points) == len(entries):
            passes, seconds = np.mean(points, axis=0)
            reached[name] = {"sample_passes": round(float(passes)), "seconds": round(float(seconds), 1)}
    return {"goal": round(goal, 3), "reached": reached}


def _summary(name: str, entries: list[tuple[dict[str, Any], Hits]], runs: Runs) -> dict[str, Any]:
    widths = list(entries[0][1])
    per_seed = {bits: [100 * float(hits[bits].mean()) for _, hits in entries] for bits in widths}
    averages = [average(hits) for _, hits in entries]
    passes, seconds = (float(np.mean([figures[key] for figures, _ in entries])) for key in ("sample_passes", "seconds"))
    base = runs.get(BASELINE)
    speedups = {}
    for key, mine in (("sample_passes", passes), ("seconds", seconds)):
        whole = None if base is None else float(np.mean([figures[key] for figures, _ in base]))
        speedups[key] = None if whole is None else round(whole / mine, 2)
    return {
        "row": name,
        "seeds": [figures["seed"] for figures, _ in entries],
        "accuracy": {bits: [round(float(np.mean(v)), 2), round(float(np.ptp(v)), 2)] for bits, v in per_seed.items()},
        "average": [round(float(np.mean(averages)), 2), round(float(np.ptp(averages)), 2)],
        "sample_passes": round(passes),
        "seconds": round(seconds, 1),
        "load_average": max(max(figures["load_average"]) for figures, _ in entries),
        "speed_up": speedups,
    }


def _markdown(
    table: list[dict[str, Any]],
    compared: list[dict[str, Any]],
    reached: dict[str, Any] | None,
    missing: list[str],
    runs: Runs,
    quick: bool,
) -> str:
    first = next(iter(runs.values()))[0][0]
    config, cpu = first["config"], first["machine"]["cpu"]
    lines = [
        "# EMQNet, its baselines, and the control",
        "",
        f"Fashion-MNIST, {config['limit']} training images (a fixed tenth validates), 10,000 test images read once"
        f" per row; {config['model']}, 8-bit activations, one thread of {cpu}. Accuracy of the deployed network in"
        " percent, mean over seeds (± half the range); *unseen* widths in italics. Any-Precision: joint steps, private"
        " norms, recursive distillation, nested codes without correction, one calibration epoch per unseen width.",
        "",
        "Passes: images that went forward and backward, per child. Speed-ups are against the whole Any-Precision"
        " schedule, calibration included. Seconds are wall time; where the load column is above 1, other work ran on"
        " the machine and only passes should be compared.",
        "",
    ]
    if quick:
        lines += ["**A quick check of the harness; the figures mean nothing.**", ""]
    widths = [str(bits) for bits in range(1, 9)]
    heads = [f"*{bits}*" if bits in UNSEEN else bits for bits in widths]
    columns = ["row", "seeds", *heads, "average", "passes", "seconds", "load", "fewer passes", "less time"]
    lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in table:
        values = row["accuracy"].get("32")
        cells = [_cell(row["accuracy"].get(bits)) for bits in widths]
        mean = _cell(row["average"]) if values is None else f"float {_cell(values)}"
        ratios = [f"{row['speed_up'][key]}x" if row["speed_up"][key] else "" for key in ("sample_passes", "seconds")]
        cost = [f"{row['sample_passes']:,}", f"{row['seconds']:.0f}", f"{row['load_average']:.1f}"]
        lines.append("| " + " | ".join([row["row"], str(len(row["seeds"])), *cells, mean, *cost, *ratios]) + " |")
    lines += ["", "## Differences", "", "Paired by seed; 95 % bootstrap over seeds and test images.", ""]
    lines += ["| first | against | points | interval | at 1 bit | seeds |", "|---|---|---|---|---|---|"]
    for entry in compared:
        low, high = entry["interval"]
        numbers = f"{entry['points']:+.2f} | {low:+.2f} to {high:+.2f} | {entry['points_at_1_bit']:+.2f}"
        lines.append(f"| {entry['first']} | {entry['second']} | {numbers} | {len(entry['seeds'])} |")
    if reached is not None:
        lines += ["", "## Cost of reaching Any-Precision's final validation average", ""]
        lines += [f"Goal: {reached['goal']:.2f} %.", "", "| row | passes | seconds |", "|---|---|---|"]
        for name, cost in reached["reached"].items():
            lines.append(f"| {name} | {cost['sample_passes']:,} | {cost['seconds']:.0f} |")
    if missing:
        lines += ["", f"Not finished yet: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def _cell(value: list[float] | None) -> str:
    if value is None:
        return ""
    return f"{value[0]:.2f}" + (f" ± {value[1] / 2:.2f}" if value[1] else "")


def _plot(runs: Runs, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 5))
    for name, entries in runs.items():
        if "32" in entries[0][1]:
            continue
        x = float(np.mean([figures["sample_passes"] for figures, _ in entries]))
        y = [average(hits) for _, hits in entries]
        axis.errorbar(x, np.mean(y), yerr=np.ptp(y) / 2, fmt="o", capsize=3)
        axis.annotate(name, (x, float(np.mean(y))), textcoords="offset points", xytext=(5, 3), fontsize=7)
    axis.set(xscale="log", xlabel="sample passes", ylabel="test accuracy, average over bit-widths (%)")
    axis.grid(alpha=0.3)
    figure.tight_layout()
    for suffix in ("png", "svg"):
        figure.savefig(out / f"paper_table.{suffix}", dpi=120)
    pyplot.close(figure)
