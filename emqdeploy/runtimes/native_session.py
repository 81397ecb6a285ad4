"""A checkpoint in onnxruntime with our own kernels: one session for all children, composed in memory."""

from __future__ import annotations

import threading
from typing import Any

from emqdeploy.format.child import Child
from emqdeploy.format.emq import Checkpoint
from emqdeploy.format.precision import LayerPrecision
from emqdeploy.graph.native_graph import native_model, native_stored_as
from emqdeploy.graph.selector import selection, selector_values
from emqdeploy.runtimes.forked import leave_behind, renew_after_fork
from emqdeploy.runtimes.native_operators import register_operators, told_methods
from emqdeploy.runtimes.onnx_session import SessionEngine, create_session, session_options


class NativeSession:
    """The session, and an engine of every child in it.

    Args:
        checkpoint: what it is made from; float operators stay onnxruntime's.
        threads: threads inside an operator; None uses every core.

    Raises:
        EmqError: the library or the onnx package is missing, or a layer has no kernel of ours.
    """

    def __init__(self, checkpoint: Checkpoint, threads: int | None) -> None:
        self._checkpoint = checkpoint
        self._threads = threads
        self._network = checkpoint.network
        self._values = selector_values(self._network.children)
        self._lock = threading.Lock()
        self._session = self._open()
        renew_after_fork(self)

    def renew(self) -> None:
        """In a forked child: the session's threads are not here, so it is made anew when it is wanted."""
        leave_behind(self._session)
        self._session, self._lock = None, threading.Lock()

    def engine(self, child: Child) -> SessionEngine:
        """A child; the one session is counted once, at the widest."""
        with self._lock:
            self._session = self._session or self._open()
        size = self._size_bytes if child == self._network.children[-1] else 0
        return SessionEngine(self._session, size, selection(self._values[child]))

    def _open(self) -> Any:
        model = native_model(self._checkpoint, list(self._values)).SerializeToString()
        self._size_bytes = len(model)
        options = session_options(self._threads, levels=self._checkpoint.card.levels)
        register_operators(options)
        with told_methods() as self._methods:
            return create_session(model, options)

    def precision(self, child: Child) -> list[LayerPrecision]:
        """Every layer, with the kernel that was chosen for it when the session was created."""
        place = list(self._values).index(child)
        return [
            LayerPrecision(name, self._network.grid_bits(name, child), stored, self._methods[name, place], True)
            for name, stored in native_stored_as(self._network).items()
        ]
