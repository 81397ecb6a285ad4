"""Residency: what stays, what is built once, what a failure in the background does; and real switching under load."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.child import Child
from emqdeploy.runtimes import open_runtime
from emqdeploy.runtimes.adapters.onnx_runtime import OnnxRuntime
from emqdeploy.runtimes.residency import RULES, Residency, parse_residency

from ..conftest import Deployed
from ..mixing import mixed_network

WAIT_S = 60
"""Longest wait for another thread: far more than it takes, even where every core is busy with something else."""


def _at(*bits: int) -> tuple[Child, ...]:
    return tuple(Child.of(width) for width in bits)


def _until(condition: Callable[[], bool]) -> None:
    """Waits for what another thread does."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class _Weight:
    """An engine that only weighs something."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes

    def run(self, images: np.ndarray) -> np.ndarray:
        return images


class _Workshop:
    """Builds engines, counts them, and can be told to wait or to fail."""

    def __init__(self, rule: str = "all", megabytes: int = 10) -> None:
        self.megabytes = megabytes
        self.built: list[int] = []
        self.fails = False
        self.gate = threading.Event()
        self.gate.set()
        self.store: Residency[_Weight] = Residency(self.build, parse_residency(rule), "closed")

    def build(self, child: Child) -> _Weight:
        assert self.gate.wait(WAIT_S)
        if self.fails:
            raise EmqError("no memory left")
        self.built.append(child.bits)
        return _Weight(self.megabytes * 1_000_000)


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(count) as pool:
        yield pool


@pytest.mark.parametrize(
    ("rule", "kept"), [("all", (1, 2, 4, 8)), ("lru:2", (1, 2)), ("lru:1", (1,)), ("memory:35", (1, 2, 4))]
)
def test_rules_keep_what_they_promise(rule: str, kept: tuple[int, ...]) -> None:
    """Of four children of 10 MB each, used one after the other."""
    workshop = _Workshop(rule)
    for bits in (8, 4, 2, 1):
        workshop.store.switch(Child.of(bits))
    assert workshop.store.resident == _at(*kept)
    workshop.store.switch(Child.of(8))
    assert workshop.store.active is not None
    assert workshop.store.active.child.bits == 8
    assert workshop.built.count(8) == (1 if rule == "all" else 2)


def test_recently_used_is_by_use_and_not_by_building() -> None:
    """Switching back to an old one keeps it."""
    workshop = _Workshop("lru:2")
    for bits in (8, 4, 8, 2):
        workshop.store.switch(Child.of(bits))
    assert workshop.store.resident == _at(2, 8)


def test_what_all_keeps_can_still_be_given_back() -> None:
    """A child that was ready, used or prefetched before is evicted when asked, built anew then, and closed for good."""
    two, four = _at(2, 4)
    shop = _Workshop("all")
    for child in (two, four, two, four):
        shop.store.switch(child)
    assert shop.built == [2, 4]
    shop.store.prefetch(two)
    shop.store.switch(two)
    shop.store.switch(four)
    shop.store.evict(two)
    assert shop.store.resident == (four,)
    shop.store.switch(two)
    assert shop.built == [2, 4, 2]
    shop.store.close()
    with pytest.raises(EmqError, match="closed"):
        shop.store.switch(two)


def test_a_budget_that_fits_nothing_is_refused_and_nothing_changes() -> None:
    """The sentence says what would be enough."""
    workshop = _Workshop("memory:5")
    with pytest.raises(UsageError, match=r"needs 10\.0 MB, more than the budget of 5 MB; give at least memory:10"):
        workshop.store.switch(Child.of(8))
    assert workshop.store.active is None
    assert workshop.store.resident == ()


@pytest.mark.parametrize("text", ["lru", "lru:0", "lru:two", "memory:-1", "memory:1.5", "all:3", "fifo:2", ""])
def test_rules_are_named_in_errors(text: str) -> None:
    """A wrong rule is one sentence with what is allowed."""
    with pytest.raises(UsageError, match=r"residency"):
        parse_residency(text)
    assert set(RULES) >= {"all", "lru", "memory"}


def test_a_child_is_built_once_for_all_who_ask() -> None:
    """Eight threads that need the same child at a time share one build."""
    workshop = _Workshop()
    workshop.gate.clear()
    with _threads(8) as pool:
        asked = [pool.submit(workshop.store.get, Child.of(4)) for _ in range(8)]
        workshop.gate.set()
        assert len({id(one.result(WAIT_S)) for one in asked}) == 1
    assert workshop.built == [4]


def test_switching_waits_for_a_prefetch() -> None:
    """The build in the background is used, not repeated; meanwhile the child in use goes on."""
    workshop = _Workshop("lru:1")
    workshop.store.switch(Child.of(8))
    workshop.gate.clear()
    workshop.store.prefetch(Child.of(4))
    assert workshop.store.resident == _at(8)
    with _threads(1) as pool:
        switching = pool.submit(workshop.store.switch, Child.of(4))
        time.sleep(0.02)
        assert not switching.done()
        assert workshop.store.active is not None
        assert workshop.store.active.child.bits == 8
        workshop.gate.set()
        switching.result(WAIT_S)
    assert workshop.built == [8, 4]
    assert workshop.store.resident == _at(4)


def test_a_prefetched_child_stays_until_it_is_used() -> None:
    """Even where the rule has room for one only."""
    workshop = _Workshop("lru:1")
    workshop.store.switch(Child.of(8))
    workshop.store.prefetch(Child.of(2))
    _until(lambda: workshop.store.resident == _at(2, 8))
    workshop.store.evict(Child.of(2))
    assert workshop.store.resident == _at(2, 8)
    workshop.store.switch(Child.of(2))
    assert workshop.store.resident == _at(2)


def test_a_failure_in_the_background_is_raised_by_the_switch() -> None:
    """Once; what was in use stays, and the next try starts anew."""
    workshop = _Workshop()
    workshop.store.switch(Child.of(8))
    workshop.fails = True
    workshop.store.prefetch(Child.of(4))
    with pytest.raises(EmqError, match="no memory left"):
        workshop.store.switch(Child.of(4))
    assert workshop.store.active is not None
    assert workshop.store.active.child.bits == 8
    workshop.fails = False
    workshop.store.switch(Child.of(4))
    assert workshop.store.active.child.bits == 4


def test_closing_ends_waiting_switches() -> None:
    """A build that ends after `close` is dropped, and who waited for it is told why."""
    workshop = _Workshop()
    workshop.store.switch(Child.of(8))
    workshop.gate.clear()
    workshop.store.prefetch(Child.of(4))
    workshop.store.prefetch(Child.of(2))
    with _threads(2) as pool:
        switching = pool.submit(workshop.store.switch, Child.of(4))
        closing = pool.submit(workshop.store.close)
        _until(lambda: workshop.store.active is None)
        workshop.gate.set()
        closing.result(WAIT_S)
        with pytest.raises(EmqError, match="closed"):
            switching.result(WAIT_S)
    assert workshop.store.resident == ()
    for use in (workshop.store.switch, workshop.store.prefetch, workshop.store.get):
        with pytest.raises(EmqError, match="closed"):
            use(Child.of(8))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torch"])
@pytest.mark.parametrize("residency", ["all", "lru:1"])
def test_switching_under_load(runtime: str, residency: str) -> None:
    """Threads infer while others switch, prefetch and close: every answer is exactly that of one child, mixed or plain.

    A request that names its own child gets that one, whatever the others do. The end is a `close` in full flight.
    """
    if runtime == "openvino":
        pytest.importorskip("openvino")
    names = ("4", "mixed", "8")
    deployed = mixed_network()
    images = deployed.images[:2]
    with open_runtime(deployed.checkpoint, runtime, children=names, threads=1) as quiet:
        expected = {name: quiet.run(images, name) for name in names}
    network = open_runtime(deployed.checkpoint, runtime, children=names, residency=residency, threads=1)
    answers: list[tuple[str | None, np.ndarray]] = []
    closed = []
    switched: list[str] = []
    stop = threading.Event()

    def infer(name: str | None) -> None:
        try:
            while not stop.is_set():
                answers.append((name, network.run(images, name)))
        except EmqError as error:
            closed.append(str(error))

    def switch() -> None:
        random = np.random.default_rng(0)
        try:
            while not stop.is_set():
                network.use(str(random.choice(names)))
                switched.append(network.child.name)
                network.prefetch(str(random.choice(names)))
        except EmqError as error:
            closed.append(str(error))

    jobs = [threading.Thread(target=infer, args=(name,)) for name in (None, None, None, "mixed")]
    jobs += [threading.Thread(target=switch) for _ in range(2)]
    for job in jobs:
        job.start()
    try:
        _until(lambda: len(answers) >= 40 and len(switched) >= 6)
        network.close()
        for job in jobs:  # each ends when its next call is refused
            job.join(WAIT_S)
    finally:
        stop.set()
    assert [sentence.partition(";")[0] for sentence in closed] == ["this runtime is closed"] * len(jobs)
    for asked, logits in answers:
        (given,) = (name for name, exact in expected.items() if np.array_equal(logits, exact))
        assert asked in (None, given)


def test_resident_children_switch_without_building(small: Deployed) -> None:
    """With a rule, the runtime starts with one child and builds others from the codes when they are needed."""
    with OnnxRuntime(small.checkpoint, residency="lru:2", threads=1) as network:
        assert network.resident == _at(8)
        for bits in (4, 2):
            network.set_bits(bits)
        assert network.resident == _at(2, 4)
        assert network.bits == 2


@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_child_switches_and_prefetches(small: Deployed, threads: int) -> None:
    """Neither the thread that prefetches nor those of a session are there; what was being built is built again."""
    images = np.zeros((1, *small.checkpoint.card.input_shape), np.float32)
    with open_runtime(small.checkpoint, "onnxruntime", threads=threads, children=[8]) as runtime:
        expected = runtime.run(images)
        runtime.prefetch(2)
        child = os.fork()
        if child == 0:
            signal.alarm(WAIT_S)  # a hanging child ends without a word
            try:
                runtime.prefetch(4)
                same = bool((runtime.run(images) == expected).all()) and runtime.bits == 8
                for bits in (2, 4, 8):
                    runtime.set_bits(bits)
                    runtime.run(images)
                os._exit(0 if same else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        runtime.set_bits(2)
        assert runtime.run(images).shape == expected.shape
