"""The command line: a command parses, calls one function, prints. Heavy packages load inside the commands."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import warnings

# Importing a module registers its commands, in the order in which the help lists them.
# isort: off
from emqdeploy.cli import training  # noqa: F401
from emqdeploy.cli import quantizing  # noqa: F401
from emqdeploy.cli import mixing  # noqa: F401
from emqdeploy.cli import exporting  # noqa: F401
from emqdeploy.cli import measuring  # noqa: F401
from emqdeploy.cli import running  # noqa: F401
from emqdeploy.cli import delivering  # noqa: F401
from emqdeploy.cli import looking  # noqa: F401

# isort: on
from emqdeploy.cli.app import app
from emqdeploy.cli.common import lists_joined
from emqdeploy.ending import ASKED, Asked, drop_output, exit_code, nobody_listens
from emqdeploy.errors import EmqError, cannot_write, explain, plain_text


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; errors are one sentence on standard error, and a traceback only with ``--debug``."""
    ASKED.clear()  # of an earlier call in this process
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    given = lists_joined([argument for argument in given if argument != "--debug"])
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of a damaged picture our sentence says enough
    sys.exit(_finish(_run(given, debug)))


def _run(arguments: list[str], debug: bool) -> int:
    try:
        code = app(arguments, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # rich ends with 1 where nobody listens
            return 0
        raise
    except (Exception, KeyboardInterrupt, Asked) as error:
        if isinstance(error, BrokenPipeError) and nobody_listens():
            return 0
        if debug:
            print(plain_text(traceback.format_exc()), file=sys.stderr, end="")
        message, code = _explain(error)
        if os.environ.get("WORLD_SIZE", "1") != "1":  # one of several processes: what all of them met is said once
            from emqdeploy.training.distributed import says

            if not says(error):
                return code
        _say(message)
        return code


def _finish(code: int) -> int:
    """Sends what was printed on its way, while a failure can still be told."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass
    except OSError as error:
        code = code or 1
        _say(str(cannot_write("standard output", error)))
    drop_output()
    return code


def _say(message: str) -> None:
    with contextlib.suppress(OSError):
        print(f"error: {plain_text(' '.join(message.split()))}", file=sys.stderr)


def _explain(error: BaseException) -> tuple[str, int]:
    """One sentence for a user, and the exit code."""
    if ASKED:  # libraries make errors of their own of it
        return str(error) if isinstance(error, EmqError) else "interrupted", exit_code()
    if isinstance(error, EmqError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, OSError | MemoryError):
        return explain(error), 1
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("emqdeploy"):
        return f'this command needs {error.name}, which is not installed; run: pip install "emqdeploy[all]"', 1
    # The argument parser's own errors, whichever click typer ships with.
    format_message = getattr(error, "format_message", None)
    if format_message is not None:
        return f"{format_message().rstrip('.')}; see: emqdeploy --help", 2
    return f"{type(error).__name__}: {error}; this is a defect of emqdeploy, --debug shows where", 1
