"""Which bit-widths stay in memory, ready to run: built once, shared by all threads, given back as a policy says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.grid import Floats
from emqdeploy.registry import Registry


class Engine(Protocol):
    """One bit-width, ready to run from any number of threads.

    It gives its memory back when nothing refers to it any more, so a request in flight always ends on the engine that
    it started with.
    """

    @property
    def size_bytes(self) -> int:
        """Memory that this bit-width keeps while it is resident, as far as it is known without measuring."""

    def run(self, images: Floats) -> Floats:
        """Returns logits ``(N, classes)``."""


class Policy(Protocol):
    """Says what may become resident and what is given back for it."""

    def admit(self, size_bytes: int) -> None:
        """Raises one sentence for a bit-width that can never be resident."""

    def surplus(self, resident: Mapping[int, int]) -> int | None:
        """Names the bit-width to give back next, or None.

        Args:
            resident: bytes by bit-width, least recently used first.
        """


POLICIES: Registry[Callable[[str], Policy]] = Registry("residency policy")
"""Policies by name; each takes the text behind the colon, empty where there is none."""


@POLICIES.register("all")
@dataclass(frozen=True)
class KeepAll:
    """Gives nothing back; written ``all``."""

    argument: str

    def __post_init__(self) -> None:
        if self.argument:
            raise UsageError(f"residency 'all' takes no argument, {self.argument!r} was given; write: all")

    def admit(self, size_bytes: int) -> None:
        """Everything is welcome."""

    def surplus(self, resident: Mapping[int, int]) -> int | None:
        """Nothing."""
        return None


@POLICIES.register("lru")
class KeepRecent:
    """Keeps the bit-widths that were used last; written ``lru:N``."""

    def __init__(self, argument: str) -> None:
        self.count = _positive("lru", argument, "bit-widths", "lru:2")

    def admit(self, size_bytes: int) -> None:
        """Everything is welcome."""

    def surplus(self, resident: Mapping[int, int]) -> int | None:
        """The one that was used longest ago, while there are more than N."""
        return next(iter(resident)) if len(resident) > self.count else None


@POLICIES.register("memory")
class KeepWithin:
    """Keeps as many recently used bit-widths as fit into a budget; written ``memory:MB``."""

    def __init__(self, argument: str) -> None:
        self.budget_bytes = _positive("memory", argument, "megabytes", "memory:64") * 1_000_000

    def admit(self, size_bytes: int) -> None:
        """Refuses a bit-width that exceeds the budget on its own."""
        if size_bytes > self.budget_bytes:
            raise UsageError(
                f"one bit-width of this network needs {size_bytes / 1e6:.1f} MB, more than the budget of"
                f" {self.budget_bytes / 1e6:g} MB; give at least memory:{-(-size_bytes // 1_000_000)}"
            )

    def surplus(self, resident: Mapping[int, int]) -> int | None:
        """The one that was used longest ago, while all together exceed the budget."""
        return next(iter(resident)) if sum(resident.values()) > self.budget_bytes else None


def parse_policy(text: str) -> Policy:
    """Reads ``all``, ``lru:2`` or ``memory:64``."""
    name, _, argument = text.partition(":")
    return POLICIES[name](argument)


def _positive(name: str, argument: str, unit: str, example: str) -> int:
    if not argument.isdecimal() or int(argument) == 0:
        raise UsageError(
            f"residency {name!r} takes a number of {unit} above 0, {argument!r} was given; for example {example}"
        )
    return int(argument)


E = TypeVar("E", bound=Engine)


@dataclass(frozen=True)
class Active(Generic[E]):
    """The bit-width in use and its engine: one object, so that a request reads both at once."""

    bits: int
    engine: E


class Residency(Generic[E]):
    """Engines by bit-width, for any number of threads.

    An engine is built once, however many threads ask for it at a time. The one in use stays, and so does the last one
    that was prefetched until it is used; of the others the policy decides.

    Args:
        build: makes the engine of a bit-width.
        policy: what to keep, see `parse_policy`.
        closed: the sentence for a use after `close`.

    Attributes:
        active: what requests run on; None once closed.
    """

    def __init__(self, build: Callable[[int], E], policy: Policy, closed: str) -> None:
        self.active: Active[E] | None = None
        self._build = build
        self._policy = policy
        self._closed_sentence = closed
        self._closed = False
        self._lock = threading.Lock()
        # Least recently used first; an entry that is not done is being built.
        self._engines: dict[int, Future[E]] = {}
        self._prefetched: int | None = None
        self._background: ThreadPoolExecutor | None = None

    @property
    def resident(self) -> tuple[int, ...]:
        """The bit-widths that are ready, ascending."""
        with self._lock:
            return tuple(sorted(bits for bits, future in self._engines.items() if _ready(future)))

    def switch(self, bits: int) -> None:
        """Makes a bit-width the one in use; builds it, or waits for whoever is building it, where it is not ready.

        Of several switches at a time the last one to end decides.
        """
        engine = self._take(bits)
        with self._lock:
            self._check_open()
            if bits not in self._engines:  # given back between the two steps
                self._engines[bits] = _done(engine)
            self.active = Active(bits, engine)
            self._trim()

    def get(self, bits: int) -> E:
        """Returns the engine of a bit-width without making it the one in use."""
        engine = self._take(bits)
        with self._lock:
            self._trim()
        return engine

    def prefetch(self, bits: int) -> None:
        """Builds a bit-width in the background; a failure is raised by the next use of that bit-width."""
        with self._lock:
            self._check_open()
            self._prefetched = bits
            if bits in self._engines:
                return
            future = self._engines[bits] = Future()
            if self._background is None:
                self._background = ThreadPoolExecutor(1, thread_name_prefix="emqdeploy-prefetch")
            self._background.submit(self._fill_behind, bits, future)

    def evict(self, bits: int) -> None:
        """Gives a bit-width back; the one in use stays."""
        with self._lock:
            if bits not in self._kept() and bits in self._engines and self._engines[bits].done():
                del self._engines[bits]

    def close(self) -> None:
        """Drops every engine and refuses what comes later; requests in flight end on the engine that they hold."""
        with self._lock:
            self._closed = True
            self.active = None
            self._engines = {bits: future for bits, future in self._engines.items() if not future.done()}
            background = self._background
        if background is not None:
            background.shutdown(wait=True)

    def _take(self, bits: int) -> E:
        with self._lock:
            self._check_open()
            future = self._engines.pop(bits, None)
            missing = future is None
            if future is None:
                future = Future()
            self._engines[bits] = future  # now the most recently used
            if self._prefetched == bits:
                self._prefetched = None
        if missing:
            self._fill(bits, future)
        try:
            return future.result()
        except BaseException:
            with self._lock:  # the next use tries again
                if self._engines.get(bits) is future:
                    del self._engines[bits]
            raise

    def _fill(self, bits: int, future: Future[E]) -> None:
        """Builds; whoever waits for the future gets the engine or the reason why there is none."""
        try:
            if self._closed:
                raise self._closed_error()
            engine = self._build(bits)
            self._policy.admit(engine.size_bytes)
        except BaseException as error:
            future.set_exception(error)
            return
        with self._lock:
            if self._closed:
                self._engines.pop(bits, None)
                future.set_exception(self._closed_error())
            else:
                future.set_result(engine)

    def _fill_behind(self, bits: int, future: Future[E]) -> None:
        self._fill(bits, future)
        with self._lock:
            self._trim()

    def _trim(self) -> None:
        """Gives back what the policy says; the lock is held."""
        while True:
            ready = {bits: future.result().size_bytes for bits, future in self._engines.items() if _ready(future)}
            kept = self._kept()
            sizes = {bits: size for bits, size in ready.items() if bits not in kept}
            sizes |= {bits: size for bits, size in ready.items() if bits in kept}
            surplus = self._policy.surplus(sizes) if sizes else None
            if surplus is None or surplus in kept:
                return
            del self._engines[surplus]

    def _kept(self) -> set[int | None]:
        return {None if self.active is None else self.active.bits, self._prefetched}

    def _check_open(self) -> None:
        if self._closed:
            raise self._closed_error()

    def _closed_error(self) -> EmqError:
        return EmqError(self._closed_sentence)


def _ready(future: Future[E]) -> bool:
    return future.done() and future.exception() is None


def _done(engine: E) -> Future[E]:
    future: Future[E] = Future()
    future.set_result(engine)
    return future
