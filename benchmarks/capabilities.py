"""The capability table: what each target stores and computes at each child, read from files that it really built.

Nothing in the table is written by hand: every cell comes from the manifest of an export that ran here, or is the reason
why it did not. Run it again after an upgrade of a runtime; it writes `docs/capabilities.md`.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from emqdeploy.errors import EmqError
from emqdeploy.exporters.settings import ExportSettings
from emqdeploy.format.bundle import SELECTOR, Bundle
from emqdeploy.format.child import Child
from emqdeploy.training.api import train
from emqdeploy.training.config import TrainConfig
from emqdeploy.workflows.export import export

PAGE = Path(__file__).parent.parent / "docs" / "capabilities.md"


@dataclass(frozen=True)
class Form:
    """One way to export."""

    name: str
    package: str
    options: dict[str, Any]


FORMS = (
    Form("onnx, int8", "onnxruntime", {}),
    Form("onnx, packed", "onnxruntime", {"storage": "packed"}),
    Form("onnx, master", "onnxruntime", {"storage": "master"}),
    Form("onnx, selector if", "onnxruntime", {"selector": "if"}),
    Form("openvino", "openvino", {"target": "openvino"}),
    Form("tensorrt-onnx", "onnxruntime", {"target": "tensorrt-onnx"}),
    Form("tensorrt-rtx", "tensorrt-rtx", {"target": "tensorrt-rtx", "compute_capabilities": ("8.6",)}),
    Form("tensorrt", "tensorrt", {"target": "tensorrt"}),
)

HEADER = """# What each target stores and computes

This page shows what each export target writes to disk and what its runtime computes with.
`python -m benchmarks.capabilities` makes it from files of a ResNet-8 trained on the digits. All were really built, and
those marked `verified` also ran.

- **grid bits**: the levels of the weights, which decide the accuracy.
- **stored as**: the type on disk. The first and last layers stay at 8 bits and are int8 in every form; the table names
  the others.
- **computed as**: read from the kernels that ran.

"""


def rows_of(form: Form, emq: Path, folder: Path) -> list[list[str]]:
    """Exports a form at every child and returns its rows, equal neighbours joined."""
    try:
        export(ExportSettings(path=emq, bits="all", out=folder, **form.options), print)
    except EmqError as error:
        return [[form.name, "1..8", "not built here", str(error), "-", "-"]]
    asked = form.options.get("target", "onnx")
    bundle = Bundle.open(folder)
    artefacts = [one for one in bundle.artefacts if (one.role == SELECTOR) == ("selector" in form.options)]
    found: list[list[Any]] = []
    for artefact in artefacts:
        name = form.name if artefact.target == asked else f"{form.name} (here: {artefact.target})"
        stored = "as many bit-planes of the .emq" if "bit-plane" in artefact.stored_as else artefact.stored_as
        cells = [name, stored, artefact.computed_as, artefact.status]
        own = [name for name in artefact.shared if name != bundle.checkpoint]
        size = artefact.size_bytes + sum(bundle.files[name].size_bytes for name in own)
        if found and found[-1][0] == cells:
            found[-1][1] += bundle.children_of(artefact)
            found[-1][2].append(size)
        else:
            found.append([cells, bundle.children_of(artefact), [size]])
    return [[cells[0], _span(children), *cells[1:], _kilobytes(sizes)] for cells, children, sizes in found]


def _span(children: tuple[Child, ...]) -> str:
    bits = [child.bits for child in children]
    return str(bits[0]) if len(bits) == 1 else f"{min(bits)}..{max(bits)}"


def _kilobytes(sizes: list[int]) -> str:
    low, high = (f"{size / 1e3:.0f}" for size in (min(sizes), max(sizes)))
    return f"{low} kB" if low == high else f"{low} to {high} kB"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def main() -> None:
    """Builds everything and writes the page."""
    parser = argparse.ArgumentParser(description="Writes docs/capabilities.md from real builds.")
    parser.add_argument("--quick", action="store_true", help="one epoch of training: shows that it runs")
    parser.add_argument("--out", type=Path, default=PAGE, help="where to write")
    parser.add_argument("--checkpoint", type=Path, help="an .emq of the default training, instead of training one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        emq = options.checkpoint
        if emq is None:
            config = TrainConfig(epochs=1) if options.quick else TrainConfig()
            emq = train(config, Path(folder) / "run").checkpoints[0]
        rows = [row for index, form in enumerate(FORMS) for row in rows_of(form, emq, Path(folder) / str(index))]
    columns = ("target", "grid bits", "stored as", "computed as", "status", "a file")
    lines = [columns, ("---",) * len(columns), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    packages = dict.fromkeys(form.package for form in FORMS)
    versions = ", ".join(f"{package} {_version(package)}" for package in packages)
    options.out.write_text(f"{HEADER}Versions: {versions}.\n\n{table}\n")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
