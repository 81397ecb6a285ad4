"""A trained digits network, to measure for real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emqdeploy.measuring.bench import bench
from emqdeploy.measuring.settings import BenchSettings


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a short training on the embedded digits."""
    from emqdeploy.training.api import train
    from emqdeploy.training.config import TrainConfig

    result = train(TrainConfig(epochs=2, limit=400), tmp_path_factory.mktemp("digits"))
    return Path(result.checkpoints[0])


@pytest.fixture(scope="session")
def measured(digits: Path) -> dict[str, Any]:
    """A real, short result with every scenario of ours, as it comes back from JSON."""
    settings = BenchSettings(
        path=str(digits),
        bits=(8, 4, 2),
        scenarios=("single", "offline", "switch"),
        samples=60,
        seconds=None,
        batches=(1, 8),
        switches=30,
        energy="none",
    )
    result: dict[str, Any] = json.loads(json.dumps(bench(settings)))
    return result
