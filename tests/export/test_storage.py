"""Every way to store a child gives onnxruntime the same int8 weights, so the same answers in the same kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from emqdeploy.exporters.storage import STORAGES
from emqdeploy.format.child import Child
from emqdeploy.format.emq import save_checkpoint
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.families.lsq import LsqOptions
from emqdeploy.quant.insertion import InsertionConfig
from emqdeploy.runtimes.adapters.onnx_runtime import OnnxRuntime
from emqdeploy.runtimes.onnx_kernels import profile_kernels
from emqdeploy.runtimes.onnx_session import create_session, session_options

from ..conftest import ALL_BITS, Deployed, deploy
from ..mixing import MIXED, NARROW, WIDE, mixed_network


@pytest.fixture(scope="module")
def folder(small: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the checkpoint."""
    folder = tmp_path_factory.mktemp("storage")
    save_checkpoint(folder / "model.emq", small.checkpoint)
    return folder


def write(deployed: Deployed, folder: Path, storage: str, child: int | Child) -> Path:
    """Writes one file beside the checkpoint."""
    found = deployed.checkpoint.network.find(child)
    path = folder / f"{storage}-{found.name}.onnx"
    path.write_bytes(STORAGES[storage](deployed.checkpoint, folder / "model.emq", found).data)
    return path


@pytest.mark.parametrize("storage", ["packed", "master"])
@pytest.mark.parametrize("bits", ALL_BITS)
def test_stored_differently_the_network_is_the_same(small: Deployed, folder: Path, storage: str, bits: int) -> None:
    """Logits equal to the last bit, and every layer still an integer kernel."""
    expected = OnnxRuntime(small.checkpoint, [bits], threads=1)(small.images)
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
        *(f"{field}/3" for field in ("scale", "bias")),
    }
    assert sum(len(tensor.raw_data) for tensor in tensors) < 4000


def test_float_parameters_are_shared_too(tmp_path: Path) -> None:
    """A transformer's norms and positions are read from the ``.emq`` like everything else."""
    vit = deploy(NetworkSpec("vit-micro", 10, (1, 16, 16), 2.0, (Child.of(2), Child.of(3))))
    save_checkpoint(tmp_path / "model.emq", vit.checkpoint)
    expected = OnnxRuntime(vit.checkpoint, [3], threads=1)(vit.images)
    for storage in STORAGES:
        path = write(vit, tmp_path, storage, 3)
        session = create_session(path, session_options(1))
        np.testing.assert_array_equal(session.run(None, {"images": vit.images})[0], expected)
    tensors = onnx.load(tmp_path / "master-3.onnx", load_external_data=False).graph.initializer
    held = {tensor.name for tensor in tensors if tensor.data_location == onnx.TensorProto.EXTERNAL}
    assert set(vit.checkpoint.network.floats) <= held


def test_sizes_that_fill_no_byte(tmp_path: Path) -> None:
    """Codes are packed over the whole network and over odd layers: no weight may shift into its neighbour."""
    children = (Child.of(2), Child.of(3))
    odd = deploy(NetworkSpec("resnet8", 3, (3, 8, 8), 2.0, children, insertion=InsertionConfig(keep_8bit=())))
    save_checkpoint(tmp_path / "model.emq", odd.checkpoint)
    for bits in (2, 3):
        expected = OnnxRuntime(odd.checkpoint, [bits], threads=1)(odd.images)
        for storage in STORAGES:
            session = create_session(write(odd, tmp_path, storage, bits), session_options(1))
            np.testing.assert_array_equal(session.run(None, {"images": odd.images})[0], expected)


def test_layers_are_stored_at_their_own_widths(tmp_path: Path) -> None:
    """Of a child with widths per layer each is packed as far as it goes, and read from as many planes as it has."""
    mixed = mixed_network()
    save_checkpoint(tmp_path / "model.emq", mixed.checkpoint)
    expected = OnnxRuntime(mixed.checkpoint, [MIXED], threads=1)(mixed.images)
    for storage in STORAGES:
        session = create_session(write(mixed, tmp_path, storage, MIXED), session_options(1))
        np.testing.assert_array_equal(session.run(None, {"images": mixed.images})[0], expected)
    packed = STORAGES["packed"](mixed.checkpoint, tmp_path, MIXED).stored_as
    assert (packed[NARROW], packed[WIDE], packed["stage1.0.conv1"]) == ("uint2", "int8", "uint4")
    master = STORAGES["master"](mixed.checkpoint, tmp_path / "model.emq", MIXED).stored_as
    assert (master[NARROW], master[WIDE]) == ("2 bit-planes of the .emq", "8 bit-planes of the .emq")


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_grids_with_a_zero_are_stored_alike(bits: int, tmp_path: Path) -> None:
    """Another family of quantizers: the grid alone knows what its codes stand for."""
    insertion = InsertionConfig(quantizer=LsqOptions(step="channel"))
    learned = deploy(NetworkSpec("resnet8", 10, (1, 8, 8), 2.0, (Child.of(bits),), insertion=insertion))
    save_checkpoint(tmp_path / "model.emq", learned.checkpoint)
    expected = OnnxRuntime(learned.checkpoint, threads=1)(learned.images)
    for storage in STORAGES:
        session = create_session(write(learned, tmp_path, storage, bits), session_options(1))
        np.testing.assert_array_equal(session.run(None, {"images": learned.images})[0], expected)
