"""The files of data sets: finding or downloading them, and reading each format without trusting it."""

from __future__ import annotations

import gzip
import math
import pickle
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from emqdeploy.errors import EmqError, UsageError, require, writable_dir

_PLAIN_RESIZE_UP_TO = 64  # pixels; small pictures are all subject, there is no border to crop
_CROP_SHARE = 224 / 256  # of the shorter side, as in the usual ImageNet evaluation
_DEBIAN_DATASETS = Path("/usr/share/datasets")


def find_or_download(
    name: str,
    data_dir: Path | None,
    files: Sequence[str],
    subfolders: Sequence[str],
    torchvision_name: str,
    debian_package: str | None = None,
) -> Path:
    """Return the first folder that holds all ``files``; torchvision fetches them as a last resort.

    Raises:
        EmqError: They are nowhere; the message lists the places and the ways out.
    """
    cache = Path.home() / ".cache" / "emqdeploy"
    folders = [data_dir / sub for sub in subfolders] if data_dir else []
    if debian_package:
        folders.append(_DEBIAN_DATASETS / name)
    folders += [cache / sub for sub in subfolders]

    def find() -> Path | None:
        return next((at for at in folders if all((at / file).is_file() for file in files)), None)

    found = find()
    if found is None:
        try:
            _download(torchvision_name, writable_dir(data_dir or cache))
            reason = "it lacked files"
        except Exception as error:  # torch missing, no network, wrong checksum, full disk, ...
            reason = str(error).partition("\n")[0] or type(error).__name__
        found = find()
    if found is None:
        package = f"install the Debian package {debian_package}, or " if debian_package else ""
        raise EmqError(
            f"{name} is neither in {' nor in '.join(str(at) for at in folders)}, and the download "
            f"failed ({reason}); {package}give the folder of its files with --data-dir"
        )
    return found


def _download(torchvision_name: str, folder: Path) -> None:
    """Let torchvision download a data set (it checks the checksums) into ``folder``."""
    from emqdeploy.models import import_torchvision  # torch: only a download needs it here

    getattr(import_torchvision().datasets, torchvision_name)(root=str(folder), download=True)


def damaged(path: Path, reason: object) -> EmqError:
    """Return the error for a file whose contents cannot be right."""
    return EmqError(f"{path} is damaged ({reason}); remove it and get it again")


def read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """Read a gzipped IDX file of bytes: a magic number, big-endian sizes, then the values."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(path, error) from error
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes((0, 0, 8, dimensions)):
        raise damaged(path, f"no IDX header of {dimensions} dimensions")
    shape = tuple(int(size) for size in np.frombuffer(content[4:header], ">u4"))
    if len(content) - header != math.prod(shape) or not math.prod(shape):
        raise damaged(path, f"{len(content) - header} values instead of {math.prod(shape)}")
    # A copy, because torch warns about arrays that share memory with read-only bytes.
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()


class _PickledDtype:
    """Stands in for ``numpy.dtype`` in a pickle; only bytes are let through."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in ("u1", "|u1"):
            raise pickle.UnpicklingError(f"an array of {code!r} instead of bytes")

    def __setstate__(self, state: object) -> None:
        """Ignore the byte order and alignment: bytes have neither."""


class _PickledArray:
    """Stands in for ``numpy.ndarray`` in a pickle and keeps the checked bytes in ``values``."""

    values: npt.NDArray[np.uint8]

    def __init__(self, *_: object) -> None:
        """Ignore what numpy would be built with; the state holds everything."""

    def __setstate__(self, state: tuple[int, tuple[int, ...], _PickledDtype, bool, Any]) -> None:
        _, shape, _, column_major, data = state
        content = _encode(data) if isinstance(data, str) else data  # str: written by Python 2
        values = np.frombuffer(content, np.uint8)
        self.values = values.reshape(shape, order="F" if column_major else "C")


def _encode(text: str, *_: object) -> bytes:
    """Stand in for ``_codecs.encode``, with which Python 3 writes bytes at protocol 2."""
    return text.encode("latin1")


class _CifarUnpickler(pickle.Unpickler):
    """Reads dictionaries, lists, text, numbers and byte arrays; a pickle can name nothing else.

    An ordinary unpickler runs whatever a file asks for. Even numpy is replaced by stand-ins here,
    which also read the names of every numpy version alike.
    """

    _allowed: Mapping[tuple[str, str], Any] = {
        ("numpy.core.multiarray", "_reconstruct"): _PickledArray,  # numpy 1
        ("numpy._core.multiarray", "_reconstruct"): _PickledArray,  # numpy 2
        ("numpy", "ndarray"): _PickledArray,
        ("numpy", "dtype"): _PickledDtype,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return a stand-in, or refuse the name."""
        try:
            return self._allowed[module_name, global_name]
        except KeyError:
            name = f"{module_name}.{global_name}"
            raise pickle.UnpicklingError(f"it asks for {name}, which no image needs") from None


def read_cifar(path: Path, *keys: str) -> dict[str, Any]:
    """Read one file of CIFAR's python version and check that it has ``keys``."""
    try:
        with path.open("rb") as file:
            content = _CifarUnpickler(file, encoding="latin1").load()
    except Exception as error:  # a broken pickle can fail with nearly any of them
        raise damaged(path, str(error) or type(error).__name__) from error
    if not isinstance(content, dict) or not all(key in content for key in keys):
        raise damaged(path, f"no {' and '.join(keys)} in it")
    return content


def read_images(paths: Sequence[Path], size: int) -> npt.NDArray[np.uint8]:
    """Read colour images into one array (N, 3, size, size)."""
    images = np.empty((len(paths), 3, size, size), np.uint8)
    for index, path in enumerate(paths):
        images[index] = read_image(path, 3, size, size)
    return images


def read_image(path: Path, channels: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Read an image file as pixels (C, H, W), resized if its size differs.

    Small targets take the whole picture. Larger ones take its centre, 224/256 of the shorter side,
    in one step: cropping before scaling keeps a very long picture from filling the memory.
    """
    pil = require("PIL.Image", "runtime")
    orient = require("PIL.ImageOps", "runtime").exif_transpose
    try:
        with pil.open(path) as opened:
            image = orient(opened).convert("L" if channels == 1 else "RGB")
    except FileNotFoundError as error:
        raise UsageError(f"there is no image {path}; check the path") from error
    except (OSError, SyntaxError, ValueError, pil.DecompressionBombError) as error:
        raise EmqError(f"{path} is not a readable image; replace or remove it") from error
    if image.size != (width, height):
        box = None
        if max(width, height) > _PLAIN_RESIZE_UP_TO:
            scale = _CROP_SHARE * min(image.width / width, image.height / height)
            left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
            box = (left, top, left + scale * width, top + scale * height)
        image = image.resize((width, height), pil.Resampling.BILINEAR, box=box)
    pixels = np.asarray(image, np.uint8)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
