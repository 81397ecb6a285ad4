"""How a program of ours ends that is asked to, or that nobody listens to: cleaned up, and with the usual exit code."""

from __future__ import annotations

import codecs
import io
import os
import select
import signal
import sys
from types import FrameType

_SPELLED = {"µ": "u", "±": "+-", "°": "deg ", "…": "...", "→": "->", "·": "-"}
"""Our letters beyond ASCII where an output does not know them."""

ASKED: list[int] = []
"""Numbers of the signals that asked this process to end, in order."""


class Asked(BaseException):
    """This process was asked to end; what it had begun is cleaned up on the way out.

    No `KeyboardInterrupt`: the parser of the command line has an answer of its own to that.
    """


def exit_code(default: int = 0) -> int:
    """What a shell expects of a process that was asked to end, ``128 + signal``; else the default."""
    return 128 + ASKED[0] if ASKED else default


def heed_signals() -> None:
    """Has Ctrl-C and termination clean up on their way out; the second one ends at once."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # of a job in the background, or under nohup
            signal.signal(number, _end)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_as_usual)


def _as_usual() -> None:
    """Child processes have nothing to clean up: whoever ends them wants them gone."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is _end:
            signal.signal(number, usual)


def _end(number: int, frame: FrameType | None) -> None:
    if ASKED:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    ASKED.append(number)
    raise Asked


def open_missing_streams() -> None:
    """Gives a process that was started without output a place to write to: no file of ours may become that output."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (for as long as the process lives)


def speak_any_encoding() -> None:
    """Lets an output that knows few characters have their nearest spelling: no result is lost for a letter."""
    codecs.register_error("spelled", _spelled)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="spelled")


def _spelled(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    character = error.object[error.start]
    return _SPELLED.get(character) or character.encode("unicode_escape").decode(), error.start + 1


def nobody_listens() -> bool:
    """Whether the other end of standard output or error was closed, as ``| head -1`` does."""
    if not hasattr(select, "poll"):
        return False
    ends = select.poll()
    for descriptor in (1, 2):
        ends.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in ends.poll(0))


def drop_output() -> None:
    """Whatever is still to be written goes nowhere: the interpreter must not complain about it at the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
