"""A child whose layers have widths of their own, in every runtime: exact, by name, switched like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.exporters.selector import SELECTORS
from emqdeploy.exporters.storage import STORAGES
from emqdeploy.format.emq import save_checkpoint
from emqdeploy.graph.parity import Parity
from emqdeploy.graph.reference import IntegerReference, quantized_tensors
from emqdeploy.runtimes import Runtime, open_runtime
from emqdeploy.runtimes.adapters.onnx_runtime import OnnxRuntime
from emqdeploy.runtimes.onnx_file import OnnxFileRuntime
from emqdeploy.runtimes.source import open_source

from ..mixing import COARSE, MIXED, NARROW, WIDE, mixed_network


def test_onnxruntime_gives_every_code_of_the_reference() -> None:
    """At the mixed child and at the plain ones beside it."""
    deployed = mixed_network()
    skeleton, network = deployed.checkpoint.skeleton, deployed.checkpoint.network
    tensors = quantized_tensors(skeleton)
    with OnnxRuntime(deployed.checkpoint, threads=1, trace=tensors) as runtime:
        for child in network.children:
            parity = Parity()
            runtime.use(child.name)
            expected = IntegerReference(skeleton, network.initializers(child)).run(deployed.images)
            parity.add(expected, runtime.run_traced(deployed.images))
            assert parity.exact
            assert parity.codes == sum(codes.size for codes in expected[1].values())
            assert parity.max_logit_error == 0
    coarse = network.layers[COARSE].site
    assert network.sites[coarse].bits[MIXED] == 4
    assert expected[1][f"{coarse}/codes"].max() > 15


@pytest.mark.parametrize("runtime", ["openvino", "torch"])
def test_the_others_decide_alike(runtime: str) -> None:
    """They round sums in their own way, so a decision may flip only where it is close."""
    if runtime == "openvino":
        pytest.importorskip("openvino")
    deployed = mixed_network()
    checkpoint = deployed.checkpoint
    reference = IntegerReference(checkpoint.skeleton, checkpoint.network.initializers(MIXED))
    expected, _ = reference.run(deployed.images)
    with open_runtime(checkpoint, runtime, children=["mixed"], threads=1) as network:
        assert network.child == MIXED
        logits = network(deployed.images)
    parity = Parity()
    parity.add((expected, {}), (logits, {}))
    assert parity.unsafe_flips == 0
    assert parity.max_logit_error < 0.1


def test_it_is_used_by_name(tmp_path: Path) -> None:
    """From a file too, which reads what this child needs only; widths go on meaning the plain children."""
    deployed = mixed_network()
    path = tmp_path / "model.emq"
    save_checkpoint(path, deployed.checkpoint)
    with Runtime.from_bundle(path, threads=1) as network:
        answers = {}
        for name in ("mixed", 4, "W8A8"):
            network.use(name)
            answers[network.child.name] = network(deployed.images)
        assert list(answers) == ["mixed", "4", "8"]
        assert network.available_bits == (4, 8)
        assert [child.name for child in network.children] == ["4", "mixed", "8"]
        with pytest.raises(UsageError, match="no child 'mixer' here; available: 4, mixed, 8; name one of these"):
            network.use("mixer")
        assert network.child.name == "8"
        np.testing.assert_array_equal(network.run(deployed.images, "mixed"), answers["mixed"])
    source = open_source(path, "mixed", threads=1)
    assert source.runtime.children == source.children == (MIXED,)
    np.testing.assert_array_equal(source.runtime(deployed.images), answers["mixed"])
    assert source.size_bytes[MIXED] > 0


def test_exported_files_know_it_by_name(tmp_path: Path) -> None:
    """One file of its own, and its place in a selector, where it has no width to be chosen by."""
    deployed = mixed_network()
    checkpoint, children = deployed.checkpoint, deployed.checkpoint.network.children
    single, selector = tmp_path / "mixed.onnx", tmp_path / "selector.onnx"
    single.write_bytes(STORAGES["int8"](checkpoint, tmp_path, MIXED).data)
    selector.write_bytes(SELECTORS["if"](checkpoint, tmp_path, children).data)
    with (
        open_runtime(checkpoint, threads=1) as exact,
        Runtime.from_bundle(single, threads=1) as alone,
        Runtime.from_bundle(selector, threads=1) as together,
    ):
        assert alone.children == (MIXED,)
        assert together.children == together.resident == children
        np.testing.assert_array_equal(alone(deployed.images), exact.run(deployed.images, MIXED))
        for name in ("8", "mixed", "4"):
            together.use(name)
            np.testing.assert_array_equal(together(deployed.images), exact.run(deployed.images, name))
        for network in (alone, together):
            bits = {layer.name: layer.grid_bits for layer in network.precision(MIXED)}
            assert (bits[WIDE], bits[NARROW], bits["conv1"]) == (8, 2, 8)
    with pytest.raises(EmqError, match=r"selector\.onnx holds child 4, mixed, 8, not 4; export the bundle again"):
        OnnxFileRuntime({children[0]: selector})


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torch"])
def test_the_report_says_what_every_layer_has(runtime: str) -> None:
    """By layer, whatever computes it."""
    if runtime == "openvino":
        pytest.importorskip("openvino")
    with open_runtime(mixed_network().checkpoint, runtime, children=["mixed"], threads=1) as network:
        bits = {layer.name: layer.grid_bits for layer in network.precision("mixed")}
    assert (bits[WIDE], bits[NARROW], bits[COARSE], bits["conv1"]) == (8, 2, 4, 8)
