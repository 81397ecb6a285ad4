"""The ``.emq`` file: one safetensors file that holds a network at every bit-width; the only reader and writer of it.

Tensors, each with a hash of its own in the metadata:

=====================  ===========================================================================================
``plane0..plane7``     bit-planes of the master codes of all switchable layers, most significant first
``pinned``             int8 weights of the layers that stay at 8 bits
``slope/4`` and so on  per stored bit-width and output channel: ``slope``, ``offset``, ``bits``, ``scale``, ``bias``
``skeleton``           the weightless ONNX graph, deflated
``float/NAME``         parameters of operators that stay in float
=====================  ===========================================================================================

The ``b`` most significant planes are the ``b``-bit network, so loading it reads ``b/8`` of the codes. Nothing in the
file is executed or unpickled, and no module that it names is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emqdeploy.errors import EmqError
from emqdeploy.files import atomic_write_bytes
from emqdeploy.frozen import FrozenLayer, FrozenNetwork, FrozenSite
from emqdeploy.grid import MASTER_BITS, Grid, pack_planes, unpack_planes

FORMAT_VERSION = 2
SUFFIX = ".emq"

_KEY = "emqdeploy"
_DIGEST = "digest"
_OWN_FIELDS = ("format_version", "widths", "layers", "sites", "hashes")
_LARGEST_HEADER = 64 << 20
_CAUSED_BY_CONTENT = (
    *(LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError),
    *(OSError, MemoryError, zlib.error),
)
"""What a file whose content is not ours makes reading raise."""
_DTYPES = {"U8": np.uint8, "I8": np.int8, "F32": np.float32, "I64": np.int64, "F64": np.float64, "I32": np.int32}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded ``.emq``.

    Attributes:
        network: codes, grids, biases and scales of the bit-widths that were loaded.
        skeleton: the weightless QDQ graph, serialised ONNX.
        metadata: the network, data, classes, preprocessing, bit-widths, recipe, accuracy, provenance.
        bytes_read: bytes read from the file; of a checkpoint that was not read, 0.
        size_bytes: size of the file, 0 likewise.
    """

    network: FrozenNetwork
    skeleton: bytes
    metadata: dict[str, Any]
    bytes_read: int = 0
    size_bytes: int = 0

    @property
    def classes(self) -> list[str]:
        """Class names, by index."""
        return list(self.metadata["classes"])

    @property
    def trained_bits(self) -> tuple[int, ...]:
        """The bit-widths that training visited; the other stored ones are unseen."""
        return tuple(self.metadata["trained_bits"])


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> int:
    """Writes a checkpoint atomically; returns the size of the file in bytes."""
    network = checkpoint.network
    tensors: dict[str, NDArray[Any]] = {}
    switchable = [layer for layer in network.layers.values() if not layer.pinned]
    codes = _join([layer.codes for layer in switchable], np.uint8)
    for index, plane in enumerate(pack_planes(codes, max(network.widths))):
        tensors[f"plane{index}"] = plane
    tensors["pinned"] = _join([layer.codes for layer in network.layers.values() if layer.pinned], np.int8)
    for bits in network.widths:
        for field, owners, dtype in _tables(network.layers):
            columns = [_column(network.layers[name], field, bits) for name in owners]
            tensors[f"{field}/{bits}"] = _join(columns, dtype)
    tensors["skeleton"] = np.frombuffer(zlib.compress(checkpoint.skeleton, 9), np.uint8)
    tensors |= {f"float/{name}": array for name, array in network.floats.items()}
    header = checkpoint.metadata | {
        "format_version": FORMAT_VERSION,
        "widths": list(network.widths),
        "layers": [
            {"name": name, "shape": list(layer.codes.shape), "site": layer.site, "pinned": layer.pinned}
            for name, layer in network.layers.items()
        ],
        "sites": [
            {"name": name, "signed": site.signed, "bits": _by_width(site.bits), "scales": _by_width(site.scales)}
            for name, site in network.sites.items()
        ],
        "hashes": {name: _hash_tensor(array.dtype, array.shape, array.tobytes()) for name, array in tensors.items()},
    }
    text = json.dumps(header, separators=(",", ":"))
    # Here, because only writing needs it: a device that reads a checkpoint gets by with numpy.
    import safetensors.numpy

    data = safetensors.numpy.save(tensors, {_KEY: text, _DIGEST: _hash(text.encode())})
    atomic_write_bytes(path, data)
    return len(data)


def load_checkpoint(path: str | os.PathLike[str], bits: int | None = None) -> Checkpoint:
    """Reads a checkpoint, or only one bit-width of it.

    Args:
        path: the file.
        bits: read nothing beyond what this bit-width needs; None reads every stored one.

    Raises:
        EmqError: the file is missing, truncated, altered, not an ``.emq``, or of a newer format.
        UsageError: it does not hold ``bits``.
    """
    with _Reader(Path(path)) as reader:
        header = reader.header
        stored = tuple(header["widths"])
        if bits is not None:
            FrozenNetwork({}, {}, stored).check_bits(bits)
        widths = stored if bits is None else (bits,)
        names = [name for name in header["hashes"] if name.startswith("float/")]
        floats = {name.removeprefix("float/"): reader.tensor(name) for name in names}
        network = _read_network(reader, header, widths, floats)
        skeleton = zlib.decompress(reader.tensor("skeleton").tobytes())
        metadata = {key: value for key, value in header.items() if key not in _OWN_FIELDS}
        return Checkpoint(network, skeleton, metadata, reader.bytes_read, reader.size_bytes)


def tensor_offsets(path: str | os.PathLike[str]) -> dict[str, int]:
    """Returns where each tensor's bytes begin in the file, for programs that read them without this module.

    Raises:
        EmqError: as `load_checkpoint`.
    """
    with _Reader(Path(path)) as reader:
        return {name: reader.data_start + entry["data_offsets"][0] for name, entry in reader.table.items()}


def column_owners(network: FrozenNetwork) -> dict[str, list[str]]:
    """Returns the layers whose channels a per-channel table (``slope``, ``scale``, ...) lists, by kind, in order."""
    return {kind: owners for kind, owners, _ in _tables(network.layers)}


def _read_network(
    reader: _Reader, header: dict[str, Any], widths: tuple[int, ...], floats: dict[str, NDArray[Any]]
) -> FrozenNetwork:
    records = header["layers"]
    sizes = [int(np.prod(record["shape"])) for record in records]
    switchable = sum(size for size, record in zip(sizes, records, strict=True) if not record["pinned"])
    planes = [reader.tensor(f"plane{index}") for index in range(min(max(widths), MASTER_BITS))]
    stores = {False: unpack_planes(planes, switchable), True: reader.tensor("pinned")}
    taken = {False: 0, True: 0}
    layers: dict[str, FrozenLayer] = {}
    for record, size in zip(records, sizes, strict=True):
        pinned = record["pinned"]
        codes = stores[pinned][taken[pinned] : taken[pinned] + size].reshape(record["shape"])
        taken[pinned] += size
        layers[record["name"]] = FrozenLayer(record["site"], codes, {}, {})
    for bits in widths:
        columns: dict[str, dict[str, NDArray[Any]]] = {name: {} for name in layers}
        for field, owners, _ in _tables(layers):
            ends = np.cumsum([len(layers[name].codes) for name in owners])
            parts = np.split(reader.tensor(f"{field}/{bits}"), ends)
            for name, part in zip(owners, parts[:-1], strict=True):
                columns[name][field] = part
        for name, layer in layers.items():
            layer.biases[bits] = columns[name]["bias"]
            layer.grids[bits] = _grid(columns[name])
    sites = {
        record["name"]: FrozenSite(
            record["signed"],
            {int(width): value for width, value in record["bits"].items()},
            {int(width): value for width, value in record["scales"].items()},
        )
        for record in header["sites"]
    }
    return FrozenNetwork(layers, sites, widths, floats)


def _grid(columns: dict[str, NDArray[Any]]) -> Grid:
    """A layer's grid from its columns; a pinned layer's integers are its codes, up to the sign of the slope."""
    scale, slope = columns["scale"], columns["slope"].astype(np.int16)
    ones = np.ones(len(scale), np.int16)
    offset = columns.get("offset", 0 * ones).astype(np.int16)
    return Grid(scale, slope, offset, columns.get("bits", MASTER_BITS * ones).astype(np.uint8))


def _tables(layers: dict[str, FrozenLayer]) -> list[tuple[str, list[str], type]]:
    """The per-channel columns of the file, the names of the layers that have them, and their type."""
    every = list(layers)
    switchable = [name for name, layer in layers.items() if not layer.pinned]
    numbers: list[tuple[str, list[str], type]] = [("scale", every, np.float32), ("bias", every, np.float32)]
    return [*numbers, ("slope", every, np.int8), ("offset", switchable, np.int8), ("bits", switchable, np.int8)]


def _column(layer: FrozenLayer, field: str, bits: int) -> NDArray[Any]:
    column: NDArray[Any] = layer.biases[bits] if field == "bias" else getattr(layer.grids[bits], field)
    return column


def _join(arrays: list[NDArray[Any]], dtype: type) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *(array.reshape(-1).astype(dtype) for array in arrays)])


def _by_width(values: dict[int, Any]) -> dict[str, Any]:
    return {str(width): value for width, value in values.items()}


def _hash(*data: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in data:
        digest.update(part)
    return digest.hexdigest()


def _hash_tensor(dtype: Any, shape: Sequence[int], data: bytes) -> str:
    """Type and shape stand in safetensors' own table, which no hash protects, so they belong to the tensor's."""
    return _hash(f"{np.dtype(dtype).str}{list(shape)}".encode(), data)


class _Reader:
    """Reads single tensors of a safetensors file with `pread` and checks each against its hash.

    A memory map would let the kernel read ahead over the planes that a narrow bit-width leaves out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes_read = 0

    def __enter__(self) -> _Reader:
        try:
            self.file = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise EmqError(f"cannot read {self.path}: {error.strerror}; name an existing .emq file") from error
        try:
            self.size_bytes = os.fstat(self.file).st_size
            self._read_header()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Closes the file; what a wrong file makes fail inside the block becomes one sentence."""
        os.close(self.file)
        if isinstance(error, _CAUSED_BY_CONTENT) and not isinstance(error, EmqError):
            raise self._fail("is not an .emq file") from error

    def _fail(self, what: str) -> EmqError:
        return EmqError(f"{self.path} {what}; use the original file or train again")

    def _read_header(self) -> None:
        length = int.from_bytes(self._pread(0, 8), "little")
        if not 2 <= length <= min(_LARGEST_HEADER, self.size_bytes - 8):
            raise ValueError("impossible header length")
        table = json.loads(self._pread(8, length))
        texts = table.pop("__metadata__")
        text = texts[_KEY]
        if _hash(text.encode()) != texts[_DIGEST]:
            raise self._fail("was altered: its metadata does not match its hash")
        self.table = table
        self.data_start = 8 + length
        self.header: dict[str, Any] = json.loads(text)
        version = self.header["format_version"]
        if version != FORMAT_VERSION:
            remedy = "update emqdeploy" if version > FORMAT_VERSION else "make the checkpoint again with this version"
            raise EmqError(f"{self.path} has format {version}, this emqdeploy reads {FORMAT_VERSION}; {remedy}")
        end = self.data_start + max(entry["data_offsets"][1] for entry in table.values())
        if end > self.size_bytes:
            raise self._fail(f"is truncated: it has {self.size_bytes} of {end} bytes")

    def _pread(self, start: int, length: int) -> bytes:
        parts = []
        while length > 0:
            part = os.pread(self.file, length, start)
            if not part:
                raise self._fail("is truncated")
            parts.append(part)
            start, length = start + len(part), length - len(part)
            self.bytes_read += len(part)
        return b"".join(parts)

    def tensor(self, name: str) -> NDArray[Any]:
        """Reads one tensor in its own shape."""
        if name not in self.table:
            raise self._fail(f"was altered: it has no tensor {name!r}")
        entry = self.table[name]
        (start, end), shape, dtype = entry["data_offsets"], entry["shape"], _DTYPES[entry["dtype"]]
        data = self._pread(self.data_start + start, end - start)
        if _hash_tensor(dtype, shape, data) != self.header["hashes"][name]:
            raise self._fail(f"was altered: tensor {name!r} does not match its hash")
        return np.frombuffer(data, dtype).reshape(shape)
