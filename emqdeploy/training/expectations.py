"""How trained weights expect to see pictures: what the library says that they come from, or the run that made them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors

from emqdeploy.data.preprocessing import Preprocessing
from emqdeploy.data.repair import import_torchvision
from emqdeploy.data.wishes import WHOLE, Expected, PixelOptions
from emqdeploy.errors import EmqError, UsageError, require
from emqdeploy.files import LARGEST_TEXT, read_bytes
from emqdeploy.format.card import Pixels, decode
from emqdeploy.models.external import TIMM
from emqdeploy.models.registry import canonical
from emqdeploy.options import options_of
from emqdeploy.training.run import LATENT_FILE, PIXELS_KEY

_CONFIG_FILE = "config.json"
"""What timm puts beside weights that it publishes."""


def expected_pixels(model: str | None, weights: Path | None) -> Expected:
    """What trained weights expect of their pictures, as far as anybody says.

    Args:
        model: the name of their network.
        weights: the file that they lie in, or a run; None for those that the model's library publishes.
    """
    if weights is not None:
        run = _of_run(weights / LATENT_FILE if weights.is_dir() else weights)
        if run is not None:
            return run
        beside = _config_beside(weights)
        if beside is not None:
            return _of_timm(beside, f"{weights.parent / _CONFIG_FILE}")
    if model is None:
        return Expected()
    file = "" if weights is None else weights.name
    if model.startswith(TIMM):
        return _by_timm(model.removeprefix(TIMM), file)
    return _by_torchvision(canonical(model), file)


def class_names(model: str | None, count: int) -> tuple[str, ...]:
    """What the classes of a network are called whose images have no labels; empty where nobody says.

    A network of a library with ImageNet's number of classes has ImageNet's.

    Args:
        model: the name of the network.
        count: how many classes it has.
    """
    try:
        models = import_torchvision().models
        library = model is not None and (model.startswith(TIMM) or canonical(model) in models.list_models())
        names = tuple(map(str, models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]))
    except EmqError:
        return ()
    return names if library and len(names) == count else ()


def _of_run(weights: Path) -> Expected | None:
    """What `emqdeploy train` or `quantize` wrote into float weights."""
    try:
        with safetensors.safe_open(weights, "numpy") as file:
            said = (file.metadata() or {}).get(PIXELS_KEY)
        if said is None:
            return None
        seen = Preprocessing.of(decode(Pixels, said))
    except (
        OSError,
        ValueError,
        safetensors.SafetensorError,
        EmqError,
    ):  # reading it for its weights says what is wrong
        return None
    crop = WHOLE if seen.resize == "stretch" else seen.height / seen.resized[0]
    pixels = PixelOptions(
        image_size=seen.height,
        mean=seen.mean,
        std=seen.std,
        crop=crop,
        interpolation=seen.interpolation,
        channel_order=seen.channel_order,
    )
    return Expected(pixels, str(weights), certain=True)


def _config_beside(weights: Path) -> Mapping[str, Any] | None:
    try:
        values = json.loads(read_bytes(weights.parent / _CONFIG_FILE, LARGEST_TEXT, "remove it"))
        found = values["pretrained_cfg"]
    except (EmqError, OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return found if isinstance(found, Mapping) else None


def _by_timm(name: str, file: str) -> Expected:
    """What timm says of its own weights: of those with the file's name, else of the model's first ones."""
    try:
        import_torchvision()  # which timm imports, and which may need our repair
        timm = require("timm", "timm")
    except EmqError:
        return Expected()
    if not timm.is_model(name):
        return Expected()
    architecture, _, tag = name.partition(".")
    others = [] if tag else timm.list_pretrained(f"{architecture}.*")
    known = [timm.models.get_pretrained_cfg(one) for one in (name, *others)]
    known = [config for config in known if config is not None]
    if not known:
        return Expected()
    chosen = next((config for config in known if config.url and config.url.rpartition("/")[2] == file), known[0])
    return _of_timm(chosen.to_dict(), f"timm's {architecture}{'.' if chosen.tag else ''}{chosen.tag or ''}")


def _of_timm(config: Mapping[str, Any], source: str) -> Expected:
    size = config.get("input_size")
    share = config.get("crop_pct")
    given = {
        "image_size": size[-1] if isinstance(size, (list, tuple)) and size else None,
        "mean": config.get("mean"),
        "std": config.get("std"),
        "crop": WHOLE if config.get("crop_mode") == "squash" else share,
        "interpolation": config.get("interpolation"),
        "channel_order": None,
    }
    return Expected(_checked(given, source), source)


def _by_torchvision(name: str, file: str) -> Expected:
    """What torchvision says of its weights: of those with the file's name, else of the first ones."""
    try:
        models = import_torchvision().models
        weights = list(models.get_model_weights(name))
    except (EmqError, ValueError):  # a model of ours, or of the user's
        return Expected()
    same = [one for one in weights if one.url.rpartition("/")[2] == file]
    chosen = (same or weights)[0]
    shown = chosen.transforms()
    given = {
        "image_size": shown.crop_size[0],
        "mean": shown.mean,
        "std": shown.std,
        "crop": shown.crop_size[0] / shown.resize_size[0],
        "interpolation": shown.interpolation.value,
        "channel_order": None,
    }
    source = f"torchvision's {type(chosen).__name__}.{chosen.name}"
    return Expected(_checked(given, source), source)


def _checked(given: Mapping[str, Any], source: str) -> PixelOptions:
    """What was said, each value checked as if it were an option; the sentence about a wrong one names the source."""
    found = PixelOptions()
    for one in options_of(PixelOptions):
        value = given[one.name]
        if value is not None:
            try:
                found = replace(found, **{one.name: one.read(list(value) if isinstance(value, tuple) else value)})
            except UsageError as error:
                raise UsageError(f"{source} says what is not known here: {error}") from error
    return found
