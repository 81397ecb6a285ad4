"""The demo: everything once, on the embedded digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emqdeploy.exporters.settings import ExportSettings
from emqdeploy.format.bundle import BASELINE
from emqdeploy.measuring.bench import bench
from emqdeploy.measuring.settings import BenchSettings
from emqdeploy.progress import Report, silent
from emqdeploy.workflows.export import export

DEMO_BITS = "8,4,2"


def demo(out: Path, report: Report = silent) -> dict[str, Any]:
    """Trains on the embedded digits, exports, verifies and benches 8, 4 and 2 bits."""
    from emqdeploy.training.api import train
    from emqdeploy.training.config import TrainConfig

    report("training one network for 1, 2, 4 and 8 bits on the embedded digits")
    result = train(TrainConfig(), out)
    checkpoint = result.checkpoints[0]
    exported = export(ExportSettings(path=checkpoint, bits=DEMO_BITS), report)
    measured = bench(BenchSettings(path=str(checkpoint), bits=DEMO_BITS, energy="none"), report)
    files = {artefact["children"][0]: artefact for artefact in exported["artefacts"]}
    rows, references = [], []
    for row in measured["rows"]:
        if row["kind"] == BASELINE:
            references.append(row)
            continue
        artefact = files[row["child"]]
        proven = {key: artefact[key] for key in ("parity", "stored_as")}
        rows.append({**row, **proven, "artefact_bytes": artefact["size_bytes"]})
    return {
        "checkpoint": str(checkpoint),
        "seconds": result.seconds,
        "sample_passes": result.sample_passes,
        "accuracy": {child.name: percent for child, percent in result.accuracy.items()},
        "rows": rows,
        "references": references,
        "notes": measured["notes"],
        "bench": measured["scenarios"],
        "environment": measured["environment"],
    }
