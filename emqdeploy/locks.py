"""A directory for one writer at a time; the operating system drops the lock however the process ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from emqdeploy.errors import EmqError


@contextlib.contextmanager
def locked(directory: Path, sentence: str) -> Iterator[None]:
    """Holds a directory that exists.

    Args:
        directory: what is written to.
        sentence: what to tell whoever comes second.

    Raises:
        EmqError: somebody else holds it.
    """
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EmqError(sentence) from error
        yield
    finally:
        os.close(handle)
