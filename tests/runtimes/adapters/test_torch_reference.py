"""The torch adapter: the float rung of parity, rebuilt from a checkpoint alone."""

from __future__ import annotations

import numpy as np
import pytest

from emqdeploy.errors import UsageError
from emqdeploy.format.emq import load_checkpoint, save_checkpoint
from emqdeploy.graph.reference import IntegerReference
from emqdeploy.runtimes.adapters.torch_reference import TorchRuntime
from emqdeploy.runtimes.base import open_runtime

from ...conftest import Deployed


def test_codes_are_those_of_the_integer_reference_up_to_ties(small: Deployed) -> None:
    """Float sums may round a tie the other way; more than a handful would be a defect."""
    checkpoint = small.checkpoint
    runtime = TorchRuntime(checkpoint)
    for bits in (1, 4, 8):
        runtime.set_bits(bits)
        logits, codes = runtime.run_traced(small.images)
        expected, exact = IntegerReference(checkpoint.skeleton, checkpoint.network.initializers(runtime.child)).run(
            small.images
        )
        assert set(codes) <= set(exact)
        assert len(codes) == len(checkpoint.network.sites)
        differing = sum(int((array != exact[name]).sum()) for name, array in codes.items())
        assert differing <= 1e-3 * sum(array.size for array in codes.values())
        assert np.abs(logits - expected).max() <= 0.1 * np.ptp(expected)


def test_a_file_is_enough(small: Deployed, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The structure comes from the metadata and the numbers from the planes: same logits as before saving."""
    path = tmp_path_factory.mktemp("torch") / "a.emq"
    save_checkpoint(path, small.checkpoint)
    loaded = open_runtime(load_checkpoint(path), "torch", children=[4])
    assert loaded.bits == 4
    np.testing.assert_array_equal(loaded(small.images), TorchRuntime(small.checkpoint, children=[4])(small.images))


def test_tracing_leaves_nothing_behind(small: Deployed) -> None:
    """Hooks are removed: later calls run at full speed."""
    runtime = TorchRuntime(small.checkpoint, children=[4])
    runtime.run_traced(small.images)
    assert not any(module._forward_hooks for module in runtime._in_use().engine.module.modules())


def test_errors_and_precision(small: Deployed) -> None:
    """Absent children and wrong images are one sentence; the report says that torch multiplies in float."""
    runtime = TorchRuntime(small.checkpoint)
    with pytest.raises(UsageError, match="no child '9' here"):
        runtime.set_bits(9)
    with pytest.raises(UsageError, match=r"takes float32 \(N, 1, 8, 8\)"):
        runtime(small.images[0])
    assert {(layer.computed_as, layer.integer) for layer in runtime.precision(2)} == {("float32", False)}
    assert {layer.grid_bits for layer in runtime.precision(2)} == {2, 8}
