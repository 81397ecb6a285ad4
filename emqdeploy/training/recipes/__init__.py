"""Recipes: named sets of options in small TOML files, and how a file, a recipe and flags become one configuration."""

from __future__ import annotations

import difflib
import json
import tomllib
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

from emqdeploy.errors import UsageError
from emqdeploy.training.config import FLOAT_NETWORK, TrainConfig, plain_type

DEFAULT_RECIPE = "emqnet"


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def resolve(recipe: str | None, file: Path | None, flags: dict[str, Any]) -> TrainConfig:
    """Combines defaults, recipe, file and flags; what comes later wins.

    Args:
        recipe: a name in `recipe_names`; None takes the file's own (key ``recipe``), else the default one.
        file: a TOML file, for example ``config.toml`` of an earlier run.
        flags: fields that the user gave on the command line.

    Raises:
        UsageError: an unknown recipe or key (the nearest known one is named), or a value of the wrong type.
    """
    values = {} if file is None else read_options(file)
    named = values.pop("recipe", DEFAULT_RECIPE)
    base = load_recipe(recipe or str(named))
    return TrainConfig.from_dict(base | values | flags)


def load_recipe(name: str) -> dict[str, Any]:
    """The options of a recipe."""
    known = recipe_names()
    if name not in known:
        raise UsageError(f"unknown recipe {name!r}; known: {', '.join(known)}{_nearest(name, known)}")
    return _checked(tomllib.loads(resources.files(__name__).joinpath(f"{name}.toml").read_text()), name)


def read_options(path: Path) -> dict[str, Any]:
    """Reads and checks a TOML file of options."""
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; name a TOML file of options") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    return _checked(values, str(path))


def write_options(config: TrainConfig) -> str:
    """A configuration as TOML; what is None is left out."""
    lines = ["# Everything that decided this run; repeat it with: emqdeploy train --config config.toml"]
    for name, value in config.to_dict().items():
        if value is not None:
            lines.append(f"{name} = {json.dumps(list(value) if isinstance(value, tuple) else value)}")
    return "\n".join(lines) + "\n"


def _checked(values: dict[str, Any], where: str) -> dict[str, Any]:
    known = [item.name for item in fields(TrainConfig)]
    for key, value in values.items():
        if key == "recipe":
            continue
        if key not in known:
            raise UsageError(f"{where}: unknown key {key!r}{_nearest(key, known) or '; see: emqdeploy train --help'}")
        if not _fits(key, value):
            raise UsageError(f"{where}: {key} is {value!r}; it must be {_expected(key)}")
    return values


def _fits(key: str, value: Any) -> bool:
    if key == "bits":
        return isinstance(value, list) and all(type(bits) is int for bits in value)
    if key in ("keep_8bit", "keep_float"):
        return isinstance(value, list) and all(isinstance(name, str) for name in value)
    if key == "activation_bits":
        return type(value) in (int, str)
    wanted = plain_type(key)
    return type(value) is wanted or (wanted is float and type(value) is int)


def _expected(key: str) -> str:
    special = {
        "bits": f"a list of bit-widths, for example [1, 2, 4, 8] ({list(FLOAT_NETWORK)} trains the float network)",
        "keep_float": 'a list of layer names, for example ["head"]',
        "keep_8bit": 'a list of layer names, for example ["first", "last"]',
        "activation_bits": 'a number from 2 to 8 or "same"',
    }
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text in quotes"}
    return special.get(key) or names[plain_type(key)]


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.lower().replace("-", "_"), [entry.replace("-", "_") for entry in known], n=1)
    if not near:
        return ""
    return f" (did you mean {next(entry for entry in known if entry.replace('-', '_') == near[0])!r}?)"
