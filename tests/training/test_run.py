"""Run directories: one process at a time, names that nobody shares, metrics without doubles."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from rich.console import Console

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.runs import CHECKPOINT_FILE, find_checkpoint, next_run_path
from emqdeploy.training.api import train
from emqdeploy.training.config import TrainConfig
from emqdeploy.training.posttraining.config import QuantizeConfig
from emqdeploy.training.posttraining.quantize import quantize
from emqdeploy.training.run import METRICS_FILE, SCORES_FILE, STATE_FILE, RunDirectory

QUIET = Console(quiet=True)


def test_default_names_are_taken_by_one(tmp_path: Path) -> None:
    """However many ask at the same time, and also beyond the three digits."""
    with ThreadPoolExecutor(16) as pool:
        paths = list(pool.map(lambda _: next_run_path(tmp_path / "runs", "digits", "resnet8"), range(64)))
    assert len(set(paths)) == 64
    assert max(paths).name == "digits-resnet8-064"
    (tmp_path / "runs" / "digits-resnet8-999").mkdir()
    last = [next_run_path(tmp_path / "runs", "digits", "resnet8").name for _ in range(2)]
    assert last == ["digits-resnet8-1000", "digits-resnet8-1001"]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    """A file where the runs should lie."""
    (tmp_path / "runs").write_text("in the way")
    with pytest.raises(EmqError, match=r"cannot write .*a part of this path is a file"):
        next_run_path(tmp_path / "runs", "digits", "resnet8")


def test_two_processes_never_work_in_one_run(tmp_path: Path) -> None:
    """Training anew, resuming and quantizing are refused while another process has the directory."""
    code = (
        "import sys; from pathlib import Path; from emqdeploy.training.run import RunDirectory\n"
        "with RunDirectory(Path(sys.argv[1])).held(): print('held', flush=True); sys.stdin.read()"
    )
    run = tmp_path / "run"
    config = TrainConfig(epochs=1)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        for resume in (False, True):
            with pytest.raises(EmqError, match=r"another process is working in .*run; wait for it or choose another"):
                train(config, run, resume=resume, console=QUIET)
        with pytest.raises(EmqError, match="another process is working in"):
            quantize(QuantizeConfig(tmp_path / "weights.pth", "resnet8", "digits"), run)
        other.kill()
    with RunDirectory(run).held():  # the lock went with the process
        pass
    assert not run.exists()


def test_what_is_refused_leaves_no_directory(tmp_path: Path) -> None:
    """Neither a default one nor one that was named."""
    path = next_run_path(tmp_path, "digits", "resnet8")
    with pytest.raises(UsageError, match="model"):
        train(TrainConfig(model="nothing"), path, console=QUIET)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_no_epoch_stands_twice(tmp_path: Path) -> None:
    """A run that was killed between the metrics of its first epoch and its first save starts over."""
    config = TrainConfig(epochs=2, limit=300)
    train(config, tmp_path / "run", console=QUIET)
    (tmp_path / "run" / STATE_FILE).unlink()
    train(config, tmp_path / "run", resume=True, console=QUIET)
    lines = (tmp_path / "run" / METRICS_FILE).read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1]


def test_a_full_disk_is_said_in_our_words(tmp_path: Path) -> None:
    """A real limit of the operating system; torch makes an error of its own of it."""
    code = (
        "import resource, sys, torch; from pathlib import Path; from emqdeploy.training.run import RunDirectory\n"
        "from emqdeploy.errors import EmqError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "try: RunDirectory(Path(sys.argv[1])).save_state({'a': torch.zeros(100_000)})\n"
        "except EmqError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("state.pt: it is larger than a file may be here; see: ulimit -f\n")
    assert not list(tmp_path.iterdir())


def test_a_run_of_several_networks_names_their_files(tmp_path: Path) -> None:
    """Dedicated networks have a checkpoint each, a folder further down; the refusal says what to type instead."""
    for name in ("w2", "w4"):
        (tmp_path / name).mkdir()
        (tmp_path / name / CHECKPOINT_FILE).write_bytes(b"")
    files = f"{tmp_path / 'w2' / CHECKPOINT_FILE}, {tmp_path / 'w4' / CHECKPOINT_FILE}"
    with pytest.raises(UsageError, match=rf"holds no checkpoint itself; name one of those in it: {re.escape(files)}$"):
        find_checkpoint(tmp_path)


def test_a_state_is_a_regular_file_of_its_own_size(tmp_path: Path) -> None:
    """A pipe is never waited for, and an archive that unfolds to gigabytes is not unfolded."""
    run, state = RunDirectory(tmp_path), tmp_path / STATE_FILE
    run.save_state({"step": 3, "weights": torch.zeros(4)})
    held = run.load_state()
    assert held is not None
    assert held["step"] == 3
    with zipfile.ZipFile(state) as whole, zipfile.ZipFile(tmp_path / "packed", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    (tmp_path / "packed").replace(state)
    with pytest.raises(EmqError, match=r"state\.pt is damaged; delete it to start this run over"):
        run.load_state()
    for file in (state, tmp_path / SCORES_FILE):
        file.unlink(missing_ok=True)
        os.mkfifo(file)
    with pytest.raises(EmqError, match=r"cannot read .*state\.pt: it is not a regular file; delete it"):
        run.load_state()
    with pytest.raises(EmqError, match=r"cannot read .*scores\.pt: it is not a regular file"):
        run.load_scores(tmp_path)


def test_metrics_are_a_regular_file(tmp_path: Path) -> None:
    """The same goes for what a resumed run reads besides."""
    os.mkfifo(tmp_path / METRICS_FILE)
    with pytest.raises(EmqError, match="not a regular file"):
        RunDirectory(tmp_path).truncate_metrics(1)


@pytest.mark.parametrize(
    ("data", "model", "name"),
    [
        ("imagefolder:/home/me/photos", "timm/resnet18", "imagefolder-timm-resnet18-001"),
        ("/home/me/photos", "/home/me/net.v2.onnx", "photos-net.v2-001"),
        ("labels.csv", "resnet8", "labels.csv-resnet8-001"),
    ],
)
def test_a_run_is_named_after_what_it_was_made_of(data: str, model: str, name: str, tmp_path: Path) -> None:
    """Without the folders around it."""
    assert next_run_path(tmp_path, data, model).name == name
