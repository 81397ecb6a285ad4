"""Recipes and configuration files: what wins, what is refused, and that a run can be repeated from its file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from emqdeploy.errors import UsageError
from emqdeploy.format.child import Child
from emqdeploy.options import options_of
from emqdeploy.training.choices import option_classes
from emqdeploy.training.config import TrainConfig
from emqdeploy.training.recipes import load_recipe, recipe_names, resolve, write_options
from emqdeploy.training.settings import CommonOptions


def test_every_recipe_is_a_valid_configuration() -> None:
    """A recipe with a typo would fail at the user's."""
    assert recipe_names() == [
        *("adabits", "adaqat", "any-precision", "any-precision-tuned", "dedicated", "double-rounding"),
        *("emqnet", "emqnet-paper", "hasb", "truncquant", "vertical-layers"),
    ]
    for name in recipe_names():
        values, recipe = resolve(name, None, {}).to_dict(), load_recipe(name)
        for table in ("method", "quantizer"):
            assert recipe.pop(table, {}).items() <= values[table].items()
        assert {key: values[key] for key in recipe} == {
            key: list(value) if isinstance(value, tuple) else value for key, value in recipe.items()
        }


def test_the_default_recipe_is_the_default_configuration() -> None:
    """What ``--help`` shows as defaults is what runs."""
    assert resolve(None, None, {}) == TrainConfig()


def test_file_wins_over_recipe_and_flags_over_both(tmp_path: Path) -> None:
    """The order that the documents promise, also inside the tables of method and quantizer."""
    file = tmp_path / "my.toml"
    file.write_text('recipe = "any-precision"\nepochs = 7\n[method]\ndistill = "soft"\n[quantizer]\ngroup = "layer"\n')
    config = resolve(None, file, {"epochs": 3}).to_dict()
    assert (config["norm"], config["epochs"]) == ("private", 3)
    method = {"distill": "soft", "calibrate_epochs": 1, "name": "any-precision"}
    assert method.items() <= config["method"].items()
    assert {"partition": "dorefa", "group": "layer"}.items() <= config["quantizer"].items()
    assert resolve("dedicated", file, {"distill": "none"}).method.name == "dedicated"
    flags = {"distill": "none", "step_plan": "sequential", "correction_group": "channel", "lr": 0.5}
    config = resolve(None, file, flags).to_dict()
    assert (config["method"]["distill"], config["quantizer"]["group"]) == ("none", "channel")
    assert config["learning_rate"] == 0.5


def test_another_method_leaves_the_recipe_s_options_behind() -> None:
    """`--method` over a recipe keeps the common options and the quantizer, not what only the other method has."""
    config = resolve("truncquant", None, {"method": "emqnet", "prune_rate": 0.5})
    assert config.norm == "private"
    assert config.quantizer.to_dict()["correction"] == "none"
    assert config.method.to_dict()["step_plan"] == "interleaved"


def test_a_run_is_repeated_from_its_file(tmp_path: Path) -> None:
    """Every field survives, None, lists and children with awkward layer names included."""
    children = (Child("a.b", {"*": 4, 'layer1."x"': 8}, {"*": 8, "fc": 4}), Child("plain", 3, 5))
    given = {"bits": "2,8,4a4", "act_bits": "same", "keep_8bit": ("fc",), "prune_rate": 0.5, "score_epochs": 3}
    config = resolve(None, None, {**given, "children": children})
    (tmp_path / "config.toml").write_text(write_options(config))
    assert resolve(None, tmp_path / "config.toml", {}) == config


def test_children_stand_in_a_file_of_their_own_too(tmp_path: Path) -> None:
    """``--children FILE`` reads the same tables as a configuration."""
    tables = '[children.mixed]\nweights = {"*" = 4, "conv1" = 8}\nactivations = 8\n'
    (tmp_path / "children.toml").write_text(tables)
    (tmp_path / "config.toml").write_text(f'bits = [8, "2a4"]\n{tables}')
    alone = resolve(None, None, {"bits": "8,2a4", "children": str(tmp_path / "children.toml")})
    assert alone == resolve(None, tmp_path / "config.toml", {})
    assert [child.name for child in alone.trained] == ["8", "2a4", "mixed"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("epochs = 3", "must hold children and nothing else"),
        ("[children]\nmixed = 4", "child 'mixed' needs weights"),
        ("[children.mixed]\nweigths = 4", "child 'mixed' needs weights"),
        ("[children.mixed]\nweights = 4\nactivation = 4", "the unknown key 'activation' (did you mean 'activations'?)"),
        ("[children.mixed]\nweights = '4'", "weights of child 'mixed' is '4'; give a number or a map"),
        ("[children.mixed]\nweights = {'*' = 9}", "allowed: 1..8"),
        ("[children.all]\nweights = 4", "'all' cannot name a child"),
        ("[children", "is not valid TOML"),
    ],
)
def test_mistakes_in_a_file_of_children_are_named(tmp_path: Path, text: str, sentence: str) -> None:
    """One sentence, before anything starts."""
    file = tmp_path / "children.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=re.escape(sentence)) as caught:
        resolve(None, None, {"children": str(file)})
    assert str(file) in str(caught.value)
    with pytest.raises(UsageError, match=r"cannot read .*none.toml: No such file"):
        resolve(None, None, {"children": str(tmp_path / "none.toml")})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("epoch = 3", "unknown key 'epoch' (did you mean 'epochs'?)"),
        ('epochs = "3"', "epochs is '3'; it must be a whole number"),
        ("compile = 1", "compile is 1; it must be true or false"),
        ("bits = true", "bits is True; it must be a list of children"),
        ("bits = [4.5]", "bits is [4.5]; it must be a list of children"),
        ("epochs = ", "is not valid TOML"),
        ('recipe = "any-precison"', "unknown recipe 'any-precison'"),
        ("prune_rate = 0.5", "prune_rate is an option of the method; write it below [method]"),
        ("[method]\nprune_rte = 0.5", "unknown key 'prune_rte' in [method] (did you mean 'prune_rate'?)"),
        (
            '[method]\nname = "adabits"\nprune_rate = 0.5',
            "--prune-rate is an option of method emqnet and dedicated, but",
        ),
        ('[quantizer]\nname = "lsq"\npartition = "floor"', "option of quantizer tanh, but quantizer lsq was chosen"),
        ('method = "emqnet"', "method is 'emqnet'; write a table [method]"),
        ('[method]\nnam = "emqnet"', "unknown key 'nam' in [method] (did you mean 'name'?)"),
        ("[children]\nmixed = 4", "my.toml: children: child 'mixed' needs weights"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, text: str, sentence: str) -> None:
    """One sentence that says what is known."""
    file = tmp_path / "my.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=re.escape(sentence)):
        resolve(None, file, {})


def test_every_option_has_help_and_a_flag_of_its_own() -> None:
    """The command line is made from the fields: one flag, one meaning, and none that an option of the run has too."""
    common = options_of(CommonOptions)
    own = [one for kind in option_classes() for one in options_of(kind)]
    assert all(one.help.endswith(".") for one in [*common, *own])
    assert len({one.flag for one in common}) == len(common)
    assert not {one.flag for one in common} & {one.flag for one in own}
    meanings = {(one.flag, one.name, one.help) for one in own}
    assert len({flag for flag, _, _ in meanings}) == len(meanings)


@pytest.mark.parametrize(
    ("recipe", "values", "sentence"),
    [
        (None, {"step_plan": "joint", "prune_rate": 0.5}, "add --sharing all"),
        (None, {"distill": "recursive"}, "use --step-plan joint or sequential, or --distill cached"),
        (None, {"unbiased": True, "selection": "top"}, "--unbiased needs odds"),
        ("any-precision", {"norm": "shared-affine"}, "--norm is shared-affine, use private"),
        (None, {"distill_weight": 2.0}, "--distill-weight is 2.0"),
        (None, {"norm": "own"}, "known: private, shared, shared-affine, transitional"),
        (None, {"step_plan": "joined"}, "did you mean 'joint'"),
        (None, {"cpq_step": "channel"}, "--cpq-step is an option of quantizer cpq, but quantizer tanh was chosen"),
        (None, {"quantizer": "cpq", "bits": "2,4", "lsq_step": "layer"}, "--lsq-step is an option of quantizer double"),
        (None, {"calibrate_epochs": 1}, "--calibrate-epochs is an option of method any-precision and truncquant, but"),
        ("adabits", {"prune_rate": 0.5}, "but method adabits was chosen; leave it out, or use --method emqnet"),
        (
            None,
            {"lsq_step": "channel"},
            "--lsq-step is an option of quantizer double-rounding, lsq and vertical, but",
        ),
        (
            None,
            {"quantizer": "lsq", "bits": "2,4", "partition": "dorefa"},
            "option of quantizer tanh, but quantizer lsq",
        ),
    ],
)
def test_options_that_do_not_go_together(recipe: str | None, values: dict[str, Any], sentence: str) -> None:
    """Refused before anything starts, with what to do instead."""
    with pytest.raises(UsageError, match=re.escape(sentence)):
        resolve(recipe, None, values)
