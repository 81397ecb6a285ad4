"""Entry point of ``emqdeploy`` and ``python -m emqdeploy``."""

from __future__ import annotations

import sys

from emqdeploy.ending import ASKED, exit_code, heed_signals, open_missing_streams, speak_any_encoding
from emqdeploy.processes import leave_working_directory

leave_working_directory()


def main() -> None:
    """Runs the command line; a Ctrl-C is also heard while the commands are imported."""
    heed_signals()
    open_missing_streams()
    speak_any_encoding()
    try:
        from emqdeploy import cli  # only now: it imports what lies in the search path, and that takes a while
    except BaseException:
        if not ASKED:
            raise
        print("error: interrupted", file=sys.stderr)
        sys.exit(exit_code())
    cli.main()


if __name__ == "__main__":
    main()
