"""The command line: a command parses, calls one function, prints. Heavy packages load inside the commands."""

from __future__ import annotations

import os
import sys
import traceback

# Importing a module registers its commands, in the order in which the help lists them.
# isort: off
from emqdeploy.cli import training  # noqa: F401
from emqdeploy.cli import quantizing  # noqa: F401
from emqdeploy.cli import exporting  # noqa: F401
from emqdeploy.cli import measuring  # noqa: F401
from emqdeploy.cli import running  # noqa: F401
from emqdeploy.cli import looking  # noqa: F401

# isort: on
from emqdeploy.cli.app import app
from emqdeploy.errors import EmqError


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; errors are one sentence on standard error, and a traceback only with ``--debug``."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    sys.exit(_run(given, debug))


def _run(arguments: list[str], debug: bool) -> int:
    try:
        code = app(arguments, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        message, exit_code = _explain(error)
        if os.environ.get("WORLD_SIZE", "1") != "1":  # one of several processes: what all of them met is said once
            from emqdeploy.training.distributed import says

            if not says(error):
                return exit_code
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return exit_code


def _explain(error: BaseException) -> tuple[str, int]:
    """One sentence for a user, and the exit code."""
    if isinstance(error, EmqError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("emqdeploy"):
        return f'this command needs {error.name}, which is not installed; run: pip install "emqdeploy[all]"', 1
    # The argument parser's own errors, whichever click typer ships with.
    format_message = getattr(error, "format_message", None)
    if format_message is not None:
        return f"{format_message().rstrip('.')}; see: emqdeploy --help", 2
    return f"{type(error).__name__}: {error}; this is a defect of emqdeploy, --debug shows where", 1
