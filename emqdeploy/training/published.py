"""The trained weights that timm and torchvision publish for their models: from their caches, else fetched into them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from emqdeploy.data.repair import import_torchvision
from emqdeploy.errors import EmqError, require
from emqdeploy.models.external import TIMM
from emqdeploy.models.registry import canonical

_FILES = ("model.safetensors", "pytorch_model.bin")
_WAIT_S = 10
"""For a server to answer."""


def is_published(name: str) -> bool:
    """Whether a name is one of timm's, or of torchvision's networks that have weights."""
    return name.startswith(TIMM) or (os.sep not in name and bool(_torchvision_weights(name)))


def published_weights(name: str) -> Path:
    """The file of a model's own trained weights; of several the ones that its library takes by default.

    Args:
        name: ``timm/NAME``, with a tag or without, or a torchvision network.

    Raises:
        EmqError: there are none, or they are not on this machine and cannot be fetched.
    """
    return _of_timm(name.removeprefix(TIMM)) if name.startswith(TIMM) else _of_torchvision(name)


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def _of_timm(name: str) -> Path:
    import_torchvision()  # which timm imports, and which may need our repair
    timm = require("timm", "timm")
    config = timm.models.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is None or not (config.hf_hub_id or config.url):
        raise EmqError(
            f"timm {timm.__version__} has no trained weights of {name!r}; name a file of weights and --model"
        )
    if not config.hf_hub_id:
        return _of_url(f"{TIMM}{name}", config.url)
    hub: Any = require("huggingface_hub", "timm")
    files = (config.hf_hub_filename,) if config.hf_hub_filename else _FILES
    for file in files:
        found = hub.try_to_load_from_cache(config.hf_hub_id, file)
        if isinstance(found, str):
            return Path(found)
    try:
        return Path(hub.hf_hub_download(config.hf_hub_id, files[0], etag_timeout=_WAIT_S))
    except Exception as error:  # no network, no such file, an interrupted download: the library has a kind for each
        raise _missing(
            f"{TIMM}{name}", f"{files[0]} of {config.hf_hub_id}", hub.constants.HF_HUB_CACHE, error
        ) from error


def _torchvision_weights(name: str) -> list[Any]:
    try:
        return list(import_torchvision().models.get_model_weights(canonical(name)))
    except (EmqError, ValueError):
        return []


def _of_torchvision(name: str) -> Path:
    recommended: Any = type(_torchvision_weights(name)[0]).DEFAULT
    return _of_url(name, recommended.url)


def _of_url(name: str, url: str) -> Path:
    file = url.rpartition("/")[2]
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if path.is_file():
        return path
    try:
        if _offline():
            raise EmqError("HF_HUB_OFFLINE is set")
        path.parent.mkdir(parents=True, exist_ok=True)
        beginning = file.rpartition(".")[0].rpartition("-")[2]  # of the hash, as torch names its files
        hashed = beginning if all(letter in "0123456789abcdef" for letter in beginning) else None
        torch.hub.download_url_to_file(url, str(path), hashed, progress=False)
    except Exception as error:
        raise _missing(name, file, str(path.parent), error) from error
    return path


def _missing(name: str, what: str, place: str, error: Exception) -> EmqError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
    return EmqError(
        f"the trained weights of {name} ({what}) are not in {place} and cannot be fetched ({reason}); put the file"
        f" there, or name it: emqdeploy quantize FILE --model {name}"
    )
