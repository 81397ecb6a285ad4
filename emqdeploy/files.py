"""Atomic writes: a reader sees the old file or the whole new one, even after a power cut."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from emqdeploy.errors import EmqError, cannot_write


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Lend a temporary path whose file takes the place of ``path`` when the block ends well.

    The temporary file lies in the same directory (a rename is atomic only within a file system) and
    keeps the suffix (some writers choose or append one). It is flushed to the disk before the
    rename, and removed when the block fails. A link is followed, so that its target is replaced.

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
    temporary = target.with_name(f".{target.stem[:64]}.{secrets.token_hex(4)}{target.suffix}")  # see _LEFTOVER
    try:
        # Not tempfile: it creates files that only their owner may read, whatever the umask says.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        _flush(temporary)
        os.replace(temporary, target)
    except OSError as error:
        # An error about another file (an input that the block reads) is not ours to explain.
        if error.filename not in (None, str(temporary), str(target)):
            raise
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    # The rename itself reaches the disk with its directory; some file systems cannot flush those.
    with contextlib.suppress(OSError):
        _flush(target.parent)


_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}(\.\w+)?")


def remove_leftovers(directory: str | os.PathLike[str]) -> None:
    """Remove the temporary files of writes that were killed; nobody else may be writing there."""
    for path in Path(directory).iterdir():
        if _LEFTOVER.fullmatch(path.name) and path.is_file():
            with contextlib.suppress(OSError):
                path.unlink()


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


def _flush(path: Path) -> None:
    """Wait until what ``path`` holds is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
