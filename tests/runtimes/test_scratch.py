"""The memory through which weights enter a session: used again, never shared by two, given back."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from emqdeploy.runtimes import scratch
from emqdeploy.runtimes.adapters.onnx_runtime import OnnxRuntime
from emqdeploy.runtimes.scratch import Scratch

from ..conftest import Deployed


def test_it_is_used_again_but_by_one_at_a_time() -> None:
    """Who asks while it is lent gets other pages."""
    memory = Scratch(1 << 16)
    with memory.lent() as first:
        first[:] = 1
        with memory.lent() as second:
            second[:] = 2
            assert (first == 1).all()
        kept = second.ctypes.data
    with memory.lent() as third:
        assert third.ctypes.data in (first.ctypes.data, kept)
        assert len(third) == 1 << 16
    memory.release()


def test_idle_memory_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while, without anybody asking; the heap is trimmed last of all."""
    gone = threading.Event()
    monkeypatch.setattr(scratch, "IDLE_S", 0.01)
    monkeypatch.setattr(scratch, "trim_heap", gone.set)
    memory = Scratch(1 << 16)
    with memory.lent():
        pass
    assert gone.wait(60)
    assert memory._idle is None
    assert memory._timer is None


def test_sessions_do_not_read_it_afterwards(small: Deployed) -> None:
    """Overwriting the memory changes nothing: every session has its own copy, optimised or not, packed or not."""
    for optimise in (True, False):
        network = OnnxRuntime(small.checkpoint, children=[8], threads=1, optimise=optimise)
        network.set_bits(4)
        expected = network(small.images)
        with network._scratch.lent() as pages:
            pages[:] = 77
        np.testing.assert_array_equal(network(small.images), expected)
