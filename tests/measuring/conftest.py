"""A real, short measurement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emqdeploy.measuring.bench import bench
from emqdeploy.measuring.settings import BenchSettings


@pytest.fixture(scope="session")
def measured(digits: Path) -> dict[str, Any]:
    """A real, short result with every scenario of ours, as it comes back from JSON."""
    settings = BenchSettings(
        path=str(digits),
        bits="8,4,2",
        runtimes=("onnxruntime",),
        scenarios=("single", "offline", "switch"),
        samples=60,
        seconds=None,
        batches=(1, 8),
        switches=30,
        energy="none",
    )
    result: dict[str, Any] = json.loads(json.dumps(bench(settings)))
    return result
