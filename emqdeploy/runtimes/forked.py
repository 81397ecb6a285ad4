"""What a forked child cannot use of its parent: threads are gone there, and locks that they held stay closed."""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Protocol


class Renewable(Protocol):
    """Something with locks or threads."""

    def renew(self) -> None:
        """Makes them anew; called in a forked child, before anything else runs there."""


_known: weakref.WeakSet[Renewable] = weakref.WeakSet()


def renew_after_fork(one: Renewable) -> None:
    """Has an object renewed in every child that this process forks, as long as it lives."""
    _known.add(one)


def leave_behind(things: object) -> None:
    """Never destroys these: what ends by waiting for its threads would wait for ever in a forked child."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(things))


def _renew() -> None:
    for one in list(_known):
        one.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
