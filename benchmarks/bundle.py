"""Bytes on the disk and load times of every form of a bundle.

* All eight children as ``master`` files that share one ``.emq``, the whole directory with its manifest, against one
  int8 ONNX file (bound: 1.1x on ResNet-18). Every file is proven while it is exported, as a user's would be.
* Per form: bytes of a file, time to create a session, and latency against the int8 file, as the export itself measures
  them and writes them into the manifest.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import EVERY, arguments, show, subject, verdict, write
from emqdeploy.exporters.settings import ExportSettings
from emqdeploy.format.bundle import Bundle
from emqdeploy.format.emq import save_checkpoint
from emqdeploy.workflows.export import export

BOUND = 1.1
BOUND_MODEL = "resnet18"
PACKED, SELECTED = "2,4", "2,4,6,8"


def weigh(model: str, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Exports every form of a network with random weights; returns the sizes, and a row per artefact."""
    emq = folder / "model.emq"
    save_checkpoint(emq, subject(model).checkpoint)
    master = folder / "master"
    export(ExportSettings(path=emq, bits=EVERY, storage="master", out=master), print)
    rest = folder / "rest"
    export(ExportSettings(path=emq, bits=PACKED, storage="packed", out=rest), print)
    export(ExportSettings(path=emq, bits=SELECTED, selector="if", out=rest), print)
    held = [artefact for path in (rest, master) for artefact in Bundle.open(path).artefacts]
    rows = [
        {
            "model": model,
            "id": one.id,
            "children": list(one.children),
            "size_bytes": one.size_bytes,
            "stored_as": one.stored_as,
            "computed_as": one.computed_as,
            "cost": one.cost,
        }
        for one in held
    ]
    one_file = next(one.size_bytes for one in held if one.id == "onnx-w8")
    total = sum(path.stat().st_size for path in master.rglob("*"))
    sizes = {"model": model, "bundle_bytes": total, "int8_file_bytes": one_file, "ratio": total / one_file}
    return sizes, rows


def main() -> None:
    """Runs the benchmark."""
    options = arguments(__doc__, "bundle").parse_args()
    models = ["resnet8"] if options.quick else [BOUND_MODEL, "mobilenet_v2", "resnet20"]
    sizes, rows = [], []
    for model in models:
        with tempfile.TemporaryDirectory() as folder:
            whole, parts = weigh(model, Path(folder))
        sizes.append(whole)
        rows += parts
    show(
        "Eight children in one bundle, storage 'master', against one int8 ONNX file",
        ("model", "bundle", "one int8 file", "ratio", "bound"),
        [
            (
                entry["model"],
                f"{entry['bundle_bytes'] / 1e6:.3f} MB",
                f"{entry['int8_file_bytes'] / 1e6:.3f} MB",
                entry["ratio"],
                verdict(entry["ratio"], BOUND) if entry["model"] == BOUND_MODEL else "",
            )
            for entry in sizes
        ],
    )
    show(
        "Forms",
        ("model", "artefact", "size", "stored as", "computed as", "load ms", "int8 load ms", "latency ratio"),
        [
            (
                row["model"],
                row["id"],
                f"{row['size_bytes'] / 1e6:.3f} MB",
                row["stored_as"],
                row["computed_as"],
                row["cost"].get("load_ms", "-"),
                row["cost"].get("load_ms_int8", "-"),
                row["cost"].get("latency_ratio", "-"),
            )
            for row in rows
        ],
    )
    write(options.json, "bundle", options.quick, rows, sizes=sizes)


if __name__ == "__main__":
    main()
