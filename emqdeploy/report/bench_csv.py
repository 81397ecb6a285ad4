"""The rows of a bench as CSV, for a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from emqdeploy.files import atomic_write_text
from emqdeploy.format.precision import FLOAT32, INT8
from emqdeploy.measuring.rows import rows_of

_FORMULA = ("=", "+", "-", "@")


def save_csv(path: Path, result: dict[str, Any]) -> None:
    """Writes one line per row; latencies in milliseconds, sizes in bytes, empty where nothing was measured."""
    latencies = ("p50", "p90", "p95", "p99", "mean", "min", "max", "samples")
    head = ("label", "kind", "child")
    plain = ("bits", "trained", "runtime", "accuracy", "reference_accuracy", "accuracy_drop")
    costs = ("size_bytes", "rss_bytes", "load_ms", "first_output_ms", "stored_as", "computed_as")
    energies = ("energy_mj_per_inference", "idle_power_w", "power_w", "source", "rail")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ratios = ("ratio_to_first", *(f"times_as_fast_as_{name}" for name in (INT8, FLOAT32)))
    names = [f"latency_ms_{name}" if name != "samples" else name for name in latencies]
    writer.writerow([*head, "weights", "activations", *plain, *names, *ratios, *costs, *energies, "disturbed"])
    for row in rows_of(result):
        writer.writerow(
            _plain(cell)
            for cell in (
                *(getattr(row, key) for key in head),
                *(
                    value if isinstance(value, int | None) else json.dumps(value)
                    for value in (row.weights, row.activations)
                ),
                *(getattr(row, key) for key in plain),
                *(getattr(row.latency_ms, key, None) for key in latencies),
                *(
                    getattr(ratio, "ratio", None)
                    for ratio in (row.ratio_to_first, *map(row.times_as_fast.get, (INT8, FLOAT32)))
                ),
                *(getattr(row, key) for key in costs),
                *(getattr(row.energy, key) for key in energies),
                "; ".join(row.disturbed),
            )
        )
    atomic_write_text(path, text.getvalue())


def _plain(cell: Any) -> Any:
    """Text that a spreadsheet takes for text: what a file calls a child must not become a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
