"""Tensors by name from files of weights, however they are wrapped, without running anything in the file."""

from __future__ import annotations

import argparse
import os
import pathlib
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.files import open_regular
from emqdeploy.training.run import LATENT_FILE, check_stored

State = dict[str, Tensor]

SUFFIXES = (".safetensors", ".pth", ".pt", ".th", ".bin", ".ckpt", ".tar")

LARGEST_WEIGHTS = 16 << 30
"""Bytes of a file of weights at most; as many are read into memory."""

_DEPTH = 2  # of wrappers around wrappers
_NUMPY_SCALAR, _NUMPY_ARRAY = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
_HARMLESS: list[Any] = [
    # What training scripts store beside their weights: arguments, paths, accuracies as numpy numbers.
    *(argparse.Namespace, pathlib.PosixPath, pathlib.WindowsPath, np.ndarray, np.dtype),
    *(type(np.dtype(kind)) for kind in ("float16", "float32", "float64", "int32", "int64", "uint8", "bool")),
    *((_NUMPY_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_NUMPY_ARRAY, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]


def read_states(path: Path) -> dict[tuple[str, ...], State]:
    """Reads all groups of named tensors in a file.

    Args:
        path: ``.safetensors``, ``.pth`` or ``.pt``; or a run directory, whose latent weights are taken.

    Returns:
        By the keys that lead to them, ``("state_dict",)`` for example; none for the tensors of the file itself.

    Raises:
        EmqError: the file is missing, no weights file, or asks for code to be run.
    """
    if path.is_dir():
        if not (path / LATENT_FILE).is_file():
            raise UsageError(f"{path} holds no {LATENT_FILE}; name a weights file or a run directory")
        path = path / LATENT_FILE
    if not path.exists():
        raise UsageError(f"there is no file {path}; give float weights as .safetensors, .pth or .pt")
    check_no_program(path)
    if path.suffix.lower() not in SUFFIXES:
        hint = f"; the float weights of a run are in {LATENT_FILE} beside it" if path.suffix == ".emq" else ""
        raise UsageError(f"{path} is no file of float weights{hint}; known: {', '.join(SUFFIXES)}")
    with open(open_regular(path, "give float weights as .safetensors, .pth or .pt"), "rb") as file:
        if (size := os.fstat(file.fileno()).st_size) > LARGEST_WEIGHTS:
            raise EmqError(f"{path} has {size} bytes, at most {LARGEST_WEIGHTS} are read; give the weights alone")
        read = _read_safetensors if path.suffix.lower() == ".safetensors" else _read_pickle
        content = read(file, path)
    states = dict(_groups(content, ()))
    if not states:
        raise EmqError(f"{path} holds no tensors by name; save a model's state_dict() in it")
    return states


def check_no_program(path: Path) -> None:
    """Raises for a program of `torch.export`: torch unpickles what stands in such a file, and evaluates its sizes."""
    if path.suffix.lower() == ".pt2":
        raise UsageError(
            f"{path} is a program of torch.export, and opening one can run code that stands in it; where you trust it,"
            f' make a file that is data alone: torch.onnx.export(torch.export.load("{path}"), f="{path.stem}.onnx")'
        )


def _groups(content: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], State]]:
    if not isinstance(content, Mapping):
        return
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    if tensors:
        yield keys, tensors
    if len(keys) < _DEPTH:
        for name, value in named.items():
            yield from _groups(value, (*keys, name))


def _read_safetensors(file: BinaryIO, path: Path) -> dict[str, Any]:
    try:
        return safetensors.torch.load(file.read())
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise EmqError(f"{path} is not a readable safetensors file ({error}); get it again") from error


def _read_pickle(file: BinaryIO, path: Path) -> Any:
    try:
        if zipfile.is_zipfile(file):
            check_stored(file)
        file.seek(0)
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(file, map_location="cpu", weights_only=True)
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
