"""Things by name: models, data sets, methods, adapters."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from emqdeploy.errors import UsageError

T = TypeVar("T")


class UnknownNameError(UsageError, KeyError):
    """A name that a registry does not hold.

    It is a ``KeyError`` too, because ``in`` and ``get`` of every mapping depend on that.
    """

    def __str__(self) -> str:
        """Return the sentence as it is (``KeyError`` would put it in quotes)."""
        return str(self.args[0])


class Registry(Mapping[str, T], Generic[T]):
    """A read-only mapping from names to things, filled by a decorator.

    Args:
        kind: What the names stand for, in the words of the error message ("model", "data set").

    Example:
        >>> SHAPES: Registry[type] = Registry("shape")
        >>> @SHAPES.register("disc")
        ... class Disc: ...
        >>> list(SHAPES)
        ['disc']
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files the decorated thing under ``name``.

        Raises:
            ValueError: The name is taken: two modules would silently replace one another.
        """

        def decorate(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return decorate

    def __getitem__(self, name: str) -> T:
        """Return what is filed under ``name``, or say which names there are."""
        if name in self._entries:
            return self._entries[name]
        near = difflib.get_close_matches(name.lower(), list(self), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        known = ", ".join(self)
        raise UnknownNameError(f"unknown {self.kind} {name!r}; known: {known}{hint}")

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names in sorted order, whatever the order of imports was."""
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self._entries)


def load_package(package: str) -> None:
    """Imports every module of a package, so that what they register is there: a new entry is one new file.

    Args:
        package: dotted name, for example ``emqdeploy.runtimes.adapters``.
    """
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")
