"""How a process of ours is started: it imports from where we import, never from the directory that somebody works in.

``python -m`` and ``python -c`` put the working directory in front of the search path, and that may be a folder which
came from somebody else: a ``numpy.py`` in it would run.
"""

from __future__ import annotations

import os
import sys

_HOME = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
"""The folder, or the archive, that this package lies in."""

_RUN = "import runpy; runpy.run_module({!r}, run_name='__main__', alter_sys=True)"


def search_path() -> list[str]:
    """Where this process imports from, without the working directory, unless the package itself lies there."""
    try:
        here = os.path.realpath(os.getcwd())
    except OSError:  # somebody removed it
        here = ""
    entries = [os.path.realpath(entry) for entry in sys.path if os.path.isabs(entry)]
    kept = [entry for entry in entries if entry == _HOME or entry != here]
    return list(dict.fromkeys(kept if _HOME in kept else [*kept, _HOME]))


def python_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module as this process would import it.

    Args:
        module: dotted name.
        *arguments: what it finds behind its name in ``sys.argv``.
    """
    return python_code(_RUN.format(module), *arguments)


def python_code(code: str, *arguments: str) -> list[str]:
    """The same for a few lines of Python."""
    # `sys` is part of the interpreter, so that nothing is looked for before the path is right.
    return [sys.executable, "-c", f"import sys; sys.path[:] = {search_path()!r}\n{code}", *arguments]


def archive_command(python: str, archive: str, module: str, *arguments: str) -> list[str]:
    """The command that runs a module out of an archive in the working directory of another machine.

    Args:
        python: its interpreter, 3.10 or newer.
        archive: name of the archive, for example ``emqdeploy.zip``; what it needs besides is installed there.
        module: dotted name.
        *arguments: what it finds behind its name in ``sys.argv``.
    """
    path = "import sys; sys.path[:] = filter(None, sys.path); import os; "
    return [python, "-c", f"{path}sys.path.insert(0, os.path.abspath({archive!r}))\n{_RUN.format(module)}", *arguments]


def leave_working_directory() -> None:
    """Takes the working directory out of this process's own search path, where ``python -m`` put it."""
    sys.path[:] = search_path()
