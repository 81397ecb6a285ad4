"""The files that docs/extending.md shows: each is put into its package, found, and used by the command below it."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emqdeploy.cli import main
from emqdeploy.format.bundle import VERIFIED
from emqdeploy.format.emq import load_checkpoint, save_checkpoint
from emqdeploy.graph.reference import IntegerReference
from emqdeploy.measuring import power
from emqdeploy.measuring.energy import ENERGY_SOURCES, Meter, NotMeasured
from emqdeploy.measuring.sysfs import ROOT_VARIABLE, Tree
from emqdeploy.quant.families.base import QUANTIZERS, load_families
from emqdeploy.registry import load_package
from emqdeploy.runtimes import Runtime
from emqdeploy.runtimes.base import RUNTIMES, find_adapter
from emqdeploy.training.methods import METHODS
from emqdeploy.training.scores import SCORES
from emqdeploy.workflows.handlers import TARGETS, find_target

from .conftest import Deployed

PAGE = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()
FILES = {
    path: (code, shlex.split(command))
    for path, code, command in re.findall(
        r"^```python\n# (emqdeploy/\S+)\.py\n(.*?)^```\n\n`emqdeploy (.*?)`", PAGE, re.MULTILINE | re.DOTALL
    )
}
"""By the path on the page, without its ending: the file, and the first command that uses it."""

QUICK = ("--epochs", "1", "--limit", "100", "--batch-size", "16", "--bits", "2", "--json")

Use = Callable[..., dict[str, Any]]


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Use]:
    """Adds a file to its package for one test, and runs the command of the page with further arguments."""
    load_families(), find_target("onnx"), find_adapter("onnxruntime")  # all that there is without the page
    for registry in (SCORES, QUANTIZERS, METHODS, TARGETS, RUNTIMES, ENERGY_SOURCES):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.chdir(tmp_path)
    added: list[str] = []

    def run(path: str, *more: str) -> dict[str, Any]:
        code, command = FILES[path]
        module = path.replace("/", ".")
        package = importlib.import_module(module.rpartition(".")[0])
        (tmp_path / f"{Path(path).name}.py").write_text(code)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
        added.append(module)
        load_package(package.__name__)
        with pytest.raises(SystemExit) as stop:
            main([*command, *more])
        out, err = capsys.readouterr()
        assert not stop.value.code, err
        result: dict[str, Any] = json.loads(out)
        return result

    yield run
    for module in added:
        sys.modules.pop(module, None)


@pytest.fixture
def run_directory(small: Deployed, tmp_path: Path) -> str:
    """A run that holds a small network."""
    (tmp_path / "network").mkdir()
    save_checkpoint(tmp_path / "network" / "model.emq", small.checkpoint)
    return str(tmp_path / "network")


def test_a_score(use: Use, tmp_path: Path) -> None:
    """It chooses the images of a run."""
    use("emqdeploy/training/scores/margin", "--out", "run", "--score-epochs", "1", *QUICK, "--epochs", "2")
    assert load_checkpoint(tmp_path / "run" / "model.emq").card.recipe["method"]["score"] == "margin"


def test_a_quantizer_family(use: Use, tmp_path: Path) -> None:
    """A network trains with it, and what was trained is exported exactly."""
    (path,) = use("emqdeploy/quant/families/minmax", "--out", "run", *QUICK)["checkpoints"]
    network = load_checkpoint(tmp_path / path).network
    assert set(np.unique(network.layers["stage1.0.conv1"].integers(network.children[0]))) == {-1, 0, 1}
    with pytest.raises(SystemExit) as stop:
        main(["export", path])
    assert not stop.value.code


def test_a_method(use: Use, tmp_path: Path) -> None:
    """A network trains by it, with its own option."""
    use("emqdeploy/training/methods/smooth", "--out", "run", *QUICK)
    recipe = load_checkpoint(tmp_path / "run" / "model.emq").card.recipe
    assert (recipe["method"]["name"], recipe["method"]["smoothing"]) == ("smooth", 0.2)


def test_a_target(use: Use, run_directory: str) -> None:
    """Its file is proven and enters the bundle."""
    (artefact,) = use("emqdeploy/workflows/targets/npz", run_directory, "--json")["artefacts"]
    assert (artefact["id"], artefact["status"]) == ("npz-w4", VERIFIED)
    assert artefact["parity"]["codes"] > 0
    assert artefact["parity"]["differing_codes"] == 0


def test_a_runtime(use: Use, run_directory: str, small: Deployed) -> None:
    """It opens a checkpoint, switches, and gives the reference's logits."""
    assert list(use("emqdeploy/runtimes/adapters/exact", run_directory, "--bits", "2", "--json")["accuracy"]) == ["2"]
    checkpoint = small.checkpoint
    with Runtime.from_bundle(run_directory, "exact", bits=[2, 8]) as network:
        network.use(4)
        arrays = checkpoint.network.initializers(network.child)
        expected, _ = IntegerReference(checkpoint.skeleton, arrays).run(small.images)
        assert np.array_equal(network.run(small.images), expected)
        assert network.precision(4)[1].grid_bits == 4


def test_an_energy_source(use: Use, run_directory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bench measures with it, a meter reads it, and where there is nothing to read it says so."""
    (tmp_path / "run/plug").mkdir(parents=True)
    (tmp_path / "run/plug/watts").write_text("7.5\n")
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    monkeypatch.setattr(power, "IDLE_SECONDS", 0.3)
    quick = (
        "--bits",
        "4",
        "--scenario",
        "single",
        "--samples",
        "50",
        "--energy-seconds",
        "0.3",
        "--no-baselines",
        "--json",
    )
    (row,) = use("emqdeploy/measuring/energy/plug", run_directory, *quick)["rows"]
    assert (row["energy"]["source"], row["energy"]["power_w"]) == ("plug", pytest.approx(7.5))
    with Meter(ENERGY_SOURCES["plug"](Tree(tmp_path))) as meter:
        pass
    assert meter.energy().watts == pytest.approx(7.5)
    with pytest.raises(NotMeasured, match="/run/plug/watts"):
        ENERGY_SOURCES["plug"](Tree(tmp_path / "nothing"))


def test_nothing_is_left_behind() -> None:
    """Every file of the page was found on it, and its name is gone again."""
    assert len(FILES) == PAGE.count("```python") == 6
    registries = (SCORES, load_families(), METHODS, TARGETS, RUNTIMES, ENERGY_SOURCES)
    assert not any(Path(path).name in registry for path in FILES for registry in registries)
