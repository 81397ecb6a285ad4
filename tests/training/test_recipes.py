"""Recipes and configuration files: what wins, what is refused, and that a run can be repeated from its file."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from emqdeploy.errors import UsageError
from emqdeploy.training.config import TrainConfig, flag_of
from emqdeploy.training.recipes import load_recipe, recipe_names, resolve, write_options


def test_every_recipe_is_a_valid_configuration() -> None:
    """A recipe with a typo would fail at the user's."""
    assert recipe_names() == ["adabits", "any-precision", "dedicated", "emqnet", "truncquant"]
    for name in recipe_names():
        config = resolve(name, None, {})
        assert {key: getattr(config, key) for key in load_recipe(name)} == load_recipe(name)


def test_the_default_recipe_is_the_default_configuration() -> None:
    """What ``--help`` shows as defaults is what runs."""
    assert resolve(None, None, {}) == TrainConfig()


def test_file_wins_over_recipe_and_flags_over_both(tmp_path: Path) -> None:
    """The order that the documents promise."""
    file = tmp_path / "my.toml"
    file.write_text('recipe = "any-precision"\ndistill = "soft"\nepochs = 7\n')
    config = resolve(None, file, {"epochs": 3})
    assert (config.norm, config.distill, config.epochs) == ("private", "soft", 3)
    assert resolve("dedicated", file, {"distill": "none"}).separate


def test_a_run_is_repeated_from_its_file(tmp_path: Path) -> None:
    """Every field survives, None and lists included."""
    config = TrainConfig(bits=(2, 8), activation_bits="same", keep_8bit=("fc",), prune_rate=0.5, score_epochs=3)
    (tmp_path / "config.toml").write_text(write_options(config))
    assert resolve(None, tmp_path / "config.toml", {}) == config


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("epoch = 3", "unknown key 'epoch' (did you mean 'epochs'?)"),
        ('epochs = "3"', "epochs is '3'; it must be a whole number"),
        ("compile = 1", "compile is 1; it must be true or false"),
        ("bits = 4", "bits is 4; it must be a list of bit-widths"),
        ("epochs = ", "is not valid TOML"),
        ('recipe = "any-precison"', "unknown recipe 'any-precison'"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, text: str, sentence: str) -> None:
    """One sentence that says what is known."""
    file = tmp_path / "my.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=re.escape(sentence)):
        resolve(None, file, {})


def test_every_option_has_help_and_a_flag_of_its_own() -> None:
    """The command line is made from the fields."""
    flags = [flag_of(item.name) for item in fields(TrainConfig)]
    assert len(set(flags)) == len(flags)
    assert all(item.metadata["help"].endswith(".") for item in fields(TrainConfig))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"step_plan": "joint", "prune_rate": 0.5}, "add --sharing all"),
        ({"distill": "recursive"}, "use --step-plan joint or sequential, or --distill cached"),
        ({"unbiased": True, "selection": "top"}, "--unbiased needs odds"),
        ({"calibrate_epochs": 1}, "--norm is shared-affine, use private"),
        ({"distill_weight": 2.0}, "--distill-weight is 2.0"),
        ({"norm": "own"}, "known: private, shared, shared-affine, transitional"),
        ({"step_plan": "joined"}, "did you mean 'joint'"),
    ],
)
def test_options_that_do_not_go_together(values: dict[str, object], sentence: str) -> None:
    """Refused before anything starts, with what to do instead."""
    with pytest.raises(UsageError, match=re.escape(sentence)):
        TrainConfig(**values)  # type: ignore[arg-type]
