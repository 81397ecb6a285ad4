"""Recipes: named sets of options in small TOML files, and how a file, a recipe and flags become one configuration."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.files import LARGEST_TEXT, read_bytes
from emqdeploy.options import from_table, nearest, options_of
from emqdeploy.training.choices import choices
from emqdeploy.training.config import TrainConfig
from emqdeploy.training.run import CONFIG_FILE, RunDirectory
from emqdeploy.training.settings import CommonOptions

DEFAULT_RECIPE = "emqnet"

Values = dict[str, Any]
"""Fields of a configuration; a table each for method and quantizer."""


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def resolve(recipe: str | None, file: Path | None, given: Mapping[str, Any]) -> TrainConfig:
    """Combines defaults, recipe, file and flags; what comes later wins.

    Args:
        recipe: a name in `recipe_names`; None takes the file's own (key ``recipe``), else the default one.
        file: a TOML file, for example ``config.toml`` of an earlier run.
        given: options of the run, its method and its quantizer, by the flag with underscores or by the field; None
            counts as not given.

    Raises:
        UsageError: an unknown recipe or key (the nearest known one is named), an option that belongs to another method,
            or a value of the wrong type.
    """
    values = {} if file is None else read_options(file)
    named = values.pop("recipe", DEFAULT_RECIPE)
    return _on_top(_merged(_merged(_defaults(), load_recipe(recipe or str(named))), values), given)


def changed(config: TrainConfig, given: Mapping[str, Any]) -> TrainConfig:
    """A configuration with what was given, as in `resolve`, on top."""
    return _on_top(config.to_dict(), given)


def _defaults() -> Values:
    return {"method": {"name": "emqnet"}, "quantizer": {"name": "tanh"}}


def _merged(below: Values, above: Values) -> Values:
    tables = {choice.key: choice.merge(below[choice.key], above.get(choice.key, {})) for choice in choices()}
    return {**below, **above, **tables}


def _on_top(below: Values, given: Mapping[str, Any]) -> TrainConfig:
    above: Values = {choice.key: choice.from_flags(given, below[choice.key]["name"]) for choice in choices()}
    for one in options_of(CommonOptions):
        value = given.get(one.argument, given.get(one.name))
        if value is not None:
            above[one.name] = one.read(value)
    return TrainConfig.from_dict(_merged(below, above))


def load_recipe(name: str) -> Values:
    """The options of a recipe."""
    known = recipe_names()
    if name not in known:
        raise UsageError(f"unknown recipe {name!r}; known: {', '.join(known)}{nearest(name, known)}")
    return _checked(tomllib.loads(resources.files(__name__).joinpath(f"{name}.toml").read_text()), name)


def read_options(path: Path) -> Values:
    """Reads and checks a TOML file of options."""
    try:
        values = tomllib.loads(read_bytes(path, LARGEST_TEXT, "name a TOML file of options").decode())
    except EmqError as error:
        raise UsageError(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    return _checked(values, str(path))


def _checked(values: Values, where: str) -> Values:
    found = choices()
    keys = {choice.key for choice in found}
    for choice in found:
        for key in values:
            if key not in keys and any(key in choice.own(name) for name in choice.options):
                raise UsageError(f"{where}: {key} is an option of the {choice.key}; write it below [{choice.key}]")
    checked = from_table(CommonOptions, values, where, also=("recipe", *keys))
    checked |= {choice.key: choice.check(values[choice.key], where) for choice in found if choice.key in values}
    return checked | ({"recipe": values["recipe"]} if "recipe" in values else {})


def stored_config(path: Path) -> TrainConfig:
    """The configuration of the run in a directory.

    Raises:
        UsageError: there is no run.
    """
    if not RunDirectory.holds_run(path):
        raise UsageError(f"{path} holds no run to resume; start one with: emqdeploy train --out {path}")
    return resolve(None, path / CONFIG_FILE, {})


def write_options(config: TrainConfig) -> str:
    """A configuration as TOML; what is None is left out."""
    values = {key: value for key, value in config.to_dict().items() if value is not None}
    tables = {f"children.{_key(name)}": table for name, table in values.pop("children").items()}
    tables |= {choice.key: values.pop(choice.key) for choice in choices()}
    lines = [
        "# Everything that decided this run; repeat it with: emqdeploy train --config config.toml",
        *_lines(values),
    ]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *_lines(table)]
    return "\n".join(lines) + "\n"


def _lines(values: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_value(value)}" for key, value in values.items() if value is not None]


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(_lines(value))}}}"
    return json.dumps(value, ensure_ascii=False)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[\w-]+", name, re.ASCII) else json.dumps(name)
