"""The rows of a bench as CSV, for a spreadsheet."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from emqdeploy.files import atomic_write_text


def save_csv(path: Path, result: dict[str, Any]) -> None:
    """Writes one line per row; latencies in milliseconds, sizes in bytes, empty where nothing was measured."""
    latencies = ("p50", "p90", "p95", "p99", "mean", "min", "max", "samples")
    plain = ("label", "kind", "bits", "trained", "runtime", "accuracy", "reference_accuracy", "accuracy_drop")
    costs = ("size_bytes", "rss_bytes", "load_ms", "first_output_ms", "stored_as", "computed_as")
    energies = ("energy_mj_per_inference", "idle_power_w", "power_w", "source", "rail")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [f"latency_ms_{name}" if name != "samples" else name for name in latencies]
    writer.writerow([*plain, *names, "ratio_to_first", *costs, *energies, "disturbed"])
    for row in result["rows"]:
        latency, energy = row["latency_ms"] or {}, row["energy"]
        writer.writerow(
            [
                *(row[key] for key in plain),
                *(latency.get(key) for key in latencies),
                (row["ratio_to_first"] or {}).get("ratio"),
                *(row[key] for key in costs),
                *(energy.get(key) for key in energies),
                "; ".join(row["disturbed"]),
            ]
        )
    atomic_write_text(path, text.getvalue())
