"""Which children stay in memory, ready to run: built once, shared by all threads, given back as a rule says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.child import Child, in_order
from emqdeploy.format.grid import Floats
from emqdeploy.registry import Registry
from emqdeploy.runtimes.forked import leave_behind, renew_after_fork


class Engine(Protocol):
    """One child, ready to run from any number of threads.

    It gives its memory back when nothing refers to it any more, so a request in flight always ends on the engine that
    it started with.
    """

    @property
    def size_bytes(self) -> int:
        """Memory that this child keeps while it is resident, as far as it is known without measuring."""

    def run(self, images: Floats) -> Floats:
        """Returns logits ``(N, classes)``."""


class Rule(Protocol):
    """Says what may become resident and what is given back for it."""

    def admit(self, size_bytes: int) -> None:
        """Raises one sentence for a child that can never be resident."""

    def surplus(self, resident: Mapping[Child, int]) -> Child | None:
        """Names the child to give back next, or None.

        Args:
            resident: bytes by child, least recently used first.
        """


RULES: Registry[Callable[[str], Rule]] = Registry("residency")
"""Rules by name; each takes the text behind the colon, empty where there is none."""


@RULES.register("all")
@dataclass(frozen=True)
class KeepAll:
    """Gives nothing back; written ``all``."""

    argument: str

    def __post_init__(self) -> None:
        if self.argument:
            raise UsageError(f"residency 'all' takes no argument, {self.argument!r} was given; write: all")

    def admit(self, size_bytes: int) -> None:
        """Everything is welcome."""

    def surplus(self, resident: Mapping[Child, int]) -> Child | None:
        """Nothing."""
        return None


@RULES.register("lru")
class KeepRecent:
    """Keeps the children that were used last; written ``lru:N``."""

    def __init__(self, argument: str) -> None:
        self.count = _positive("lru", argument, "children", "lru:2")

    def admit(self, size_bytes: int) -> None:
        """Everything is welcome."""

    def surplus(self, resident: Mapping[Child, int]) -> Child | None:
        """The one that was used longest ago, while there are more than N."""
        return next(iter(resident)) if len(resident) > self.count else None


@RULES.register("memory")
class KeepWithin:
    """Keeps as many recently used children as fit into a budget; written ``memory:MB``."""

    def __init__(self, argument: str) -> None:
        self.budget_bytes = _positive("memory", argument, "megabytes", "memory:64") * 1_000_000

    def admit(self, size_bytes: int) -> None:
        """Refuses a child that exceeds the budget on its own."""
        if size_bytes > self.budget_bytes:
            raise UsageError(
                f"one child of this network needs {size_bytes / 1e6:.1f} MB, more than the budget of"
                f" {self.budget_bytes / 1e6:g} MB; give at least memory:{-(-size_bytes // 1_000_000)}"
            )

    def surplus(self, resident: Mapping[Child, int]) -> Child | None:
        """The one that was used longest ago, while all together exceed the budget."""
        return next(iter(resident)) if sum(resident.values()) > self.budget_bytes else None


def parse_residency(text: str) -> Rule:
    """Reads ``all``, ``lru:2`` or ``memory:64``."""
    name, _, argument = text.partition(":")
    return RULES[name](argument)


def _positive(name: str, argument: str, unit: str, example: str) -> int:
    if not argument.isdecimal() or int(argument) == 0:
        raise UsageError(
            f"residency {name!r} takes a number of {unit} above 0, {argument!r} was given; for example {example}"
        )
    return int(argument)


E = TypeVar("E", bound=Engine)


@dataclass(frozen=True)
class Active(Generic[E]):
    """The child in use and its engine: one object, so that a request reads both at once."""

    child: Child
    engine: E


class Residency(Generic[E]):
    """Engines by child, for any number of threads.

    An engine is built once, however many threads ask for it at a time. The one in use stays, and so does the last one
    that was prefetched until it is used; of the others the rule decides.

    Args:
        build: makes the engine of a child.
        rule: what to keep, see `parse_residency`.
        closed: the sentence for a use after `close`.

    Attributes:
        active: what requests run on; None once closed, and in a forked child until it is built anew, see `in_use`.
    """

    def __init__(self, build: Callable[[Child], E], rule: Rule, closed: str) -> None:
        self.active: Active[E] | None = None
        self._build = build
        self._rule = rule
        self._closed_sentence = closed
        self._closed = False
        self._lock = threading.Lock()
        renew_after_fork(self)
        # Least recently used first; an entry that is not done is being built.
        self._engines: dict[Child, Future[E]] = {}
        self._keeps_all = isinstance(rule, KeepAll)
        self._kept_ready: dict[Child, Active[E]] = {}  # nothing is given back: a switch stores what is here
        self._prefetched: Child | None = None
        self._left: Child | None = None  # what was in use in the process that forked this one
        self._background: ThreadPoolExecutor | None = None

    def renew(self) -> None:
        """In a forked child: engines have threads, which are not here; each is built anew when it is wanted."""
        leave_behind((self._engines, self.active))
        if self.active is not None:
            self._left = self.active.child
        self._lock = threading.Lock()
        self._background = self._prefetched = self.active = None
        self._engines, self._kept_ready = {}, {}

    def in_use(self) -> Active[E]:
        """What requests run on.

        Raises:
            EmqError: it is closed.
        """
        active = self.active
        if active is None:
            if self._left is None or self._closed:
                raise self._closed_error()
            self.switch(self._left)
            return self.in_use()
        return active

    @property
    def resident(self) -> tuple[Child, ...]:
        """The children that are ready, ascending."""
        with self._lock:
            return in_order(child for child, future in self._engines.items() if _ready(future))

    def switch(self, child: Child) -> None:
        """Makes a child the one in use; builds it, or waits for whoever is building it, where it is not ready.

        Of several switches at a time the last one to end decides.
        """
        with self._lock:
            ready = self._kept_ready.get(child)
            if ready is not None:
                self.active = ready
                if self._prefetched is not None and self._prefetched == child:
                    self._prefetched = None
                return
        engine = self._take(child)
        with self._lock:
            self._check_open()
            if child not in self._engines:  # given back between the two steps
                self._engines[child] = _done(engine)
            self.active = Active(child, engine)
            if self._keeps_all:
                self._kept_ready[child] = self.active
            self._trim()

    def get(self, child: Child) -> E:
        """Returns the engine of a child without making it the one in use."""
        engine = self._take(child)
        with self._lock:
            self._trim()
        return engine

    def prefetch(self, child: Child) -> None:
        """Builds a child in the background; a failure is raised by the next use of that child."""
        with self._lock:
            self._check_open()
            self._prefetched = child
            if child in self._engines:
                return
            future = self._engines[child] = Future()
            if self._background is None:
                self._background = ThreadPoolExecutor(1, thread_name_prefix="emqdeploy-prefetch")
            self._background.submit(self._fill_behind, child, future)

    def evict(self, child: Child) -> None:
        """Gives a child back; the one in use stays."""
        with self._lock:
            if child not in self._kept() and child in self._engines and self._engines[child].done():
                del self._engines[child]
                self._kept_ready.pop(child, None)

    def close(self) -> None:
        """Drops every engine and refuses what comes later; requests in flight end on the engine that they hold."""
        with self._lock:
            self._closed = True
            self.active = None
            self._kept_ready = {}
            self._engines = {child: future for child, future in self._engines.items() if not future.done()}
            background = self._background
        if background is not None:
            background.shutdown(wait=True)

    def _take(self, child: Child) -> E:
        with self._lock:
            self._check_open()
            future = self._engines.pop(child, None)
            missing = future is None
            if future is None:
                future = Future()
            self._engines[child] = future  # now the most recently used
            if self._prefetched == child:
                self._prefetched = None
        if missing:
            self._fill(child, future)
        try:
            return future.result()
        except BaseException:
            with self._lock:  # the next use tries again
                if self._engines.get(child) is future:
                    del self._engines[child]
            raise

    def _fill(self, child: Child, future: Future[E]) -> None:
        """Builds; whoever waits for the future gets the engine or the reason why there is none."""
        try:
            if self._closed:
                raise self._closed_error()
            engine = self._build(child)
            self._rule.admit(engine.size_bytes)
        except BaseException as error:
            future.set_exception(error)
            return
        with self._lock:
            if self._closed:
                self._engines.pop(child, None)
                future.set_exception(self._closed_error())
            else:
                future.set_result(engine)

    def _fill_behind(self, child: Child, future: Future[E]) -> None:
        self._fill(child, future)
        with self._lock:
            self._trim()

    def _trim(self) -> None:
        """Gives back what the rule says; the lock is held."""
        if self._keeps_all:
            return
        while True:
            ready = {child: future.result().size_bytes for child, future in self._engines.items() if _ready(future)}
            kept = self._kept()
            sizes = {child: size for child, size in ready.items() if child not in kept}
            sizes |= {child: size for child, size in ready.items() if child in kept}
            surplus = self._rule.surplus(sizes) if sizes else None
            if surplus is None or surplus in kept:
                return
            del self._engines[surplus]

    def _kept(self) -> set[Child | None]:
        return {None if self.active is None else self.active.child, self._prefetched}

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
