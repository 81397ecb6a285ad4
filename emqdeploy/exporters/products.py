"""What an export works on and what it makes: staged files, which a workflow proves and moves into the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emqdeploy.exporters.settings import ExportSettings
from emqdeploy.format.bundle import CHILD, Role
from emqdeploy.format.child import Child
from emqdeploy.format.emq import Checkpoint
from emqdeploy.progress import Report, silent


@dataclass(frozen=True)
class Job:
    """One export at work.

    Attributes:
        checkpoint: what is exported.
        emq: its file, in the staging directory.
        children: those wanted, in the order that the user named.
        staging: where files are written before they are proven.
        settings: what the user asked for.
        report: receives one line about what is being done.
    """

    checkpoint: Checkpoint
    emq: Path
    children: Sequence[Child]
    staging: Path
    settings: ExportSettings
    report: Report = silent

    @property
    def model(self) -> str:
        """The network's name, fit for a file."""
        return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in self.checkpoint.card.model)

    def stage(self, name: str, data: bytes) -> Path:
        """Writes a file below the staging directory."""
        path = self.staging / name
        path.write_bytes(data)
        return path


@dataclass(frozen=True)
class Product:
    """A staged file, not yet proven.

    Attributes:
        id: of the artefact that it becomes.
        children: those that it serves, ascending; none of a baseline.
        target: as in the manifest.
        flavour: as in the manifest.
        path: the staged file.
        place: its place in the bundle.
        stored_as: type of the weights, by layer.
        role: as in the manifest.
        companions: staged files that it needs, by their place in the bundle.
        shared: files of the bundle that it needs.
        built_for: where it may be loaded.
        stand_in: the ONNX form that is proven in its place where the file itself cannot run here.
    """

    id: str
    children: tuple[Child, ...]
    target: str
    flavour: str
    path: Path
    place: str
    stored_as: dict[str, str]
    role: Role = CHILD
    companions: dict[str, Path] = field(default_factory=dict)
    shared: tuple[str, ...] = ()
    built_for: dict[str, Any] = field(default_factory=dict)
    stand_in: Path | None = None


def tag(child: Child) -> str:
    """The child in the name of a file or an artefact: ``w4`` of child 4, ``w2a4`` of 2a4, else its name."""
    # Of a child that is called w4 it is ww4, so that no two children have one.
    return f"w{child.name}" if child.name.lstrip("w")[:1].isdigit() else child.name
