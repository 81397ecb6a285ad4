"""TensorBoard gets the numbers that stand in metrics.jsonl."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from emqdeploy.errors import EmqError
from emqdeploy.training.tensorboard import TensorBoardLog

RECORD = {
    "epoch": 3,
    "phase": "train",
    "loss": {"1": 1.5, "8": 0.5},
    "validation_accuracy": {"1": 60.0, "8": 80.0},
    "learning_rate": 0.05,
    "sample_passes": 12000,
    "seconds": 12.5,
}


def test_scalars_are_read_back(tmp_path: Path) -> None:
    """TensorBoard's own reader finds every scalar at its number of sample passes; an epoch may have no accuracy."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = TensorBoardLog(tmp_path)
    log.log(RECORD)
    log.log(RECORD | {"sample_passes": 16000, "validation_accuracy": {}})
    log.close()
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    read = {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert read["loss/8-bit"] == [(12000, 0.5), (16000, 0.5)]
    assert read["validation_accuracy/1-bit"] == [(12000, 60.0)]
    assert read["validation_accuracy/average"] == [(12000, 70.0)]
    assert read["learning_rate"][0] == (12000, pytest.approx(0.05))


def test_a_missing_package_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra."""
    blocked: Any = None
    monkeypatch.setitem(sys.modules, "tensorboard", blocked)
    with pytest.raises(EmqError, match=r'pip install "emqdeploy\[tensorboard\]"'):
        TensorBoardLog(tmp_path)
