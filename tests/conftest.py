"""What tests share: an environment without data sets, and small networks that are built once."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from emqdeploy.data import Preprocessing, locations
from emqdeploy.format.card import Card, DataSource
from emqdeploy.format.child import Child, parse_children
from emqdeploy.format.emq import Checkpoint
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.deploy import freeze
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.quant.skeleton import export_skeleton

EXPECTED_SKIPS = ("permissions do not bind the superuser", "there is no Python 3.10 here")
"""Reasons for which a test may be skipped where CI runs; any other skip there hides what CI should have run."""

_unexpected: list[str] = []


def _note_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(expected in reason for expected in EXPECTED_SKIPS):
            _unexpected.append(f"{report.nodeid}: {reason}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Notes what was skipped."""
    _note_skip(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Notes modules that were skipped as a whole."""
    _note_skip(report)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a skip that nobody expected is a failure."""
    if os.environ.get("CI") and _unexpected:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says which skips nobody expected."""
    if os.environ.get("CI"):
        for skip in _unexpected:
            terminalreporter.write_line(f"skipped, though CI should run it: {skip}", red=True)


# A busy machine is slow, which is no fault of the code.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

# Two threads on two busy cores wait for one another; these networks are too small to gain from them.
torch.set_num_threads(1)


def _read_operators_once() -> None:
    """Torch reads the source of all its ONNX operators anew for every export, and tests export many networks."""
    with contextlib.suppress(ImportError, AttributeError):
        from torch.onnx._internal._lazy_import import onnxscript_apis

        read = type(onnxscript_apis).__getattr__
        onnxscript_apis.get_torchlib_ops = functools.cache(lambda: read(onnxscript_apis, "get_torchlib_ops")())


_read_operators_once()

ALL_BITS = tuple(range(1, 9))
TRAINED = parse_children("2,4,8")
UNSEEN = parse_children("1,3,5-7")


@pytest.fixture
def no_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the data sets of this machine or reaches for the network."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(locations, "_DEBIAN_DATASETS", tmp_path / "debian")

    def offline(name: str, folder: Path) -> None:
        raise OSError("no network")

    monkeypatch.setattr(locations, "_download", offline)


@dataclass(frozen=True, eq=False)
class Deployed:
    """A network with random weights and settled statistics, and everything that is made from it."""

    spec: NetworkSpec
    network: MultiBitNetwork
    checkpoint: Checkpoint
    images: NDArray[np.float32]


def settled(network: MultiBitNetwork, images: torch.Tensor) -> MultiBitNetwork:
    """Gives a fresh network clips, running statistics, input means, and gains and shifts of both signs."""
    generator = torch.Generator().manual_seed(7)
    for norm in network.norms.values():
        with torch.no_grad():
            norm.weight.copy_(torch.randn(norm.weight.shape, generator=generator) * 0.5 + 0.6)
            norm.bias.copy_(torch.randn(norm.bias.shape, generator=generator) * 0.3)
        norm.momentum = 1.0
    network.initialise_clips(images)
    network.train()
    with torch.no_grad():
        for child in network.trained:
            network.use(child)
            network(images)
    for layer in network.layers.values():
        layer.input_mean.fill_(0.3)
    return network.eval()


def deploy(spec: NetworkSpec, children: Sequence[Child] | None = None) -> Deployed:
    """Builds, settles, freezes and exports a network; None stores every child that it knows."""
    torch.manual_seed(11)
    images = torch.randn(16, *spec.input_shape).clamp(-spec.input_range, spec.input_range)
    network = settled(spec.build(), images)
    frozen = freeze(network, network.known if children is None else children)
    channels = spec.input_shape[0]
    names = {child.name for child in frozen.children}
    card = Card(
        model=spec.model,
        classes=tuple(str(number) for number in range(spec.classes)),
        preprocessing=Preprocessing(*spec.input_shape, (0.5,) * channels, (0.25,) * channels).pixels(),
        data=DataSource("digits"),
        trained=tuple(child.name for child in spec.trained if child.name in names),
        levels=spec.insertion.levels,
        structure=spec.to_dict(),
    )
    checkpoint = Checkpoint(frozen, export_skeleton(network, frozen, spec.input_shape), card)
    return Deployed(spec, network, checkpoint, images.numpy())


@pytest.fixture(scope="session")
def small() -> Deployed:
    """A ResNet-8 for grey images of 8 x 8 pixels, trained at 2, 4 and 8 bits, stored at 1..8."""
    return deploy(NetworkSpec("resnet8", 10, (1, 8, 8), 2.0, TRAINED, UNSEEN))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which `emqdeploy train` has run on a few digits; `train.json` is what it printed."""
    from emqdeploy.cli import main

    home, printed = tmp_path_factory.mktemp("home"), io.StringIO()
    with contextlib.chdir(home), contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main(["train", "--epochs", "2", "--limit", "400", "--json"])
    (home / "train.json").write_text(printed.getvalue())
    return home


@pytest.fixture(scope="session")
def digits(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of that run, in a directory of its own."""
    run = tmp_path_factory.mktemp("digits") / "run"
    shutil.copytree(trained / "runs" / "digits-resnet8-001", run, ignore=shutil.ignore_patterns("bundle"))
    return run / "model.emq"


@pytest.fixture(scope="session")
def float_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float ResNet-8 for the digits, untrained, whose normalizations know these images."""
    from emqdeploy.data import load_dataset
    from emqdeploy.models import create_model

    torch.manual_seed(1)
    digits, model = load_dataset("digits"), create_model("resnet8", 10, 1, 8)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.2)
            module.momentum = None  # the plain mean
    with torch.no_grad():
        model.train()(torch.from_numpy(digits.preprocessing.normalize(digits.train.images[:256])))
    path = tmp_path_factory.mktemp("float") / "digits.pth"
    torch.save(model.state_dict(), path)
    return path
