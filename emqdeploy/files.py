"""Files of any origin: read only where they are regular and of bounded size, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from emqdeploy.errors import EmqError, cannot_write

LARGEST_TEXT = 64 << 20
"""Bytes of a manifest, result or report at most."""

LARGEST_MODEL = (1 << 31) - 1
"""Bytes of a serialised graph at most: protobuf has no larger ones."""


def open_regular(path: str | os.PathLike[str], remedy: str, inside: Path | None = None) -> int:
    """Open a file for reading; a pipe, a device or a directory is refused and never waited for.

    Args:
        path: The file.
        remedy: How the sentence of an error ends.
        inside: A directory that the file must lie in once links are followed.

    Returns:
        A descriptor, which the caller closes.

    Raises:
        EmqError: The file cannot be read, is not regular, or lies elsewhere.
    """
    name, follow = os.fspath(path), 0
    if inside is not None:
        name, follow = os.path.realpath(path), os.O_NOFOLLOW
        if not Path(name).is_relative_to(os.path.realpath(inside)):
            raise EmqError(f"{path} is a link that leads out of {inside}; {remedy}")
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | follow)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise EmqError(f"cannot read {path}: {reason}; {remedy}") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = "it is a directory" if stat.S_ISDIR(mode) else "it is not a regular file"
        raise EmqError(f"cannot read {path}: {kind}; {remedy}")
    return descriptor


def read_bytes(path: str | os.PathLike[str], most: int, remedy: str, inside: Path | None = None) -> bytes:
    """Read a whole file of bounded size; the rest as `open_regular`.

    Args:
        path: The file.
        most: Bytes of it at most.
        remedy: How the sentence of an error ends.
        inside: A directory that the file must lie in once links are followed.
    """
    descriptor = open_regular(path, remedy, inside)
    with open(descriptor, "rb", buffering=0) as file:
        size = os.fstat(descriptor).st_size
        if size > most:
            raise EmqError(f"cannot read {path}: it has {size} bytes, at most {most} are read; {remedy}")
        try:
            return file.read(size)
        except OSError as error:
            raise EmqError(f"cannot read {path}: {error.strerror}; {remedy}") from error


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Lend a temporary path whose file takes the place of ``path`` when the block ends well.

    The temporary file lies in the same directory (a rename is atomic only within a file system) and
    keeps the suffix (some writers choose or append one). It is flushed to the disk before the
    rename, and removed when the block fails; what a killed process left goes with the next write of the same
    file. A link is followed, so that its target is replaced.

    Args:
        path: The file to write; its directory must exist.

    Yields:
        An existing empty file to write to.

    Raises:
        EmqError: The file cannot be written; the message names it and the reason.
    """
    # resolve() also guards devices: renaming a file over /dev/null would break the machine.
    target = Path(path).resolve()
    if os.path.exists(target) and not os.path.isfile(target):
        if os.path.isdir(target):
            raise cannot_write(path, IsADirectoryError(errno.EISDIR, "is a directory"))
        raise EmqError(f"cannot write {os.fspath(path)}: it is not a regular file; name a file")
    lock: int | None = None
    temporary = target
    try:
        _remove_leftovers(target)
        temporary, lock = _claimed(target)
        yield temporary
        flush(temporary)
        os.replace(temporary, target)
    except OSError as error:
        # An error about another file (an input that the block reads) is not ours to explain.
        if error.filename not in (None, str(temporary), str(target)):
            raise
        raise cannot_write(path, error) from error
    finally:
        if lock is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            os.close(lock)
    # The rename itself reaches the disk with its directory; some file systems cannot flush those.
    with contextlib.suppress(OSError):
        flush(target.parent)


def _claimed(target: Path) -> tuple[Path, int]:
    """A new file beside a target, and the descriptor that locks it: by that others see that it is being written."""
    while True:
        path = target.with_name(f".{target.stem[:64]}.{secrets.token_hex(4)}{target.suffix}")
        # Not tempfile: it creates files that only their owner may read, whatever the umask says.
        try:
            lock = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except OSError as error:
            error.filename = str(target)  # nobody knows the other name
            raise
        with contextlib.suppress(OSError):  # some file systems know no locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock).st_nlink:
            return path, lock
        os.close(lock)  # somebody took it for a leftover before it was locked


def _remove_leftovers(target: Path) -> None:
    """Removes what earlier writes of a target left that were killed: nobody holds their lock any more."""
    left = re.compile(re.escape(f".{target.stem[:64]}.") + "[0-9a-f]{8}" + re.escape(target.suffix))
    with contextlib.suppress(OSError):
        for path in target.parent.iterdir():
            if left.fullmatch(path.name) and not path.is_symlink() and path.is_file():
                with contextlib.suppress(OSError):
                    lock = os.open(path, os.O_RDONLY)
                    try:
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        path.unlink()
                    finally:
                        os.close(lock)


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all.

    Raises:
        EmqError: The file cannot be written; what was there before is unharmed.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 with its line ends unchanged, whole or not at all.

    Raises:
        EmqError: The file cannot be written; what was there before is unharmed.
    """
    atomic_write_bytes(path, text.encode("utf-8"))


def flush(path: Path) -> None:
    """Wait until what ``path`` holds is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _OnlyTried(Exception):
    """Ends a write that was never meant to end well."""


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raises now what writing to ``path`` would raise after long work; what is there stays as it is.

    Raises:
        EmqError: The file cannot be written; the message names it and the reason.
    """
    with contextlib.suppress(_OnlyTried), atomic_path(path) as temporary:
        temporary.write_bytes(b"\0")
        raise _OnlyTried
