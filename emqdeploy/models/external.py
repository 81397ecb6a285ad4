"""Models that others wrote: any of timm's by its name, and the user's own functions by theirs."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from emqdeploy.data.repair import import_torchvision
from emqdeploy.errors import EmqError, UsageError, require

TIMM = "timm/"

_named_by_user: set[str] = set()


def build_timm(name: str, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Builds a timm model with freshly drawn weights; the image size is passed on where the model takes it."""
    import_torchvision()  # which timm imports, and which may need our repair
    timm = require("timm", "timm")
    if not timm.is_model(name):
        known = timm.list_models()
        near = [other for other in known if other.startswith(name)][:3] or difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {' or '.join(TIMM + other for other in near)}?" if near else ""
        raise UsageError(f"timm {timm.__version__} has no model {name!r}{hint}")
    options: dict[str, Any] = {"pretrained": False, "num_classes": num_classes, "in_chans": in_channels}
    try:
        try:
            network: nn.Module = timm.create_model(name, img_size=image_size, **options)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            network = timm.create_model(name, **options)
    except Exception as error:
        raise EmqError(
            f"timm cannot build {name}: {_first_line(error)}; choose another model or --image-size"
        ) from error
    return network


def knows_timm(name: str) -> bool:
    """Whether timm, where it is installed, has a model of this name."""
    try:
        import_torchvision()
        return bool(require("timm", "timm").is_model(name))
    except EmqError:
        return False


def is_users(name: str) -> bool:
    """Whether a name means a function of the user's: ``pkg.module:function``."""
    return ":" in name


def trust(name: str) -> None:
    """Notes that the user named this function in this process; a name that only stands in a file is never imported."""
    _named_by_user.add(name)


def check_trusted(name: str) -> None:
    """Raises for a function of the user's that the user did not name in this process."""
    if is_users(name) and name not in _named_by_user:
        raise EmqError(
            f"this network is your own function {name}, and a file may not have code imported; name it yourself:"
            f" --model {name}"
        )


def build_users(name: str, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Imports ``pkg.module:function``, from the working directory too, and calls it with what its signature takes."""
    module_name, _, function_name = name.partition(":")
    if f"{module_name}/" == TIMM:
        raise UsageError(
            f"{name} would be a function of timm; write {TIMM}{function_name} for its network of that name"
        )
    try:
        with _working_directory_first():
            function = getattr(importlib.import_module(module_name), function_name)
    except AttributeError as error:
        raise UsageError(f"module {module_name} has no {function_name!r}; name a function of it") from error
    except Exception as error:
        raise UsageError(
            f"cannot import {module_name!r}: {_first_line(error)}; name a model as pkg.module:function, importable from"
            " here"
        ) from error
    offered = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    try:
        parameters = inspect.signature(function).parameters
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        network = function(**{key: value for key, value in offered.items() if takes_all or key in parameters})
    except Exception as error:
        raise EmqError(f"{name} failed: {_first_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise EmqError(f"{name} returned a {type(network).__name__}, not a torch.nn.Module")
    return network


@contextlib.contextmanager
def _working_directory_first() -> Iterator[None]:
    """Imports also what lies in the working directory, as ``python -m`` would."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
