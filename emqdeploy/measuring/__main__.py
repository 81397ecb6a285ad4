"""Runs a bench from a file of settings: ``python -m emqdeploy.measuring SETTINGS.json``.

For a device that has numpy, msgspec and a runtime but not the packages of the command line. The result is one JSON
object on standard output, progress goes to standard error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from emqdeploy.ending import exit_code
from emqdeploy.errors import EmqError, plain_text
from emqdeploy.measuring.bench import bench
from emqdeploy.measuring.settings import BenchSettings


def main() -> int:
    """Measures; returns the exit code."""
    settings = BenchSettings.from_dict(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    try:
        result = bench(settings, lambda line: print(plain_text(line), file=sys.stderr, flush=True))
    except EmqError as error:
        print(f"error: {plain_text(' '.join(str(error).split()))}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(result))
    return 0 if result["complete"] else exit_code(1)


if __name__ == "__main__":
    sys.exit(main())
