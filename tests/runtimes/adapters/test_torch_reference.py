"""The torch adapter: the float rung of parity, rebuilt from a checkpoint alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from emqdeploy.errors import EmqError, UsageError
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


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda values: {}, "does not say how its network is built"),
        (lambda values: values | {"trained": 3}, "does not say how its network is built"),
        (lambda values: values | {"insertion": {"quantizer": []}}, "does not say how its network is built"),
        (lambda values: values | {"classes": 1_000_000_000}, "the structure of another network than its own"),
        (lambda values: values | {"input_shape": [1, 8]}, "the structure of another network than its own"),
        (lambda values: values | {"model": "nothing"}, "the structure of another network than its own"),
    ],
)
def test_a_structure_may_say_anything(
    change: Callable[[dict[str, Any]], dict[str, Any]], sentence: str, small: Deployed
) -> None:
    """That part of a card has no schema, and comes from whoever made the file."""
    card = msgspec.structs.replace(small.checkpoint.card, structure=change(dict(small.checkpoint.card.structure)))
    with pytest.raises(EmqError, match=sentence):
        TorchRuntime(dataclasses.replace(small.checkpoint, card=card))


def test_a_structure_of_other_layers_is_refused(small: Deployed) -> None:
    """Both parts of the card agree, and neither is what the weights belong to."""
    card = msgspec.structs.replace(
        small.checkpoint.card, model="vit-micro", structure=small.checkpoint.card.structure | {"model": "vit-micro"}
    )
    with pytest.raises(EmqError, match=r"the file and the model that it names differ in '\w.*'"):
        TorchRuntime(dataclasses.replace(small.checkpoint, card=card))
