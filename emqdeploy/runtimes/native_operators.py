"""Our kernels as operators of onnxruntime: registering the library with a session, and what computes each layer."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

from emqdeploy.errors import EmqError
from emqdeploy.runtimes.native_library import PACKAGE, library, library_path

Methods = dict[tuple[str, int], str]
"""How a layer is computed at a child, by the layer's name and the child's place in the file."""

_Listener = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_char_p)


def register_operators(options: Any) -> None:
    """Lets sessions of these options run segments.

    Raises:
        EmqError: the library is not installed, or this onnxruntime is too old for it.
    """
    path = library_path()
    if path is None:
        raise EmqError(
            f'{PACKAGE} is not installed, which this file\'s operators need; run: pip install "emqdeploy[native]"'
        )
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:
        raise EmqError(f"onnxruntime refuses {path.name}: {str(error).splitlines()[0]}") from error


@contextlib.contextmanager
def told_methods() -> Iterator[Methods]:
    """Collects how the layers of the sessions are computed that this thread creates inside the block."""
    methods: Methods = {}

    def note(_: Any, layer: bytes, child: int, method: bytes) -> None:
        methods[layer.decode(), child] = method.decode()

    listener = _Listener(note)
    loaded = library()
    loaded.emq_listen.argtypes = [_Listener, ctypes.c_void_p]
    loaded.emq_listen(listener, None)
    try:
        yield methods
    finally:
        loaded.emq_listen(_Listener(), None)
