"""onnxruntime's own reports: off before it loads, wherever it is loaded from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_onnxruntime_leaves_no_files(tmp_path: Path) -> None:
    """Neither in the user's home nor in TMPDIR; what the user says about it stands."""
    places = {name: tmp_path / name.lower() for name in ("HOME", "TMPDIR")}
    for place in places.values():
        place.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_", "CI", "GITHUB"))}
    code = (
        "import os; from emqdeploy.runtimes.onnx_session import session_options; session_options(1);"
        "print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    environment = kept | {name: str(place) for name, place in places.items()}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
    assert not [path for place in places.values() for path in place.rglob("*")]
    told = subprocess.run(
        [sys.executable, "-c", "import os, emqdeploy; print(os.environ['ORT_DISABLE_TELEMETRY'])"],
        env=environment | {"ORT_DISABLE_TELEMETRY": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == "0\n"
