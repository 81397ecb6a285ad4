"""Measures in a process of its own what one bit-width costs: ``python -m emqdeploy.runtimes.memory PATH BITS``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime  # noqa: F401  (its own memory is not the network's)

from emqdeploy.runtimes.machine import resident_bytes
from emqdeploy.runtimes.source import open_source


def main() -> None:
    """Prints the resident memory that loading and one inference added."""
    path, bits = Path(sys.argv[1]), int(sys.argv[2])
    before = resident_bytes()
    source = open_source(path, bits=(bits,))
    source.runtime(np.zeros((1, *source.input_shape), np.float32))
    after = resident_bytes()
    added = None if before is None or after is None else after - before
    print(json.dumps({"added_bytes": added}))


if __name__ == "__main__":
    main()
