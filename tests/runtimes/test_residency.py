"""Residency: what stays, what is built once, what a failure in the background does; and real switching under load."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.runtimes import open_runtime
from emqdeploy.runtimes.onnx_runtime import OnnxRuntime
from emqdeploy.runtimes.residency import POLICIES, Residency, parse_policy

from ..conftest import Deployed


class _Weight:
    """An engine that only weighs something."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes

    def run(self, images: np.ndarray) -> np.ndarray:
        return images


class _Workshop:
    """Builds engines, counts them, and can be told to wait or to fail."""

    def __init__(self, policy: str = "all", megabytes: int = 10) -> None:
        self.megabytes = megabytes
        self.built: list[int] = []
        self.fails = False
        self.gate = threading.Event()
        self.gate.set()
        self.store: Residency[_Weight] = Residency(self.build, parse_policy(policy), "closed")

    def build(self, bits: int) -> _Weight:
        assert self.gate.wait(10)
        if self.fails:
            raise EmqError("no memory left")
        self.built.append(bits)
        return _Weight(self.megabytes * 1_000_000)


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(count) as pool:
        yield pool


@pytest.mark.parametrize(
    ("policy", "kept"), [("all", (1, 2, 4, 8)), ("lru:2", (1, 2)), ("lru:1", (1,)), ("memory:35", (1, 2, 4))]
)
def test_policies_keep_what_they_promise(policy: str, kept: tuple[int, ...]) -> None:
    """Of four bit-widths of 10 MB each, used one after the other."""
    workshop = _Workshop(policy)
    for bits in (8, 4, 2, 1):
        workshop.store.switch(bits)
    assert workshop.store.resident == kept
    workshop.store.switch(8)
    assert workshop.store.active is not None
    assert workshop.store.active.bits == 8
    assert workshop.built.count(8) == (1 if policy == "all" else 2)


def test_recently_used_is_by_use_and_not_by_building() -> None:
    """Switching back to an old one keeps it."""
    workshop = _Workshop("lru:2")
    for bits in (8, 4, 8, 2):
        workshop.store.switch(bits)
    assert workshop.store.resident == (2, 8)


def test_a_budget_that_fits_nothing_is_refused_and_nothing_changes() -> None:
    """The sentence says what would be enough."""
    workshop = _Workshop("memory:5")
    with pytest.raises(UsageError, match=r"needs 10\.0 MB, more than the budget of 5 MB; give at least memory:10"):
        workshop.store.switch(8)
    assert workshop.store.active is None
    assert workshop.store.resident == ()


@pytest.mark.parametrize("text", ["lru", "lru:0", "lru:two", "memory:-1", "memory:1.5", "all:3", "fifo:2", ""])
def test_policies_are_named_in_errors(text: str) -> None:
    """A wrong policy is one sentence with what is allowed."""
    with pytest.raises(UsageError, match=r"residency"):
        parse_policy(text)
    assert set(POLICIES) >= {"all", "lru", "memory"}


def test_a_width_is_built_once_for_all_who_ask() -> None:
    """Eight threads that need the same bit-width at a time share one build."""
    workshop = _Workshop()
    workshop.gate.clear()
    with _threads(8) as pool:
        asked = [pool.submit(workshop.store.get, 4) for _ in range(8)]
        workshop.gate.set()
        assert len({id(one.result(10)) for one in asked}) == 1
    assert workshop.built == [4]


def test_set_bits_waits_for_a_prefetch() -> None:
    """The build in the background is used, not repeated; meanwhile the width in use goes on."""
    workshop = _Workshop("lru:1")
    workshop.store.switch(8)
    workshop.gate.clear()
    workshop.store.prefetch(4)
    assert workshop.store.resident == (8,)
    with _threads(1) as pool:
        switching = pool.submit(workshop.store.switch, 4)
        time.sleep(0.02)
        assert not switching.done()
        assert workshop.store.active is not None
        assert workshop.store.active.bits == 8
        workshop.gate.set()
        switching.result(10)
    assert workshop.built == [8, 4]
    assert workshop.store.resident == (4,)


def test_a_prefetched_width_stays_until_it_is_used() -> None:
    """Even where the policy has room for one only."""
    workshop = _Workshop("lru:1")
    workshop.store.switch(8)
    workshop.store.prefetch(2)
    while workshop.store.resident != (2, 8):
        time.sleep(0.001)
    workshop.store.evict(2)
    assert workshop.store.resident == (2, 8)
    workshop.store.switch(2)
    assert workshop.store.resident == (2,)


def test_a_failure_in_the_background_is_raised_by_the_switch() -> None:
    """Once; what was in use stays, and the next try starts anew."""
    workshop = _Workshop()
    workshop.store.switch(8)
    workshop.fails = True
    workshop.store.prefetch(4)
    with pytest.raises(EmqError, match="no memory left"):
        workshop.store.switch(4)
    assert workshop.store.active is not None
    assert workshop.store.active.bits == 8
    workshop.fails = False
    workshop.store.switch(4)
    assert workshop.store.active.bits == 4


def test_closing_ends_waiting_switches() -> None:
    """A build that ends after `close` is dropped, and who waited for it is told why."""
    workshop = _Workshop()
    workshop.store.switch(8)
    workshop.gate.clear()
    workshop.store.prefetch(4)
    workshop.store.prefetch(2)
    with _threads(2) as pool:
        switching = pool.submit(workshop.store.switch, 4)
        closing = pool.submit(workshop.store.close)
        time.sleep(0.02)
        workshop.gate.set()
        closing.result(10)
        with pytest.raises(EmqError, match="closed"):
            switching.result(10)
    assert workshop.store.resident == ()
    for use in (workshop.store.switch, workshop.store.prefetch, workshop.store.get):
        with pytest.raises(EmqError, match="closed"):
            use(8)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torch"])
@pytest.mark.parametrize("residency", ["all", "lru:1"])
def test_switching_under_load(small: Deployed, runtime: str, residency: str) -> None:
    """Threads infer while others switch, prefetch and close: every answer is exactly that of one bit-width.

    A request that names its own bit-width gets that one, whatever the others do. The end is a `close` in full flight.
    """
    if runtime == "openvino":
        pytest.importorskip("openvino")
    widths = (1, 2, 8)
    images = small.images[:2]
    with open_runtime(small.checkpoint, runtime, bits=widths, threads=1) as quiet:
        expected = {bits: quiet.run(images, bits) for bits in widths}
    network = open_runtime(small.checkpoint, runtime, bits=widths, residency=residency, threads=1)
    answers: list[tuple[int | None, np.ndarray]] = []
    closed = []
    switched: list[int] = []
    stop = threading.Event()

    def infer(bits: int | None) -> None:
        try:
            while not stop.is_set():
                answers.append((bits, network.run(images, bits)))
        except EmqError as error:
            closed.append(str(error))

    def switch() -> None:
        random = np.random.default_rng(0)
        try:
            while not stop.is_set():
                network.set_bits(int(random.choice(widths)))
                switched.append(network.bits)
                network.prefetch(int(random.choice(widths)))
        except EmqError as error:
            closed.append(str(error))

    jobs = [threading.Thread(target=infer, args=(bits,)) for bits in (None, None, None, 2)]
    jobs += [threading.Thread(target=switch) for _ in range(2)]
    for job in jobs:
        job.start()
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and not (len(answers) >= 40 and len(switched) >= 6):
        time.sleep(0.02)
    network.close()
    stop.wait(0.05)
    stop.set()
    for job in jobs:
        job.join(20)
        assert not job.is_alive()
    assert len(answers) >= 40
    assert len(switched) >= 6
    assert {sentence.partition(";")[0] for sentence in closed} == {"this runtime is closed"}
    for bits, logits in answers:
        matching = {width for width, exact in expected.items() if np.array_equal(logits, exact)}
        assert matching
        assert bits is None or bits in matching


def test_resident_widths_switch_without_building(small: Deployed) -> None:
    """With a policy, the runtime starts with one bit-width and builds others from the codes when they are needed."""
    with OnnxRuntime(small.checkpoint, residency="lru:2", threads=1) as network:
        assert network.resident_bits == (8,)
        for bits in (4, 2):
            network.set_bits(bits)
        assert network.resident_bits == (2, 4)
        assert network.bits == 2
