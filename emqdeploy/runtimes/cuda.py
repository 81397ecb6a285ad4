"""The little of CUDA that running an engine takes: a device's name, memory, one stream; one sentence where it fails."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from emqdeploy.errors import EmqError, require
from emqdeploy.graph.tensorrt_flavours import EXTRAS, RTX, installed_flavour


def _runtime() -> Any:
    return require("cuda.bindings.runtime", EXTRAS[installed_flavour() or RTX])


def check(result: tuple[Any, ...], what: str) -> Any:
    """Unpacks ``(status, value)`` of a CUDA call, or raises one sentence."""
    status, *values = result
    if int(status) != 0:
        cuda = _runtime()
        text = cuda.cudaGetErrorString(status)[1].decode()
        raise EmqError(f"CUDA cannot {what}: {text}; check the NVIDIA driver, or choose another runtime")
    return values[0] if values else None


def compute_capability(device: int = 0) -> str:
    """Compute capability of a GPU, such as ``8.6``; raises one sentence where there is none."""
    cuda = _runtime()
    check(cuda.cudaGetDeviceCount(), "find an NVIDIA GPU")
    parts = (
        cuda.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor,
        cuda.cudaDeviceAttr.cudaDevAttrComputeCapabilityMinor,
    )
    return ".".join(str(check(cuda.cudaDeviceGetAttribute(part, device), "describe the GPU")) for part in parts)


def device_name(device: int = 0) -> str:
    """Name of a GPU."""
    properties = check(_runtime().cudaGetDeviceProperties(device), "describe the GPU")
    name: str = properties.name.split(b"\0")[0].decode()
    return name


class Buffer:
    """Device memory, given back when nothing refers to it any more."""

    def __init__(self, size_bytes: int) -> None:
        cuda = _runtime()
        self.size_bytes = size_bytes
        self.address = int(check(cuda.cudaMalloc(max(size_bytes, 1)), f"allocate {size_bytes / 1e6:.1f} MB on the GPU"))
        weakref.finalize(self, cuda.cudaFree, self.address)


class Stream:
    """A stream of work on the GPU."""

    def __init__(self) -> None:
        cuda = _runtime()
        self._cuda = cuda
        self.handle = int(check(cuda.cudaStreamCreate(), "create a stream"))
        weakref.finalize(self, cuda.cudaStreamDestroy, self.handle)

    def upload(self, array: np.ndarray, buffer: Buffer) -> None:
        """Copies a contiguous array to the GPU."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        check(
            self._cuda.cudaMemcpyAsync(buffer.address, array.ctypes.data, array.nbytes, kind, self.handle),
            "copy images to the GPU",
        )

    def download(self, buffer: Buffer, array: np.ndarray) -> None:
        """Copies from the GPU into a contiguous array, which is valid after `wait`."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        check(
            self._cuda.cudaMemcpyAsync(array.ctypes.data, buffer.address, array.nbytes, kind, self.handle),
            "copy logits from the GPU",
        )

    def wait(self) -> None:
        """Waits until everything on the stream is done."""
        check(self._cuda.cudaStreamSynchronize(self.handle), "run the engine")
