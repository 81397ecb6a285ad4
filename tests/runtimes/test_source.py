"""Opening what a person names: bundles, checkpoints, single files; selectors; errors in one sentence."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.exporters.settings import ExportSettings
from emqdeploy.format.child import Child
from emqdeploy.format.emq import read_card, save_checkpoint
from emqdeploy.runtimes import Runtime, open_runtime
from emqdeploy.runtimes.onnx_file import OnnxFileRuntime, OnnxSelectorRuntime
from emqdeploy.runtimes.source import open_source
from emqdeploy.workflows.export import export

from ..conftest import Deployed


@pytest.fixture(scope="module")
def run(small: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a bundle: files of two children and a selector for them."""
    directory = tmp_path_factory.mktemp("run")
    save_checkpoint(directory / "model.emq", small.checkpoint)
    export(ExportSettings(path=directory, bits="2,8", selector="if"))
    return directory


def test_a_bundle_has_every_child_of_its_checkpoint(small: Deployed, run: Path) -> None:
    """The exported ones are resident, the others are built from the planes."""
    with Runtime.from_bundle(run / "bundle", threads=1) as network:
        assert [child.name for child in network.resident] == ["2", "8"]
        assert network.available_bits == tuple(range(1, 9))
        network.set_bits(5)
        expected = open_runtime(small.checkpoint, children=[5], threads=1)(small.images)
        np.testing.assert_array_equal(network.run(small.images), expected)
        assert network.name == "onnxruntime"
        assert network.device == "cpu"


@pytest.mark.parametrize(("flavour", "kind"), [("int8", OnnxFileRuntime), ("if", OnnxSelectorRuntime)])
def test_files_and_selectors_answer_as_the_checkpoint(
    small: Deployed, run: Path, flavour: str, kind: type[Runtime]
) -> None:
    """By flavour; a selector is fed the child, and refuses one that it does not hold."""
    with Runtime.from_bundle(run / "bundle", bits=2, flavour=flavour, threads=1) as network:
        assert isinstance(network, kind)
        assert network.bits == 2
        exact = open_runtime(small.checkpoint, children=[2, 8], threads=1)
        for bits in (2, 8, 2):
            network.set_bits(bits)
            np.testing.assert_array_equal(network(small.images), exact.run(small.images, bits))
        with pytest.raises(UsageError, match="no child '4' here; available: 2, 8; name one of these"):
            network.set_bits(4)
        assert {(layer.computed_as, layer.integer) for layer in network.precision(8)} == {("int8", True)}
        assert {layer.grid_bits for layer in network.precision(2)} == {2, 8}


def test_selectors_are_one_session(run: Path) -> None:
    """A rule that would split it is refused; the child that is asked for is used first, and all are resident."""
    with pytest.raises(UsageError, match="holds all children in one session"):
        Runtime.from_bundle(run / "bundle", flavour="if", residency="lru:1")
    with Runtime.from_bundle(run / "bundle", bits=2, flavour="if") as network:
        assert (network.bits, network.resident) == (2, network.children)


def test_a_runtime_that_computes_selectors_wrongly_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Onnxruntime 1.28 and older answered with other numbers, silently."""
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "__version__", "1.28.0")
    with pytest.raises(EmqError, match=r"onnxruntime 1\.28\.0 computes wrongly; install onnxruntime 1\.29 or newer"):
        Runtime.from_bundle(run / "bundle", flavour="if")


def test_single_files_runs_and_checkpoints_open_too(small: Deployed, run: Path) -> None:
    """The same call, whatever the path is."""
    for path in (run, run / "model.emq", run / "bundle/manifest.json"):
        with Runtime.from_bundle(path, bits=8, threads=1) as network:
            assert network(small.images).shape == (16, 10)
    for name, available in (("model-w2.onnx", (2,)), ("model-selector-if.onnx", (2, 8))):
        with Runtime.from_bundle(run / "bundle" / name, threads=1) as network:
            assert network.available_bits == available
            assert network.classes == list(small.checkpoint.card.classes)


def test_a_source_says_what_every_child_costs(small: Deployed, run: Path) -> None:
    """The bytes of its file; of one that was not exported, what loading it from the checkpoint reads."""
    source = open_source(run / "bundle", "1-8", threads=1)
    assert source.children == small.checkpoint.network.children
    assert source.size_bytes[Child.of(2)] == (run / "bundle/model-w2.onnx").stat().st_size
    _, stored = read_card(run / "model.emq")
    assert source.size_bytes[Child.of(3)] == stored[Child.of(3)]
    assert open_source(run, "2-4", threads=1).size_bytes == stored
    assert (source.path, source.input_shape) == (run / "bundle", (1, 8, 8))
    assert open_source(run / "bundle/manifest.json", (8,), threads=1).path == run / "bundle"


def test_children_may_be_named_as_people_type_them(run: Path) -> None:
    """Names, widths, ranges; one child of a checkpoint is all that is read of it; of a bundle all are the exported."""
    assert [child.name for child in open_source(run, "2-4,w8a8", threads=1).children] == ["2", "3", "4", "8"]
    assert [child.name for child in open_source(run / "model.emq", "3", threads=1).runtime.children] == ["3"]
    assert [child.name for child in open_source(run / "bundle", "all", threads=1).children] == ["2", "8"]
    assert len(open_source(run / "model.emq", "All", threads=1).children) == 8
    with pytest.raises(UsageError, match="no child '9' here; available: 1, 2, 3"):
        open_source(run, "8-9")


def test_errors_are_one_sentence(small: Deployed, run: Path) -> None:
    """What was asked for, what there is."""
    bundle = run / "bundle"
    with pytest.raises(UsageError, match="holds no ONNX artefacts of flavour 'packed'; it holds int8, if"):
        Runtime.from_bundle(bundle, flavour="packed")
    with pytest.raises(
        UsageError, match="unknown runtime 'tvm'; known: native, onnxruntime, openvino, tensorrt, torch"
    ):
        Runtime.from_bundle(bundle, runtime="tvm")
    with pytest.raises(UsageError, match="runs in onnxruntime here, not in 'openvino'; name its bundle"):
        Runtime.from_bundle(bundle / "model-w2.onnx", runtime="openvino")
    with pytest.raises(UsageError, match="does not exist"):
        Runtime.from_bundle(run / "nothing")
    with pytest.raises(UsageError, match="no child '9' here; available: 1, 2, 3, 4, 5, 6, 7, 8"):
        Runtime.from_bundle(bundle, bits=9)
    with pytest.raises(UsageError, match="at least one"):
        Runtime.from_bundle(bundle, bits=())
    with pytest.raises(UsageError, match="at least one"):
        Runtime.from_bundle(bundle, bits=(), flavour="if")
    with pytest.raises(UsageError, match="threads is 0; give at least 1"):
        Runtime.from_bundle(bundle, bits=2, threads=0)
    with pytest.raises(EmqError, match="cuda") as error:
        Runtime.from_bundle(bundle, bits=2, provider="gpu")
    assert "unknown provider 'gpu'; known: cpu, cuda, tensorrt" in str(error.value)


def test_a_provider_that_is_not_here_is_refused(run: Path) -> None:
    """Never a silent fallback to the CPU."""
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(EmqError, match="this onnxruntime has no CUDAExecutionProvider, it has cpu; install"):
        Runtime.from_bundle(run / "bundle", bits=2, provider="cuda")


def test_a_bundle_without_its_checkpoint_runs_its_files(small: Deployed, run: Path) -> None:
    """A device may keep nothing but the files that it needs."""
    from emqdeploy.format.bundle import Bundle
    from emqdeploy.runtimes.adapters.onnx_runtime import OnnxRuntime

    bundle = replace(Bundle.open(run / "bundle"), checkpoint=None)
    network = OnnxRuntime.open_bundle(bundle, None, residency="lru:1", threads=1)
    assert network.available_bits == (2, 8)
    assert [child.name for child in network.resident] == ["8"]
    exact = open_runtime(small.checkpoint, children=[2], threads=1)(small.images)
    np.testing.assert_array_equal(network.run(small.images, 2), exact)


def test_no_torch_is_needed(run: Path) -> None:
    """Neither to import nor to open, switch, prefetch and run."""
    code = f"""
import sys
sys.modules["torch"] = None
import numpy as np
from emqdeploy.runtimes import Runtime
with Runtime.from_bundle({str(run / "bundle")!r}, residency="lru:2", threads=1) as network:
    network.prefetch(3)
    network.set_bits(3)
    print(network.run(np.zeros((2, 1, 8, 8), np.float32)).shape)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout == "(2, 10)\n", result.stderr
