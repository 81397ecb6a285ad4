"""Every way to store a bit-width gives onnxruntime the same int8 weights, so the same answers in the same kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from emqdeploy.checkpoint import save_checkpoint
from emqdeploy.export.storage import STORAGES
from emqdeploy.grid import ALL_BITS
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.insertion import InsertionConfig
from emqdeploy.runtimes.onnx_kernels import profile_kernels
from emqdeploy.runtimes.onnx_runtime import OnnxRuntime
from emqdeploy.runtimes.onnx_session import create_session, session_options

from ..conftest import Deployed, deploy


@pytest.fixture(scope="module")
def folder(small: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the checkpoint."""
    folder = tmp_path_factory.mktemp("storage")
    save_checkpoint(folder / "model.emq", small.checkpoint)
    return folder


def write(deployed: Deployed, folder: Path, storage: str, bits: int) -> Path:
    """Writes one file beside the checkpoint."""
    path = folder / f"{storage}-w{bits}.onnx"
    path.write_bytes(STORAGES[storage](deployed.checkpoint, folder / "model.emq", bits).data)
    return path


@pytest.mark.parametrize("storage", ["packed", "master"])
@pytest.mark.parametrize("bits", ALL_BITS)
def test_stored_differently_the_network_is_the_same(small: Deployed, folder: Path, storage: str, bits: int) -> None:
    """Logits equal to the last bit, and every layer still an integer kernel."""
    expected = OnnxRuntime(small.checkpoint, bits=[bits], threads=1)(small.images)
    path = write(small, folder, storage, bits)
    session = create_session(path, session_options(1))
    np.testing.assert_array_equal(session.run(None, {"images": small.images})[0], expected)
    kernels = profile_kernels(path, session_options(1), None, small.spec.input_shape)
    assert set(kernels) == set(small.checkpoint.network.layers)
    assert set(kernels.values()) <= {"QLinearConv", "QGemm"}


@pytest.mark.parametrize(("bits", "kind"), [(1, "UINT2"), (2, "UINT2"), (3, "UINT4"), (4, "UINT4"), (5, "INT8")])
def test_packed_files_really_pack(small: Deployed, folder: Path, bits: int, kind: str) -> None:
    """The type of the stored weights, as onnx reads it, and the bytes that it saves."""
    tensors = onnx.load(write(small, folder, "packed", bits)).graph.initializer
    weights = [tensor for tensor in tensors if tensor.name.endswith((".codes", ".weight"))]
    switchable = sum(not layer.pinned for layer in small.checkpoint.network.layers.values())
    named = [onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in weights]
    assert named.count(kind) >= switchable
    per_byte = {"UINT2": 4, "UINT4": 2, "INT8": 1}[kind]
    for tensor, name in zip(weights, named, strict=True):
        if name == kind:
            assert len(tensor.raw_data) == -(-int(np.prod(tensor.dims)) // per_byte)


def test_shared_planes_are_not_repeated(small: Deployed, folder: Path) -> None:
    """A file of the master form holds no weights, and reads no plane that it does not need."""
    path = write(small, folder, "master", 3)
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    external = {tensor.name for tensor in tensors if tensor.data_location == onnx.TensorProto.EXTERNAL}
    assert external == {
        *("plane0", "plane1", "plane2", "pinned"),
        *(f"{field}/3" for field in ("slope", "offset", "bits", "scale", "bias")),
    }
    assert sum(len(tensor.raw_data) for tensor in tensors) < 4000


def test_float_parameters_are_shared_too(tmp_path: Path) -> None:
    """A transformer's norms and positions are read from the ``.emq`` like everything else."""
    vit = deploy(NetworkSpec("vit-micro", 10, (1, 16, 16), 2.0, (2, 8)), (2, 3))
    save_checkpoint(tmp_path / "model.emq", vit.checkpoint)
    expected = OnnxRuntime(vit.checkpoint, bits=[3], threads=1)(vit.images)
    for storage in STORAGES:
        path = write(vit, tmp_path, storage, 3)
        session = create_session(path, session_options(1))
        np.testing.assert_array_equal(session.run(None, {"images": vit.images})[0], expected)
    tensors = onnx.load(tmp_path / "master-w3.onnx", load_external_data=False).graph.initializer
    held = {tensor.name for tensor in tensors if tensor.data_location == onnx.TensorProto.EXTERNAL}
    assert set(vit.checkpoint.network.floats) <= held


def test_sizes_that_fill_no_byte(tmp_path: Path) -> None:
    """Codes are packed over the whole network and over odd layers: no weight may shift into its neighbour."""
    spec = NetworkSpec("resnet8", 3, (3, 8, 8), 2.0, (2, 4), InsertionConfig(keep_8bit=()))
    odd = deploy(spec, (2, 3))
    save_checkpoint(tmp_path / "model.emq", odd.checkpoint)
    for bits in (2, 3):
        expected = OnnxRuntime(odd.checkpoint, bits=[bits], threads=1)(odd.images)
        for storage in STORAGES:
            session = create_session(write(odd, tmp_path, storage, bits), session_options(1))
            np.testing.assert_array_equal(session.run(None, {"images": odd.images})[0], expected)
