"""Configuration: everything wrong is said in one sentence, before anything starts."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from emqdeploy.errors import UsageError
from emqdeploy.training.config import TrainConfig


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"bits": (0, 4)}, "allowed: 1..8"),
        ({"bits": (4, 9)}, "allowed: 1..8"),
        ({"bits": ()}, "--bits is empty"),
        ({"bits": (4, 4)}, "names a bit-width twice"),
        ({"activation_bits": 9}, "--act-bits is 9"),
        ({"activation_bits": 1}, "--act-bits is 1"),
        ({"prune_rate": 1.0}, "--prune-rate is 1.0"),
        ({"prune_rate": -0.1}, "--prune-rate is -0.1"),
        ({"epochs": 0}, "--epochs is 0"),
        ({"batch_size": 1}, "--batch-size is 1"),
        ({"learning_rate": 0.0}, "--lr is 0.0"),
        ({"score": "el3n"}, "did you mean 'el2n'"),
        ({"selection": "bottom"}, "known: balanced, middle, sampled, top"),
        ({"norm_adaptation": "all"}, "known: bits, none, shared"),
        ({"partition": "ceil"}, "allowed: dorefa, floor"),
        ({"correction": "half"}, "allowed: banner, exact, none, sat"),
        ({"small_groups": "drop"}, "allowed: pin, layer"),
    ],
)
def test_wrong_values_are_named_with_what_is_allowed(values: dict[str, Any], sentence: str) -> None:
    """Each message says what was given and what is allowed."""
    with pytest.raises(UsageError, match=re.escape(sentence)):
        TrainConfig(**values)


def test_configuration_survives_json() -> None:
    """A resumed run reads its configuration back from the run directory."""
    config = TrainConfig(bits=(2, 8), activation_bits="same", keep_8bit=("fc",), prune_rate=0.5)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_score_phase_is_a_sixteenth_and_never_longer_than_training() -> None:
    """Without pruning every epoch sees all images; with it, a score phase of a sixteenth comes first."""
    assert TrainConfig(epochs=30).full_epochs == 30
    assert TrainConfig(epochs=32, prune_rate=0.8).full_epochs == 2
    assert TrainConfig(epochs=5, prune_rate=0.8).full_epochs == 1
    assert TrainConfig(epochs=1, prune_rate=0.8, score_epochs=4).full_epochs == 1
