"""Several processes compute what one process computes that normalizes the same parts of each batch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from emqdeploy.cli import main
from emqdeploy.training.distributed import PartStatistics, World

TRAIN = ["train", "--limit", "300", "--bits", "1,4", "--batch-size", "32", "--threads", "1", "--seed", "3"]
WINDOWS = sys.platform == "win32"


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
EMQDEPLOY = ["-m", "emqdeploy"]
PATIENCE_S = 600
"""How long a process may take on the busiest machine; nothing here depends on how long it does."""


def command(processes: int, *options: str, program: Sequence[str] = EMQDEPLOY) -> list[str]:
    """The training command line, with one process or two."""
    return [sys.executable, *(TORCHRUN if processes == 2 else []), *program, *TRAIN, *options]


def finish(call: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs a command that succeeds."""
    done = subprocess.run(call, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return done


def train(processes: int, *options: str) -> subprocess.CompletedProcess[str]:
    """Trains to the end."""
    return finish(command(processes, *options))


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Float weights and shared statistics at the end of a run."""
    return safetensors.torch.load_file(run / "latent.safetensors")


def assert_same_end(one: Path, two: Path) -> None:
    """Both runs ended with the same weights, bit for bit."""
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


# --- parts --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 70))
def test_parts_cover_a_batch(size: int, multiple: int, images: int) -> None:
    """Every image is in one part that counts, weights add up to one, and no process is without a part."""
    indices = np.random.default_rng(0).permutation(1000)[:images]
    everyone = [World(rank, size).parts(indices, size * multiple) for rank in range(size)]
    assert all(everyone)
    counted = [part for parts in everyone for part in parts if part.share > 0]
    np.testing.assert_array_equal(np.concatenate([part.indices for part in counted]), indices)
    assert sum(part.share for part in counted) == pytest.approx(1)
    assert sum(part.statistics for parts in everyone for part in parts) == pytest.approx(1)
    assert min(len(part.indices) for parts in everyone for part in parts) >= min(2, images)
    alone = World().parts(indices, size * multiple)
    assert [part.number for part in alone] == [part.number for part in counted]


def test_statistics_of_parts_are_averaged() -> None:
    """Running statistics after parts are the mean of what each part alone would have left."""
    norm = nn.BatchNorm2d(3)
    images = torch.randn(8, 3, 4, 4)
    expected = []
    for part in images.split(4):
        alone = nn.BatchNorm2d(3)
        alone(part)
        expected.append(alone.running_var)
    statistics = PartStatistics(norm)
    statistics.begin()
    for part in images.split(4):
        norm(part)
        statistics.end_part(0.5)
    statistics.finish()
    torch.testing.assert_close(norm.running_var, (expected[0] + expected[1]) / 2)


POOLED = """
import sys, torch, torch.distributed as dist
from emqdeploy.format.child import Child
from emqdeploy.quant.norms import quantize_norm
from emqdeploy.training.distributed import SharedMoments

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
images = torch.load(sys.argv[3])
child = Child.of(2)
norm = quantize_norm(torch.nn.BatchNorm2d(3), "shared-affine", (child,), (child,), "conv", ()).train()
norm.use(child)
part = images[:5].requires_grad_() if rank == 0 else images[5:].requires_grad_()
with SharedMoments([norm]).active(True):
    output = norm(part)
    output.pow(3).sum().backward()
values = {"output": output.detach(), "gradient": part.grad, "mean": norm.child_mean[0], "var": norm.child_var[0]}
torch.save(values | {"gain": norm.weight.grad}, sys.argv[4])
dist.barrier()  # a process that leaves first takes the other one's connection with it
dist.destroy_process_group()
"""


@pytest.mark.skipif(WINDOWS, reason="gloo")
def test_processes_normalize_a_batch_together(tmp_path: Path) -> None:
    """Two processes with 5 and 3 images answer, learn and track like one that has all 8."""
    images = torch.randn(8, 3, 4, 4) * torch.tensor([1.0, 3.0, 0.1]).view(3, 1, 1) + 2
    torch.save(images, tmp_path / "images")
    (tmp_path / "pooled.py").write_text(POOLED)
    paths = [str(tmp_path / name) for name in ("store", "images")]
    calls = [[sys.executable, str(tmp_path / "pooled.py"), str(r), *paths, str(tmp_path / f"{r}")] for r in (0, 1)]
    running = [subprocess.Popen(call, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}) for call in calls]
    assert [process.wait(timeout=PATIENCE_S) for process in running] == [0, 0]
    first, second = (torch.load(tmp_path / str(rank)) for rank in (0, 1))

    norm = nn.BatchNorm2d(3)
    images.requires_grad_()
    output = norm(images)
    output.pow(3).sum().backward()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    torch.testing.assert_close(torch.cat([first["output"], second["output"]]), output.detach())
    torch.testing.assert_close(torch.cat([first["gradient"], second["gradient"]]), images.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(first["gain"] + second["gain"], norm.weight.grad, rtol=1e-3, atol=1e-3)
    for part in (first, second):
        torch.testing.assert_close(part["mean"], norm.running_mean)
        torch.testing.assert_close(part["var"], norm.running_var)


@pytest.mark.slow
@pytest.mark.skipif(WINDOWS, reason="torchrun with gloo")
def test_two_processes_train_with_common_normalization(tmp_path: Path) -> None:
    """It trains to the end, also through a last batch too small for two parts, and is not what ghost batches give."""
    options = ["--epochs", "2", "--batch-size", "89", "--out"]
    train(2, "--sync-norm", *options, str(tmp_path / "together"))
    train(2, *options, str(tmp_path / "apart"))
    together, apart = weights(tmp_path / "together"), weights(tmp_path / "apart")
    assert all(torch.isfinite(tensor.float()).all() for tensor in together.values())
    assert any(not torch.allclose(together[name], apart[name], atol=1e-3) for name in together)


# --- real processes -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(WINDOWS, reason="torchrun with gloo")
def test_two_processes_train_the_network_of_one(tmp_path: Path) -> None:
    """Coresets, their scores, statistics, gradients: the same network comes out, and one process prints and writes."""
    options = ["--epochs", "2", "--prune-rate", "0.5", "--distill", "cached", "--json", "--out"]
    two = train(2, *options, str(tmp_path / "two"))
    with pytest.raises(SystemExit):
        main([*TRAIN, "--ghost-batches", "2", *options, str(tmp_path / "one")])
    one_end, two_end = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, tensor in one_end.items():
        torch.testing.assert_close(two_end[name], tensor, rtol=1e-4, atol=1e-5)
    states = [torch.load(tmp_path / run / "state.pt", weights_only=True) for run in ("one", "two")]
    one_method, two_method = (state["method"] for state in states)
    assert set(one_method["coresets"]) == {"1", "4"}
    for child, coreset in one_method["coresets"].items():
        assert torch.equal(coreset["indices"], two_method["coresets"][child]["indices"])
    assert two.stdout.count('"checkpoint"') == 1
    assert two.stderr.count("epoch 2/2") == 1
    assert len((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
@pytest.mark.skipif(WINDOWS, reason="torchrun with gloo")
def test_gradients_accumulate_over_processes(tmp_path: Path) -> None:
    """Accumulated steps, some of a batch too small for two parts, give the same network too.

    Few updates only: the order of additions differs here, and runs drift apart once a weight is rounded the other way.
    """
    options = ["--epochs", "1", "--accumulate", "3", "--batch-size", "89", "--out"]
    train(2, *options, str(tmp_path / "two"))
    train(1, "--ghost-batches", "2", *options, str(tmp_path / "one"))
    one_end, two_end = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, tensor in one_end.items():
        torch.testing.assert_close(two_end[name], tensor, rtol=1e-4, atol=1e-5)


PROGRAM = """
import os, signal, sys, time
import torch
from emqdeploy.cli import main
from emqdeploy.training.methods import Method

what, number, rank = sys.argv[1], int(sys.argv[2]), sys.argv[3]
counts, save = {"update": 0, "save": 0}, torch.save
seen = []

def reached(kind):
    counts[kind] += 1
    return os.environ.get("RANK", "0") == rank and counts[kind] == number

def after_update(method):
    if what == "update" and reached("update"):
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "interrupt" and reached("update"):
        handle = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, lambda *given: (seen.append(1), handle(*given)))
        os.kill(os.getppid(), signal.SIGINT)  # torchrun, which passes it on
        while not seen:
            time.sleep(0.01)

def torn(values, path):
    if what == "save" and reached("save"):
        with open(path, "wb") as file:
            file.write(b"torn")
        os.kill(os.getpid(), signal.SIGKILL)
    save(values, path)

Method.after_update, torch.save = after_update, torn
main(sys.argv[4:])
"""
"""Trains until it kills or interrupts itself: after an update, or in the middle of a save."""


def doomed(folder: Path, what: str, number: int, rank: str = "0") -> list[str]:
    """The program that ends at a certain moment in the process of a rank."""
    path = folder / "doomed.py"
    path.write_text(PROGRAM)
    return [str(path), what, str(number), rank]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kill -9")
@pytest.mark.parametrize(
    ("options", "moments"),
    [(["--prune-rate", "0.5"], (9, 10, 7, 6)), (["--accumulate", "3", "--distill", "cached"], (4, 5, 4, 2))],
)
def test_killed_at_any_moment_a_run_ends_the_same(tmp_path: Path, options: list[str], moments: tuple[int, ...]) -> None:
    """`kill -9` after updates and in the middle of saves, in every epoch; --resume auto goes on, bit for bit."""
    options = ["--epochs", "3", "--save-every", "0", *options]
    train(1, *options, "--out", str(tmp_path / "whole"))
    out = tmp_path / "killed"
    again = [*options, "--out", str(out), "--resume", "auto"]
    for what, number in zip(("update", "save", "update", "save"), moments, strict=True):
        program = doomed(tmp_path, what, number)
        killed = subprocess.run(command(1, *again, program=program), capture_output=True, timeout=PATIENCE_S)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    finish(command(1, *again))
    assert_same_end(tmp_path / "whole", out)
    whole, resumed = ((tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("whole", "killed"))
    assert len(whole) == len(resumed) == 3
    assert not list(out.glob(".*")), "a temporary file was left"


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kill -9")
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_that_dies_ends_the_run_with_one_sentence(tmp_path: Path, rank: str) -> None:
    """The others notice, say so once and stop; the saved state goes on to the same end."""
    options = ["--epochs", "3", "--save-every", "0"]
    train(2, *options, "--out", str(tmp_path / "whole"))
    out = tmp_path / "killed"
    again = [*options, "--out", str(out), "--resume", "auto"]
    program = doomed(tmp_path, "update", 6, rank)
    killed = subprocess.run(command(2, *again, program=program), capture_output=True, text=True, timeout=PATIENCE_S)
    assert killed.returncode != 0
    said = killed.stdout + killed.stderr
    assert said.count("error: another process of this run ended; what was saved last is intact") == 1
    finish(command(2, *again))
    assert_same_end(tmp_path / "whole", out)


@pytest.mark.slow
@pytest.mark.skipif(WINDOWS, reason="torchrun with gloo")
def test_what_all_processes_meet_is_said_once(tmp_path: Path) -> None:
    """A wrong option is refused by every process, and told by one."""
    wrong = command(2, "--ghost-batches", "3", "--out", str(tmp_path / "run"))
    done = subprocess.run(wrong, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode != 0
    assert done.stderr.count("error: --ghost-batches is 3, but 2 processes train") == 1
    assert "another process" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signals")
def test_an_interrupt_saves_once_for_all(tmp_path: Path) -> None:
    """Ctrl-C: all processes stop after the same step, and the run goes on from there to the same end."""
    options = ["--epochs", "2", "--save-every", "100"]
    train(2, *options, "--out", str(tmp_path / "whole"))
    out = tmp_path / "stopped"
    again = [*options, "--out", str(out), "--resume", "auto"]
    program = doomed(tmp_path, "interrupt", 25)
    stopped = subprocess.run(command(2, *again, program=program), capture_output=True, text=True, timeout=PATIENCE_S)
    assert stopped.stderr.count("everything is saved; continue with") == 1, stopped.stderr
    assert torch.load(out / "state.pt", weights_only=True)["progress"]["step_in_epoch"] > 0
    finish(command(2, *again))
    assert_same_end(tmp_path / "whole", out)
