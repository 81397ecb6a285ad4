"""The library opens files by itself, in C: same answers as Python, and whatever Python refuses it refuses as well."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.native_file import Opened, Pixels, opened
from emqdeploy.data import Preprocessing
from emqdeploy.errors import EmqError
from emqdeploy.format.emq import Checkpoint, load_checkpoint, save_checkpoint
from emqdeploy.format.tasks import CLASSIFICATION
from emqdeploy.format.tensor_file import TensorFile, hash_tensor, write_tensors
from emqdeploy.graph.reference import IntegerReference
from emqdeploy.runtimes.native_library import library_path

from ..conftest import Deployed

pytestmark = pytest.mark.skipif(library_path() is None, reason="emqdeploy-native is not installed")

ROOT = Path(__file__).parent.parent.parent
DATA = ROOT / "tests" / "data"
KEPT = DATA / "format3.emq"
IN_USE = -1


def pixels_for(checkpoint: Checkpoint, count: int = 4) -> np.ndarray:
    """Random pixels ``(N, H, W, C)``."""
    channels, height, width = checkpoint.card.input_shape
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), np.uint8)


def normalised(checkpoint: Checkpoint, pixels: np.ndarray) -> np.ndarray:
    """The inputs ``(N, C, H, W)`` that Python makes of pixels."""
    return Preprocessing.of(checkpoint.card.preprocessing).normalize(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def assert_as_python(path: Path, checkpoint: Checkpoint) -> None:
    """Every logit of every child, from pixels and from normalised images, is the reference's."""
    pixels = pixels_for(checkpoint)
    images = normalised(checkpoint, pixels)
    with opened(path) as network:
        for child in checkpoint.network.children:
            expected, _ = IntegerReference(checkpoint.skeleton, checkpoint.network.initializers(child)).run(images)
            index = network.child(child.name)
            np.testing.assert_array_equal(network.run(index, images), expected, str(child))
            np.testing.assert_array_equal(network.run(index, pixels), expected, str(child))


@pytest.mark.parametrize(
    "path", [KEPT, DATA / "schema2", DATA / "schema2" / "manifest.json"], ids=lambda path: path.name
)
def test_files_and_bundles_answer_as_in_python(path: Path) -> None:
    """A kept file with children of one width and of many, by itself and in its bundle."""
    assert_as_python(path, load_checkpoint(KEPT))


def test_tables_answer_as_in_python() -> None:
    """A kept file whose codes stand for numbers of tables, two widths of weights among its layers."""
    assert_as_python(DATA / "format4.emq", load_checkpoint(DATA / "format4.emq"))


def test_a_residual_network_answers_as_in_python(small: Deployed, tmp_path: Path) -> None:
    """Eight widths, norms with negative gains among them, sums, and a first and last layer that stay at 8 bits."""
    save_checkpoint(tmp_path / "small.emq", small.checkpoint)
    assert_as_python(tmp_path / "small.emq", small.checkpoint)


def test_a_file_says_what_its_user_needs() -> None:
    """Size, mean and deviation of what goes in, the names of what comes out, and the child in use."""
    card = load_checkpoint(KEPT).card
    with opened(KEPT) as network:
        pixels = Pixels()
        network.check(network.library.emq_input(network.handle, ctypes.byref(pixels)))
        assert (pixels.channels, pixels.height, pixels.width) == card.input_shape
        assert pixels.mean[0] == card.preprocessing.mean[0]
        assert pixels.std[0] == card.preprocessing.std[0]
        assert [network.name("class", index) for index in range(4)] == [*card.classes, None]
        assert [network.name("child", index) for index in (-1, 0, 1, 2, 3)] == [None, "2", "mixed", "8", None]
        image = normalised(load_checkpoint(KEPT), pixels_for(load_checkpoint(KEPT), 1))
        np.testing.assert_array_equal(network.run(IN_USE, image), network.run(2, image))
        network.use(0)
        np.testing.assert_array_equal(network.run(IN_USE, image), network.run(0, image))
        assert network.library.emq_used(network.handle) == 0


def classified(checkpoint: Checkpoint, pixels: np.ndarray) -> list[str]:
    """The lines of the example, one a child, as Python computes them for one image."""
    lines = []
    for child in checkpoint.network.children:
        arrays = checkpoint.network.initializers(child)
        logits, _ = IntegerReference(checkpoint.skeleton, arrays).run(normalised(checkpoint, pixels))
        best = CLASSIFICATION.ranking(logits[0], checkpoint.card.classes, 1)[0]
        lines.append(f"{child.name:<8} {best['class']} {100 * best['probability']:.1f} %")
    return lines


@pytest.mark.skipif(shutil.which("cc") is None or shutil.which("make") is None, reason="needs cc and make")
def test_the_example_classifies_as_python(tmp_path: Path) -> None:
    """It is C99 without a warning, and prints the class and probability of every child."""
    checkpoint, place = load_checkpoint(KEPT), library_path()
    assert place is not None
    example = Path(shutil.copytree(ROOT / "examples" / "c", tmp_path / "example"))
    flags = "CFLAGS=-fsanitize=address,undefined" if os.environ.get("LD_PRELOAD") else "CFLAGS=-O0"
    subprocess.run(["make", "-s", "-C", example, f"NATIVE={place.parent}", flags], check=True)
    pixels = pixels_for(checkpoint, 1)
    (tmp_path / "image.raw").write_bytes(pixels.tobytes())
    done = subprocess.run(
        [example / "classify", KEPT, tmp_path / "image.raw"], check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == classified(checkpoint, pixels)
    for arguments, sentence in ((["nowhere", "x"], "cannot read nowhere"), ([KEPT, KEPT], "8x8 pixels of 1 bytes")):
        refused = subprocess.run([example / "classify", *arguments], check=False, capture_output=True, text=True)
        assert refused.returncode == 1
        assert sentence in refused.stderr


# --- bad input ---------------------------------------------------------------------------------------------------


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> Path:
    """The kept file with other tensors and another header, its hashes made to fit."""
    with TensorFile(KEPT, "") as file:
        header = json.loads(file.header)
        file.hashes = header["hashes"]
        tensors = {name: file.tensor(name).copy() for name in file.hashes}
    change(header, tensors)
    header["hashes"] = {name: hash_tensor(array) for name, array in tensors.items()}
    write_tensors(path, tensors, json.dumps(header))
    return path


def _refusal(read: Callable[[], object]) -> str | None:
    try:
        read()
    except EmqError as error:
        return str(error)
    return None


def _put(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(header: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors[name][0] = value

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda header, _: header.update(format_version=5),
            r"has format 5, this library reads 3 and 4; update emqdeploy",
        ),
        (lambda header, _: header.update(format_version=2), "train or quantize the network again"),
        (lambda header, _: header.update(note=1), "an unknown field note"),
        (lambda header, _: header["card"].pop("classes"), "no classes"),
        (lambda header, _: header["card"].update(levels="some"), "none of: half, full"),
        (lambda header, _: header["card"]["preprocessing"].update(std=[0]), "a number out of bounds"),
        (lambda header, _: header["children"][0].update(weights=9), "a number out of bounds"),
        (lambda header, _: header["children"][0].update(name="MIXED"), "child 'mixed' is there twice"),
        (lambda header, _: header["children"][0].update(name="a\u0000"), "cannot be printed"),
        (lambda header, _: header["children"][0].update(name="4"), "'4' reads as other widths"),
        (lambda header, _: header["children"][1].update(name="w8A8"), "'w8A8' reads as other widths"),
        (lambda header, _: header["children"][1].update(name="2-8"), "'2-8' reads as other widths"),
        (lambda header, _: header["children"][0].update(name="all"), "'all' cannot name a child"),
        (lambda header, _: header["card"].update(trained=["2", "4"]), "judges child '4'"),
        (lambda header, _: header["card"].update(accuracy={"2": 101}), "a number out of bounds"),
        (lambda header, _: header["card"].update(fidelity={"2": {"against": "x"}}), "no snr_db"),
        (lambda header, _: header["card"].update(recipe=3), "another type or mark"),
        (lambda header, _: header["card"]["data"].update(name=None), "another type or mark"),
        (
            lambda header, _: header["card"]["preprocessing"].update(resize="cover", resized=[4, 4]),
            "is none that there is",
        ),
        (lambda header, _: header["card"]["preprocessing"].update(antialias=False), "is none that there is"),
        (lambda header, _: header["card"]["preprocessing"].update(value_range=[0, 255]), "a number out of bounds"),
        (lambda header, _: header["layers"][0].update(site="now\u00fchere"), "reads site 'now\u00fchere'"),
        (lambda header, _: header["layers"][0].update(shape=[8, 1, 3, 4]), "'pinned' has type I8 and shape"),
        (lambda header, _: header["layers"][1].update(shape=[6, 16, 3, 3]), "'slope/2' has type I8 and shape"),
        (lambda header, _: header["layers"][2].update(shape=[12, 10, 3, 3]), "leaves 6.weight open in a type or shape"),
        (lambda header, _: header["sites"][1]["scales"].pop(), "needs bits and a scale for each child"),
        (lambda header, _: header["sites"][1].update(zero_point=40), "only signed ones at full levels have"),
        (lambda header, _: header["sites"][0].update(zero_point=193), "a number out of bounds"),
        (lambda _, tensors: tensors.pop("bits/8"), "tensor 'bits/8' is missing"),
        (_put("scale/8", np.float32("nan")), "no number for a kernel"),
        (_put("bias/8", np.float32(1e30)), "is no int32"),
        (_put("sign/8", 0), "neither 1 nor -1"),
        (_put("bits/8", 9), "the grid of 8 bits uses other ones"),
        (_put("slope/8", 127), "weights beyond int8"),
        (_put("skeleton", 0), "the packed graph has no head"),
    ],
)
def test_a_file_that_lies_is_refused_in_one_sentence(
    change: Callable[[dict[str, Any], dict[str, Any]], object], sentence: str, tmp_path: Path
) -> None:
    """Whatever its hashes say."""
    path = rewritten(tmp_path / "lies.emq", change)
    with pytest.raises(EmqError, match=sentence) as error:
        Opened(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def _constant(name: str, **changed: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        constant = next(one for one in model.graph.initializer if one.name == name)
        for field, value in changed.items():
            setattr(constant, field, value)

    return change


def _without_pads(model: Any) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    del next(one for one in node.attribute if one.name == "pads").ints[:]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_constant("6.weight_zero_point", raw_data=bytes(3)), "does not hold what its shape says"),
        (_constant("6.weight_zero_point", data_type=99), "a type that no graph of ours has"),
        (_constant("6.weight", data_type=2), "leaves 6.weight open in a type or shape"),
        (lambda model: model.graph.initializer[0].dims.append(-1), "a side below zero"),
        (lambda model: model.graph.initializer[0].dims.extend([1 << 20, 1 << 20]), "too large"),
        (lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", 6), "as other than floats"),
        (_without_pads, "has no integer kernel"),
    ],
)
def test_a_graph_that_python_refuses_is_refused(change: Callable[[Any], object], sentence: str, tmp_path: Path) -> None:
    """Constants that are not what they say, types that nothing has, numbers where lists belong."""
    onnx = pytest.importorskip("onnx")
    model = onnx.ModelProto.FromString(load_checkpoint(KEPT).skeleton)
    change(model)

    def pack(header: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors["skeleton"] = np.frombuffer(zlib.compress(model.SerializeToString()), np.uint8)

    path = rewritten(tmp_path / "lies.emq", pack)
    for read in (load_checkpoint, Opened):
        with pytest.raises(EmqError, match=sentence if read is Opened else "graph that emqdeploy did not write"):
            read(path)


def test_a_bundle_is_held_to_its_manifest(tmp_path: Path) -> None:
    """An altered checkpoint, one that lies elsewhere, and a manifest of another version."""
    bundle = Path(shutil.copytree(DATA / "schema2", tmp_path / "bundle"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    rewritten(bundle / "format3.emq", lambda header, _: header["card"].update(model="other"))
    for change, sentence in (
        ({}, "does not match its hash in the bundle's manifest"),
        ({"schema": 3}, "has schema 3, this library reads 2"),
        (
            {"checkpoint": "../elsewhere.emq", "files": {"../elsewhere.emq": manifest["files"]["format3.emq"]}},
            "outside",
        ),
        ({"checkpoint": None}, "holds no checkpoint"),
    ):
        shutil.copy(KEPT, tmp_path / "elsewhere.emq")
        (bundle / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises(EmqError, match=sentence):
            Opened(bundle)


def test_a_child_that_there_is_not_is_an_error() -> None:
    """No index and no name reaches memory that is not the network's; those that there are get named."""
    image = np.ones((1, 1, 8, 8), np.float32)
    with opened(KEPT) as network:
        for index in (3, -2, 1 << 30):
            with pytest.raises(EmqError, match=r"is none of 0\.\.2"):
                network.run(index, image)
            with pytest.raises(EmqError, match=r"is none of 0\.\.2"):
                network.use(index)
        assert network.child("4") == -1
        assert network.library.emq_error().decode() == "there is no child '4'; name one of: 2, mixed, 8"


def _ask(network: Opened, image: np.ndarray, begun: threading.Barrier, told: list[str]) -> None:
    expected = network.run(0, image)
    begun.wait()
    said = None
    while said is None:
        said = _refusal(lambda: np.testing.assert_array_equal(network.run(0, image), expected))
    told.append(said)


def test_closing_ends_no_request() -> None:
    """Requests that run meanwhile answer as ever; those that come later, and a second close, are told."""
    image = np.ones((8, 1, 8, 8), np.float32)
    for _ in range(20):
        network, begun, told = Opened(KEPT, threads=2), threading.Barrier(4), list[str]()
        threads = [threading.Thread(target=_ask, args=(network, image, begun, told)) for _ in range(3)]
        for thread in threads:
            thread.start()
        begun.wait()
        network.close()
        for thread in threads:
            thread.join()
        assert told == ["this network is not open, or was closed; open it again"] * 3
        network.close()
        assert network.library.emq_child_count(network.handle) == 0


def _opened_in_little_memory(large: Path, said: Any) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), used + (64 << 20)))
    with opened(KEPT, threads=64) as network:
        network.run(0, np.ones((1, 1, 8, 8), np.float32))
    try:
        Opened(large)
    except EmqError as error:
        said.send(str(error))


def test_little_memory_is_an_error_and_few_threads_are_none(tmp_path: Path) -> None:
    """Sixty-four threads want half a gigabyte of stacks: those that can be had compute. A large file is refused."""
    large = tmp_path / "large.emq"
    with large.open("wb") as file:
        file.truncate(512 << 20)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_opened_in_little_memory, args=(large, sender))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert receiver.recv().startswith("there is not enough memory")
