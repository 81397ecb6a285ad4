"""Training end to end on real images: reproducible, resumable to the bit, and what is stored is what was trained."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from emqdeploy.checkpoint import load_checkpoint
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.training import loop, targets
from emqdeploy.training.api import TrainResult, train
from emqdeploy.training.config import TrainConfig

SMALL: dict[str, Any] = {
    "limit": 220,
    "epochs": 3,
    "batch_size": 32,
    "bits": (1, 4),
    "prune_rate": 0.5,
    "score_epochs": 2,
    "seed": 3,
}


def _train(out: Path, resume: bool = False, **changes: Any) -> TrainResult:
    config = TrainConfig(**{**SMALL, **changes})
    return train(config, out, resume, Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """One uninterrupted run."""
    return _train(tmp_path_factory.mktemp("runs") / "whole")


def test_run_directory_is_complete(run: TrainResult) -> None:
    """Everything the README promises lies in the run directory."""
    names = {path.name for path in run.run.iterdir()}
    assert names == {"config.toml", "metrics.jsonl", "state.pt", "scores.pt", "latent.safetensors", "model.emq"}
    lines = [json.loads(line) for line in (run.run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert [line["phase"] for line in lines] == ["score", "score", "train"]
    assert set(lines[0]["validation_accuracy"]) == set(lines[0]["loss"]) == {"1", "4"}


def test_passes_count_what_was_pruned(run: TrainResult) -> None:
    """198 training images, two bit-widths: two full epochs and one on half of them."""
    assert run.sample_passes == 2 * (2 * 198 + 99)


def test_checkpoint_holds_unseen_bit_widths(run: TrainResult) -> None:
    """Widths between the trained ones come with the file, and their accuracy was measured."""
    checkpoint = load_checkpoint(run.checkpoints[0])
    assert checkpoint.network.widths == (1, 2, 3, 4)
    assert checkpoint.trained_bits == (1, 4)
    assert set(run.accuracy) == {1, 2, 3, 4}


def test_same_seed_same_file(run: TrainResult, tmp_path: Path) -> None:
    """Training is deterministic on the CPU: codes, grids and biases are equal, and another seed gives others."""
    again, other = _train(tmp_path / "again"), _train(tmp_path / "other", seed=4)
    arrays = [load_checkpoint(r.checkpoints[0]).network.initializers(4) for r in (run, again, other)]
    assert all((arrays[0][name] == arrays[1][name]).all() for name in arrays[0])
    assert any((arrays[0][name] != arrays[2][name]).any() for name in arrays[0])


@pytest.mark.parametrize("stop_after", [3, 14, 27])
def test_resumed_run_ends_with_the_same_weights(
    run: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    """Stopped in the score phase, at an epoch's end and on the coreset: bit for bit the uninterrupted run."""
    steps = 0
    original = loop.Trainer._step

    def step(self: Any, *arguments: Any) -> Any:
        nonlocal steps
        losses = original(self, *arguments)
        steps += 1
        if steps == stop_after:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)
        return losses

    monkeypatch.setattr(loop.Trainer, "_step", step)
    with pytest.raises(
        EmqError, match=f"stopped after step {stop_after} of .* continue with: emqdeploy train --resume"
    ):
        _train(tmp_path / "part")
    monkeypatch.undo()
    resumed = _train(tmp_path / "part", resume=True)
    assert resumed.sample_passes == run.sample_passes
    for name in ("latent.safetensors",):
        assert (resumed.run / name).read_bytes() == (run.run / name).read_bytes()
    whole, parts = (load_checkpoint(r.checkpoints[0]).network.initializers(1) for r in (run, resumed))
    assert all((whole[name] == parts[name]).all() for name in whole)
    epochs = [json.loads(line)["epoch"] for line in (resumed.run / "metrics.jsonl").read_text().splitlines()]
    assert epochs == [0, 1, 2]


def test_run_directory_is_never_overwritten(run: TrainResult) -> None:
    """A second run into the same directory would lose the first."""
    with pytest.raises(UsageError, match="already holds a run; continue it with --resume"):
        _train(run.run)


def test_rounded_codes_get_a_file_each(tmp_path: Path) -> None:
    """DoReFa's codes do not nest, so no master can serve two bit-widths."""
    result = _train(tmp_path / "run", partition="dorefa", correction="none", epochs=1, prune_rate=0.0)
    assert [path.name for path in result.checkpoints] == ["model-w1.emq", "model-w4.emq"]
    assert [load_checkpoint(path).network.widths for path in result.checkpoints] == [(1,), (4,)]


def test_float_network_trains_alike(tmp_path: Path) -> None:
    """32 bits is the float network that accuracy claims compare with."""
    result = _train(tmp_path / "run", bits=(32,), prune_rate=0.0, epochs=1)
    assert set(result.accuracy) == {32}
    assert result.checkpoints == []


def test_diverging_loss_names_bits_and_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN must stop training, not spoil the checkpoint."""
    monkeypatch.setattr(targets.F, "cross_entropy", lambda logits, labels, reduction: logits.sum(1) * torch.nan)
    with pytest.raises(EmqError, match=r"the loss became nan at \d bits in step 0"):
        _train(tmp_path / "run")


def test_a_class_without_a_training_image_still_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The score phase records as many outputs as the network has, not as many as the labels happen to name."""
    from dataclasses import replace

    from emqdeploy.data import load_dataset
    from emqdeploy.training import api

    def without_nines(*arguments: Any) -> Any:
        dataset = load_dataset(*arguments)
        return replace(dataset, train=dataset.train.subset(dataset.train.labels != 9))

    monkeypatch.setattr(api, "load_dataset", without_nines)
    result = _train(tmp_path / "run")
    assert set(result.accuracy) == {1, 2, 3, 4}


METHODS: dict[str, dict[str, Any]] = {
    "any-precision": {"norm": "private", "step_plan": "joint", "distill": "recursive", "calibrate_epochs": 1},
    "sandwich": {"step_plan": "sandwich", "distill": "soft", "bits": (1, 2, 4)},
    "mixed": {"step_plan": "mixed", "norm": "transitional"},
    "cached": {"distill": "cached", "prune_rate": 0.5},
    "resampled": {"prune_rate": 0.5, "resample_every": 1, "unbiased": True, "score_epochs": 1},
    "probed": {"prune_rate": 0.5, "resample_every": 1, "resample_from": "probe", "score": "grand", "score_epochs": 1},
    "shared scores": {"prune_rate": 0.5, "sharing": "scores", "score_plan": "rotating", "score": "tdds"},
    "accumulated": {"accumulate": 3, "optimizer": "adam", "learning_rate": 1e-3, "schedule": "step"},
    "bf16": {"amp": "bf16", "channels_last": True},
}


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_trains_and_resumes_exactly(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each registered option ends in a checkpoint, and stopping in the middle of an epoch changes nothing."""
    changes = {"prune_rate": 0.0, "limit": 120, "epochs": 2, **METHODS[name]}
    whole = _train(tmp_path / "whole", **changes)
    original, seen = loop.Trainer._step, []

    def step(self: Any, *arguments: Any) -> Any:
        if len(seen) == 5:
            raise RuntimeError("killed")
        seen.append(arguments)
        return original(self, *arguments)

    monkeypatch.setattr(loop.Trainer, "_step", step)
    with pytest.raises(RuntimeError, match="killed"):
        _train(tmp_path / "part", **changes, save_every=0)
    monkeypatch.undo()
    resumed = _train(tmp_path / "part", resume=True, **changes, save_every=0)
    assert resumed.accuracy == whole.accuracy
    assert (tmp_path / "part" / "latent.safetensors").read_bytes() == (
        tmp_path / "whole" / "latent.safetensors"
    ).read_bytes()


def test_dedicated_networks_get_a_directory_each(tmp_path: Path) -> None:
    """One network per bit-width, one file each, and a resumed run skips what is finished."""
    result = _train(tmp_path / "run", separate=True, prune_rate=0.0, epochs=1, limit=120)
    assert [str(path.relative_to(tmp_path / "run")) for path in result.checkpoints] == ["w1/model.emq", "w4/model.emq"]
    again = _train(tmp_path / "run", resume=True, separate=True, prune_rate=0.0, epochs=1, limit=120)
    assert again.accuracy == result.accuracy


def test_scores_are_reused(run: TrainResult, tmp_path: Path) -> None:
    """A second run needs no score phase and chooses the same images."""
    result = _train(tmp_path / "run", scores_from=str(run.run))
    assert result.sample_passes == 2 * 3 * 99
    with pytest.raises(UsageError, match="holds no scores; name a run that was trained with --prune-rate"):
        _train(tmp_path / "other", scores_from=str(tmp_path))


def test_resuming_another_configuration_says_what_differs(run: TrainResult) -> None:
    """A resumed run keeps what it was configured with."""
    with pytest.raises(UsageError, match=r"was configured with --epochs 3 \(now 5\), --score el2n \(now random\)"):
        _train(run.run, resume=True, epochs=5, score="random")
