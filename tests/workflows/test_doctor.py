"""What this machine can do: packages, and every runtime with the reason why it cannot run."""

from __future__ import annotations

from emqdeploy.runtimes.base import RUNTIMES
from emqdeploy.workflows.doctor import examine


def test_every_runtime_is_examined() -> None:
    """Also one that a new file brings; the sentence is the runtime's own."""
    result = examine()
    assert set(result["runtimes"]) == set(RUNTIMES)
    assert result["runtimes"]["onnxruntime"] is None
    if result["runtimes"]["native"] is None:
        assert result["native_kernels"][-1] == "portable"
    assert {check["part"] for check in result["checks"]} >= {"onnxruntime", "onnx", "torch"}
