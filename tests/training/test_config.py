"""Configuration: everything wrong is said in one sentence, before anything starts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from emqdeploy.errors import UsageError
from emqdeploy.format.child import FLOAT, Child
from emqdeploy.training.children import children_tables
from emqdeploy.training.config import TrainConfig
from emqdeploy.training.methods.emqnet import EMQNetOptions
from emqdeploy.training.posttraining.config import QuantizeConfig
from emqdeploy.training.recipes import resolve


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"bits": (0, 4)}, "allowed: 1..8"),
        ({"bits": (4, 9)}, "allowed: 1..8"),
        ({"bits": ()}, "--bits is empty"),
        ({"bits": (4, 4)}, "--bits names child '4' twice"),
        ({"bits": "four"}, "--bits has 'four'"),
        ({"activation_bits": 9}, "--act-bits is 9"),
        ({"activation_bits": 1}, "--act-bits is 1"),
        ({"bits": "2a1"}, "activation width 1; allowed: 2..8"),
        ({"prune_rate": 1.0}, "--prune-rate is 1.0"),
        ({"prune_rate": -0.1}, "--prune-rate is -0.1"),
        ({"epochs": 0}, "--epochs is 0"),
        ({"batch_size": 1}, "--batch-size is 1"),
        ({"learning_rate": 0.0}, "--lr is 0.0"),
        ({"score": "el3n"}, "did you mean 'el2n'"),
        ({"selection": "bottom"}, "known: balanced, middle, sampled, top"),
        ({"norm_adaptation": "all"}, "known: bits, none, shared"),
        ({"partition": "ceil"}, "allowed: dorefa, floor"),
        ({"correction": "half"}, "unknown correction 'half'"),
        ({"small_groups": "drop"}, "allowed: pin, layer"),
        ({"quantizer": "lsq"}, "child '1' has 1-bit weights, which quantizer 'lsq' cannot make; allowed: 2..8"),
        ({"quantizer": "nsq"}, "did you mean 'lsq'"),
        (
            {"method": "emq"},
            "unknown method 'emq'; known: adabits, adaqat, any-precision, coquant, dedicated, dropbits,"
            " emqnet, hasb, truncquant",
        ),
    ],
)
def test_wrong_values_are_named_with_what_is_allowed(values: dict[str, Any], sentence: str) -> None:
    """Each message says what was given and what is allowed."""
    with pytest.raises(UsageError, match=re.escape(sentence)):
        resolve(None, None, values)


def test_children_come_from_bits_and_tables() -> None:
    """Plain numbers take the activation setting, a suffix says its own, tables add children with widths per layer."""
    mixed = {"mixed": {"weights": {"*": 4, "conv1": 8}, "activations": 6}}
    config = TrainConfig(bits="8,4,2a3,W1A2", activation_bits="same", children=mixed)
    assert [child.name for child in config.trained] == ["8", "4a4", "2a3", "1a2", "mixed"]
    assert config.trained[-1] == Child("mixed", {"*": 4, "conv1": 8}, 6)
    assert [child.name for child in config.between] == ["2a2", "3a3", "5a5", "6a6", "7a7"]
    assert TrainConfig(bits="none", children=mixed).trained == (config.trained[-1],)
    assert TrainConfig(bits=(32,)).trained == (FLOAT,)
    assert TrainConfig(bits=(32,)).between == ()


def test_a_name_stands_for_one_child() -> None:
    """A table may not take a name that reads as other widths, nor that of a trained child."""
    table = {"weights": {"*": 3, "conv1": 8}}
    with pytest.raises(UsageError, match="'3' reads as other widths than the child has"):
        TrainConfig(bits=(2, 4), children={"3": table})
    with pytest.raises(UsageError, match="--bits with --children names child '4' twice"):
        TrainConfig(bits=(2, 4), children={"4": {"weights": 4}})


def test_paths_hold_in_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run and a checkpoint record is found from elsewhere: data, weights to start from, scores to take."""
    monkeypatch.chdir(tmp_path)
    given = {"data": "imagefolder:photos", "pretrained": Path("w.pth"), "scores_from": "runs/other"}
    config = resolve(None, None, given)
    monkeypatch.chdir("/")
    assert (config.data, config.pretrained) == (f"imagefolder:{tmp_path / 'photos'}", tmp_path / "w.pth")
    assert isinstance(config.method, EMQNetOptions)
    assert config.method.scores_from == str(tmp_path / "runs" / "other")
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    monkeypatch.chdir(tmp_path)
    made = QuantizeConfig(Path("w.pth"), "resnet8", "imagefolder:photos", data_dir=Path("moved"))
    assert (made.data, made.data_dir) == (f"imagefolder:{tmp_path / 'moved'}", tmp_path / "moved")
    config.check_resumes(resolve(None, None, given), tmp_path)


def test_configuration_survives_json() -> None:
    """A resumed run reads its configuration back from the run directory."""
    children = {"own": {"weights": {"*": 4, "layer1.conv1": 8}, "activations": {"*": 8, "fc": 4}}}
    given = {"bits": "2,8,4a4", "act_bits": "same", "keep_8bit": "fc", "prune_rate": 0.5, "children": children}
    config = resolve(None, None, {**given, "correction": "none", "data_dir": "somewhere"})
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_score_phase_is_a_sixteenth_and_never_longer_than_training() -> None:
    """Without pruning every epoch sees all images; with it, a score phase of a sixteenth comes first."""
    assert EMQNetOptions().full_epochs(30) == 30
    assert EMQNetOptions(prune_rate=0.8).full_epochs(32) == 2
    assert EMQNetOptions(prune_rate=0.8).full_epochs(5) == 1
    assert EMQNetOptions(prune_rate=0.8, score_epochs=4).full_epochs(1) == 1


def test_a_set_of_children_by_name() -> None:
    """``--children dial`` beside the usual bits; it is kept in a run's options as tables, like any other."""
    config = resolve(None, None, {"bits": "8,4,2,1", "children": "dial"})
    assert [child.name for child in config.trained] == ["8", "4", "2", "1", "4a4", "2a4", "1a4", "2a2", "1a2"]
    assert resolve(None, None, {"children": children_tables(config.children)}).children == config.children
    with pytest.raises(UsageError, match="dials"):
        resolve(None, None, {"children": "dials"})
