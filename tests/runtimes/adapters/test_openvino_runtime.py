"""The OpenVINO adapter: real models on the CPU, many threads, integer kernels, one-sentence errors."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.child import Child
from emqdeploy.format.emq import save_checkpoint
from emqdeploy.graph.filling import filled_model
from emqdeploy.graph.openvino_rounding import keep_rounding
from emqdeploy.graph.reference import IntegerReference
from emqdeploy.models import trust
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.runtimes import open_runtime
from emqdeploy.runtimes.graph_sources import Graphs
from emqdeploy.runtimes.onnx_session import create_session, session_options

from ...conftest import Deployed, deploy

openvino = pytest.importorskip("openvino")

from emqdeploy.runtimes.adapters.openvino_runtime import OpenVinoRuntime  # noqa: E402


@pytest.fixture(scope="module")
def runtime(small: Deployed) -> OpenVinoRuntime:
    """Two children resident, of eight stored."""
    return OpenVinoRuntime(small.checkpoint, children=[2, 8], threads=1)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_signal_after_another_thread_closed_the_runtime(small: Deployed, tmp_path: Path) -> None:
    """Ctrl-C reaches the program: OpenVINO's plugin took the signal stack with it when another thread dropped it."""
    path = tmp_path / "model.emq"
    save_checkpoint(path, small.checkpoint)
    script = f"""
import gc, os, signal, threading
from emqdeploy.runtimes import Runtime
held = [Runtime.from_bundle({str(path)!r}, runtime="openvino", bits=[2], threads=1)]
def drop():
    held.pop().close()
    gc.collect()
thread = threading.Thread(target=drop)
thread.start()
thread.join()
signal.signal(signal.SIGINT, lambda number, frame: print("reached"))
os.kill(os.getpid(), signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "reached\n"), done.stderr


def test_answers_are_close_to_onnxruntime(small: Deployed, runtime: OpenVinoRuntime) -> None:
    """Every child is the network of its own bits: nearer to its own answers than to any other's."""
    exact = open_runtime(small.checkpoint, children=[2, 8], threads=1)
    assert [child.name for child in runtime.resident] == ["2", "8"]
    for bits, other in ((2, 8), (8, 2)):
        logits = runtime.run(small.images, bits)
        distance = [np.abs(logits - exact.run(small.images, width)).max() for width in (bits, other)]
        assert distance[0] < 0.1 * np.ptp(logits)
        assert distance[0] < distance[1]


@pytest.fixture(scope="module")
def coarse() -> Deployed:
    """The same network with 4-bit activations, whose rounding weighs more."""
    return deploy(NetworkSpec("resnet8", 10, (1, 8, 8), 2.0, (Child.of(2, 4), Child.of(8, 4))))


def test_coarse_activations_are_rounded_as_trained(coarse: Deployed) -> None:
    """OpenVINO must not leave out the rounding before a residual add, as it does with the graph as it is."""
    checkpoint = coarse.checkpoint
    core = openvino.Core()
    for child in checkpoint.network.children:
        arrays = checkpoint.network.initializers(child)
        expected = IntegerReference(checkpoint.skeleton, arrays).run(coarse.images)[0]
        plain = core.compile_model(
            core.read_model(filled_model(checkpoint.skeleton, arrays).SerializeToString()), "CPU"
        )
        wrong = np.abs(plain([coarse.images])[0] - expected).max()
        logits = OpenVinoRuntime(checkpoint, children=[child], threads=1)(coarse.images)
        assert np.abs(logits - expected).max() < wrong / 2


def test_a_stream_of_8_bits_is_rounded_too() -> None:
    """In a pre-activation network the sums keep 8 bits, and layers with 4-bit inputs stand behind them."""
    network = deploy(NetworkSpec("preact-resnet8", 10, (1, 8, 8), 2.0, (Child.of(2, 4),)))
    arrays = network.checkpoint.network.initializers(Child.of(2, 4))
    expected = IntegerReference(network.checkpoint.skeleton, arrays).run(network.images)[0]
    plain = filled_model(network.checkpoint.skeleton, arrays).SerializeToString()
    wrong = openvino.Core().compile_model(openvino.Core().read_model(plain), "CPU")([network.images])[0] - expected
    logits = OpenVinoRuntime(network.checkpoint, children=[2], threads=1)(network.images)
    assert np.abs(logits - expected).max() < np.abs(wrong).max() / 2


class ClassToken(nn.Module):
    """Patches behind a token that every image has alike, whose number the graph reads off the images."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 2, 2)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, classes)
        nn.init.uniform_(self.patches.bias, -2, 2)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Every patch counts."""
        patches = self.patches(images)
        tokens = torch.cat([self.token.expand(images.shape[0], -1, -1), patches.flatten(2).transpose(1, 2)], 1)
        return self.head(self.norm(tokens).mean(1))


def class_token(num_classes: int) -> nn.Module:
    """What `create_model` calls."""
    return ClassToken(num_classes)


def padded_mean(num_classes: int) -> nn.Module:
    """A signed tensor, whose zero is code 128, behind which windows reach into the padding."""
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.AvgPool2d(3, 2, 1), nn.Conv2d(8, 8, 1), nn.ReLU(), head)


@pytest.mark.parametrize("model", ["class_token", "padded_mean"])
def test_what_fusions_would_make_another_network_of_is_kept_apart(model: str) -> None:
    """The plain graph is wrong there: all channels get the bias of the first; padding gets code 0."""
    trust(f"{__name__}:{model}")
    network = deploy(NetworkSpec(f"{__name__}:{model}", 10, (1, 8, 8), 2.0, (Child.of(8),)))
    arrays = network.checkpoint.network.initializers(Child.of(8))
    expected = IntegerReference(network.checkpoint.skeleton, arrays).run(network.images)[0]
    plain = filled_model(network.checkpoint.skeleton, arrays).SerializeToString()
    wrong = openvino.Core().compile_model(openvino.Core().read_model(plain), "CPU")([network.images])[0] - expected
    logits = OpenVinoRuntime(network.checkpoint, threads=1, prove=False)(network.images)
    assert np.abs(logits - expected).max() < min(np.abs(wrong).max() / 10, np.ptp(expected) / 50)


def test_what_is_not_quantized_computes_in_float32(small: Deployed, runtime: OpenVinoRuntime) -> None:
    """OpenVINO takes bfloat16 by itself where the processor has it, without a word."""
    compiled = runtime._engine(2).compiled
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32


def test_fine_activations_stay_fused(small: Deployed, coarse: Deployed) -> None:
    """Keeping tensors apart costs time, so it is done where it is needed only; other consumers see the same codes."""
    for network, kept in ((small, 0), (coarse, 5)):
        frozen = network.checkpoint.network
        model = filled_model(network.checkpoint.skeleton, frozen.initializers(frozen.find(8)))
        assert keep_rounding(model) == kept
        onnx.checker.check_model(model, full_check=True)
        (logits,) = create_session(model.SerializeToString(), session_options(1)).run(None, {"images": network.images})
        expected = open_runtime(network.checkpoint, children=[8], threads=1)(network.images)
        np.testing.assert_array_equal(logits, expected)


def test_layers_run_in_integers(small: Deployed, runtime: OpenVinoRuntime) -> None:
    """Read from the graph that OpenVINO runs, by the names of our layers."""
    report = runtime.precision(2)
    assert [layer.name for layer in report] == list(small.checkpoint.network.layers)
    assert {(layer.computed_as, layer.integer) for layer in report} == {("int8", True)}


def test_threads_share_a_model(small: Deployed, runtime: OpenVinoRuntime) -> None:
    """Each call gets the answer to its own images."""
    expected = [runtime(small.images[index : index + 1]) for index in range(8)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda index: runtime(small.images[index % 8 : index % 8 + 1]), range(64)))
    for index, logits in enumerate(answers):
        np.testing.assert_array_equal(logits, expected[index % 8])


def test_the_cache_is_filled(small: Deployed, tmp_path: Path) -> None:
    """A second start finds what the first one compiled, and answers alike."""
    first = OpenVinoRuntime(small.checkpoint, children=[4], threads=1, cache_dir=tmp_path)
    kept = list(tmp_path.iterdir())
    assert kept
    second = OpenVinoRuntime(small.checkpoint, children=[4], threads=1, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == kept
    np.testing.assert_array_equal(first(small.images), second(small.images))


def test_errors_are_one_sentence(small: Deployed, runtime: OpenVinoRuntime) -> None:
    """A device that is not here, a graph that is none, images that do not fit, a closed runtime."""
    with pytest.raises(UsageError, match=r"OpenVINO finds no device 'NPU9' here; it finds .*CPU"):
        OpenVinoRuntime(small.checkpoint, device="NPU9")
    with pytest.raises(UsageError, match=r"takes float32 \(N, 1, 8, 8\)"):
        runtime(small.images[0])
    graphs = Graphs.of_checkpoint(small.checkpoint)
    broken = replace(graphs, sources=graphs.sources | {Child.of(8): lambda: b"no model"})
    with pytest.raises(EmqError, match="OpenVINO cannot load a graph that is no ONNX model") as error:
        OpenVinoRuntime(broken, children=[8])
    assert "\n" not in str(error.value)
    with OpenVinoRuntime(small.checkpoint, children=[4], threads=1) as closed:
        pass
    with pytest.raises(EmqError, match="this runtime is closed"):
        closed(small.images)
