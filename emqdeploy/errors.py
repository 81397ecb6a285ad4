"""Errors a user sees: one sentence, an exit code, and never a traceback."""

from __future__ import annotations

import errno
import importlib
import os
import re
import tempfile
from pathlib import Path
from types import ModuleType

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space or choose another place",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another place",
    errno.EACCES: "permission is denied; choose another place or change its permissions",
    errno.EPERM: "permission is denied; choose another place or change its permissions",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.ENOTDIR: "a part of this path is a file, not a directory; choose another place",
    errno.EEXIST: "a file with this name is in the way; choose another place or remove it",
    errno.ENOENT: "its directory does not exist; create the directory first",
    errno.EISDIR: "it is a directory; name a file",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.EFBIG: "it is larger than a file may be here; see: ulimit -f",
    errno.EMFILE: "too many files are open; raise the limit with: ulimit -n 1024",
    errno.ENFILE: "this machine has too many open files; close other programs",
    errno.ENOMEM: "the memory is used up; close other programs or do less at once",
    errno.EAGAIN: "this machine has too many processes or threads; close other programs, or see: ulimit -u",
}


_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and new line, what turns the direction of text around, and halves of characters."""


def plain_text(text: object) -> str:
    """Words from a file, a device or a person as a terminal may show them: what would command it is spelled out."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


class EmqError(Exception):
    """Something that the user can put right.

    Args:
        sentence: what is shown; what it quotes from a file or a device comes out as plain text in one line.
    """

    exit_code = 1

    def __init__(self, sentence: str) -> None:
        super().__init__(plain_text(" ".join(sentence.split())))


class UsageError(EmqError):
    """A wrong argument: an unknown name, an impossible value."""

    exit_code = 2


class Unsupported(EmqError):
    """A network that this runtime cannot compute, and another one may."""


def cannot_write(path: str | os.PathLike[str], error: OSError) -> EmqError:
    """Turn a failed write into the sentence that names the path and the reason.

    Args:
        path: What the user wanted to be written.
        error: What the operating system answered.

    Returns:
        The error to raise, with the reason in plain words where it is a usual one.
    """
    reason = _REASONS.get(error.errno or 0) or error.strerror or str(error)
    return EmqError(f"cannot write {os.fspath(path)}: {reason}")


def explain(error: OSError | MemoryError) -> str:
    """The sentence for what the operating system refused."""
    if isinstance(error, MemoryError):
        return _REASONS[errno.ENOMEM]
    reason = _REASONS.get(error.errno or 0) if error.errno != errno.ENOENT else "it does not exist"
    reason = reason or error.strerror or str(error)
    return f"{os.fspath(error.filename)!s}: {reason}" if isinstance(error.filename, str | os.PathLike) else reason


def require(package: str, extra: str) -> ModuleType:
    """Import an optional package at the moment it is needed.

    Args:
        package: Name to import, such as ``"onnxruntime"`` or ``"PIL.Image"``.
        extra: The extra of emqdeploy that installs it.

    Returns:
        The imported module.

    Raises:
        EmqError: The package is missing, or it is installed but does not load.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        top = package.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and error.name in (package, top)
        state = "is not installed" if missing else f"does not load ({error})"
        raise EmqError(f'this needs {top}, which {state}; run: pip install "emqdeploy[{extra}]"') from error


def writable_dir(path: str | os.PathLike[str]) -> Path:
    """Create a directory for output and prove that a file can be written in it.

    A long run should learn about a full or read-only disk before it starts, and permission bits do
    not tell (root passes all of them), so one byte is really written.

    Args:
        path: The directory; its parents are created as well.

    Returns:
        The directory.

    Raises:
        EmqError: It cannot be created or written; the message says why.
    """
    directory = Path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as probe:
            probe.write(b"\0")
            probe.flush()
    except OSError as error:
        raise cannot_write(directory, error) from error
    return directory
