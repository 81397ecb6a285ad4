"""The native library through its C interface: finding it, making a network in it, running and tracing it.

The library is a distribution of its own (``pip install "emqdeploy[native]"``); `native/include/emq.h` in the sources
describes the interface. All numbers are copied into the library, so nothing here has to outlive the call.
"""

from __future__ import annotations

import ctypes
import importlib.util
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emqdeploy.errors import EmqError, Unsupported
from emqdeploy.format.child import Child
from emqdeploy.format.emq import Checkpoint
from emqdeploy.format.frozen import FrozenLayer, FrozenNetwork
from emqdeploy.format.grid import Codes, Floats, integer_bias
from emqdeploy.graph.reference import CODES_SUFFIX

PACKAGE = "emqdeploy_native"
VERSION = 1


class _LayerNumbers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("gain", "shift", "bias", "bits", "scale")]


class _Layer(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("outputs", ctypes.c_int64),
        ("fan_in", ctypes.c_int64),
        ("codes", ctypes.c_void_p),
        ("children", ctypes.POINTER(_LayerNumbers)),
    ]


class _Site(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), *((name, ctypes.c_void_p) for name in ("scales", "lows", "highs"))]


class _Source(ctypes.Structure):
    _fields_ = [
        ("graph", ctypes.c_char_p),
        ("graph_size", ctypes.c_size_t),
        *((name, ctypes.c_int32) for name in ("channels", "height", "width", "classes")),
        *((name, ctypes.c_int32) for name in ("child_count", "layer_count", "site_count")),
        ("child_names", ctypes.POINTER(ctypes.c_char_p)),
        ("layers", ctypes.POINTER(_Layer)),
        ("sites", ctypes.POINTER(_Site)),
        ("threads", ctypes.c_int32),
    ]


_Watch = ctypes.CFUNCTYPE(
    None,
    ctypes.c_void_p,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint8),
    ctypes.c_int32,
    ctypes.c_int32,
    ctypes.c_int32,
)


def library_path() -> Path | None:
    """Where the installed library lies; None where it is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    places = found.submodule_search_locations if found is not None else None
    files = [path for place in places or () for path in sorted(Path(place).glob("libemq.*"))]
    return files[0] if files else None


@cache
def library() -> Any:
    """The loaded library.

    Raises:
        EmqError: it is not installed, cannot be loaded, or is of another version.
    """
    path = library_path()
    if path is None:
        raise EmqError(
            f"{PACKAGE} is not installed, which runtime 'native' needs; run: pip install \"emqdeploy[native]\""
        )
    try:
        loaded = ctypes.CDLL(str(path))
        version, _ = loaded.emq_version(), loaded.emq_forget_tuning  # the newest of its functions
    except (OSError, AttributeError) as error:
        raise EmqError(f"{path} cannot be loaded ({error}); install {PACKAGE} again") from error
    if version != VERSION:
        raise EmqError(f"{path} has interface {version}, this emqdeploy needs {VERSION}; install both anew")
    loaded.emq_error.restype = loaded.emq_instruction_sets.restype = ctypes.c_char_p
    loaded.emq_layer_method.restype = ctypes.c_char_p
    loaded.emq_layer_method.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p]
    loaded.emq_size_bytes.restype = ctypes.c_size_t
    loaded.emq_size_bytes.argtypes = loaded.emq_close.argtypes = [ctypes.c_void_p]
    loaded.emq_create.argtypes = [ctypes.POINTER(_Source), ctypes.POINTER(ctypes.c_void_p)]
    loaded.emq_run.argtypes = [
        *(ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p),
    ]
    loaded.emq_trace.argtypes = [
        *(ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, _Watch, ctypes.c_void_p),
    ]
    return loaded


def instruction_sets() -> list[str]:
    """The instruction sets that this processor has kernels for, best first."""
    names: bytes = library().emq_instruction_sets()
    return names.decode().split()


def forget_tuning() -> None:
    """Forgets which kernels were fastest here, so that networks that are opened from now on are timed again.

    Raises:
        EmqError: the library is missing, or what it kept cannot be removed.
    """
    if library().emq_forget_tuning() != 0:
        raise EmqError(library().emq_error().decode())


class NativeNetwork:
    """A network in the library, with all children of a checkpoint.

    Args:
        checkpoint: what to run.
        threads: threads inside a layer; None takes as many as the processor has cores.

    Raises:
        EmqError: the library is missing.
        Unsupported: the network has an operator without an integer kernel there.
    """

    def __init__(self, checkpoint: Checkpoint, threads: int | None) -> None:
        self._library = library()
        self._classes = len(checkpoint.card.classes)
        self.children = checkpoint.network.children
        handle = ctypes.c_void_p()
        with _Made(checkpoint, threads or 0) as source:
            if self._library.emq_create(ctypes.byref(source), ctypes.byref(handle)) != 0:
                raise Unsupported(self._library.emq_error().decode())
        self._handle = handle

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            self._library.emq_close(self._handle)

    @property
    def size_bytes(self) -> int:
        """Memory of all children together."""
        return int(self._library.emq_size_bytes(self._handle))

    def method(self, child: Child, layer: str) -> str:
        """How a layer is computed at a child."""
        found: bytes = self._library.emq_layer_method(self._handle, self.children.index(child), layer.encode())
        return found.decode()

    def run(self, index: int, images: Floats) -> Floats:
        """Returns logits ``(N, classes)`` of normalised images ``(N, C, H, W)`` at the child of an index."""
        images = np.ascontiguousarray(images)
        logits = np.empty((len(images), self._classes), np.float32)
        self._check(self._library.emq_run(self._handle, index, images.ctypes.data, len(images), logits.ctypes.data))
        return logits

    def trace(self, index: int, images: Floats) -> tuple[Floats, dict[str, Codes]]:
        """Returns logits ``(N, classes)`` and the codes ``(N, C, H, W)`` of every quantized tensor, by its name."""
        logits = np.empty((len(images), self._classes), np.float32)
        parts: dict[str, dict[int, Codes]] = {}
        for number, image in enumerate(np.ascontiguousarray(images)):

            def watch(_: Any, site: bytes, codes: Any, *shape: int, number: int = number) -> None:
                parts.setdefault(site.decode() + CODES_SUFFIX, {})[number] = np.ctypeslib.as_array(codes, shape).copy()

            called = _Watch(watch)
            answer = logits[number].ctypes.data
            self._check(self._library.emq_trace(self._handle, index, image.ctypes.data, answer, called, None))
        return logits, {name: np.stack(list(found.values())) for name, found in parts.items()}

    def clock(self, index: int, image: Floats, traced: bool = True) -> dict[str, float]:
        """Returns the milliseconds of one image ``(1, C, H, W)`` at the child of an index, by quantized tensor.

        Each is the time since the tensor before it, that of handing it out included; under the empty name what passes
        behind the last one. Untraced, that is all of it.
        """
        image, taken = np.ascontiguousarray(image), {}
        before = time.perf_counter()

        def note(_: Any, site: bytes, *rest: Any) -> None:
            nonlocal before
            now = time.perf_counter()
            taken[site.decode()] = 1000 * (now - before)
            before = time.perf_counter()

        if traced:
            logits, called = np.empty(self._classes, np.float32), _Watch(note)
            answer = logits.ctypes.data
            self._check(self._library.emq_trace(self._handle, index, image.ctypes.data, answer, called, None))
        else:
            self.run(index, image)
        taken[""] = 1000 * (time.perf_counter() - before)
        return taken

    def _check(self, code: int) -> None:
        if code != 0:
            raise EmqError(self._library.emq_error().decode())


class _Made:
    """A checkpoint as the library takes it; the arrays live as long as the block."""

    def __init__(self, checkpoint: Checkpoint, threads: int) -> None:
        self._checkpoint, self._threads = checkpoint, threads
        self._kept: list[Any] = []

    def __enter__(self) -> _Source:
        network, card = self._checkpoint.network, self._checkpoint.card
        names = [child.name.encode() for child in network.children]
        layers = [self._layer(network, name, layer) for name, layer in network.layers.items()]
        sites = [self._site(network, name) for name in network.sites]
        channels, height, width = card.input_shape
        return _Source(
            self._checkpoint.skeleton,
            len(self._checkpoint.skeleton),
            *(channels, height, width, len(card.classes)),
            *(len(names), len(layers), len(sites)),
            self._many(ctypes.c_char_p, names),
            self._many(_Layer, layers),
            self._many(_Site, sites),
            self._threads,
        )

    def __exit__(self, *error: object) -> None:
        self._kept.clear()

    def _many(self, kind: Any, values: Sequence[Any]) -> Any:
        array = (kind * len(values))(*values)
        self._kept.append(array)
        return array

    def _pointer(self, values: Any, dtype: type) -> int:
        array: NDArray[Any] = np.ascontiguousarray(values, dtype)
        self._kept.append(array)
        return array.ctypes.data

    def _layer(self, network: FrozenNetwork, name: str, layer: FrozenLayer) -> _Layer:
        numbers = []
        for child in network.children:
            grid = layer.grids[child]
            gain, shift, bits = layer.affine_of_kernels(child)
            bias, _ = integer_bias(layer.biases[child], network.sites[layer.site].scales[child], grid.scale)
            numbers.append(
                _LayerNumbers(
                    *(self._pointer(values, np.int32) for values in (gain, shift, bias)),
                    self._pointer(bits, np.uint8),
                    self._pointer(grid.scale, np.float32),
                )
            )
        return _Layer(
            name.encode(),
            len(layer.codes),
            layer.codes[0].size,
            self._pointer(layer.bytes_of_kernels(), np.uint8),
            self._many(_LayerNumbers, numbers),
        )

    def _site(self, network: FrozenNetwork, name: str) -> _Site:
        site = network.sites[name]
        ranges = [site.code_range(child) for child in network.children]
        bounds = [(codes.low, codes.high) if site.clamped else (0, 255) for codes in ranges]
        return _Site(
            name.encode(),
            self._pointer([site.scales[child] for child in network.children], np.float32),
            self._pointer([low for low, _ in bounds], np.int32),
            self._pointer([high for _, high in bounds], np.int32),
        )
