"""Float weights from a file into a model: state dicts as people publish them, without running anything in the file."""

from __future__ import annotations

import argparse
import os
import pathlib
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.files import open_regular
from emqdeploy.training.run import LATENT_FILE

State = dict[str, Tensor]

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")

QUANTIZER = "quantizer"
"""Submodule of a layer, see `emqdeploy.quant.layers.QuantLayer`."""

_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "network", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_NUMPY_SCALAR, _NUMPY_ARRAY = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
_HARMLESS: list[Any] = [
    # What training scripts store beside their weights: arguments, paths, accuracies as numpy numbers.
    *(argparse.Namespace, pathlib.PosixPath, pathlib.WindowsPath, np.ndarray, np.dtype),
    *(type(np.dtype(kind)) for kind in ("float16", "float32", "float64", "int32", "int64", "uint8", "bool")),
    *((_NUMPY_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_NUMPY_ARRAY, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]


def load_pretrained(model: nn.Module, path: Path, fresh_head: bool = True) -> list[str]:
    """Loads float weights into a model, in place.

    Wrapping (``state_dict``, ``model``, ...) and prefixes (``module.``, ``_orig_mod.``, ``model.``) are taken off. A
    last layer of another number of classes, or none, keeps the model's fresh weights. Anything else must match by name
    and shape.

    Args:
        model: freshly created.
        path: ``.safetensors``, ``.pth`` or ``.pt``; or a run directory, whose latent weights are taken.
        fresh_head: whether the last layer may stay fresh; False where no training follows.

    Returns:
        What happened, a sentence each.

    Raises:
        EmqError: the file cannot be read, or does not belong to this model; nothing was loaded then.
    """
    wanted = model.state_dict()
    found = _without_prefixes(read_state(path), set(wanted))
    # What a run's quantizers learned is of no use to a float model.
    found = {name: tensor for name, tensor in found.items() if f".{QUANTIZER}." not in name}
    head = _head(model)
    fresh = [name for name in head if name not in found or _other_classes(found[name], wanted[name])]
    if fresh and not fresh_head:
        raise EmqError(_describe_head(fresh, found, wanted, path) + "; train it with: emqdeploy train --pretrained")
    _check(found, {name: tensor for name, tensor in wanted.items() if name not in fresh}, head, path, model)
    loaded = [name for name in wanted if name in found and name not in fresh]
    with torch.no_grad():
        for name in loaded:
            wanted[name].copy_(found[name])
    notes = [f"loaded {len(loaded)} of {len(wanted)} tensors from {path}"]
    if fresh:
        notes.append(_describe_head(fresh, found, wanted, path) + ": it starts from fresh weights")
    return notes


def _other_classes(stored: Tensor, tensor: Tensor) -> bool:
    return stored.shape != tensor.shape and stored.shape[1:] == tensor.shape[1:]


def _describe_head(fresh: list[str], found: State, wanted: State, path: Path) -> str:
    stored = len(found[fresh[0]]) if fresh[0] in found else "none"
    layer = fresh[0].rpartition(".")[0]
    return f"the last layer {layer!r} has {len(wanted[fresh[0]])} classes here and {stored} in {path}"


def _check(found: State, wanted: State, head: list[str], path: Path, model: nn.Module) -> None:
    """Raises for the first tensor that does not fit."""
    kind = type(model).__name__
    advice = "choose the --model that the weights were trained for"
    for name, tensor in wanted.items():
        stored = found.get(name)
        if stored is None:
            if name.endswith("num_batches_tracked"):  # old files lack it, and nothing needs it
                continue
            raise EmqError(f"{path} lacks {name!r}, which {kind} needs; {advice}")
        if stored.shape != tensor.shape:
            raise EmqError(
                f"{name!r} has shape {tuple(stored.shape)} in {path} and {tuple(tensor.shape)} in {kind}; {advice}, and"
                " data of as many channels and pixels"
            )
        if stored.is_floating_point() and not bool(torch.isfinite(stored).all()):
            raise EmqError(f"{name!r} in {path} holds values that are not finite; take an earlier checkpoint")
    for name in found:
        if name not in wanted and name not in head:
            raise EmqError(f"{path} holds {name!r}, which {kind} does not have; {advice}")


def read_state(path: Path) -> State:
    """Reads a file's tensors by name, wrapping taken off.

    Raises:
        EmqError: the file is missing, no weights file, or asks for code to be run.
    """
    if path.is_dir():
        if not (path / LATENT_FILE).is_file():
            raise UsageError(f"{path} holds no {LATENT_FILE}; name a weights file or a run directory")
        path = path / LATENT_FILE
    if not path.exists():
        raise UsageError(f"there is no file {path}; give float weights as .safetensors, .pth or .pt")
    if path.suffix.lower() not in SUFFIXES:
        hint = f"; the float weights of a run are in {LATENT_FILE} beside it" if path.suffix == ".emq" else ""
        raise UsageError(f"{path} is no file of float weights{hint}; known: {', '.join(SUFFIXES)}")
    os.close(open_regular(path, "give float weights as .safetensors, .pth or .pt"))
    content = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_pickle(path)
    for _ in range(2):
        if isinstance(content, dict):
            content = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), content)
    entries = content if isinstance(content, dict) else {}
    tensors = {str(name): value for name, value in entries.items() if isinstance(value, Tensor)}
    if not tensors:
        raise EmqError(f"{path} holds no tensors by name; save a model's state_dict() in it")
    return tensors


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise EmqError(f"{path} is not a readable safetensors file ({error}); get it again") from error


def _read_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"asks for {named[1]}" if named else "is no plain archive of tensors"
        raise EmqError(
            f"{path} {what}, which could run code and is refused; save only the weights:"
            " torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:  # a broken archive can fail with nearly any of them
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EmqError(f"{path} is not a readable weights file ({reason}); get it again") from error


def _without_prefixes(found: State, wanted: set[str]) -> State:
    """Takes off what wrappers put before every name, as long as the model has no such names itself."""
    while wanted.isdisjoint(found):
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in found)), None)
        if prefix is None:
            break
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def _head(model: nn.Module) -> list[str]:
    """Names of the tensors of the last linear layer, the one that data of other classes replace."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [f"{linear[-1]}.{name}" for name, _ in model.get_submodule(linear[-1]).named_parameters()] if linear else []
