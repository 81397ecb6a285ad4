"""The .emq file: everything comes back, a narrow child reads little, and a broken file is one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors.numpy

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format import emq as module
from emqdeploy.format import tensor_file
from emqdeploy.format.card import Card, DataSource, Pixels
from emqdeploy.format.child import Child
from emqdeploy.format.emq import load_checkpoint, places_in, read_card, save_checkpoint
from emqdeploy.format.frozen import FrozenNetwork
from emqdeploy.format.grid import unpack_planes
from emqdeploy.format.tensor_file import ALIGNMENT, TensorFile, hash_tensor, hash_text, write_tensors

from ..conftest import Deployed
from ..mixing import MIXED, mixed_network

EMPTY = FrozenNetwork({}, {}, (Child.of(8),))
CARD = Card(model="none", classes=("a",), preprocessing=Pixels(1, 8, 8, (0.5,), (0.5,)), data=DataSource("digits"))


@pytest.fixture(scope="module")
def saved(small: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small network."""
    path = tmp_path_factory.mktemp("emq") / "model.emq"
    save_checkpoint(path, small.checkpoint)
    return path


def table(path: Path) -> tuple[int, dict[str, Any]]:
    """Where the tensors of a safetensors file start, and its table."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return 8 + length, json.loads(data[8 : 8 + length])


def assert_one_sentence(error: pytest.ExceptionInfo[EmqError], path: Path) -> None:
    """The message names the file and is one line."""
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_every_array_comes_back(small: Deployed, saved: Path) -> None:
    """What a device computes with is bit for bit what was trained, at every width."""
    loaded = load_checkpoint(saved)
    assert json.loads(msgspec.json.encode(loaded.card)) == json.loads(msgspec.json.encode(small.checkpoint.card))
    assert loaded.skeleton == small.checkpoint.skeleton
    assert loaded.trained == (Child.of(2), Child.of(4), Child.of(8))
    assert loaded.bytes_read == loaded.size_bytes == saved.stat().st_size
    assert_same(loaded.network, small.checkpoint.network)


def test_a_large_file_is_read_on_two_threads(
    small: Deployed, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same arrays and as many bytes as one after the other; what was altered is refused before it is used."""
    one = load_checkpoint(saved, 2)
    monkeypatch.setattr(tensor_file, "_WORTH_A_THREAD", 0)
    loaded = load_checkpoint(saved)
    assert loaded.bytes_read == loaded.size_bytes
    assert_same(loaded.network, small.checkpoint.network)
    two = load_checkpoint(saved, 2)
    assert two.bytes_read == one.bytes_read
    assert_same(two.network, one.network)
    start, entries = table(saved)
    damaged, path = bytearray(saved.read_bytes()), tmp_path / "altered.emq"
    damaged[start + entries["plane3"]["data_offsets"][0]] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(EmqError, match="was altered: tensor 'plane3' does not match its hash"):
        load_checkpoint(path)
    load_checkpoint(path, 2)  # reads no such plane


def assert_same(network: FrozenNetwork, expected: FrozenNetwork) -> None:
    """Every child, and every array of it, bit for bit."""
    assert network.children == expected.children
    for child in network.children:
        arrays, wanted = network.initializers(child), expected.initializers(child)
        assert list(arrays) == list(wanted)
        for name, array in arrays.items():
            assert array.dtype == wanted[name].dtype
            np.testing.assert_array_equal(array, wanted[name], err_msg=name)


def test_widths_per_layer_come_back(tmp_path: Path) -> None:
    """A child is what its maps say, next to plain ones; alone, it has every plane that one of its layers needs."""
    mixed = mixed_network().checkpoint
    path = tmp_path / "mixed.emq"
    save_checkpoint(path, mixed)
    assert_same(load_checkpoint(path).network, mixed.network)
    alone = load_checkpoint(path, "mixed").network
    assert alone.children == (MIXED,)
    save_checkpoint(tmp_path / "alone.emq", load_checkpoint(path, "mixed"))
    assert_same(load_checkpoint(tmp_path / "alone.emq").network, alone)


def test_kernels_find_the_numbers_where_they_lie(small: Deployed, saved: Path) -> None:
    """Every plane, and every layer inside it, begins at a multiple of 64 bytes of the file and is readable there."""
    places, data = places_in(saved), saved.read_bytes()
    network = small.checkpoint.network
    assert list(places.layer_bytes) == [name for name, layer in network.layers.items() if not layer.pinned]
    for name, start in places.layer_bytes.items():
        count = network.layers[name].codes.size
        begins = [places.offsets[f"plane{plane}"] + start for plane in range(8)]
        assert all(begin % ALIGNMENT == 0 for begin in begins)
        planes = [np.frombuffer(data, np.uint8, -(-count // 8), begin) for begin in begins]
        np.testing.assert_array_equal(unpack_planes(planes, count), network.layers[name].codes.reshape(-1))
    for name, offset in places.offsets.items():
        width = {"scale": 4, "bias": 4}.get(name.partition("/")[0], 1)
        assert offset % width == 0


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_narrow_child_reads_only_what_it_needs(small: Deployed, saved: Path, bits: int) -> None:
    """A b-bit load costs b/8 of the codes: header and needed tensors, never another plane or width."""
    loaded = load_checkpoint(saved, bits)
    start, entries = table(saved)
    needed = {f"plane{index}" for index in range(bits)} | {"pinned", "skeleton"}
    needed |= {f"{field}/{bits}" for field in ("scale", "bias", "sign", "slope", "offset", "bits")}
    sizes = [end - begin for begin, end in (entries[name]["data_offsets"] for name in needed)]
    assert loaded.bytes_read <= 1.05 * (start + sum(sizes))
    assert read_card(saved)[1][Child.of(bits)] == loaded.bytes_read
    assert_same(loaded.network, replace(small.checkpoint.network, children=(Child.of(bits),)))


def test_float_parameters_are_read_at_every_child(small: Deployed, tmp_path: Path) -> None:
    """What stays in float belongs to every child, and to what a graph is filled with."""
    path = tmp_path / "float.emq"
    gain = {"norm.weight": np.arange(3, dtype=np.float32)}
    save_checkpoint(path, replace(small.checkpoint, network=replace(small.checkpoint.network, floats=gain)))
    for bits in (None, 2):
        network = load_checkpoint(path, bits).network
        assert network.initializers(Child.of(2))["norm.weight"].tolist() == [0, 1, 2]


def test_damage_to_planes_that_are_not_read_does_not_matter(saved: Path, tmp_path: Path) -> None:
    """The proof that a narrow load never touches the other planes."""
    start, entries = table(saved)
    data = bytearray(saved.read_bytes())
    for index in range(2, 8):
        begin, end = entries[f"plane{index}"]["data_offsets"]
        data[start + begin : start + end] = bytes(end - begin)
    path = tmp_path / "a.emq"
    path.write_bytes(data)
    load_checkpoint(path, 2)
    with pytest.raises(EmqError, match="'plane2' does not match its hash"):
        load_checkpoint(path, 3)


def test_a_partly_loaded_network_can_be_saved(small: Deployed, saved: Path, tmp_path: Path) -> None:
    """A device may keep only the child it uses; the copy must not claim the others."""
    path = tmp_path / "two.emq"
    save_checkpoint(path, load_checkpoint(saved, 2))
    again = load_checkpoint(path)
    assert_same(again.network, replace(small.checkpoint.network, children=(Child.of(2),)))
    assert again.trained == (Child.of(2),)
    assert path.stat().st_size < saved.stat().st_size


def test_an_absent_child_lists_the_stored_ones(saved: Path, tmp_path: Path) -> None:
    """The user learns what to ask for instead."""
    path = tmp_path / "two.emq"
    save_checkpoint(path, load_checkpoint(saved, 2))
    with pytest.raises(UsageError, match="no child '5' here; available: 2; name one of these"):
        load_checkpoint(path, 5)


def test_truncation_anywhere_is_one_sentence(saved: Path, tmp_path: Path) -> None:
    """An interrupted copy fails in the same way wherever it stopped."""
    data = saved.read_bytes()
    start, _ = table(saved)
    path = tmp_path / "cut.emq"
    offsets = [
        0,
        1,
        7,
        8,
        9,
        100,
        start - 1,
        start,
        start + 1,
        *range(0, len(data) - 1, len(data) // 60),
        len(data) - 1,
    ]
    for length in offsets:
        path.write_bytes(data[:length])
        with pytest.raises(EmqError) as error:
            load_checkpoint(path)
        assert_one_sentence(error, path)


def test_any_changed_byte_is_noticed(saved: Path, tmp_path: Path) -> None:
    """A flipped bit never reaches a prediction; only the blanks that pad the header carry nothing."""
    data = bytearray(saved.read_bytes())
    start, _ = table(saved)
    random = np.random.default_rng(0)
    in_header = random.choice(start, 900, replace=False)
    positions = [*range(8), *in_header.tolist(), *random.integers(start, len(data), 150).tolist()]
    path = tmp_path / "flipped.emq"
    for position in positions:
        before = data[position]
        data[position] ^= 1 << int(random.integers(8))
        path.write_bytes(data)
        if before != ord(" "):
            with pytest.raises(EmqError) as error:
                load_checkpoint(path)
            assert_one_sentence(error, path)
        data[position] = before


@pytest.mark.parametrize("field", ["dtype", "shape"])
def test_type_and_shape_are_protected(saved: Path, tmp_path: Path, field: str) -> None:
    """The same bytes read as another type would be other numbers; safetensors itself does not notice."""
    start, entries = table(saved)
    entries["scale/4"] |= {"dtype": "I32"} if field == "dtype" else {"shape": [1, *entries["scale/4"]["shape"]]}
    text = json.dumps(entries).encode()
    path = tmp_path / "a.emq"
    path.write_bytes(len(text).to_bytes(8, "little") + text + saved.read_bytes()[start:])
    with pytest.raises(EmqError, match="is damaged: tensor 'scale/4' has type"):
        load_checkpoint(path)


def foreign(path: Path, kind: str) -> None:
    """Writes what is no .emq file."""
    tensors = {"a": np.zeros(3, np.float32)}
    contents: dict[str, bytes] = {
        "empty": b"",
        "text": b"hello, this is not a network at all\n" * 20,
        "safetensors": safetensors.numpy.save(tensors),
        "other metadata": safetensors.numpy.save(tensors, {"format": "pt"}),
        "no digest": safetensors.numpy.save(tensors, {"emqdeploy": "{}"}),
        "no fields": safetensors.numpy.save(tensors, {"emqdeploy": "{}", "digest": hash_text("{}")}),
        "numbers": safetensors.numpy.save(tensors, {"emqdeploy": "[3]", "digest": hash_text("[3]")}),
        "a list": (2).to_bytes(8, "little") + b"[]",
        "deep": (200_000).to_bytes(8, "little") + b"[" * 200_000,
        "huge header": (1 << 62).to_bytes(8, "little") + b"{}",
    }
    if kind == "directory":
        path.mkdir()
    else:
        path.write_bytes(contents[kind])


@pytest.mark.parametrize(
    "kind",
    [
        *("empty", "text", "safetensors", "other metadata", "no digest"),
        *("no fields", "numbers", "a list", "deep", "huge header", "directory"),
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, kind: str) -> None:
    """Whatever is handed in, the answer is one sentence with the file's name."""
    path = tmp_path / "model.emq"
    foreign(path, kind)
    with pytest.raises(EmqError, match=r"\.emq") as error:
        load_checkpoint(path)
    assert_one_sentence(error, path)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    """A wrong path is the most frequent mistake."""
    with pytest.raises(EmqError, match="No such file or directory; name an existing"):
        load_checkpoint(tmp_path / "no.emq")


def with_version(path: Path, version: int) -> None:
    """Writes a file of another format: whatever it holds, its header says which it is."""
    write_tensors(path, {"scales": np.zeros(3, np.float32)}, json.dumps({"format_version": version, "widths": [2, 4]}))


def test_other_formats_are_refused_in_one_sentence(tmp_path: Path) -> None:
    """An old device says that it is old, an old file how to make it anew, not that it is broken."""
    path = tmp_path / "other.emq"
    with_version(path, 99)
    with pytest.raises(EmqError, match="has format 99, this emqdeploy reads 3 and 4; update emqdeploy"):
        load_checkpoint(path)
    for version in (1, 2):
        with_version(path, version)
        with pytest.raises(
            EmqError, match=f"has format {version}, .* reads 3 and 4; train or quantize the network again"
        ):
            load_checkpoint(path)


def changed_tables(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> Path:
    """The kept file of format 4 with another header or tensors, its hashes made to fit."""
    with TensorFile(Path(__file__).parent.parent / "data" / "format4.emq", "") as file:
        header = json.loads(file.header)
        file.hashes = header["hashes"]
        tensors = {name: file.tensor(name).copy() for name in file.hashes}
    change(header, tensors)
    header["hashes"] = {name: hash_tensor(array) for name, array in tensors.items()}
    write_tensors(path, tensors, json.dumps(header))
    return path


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda header, _: header.update(format_version=3), "it has tables, which came with format 4"),
        (lambda header, _: header["children"][1].update(weights=2), "'6' has tables of other than one width up to 4"),
        (lambda _, tensors: tensors["table/2"].__setitem__(1, -128), "does not ascend from -127 at least"),
        (lambda _, tensors: tensors["table/3"].__setitem__(slice(-2, None), (9, 8)), "does not ascend from -127"),
        (lambda _, tensors: tensors.pop("table/2"), "table/2"),
    ],
)
def test_tables_that_no_kernel_could_take_are_refused(change: Any, sentence: str, tmp_path: Path) -> None:
    """Also in a file that says it is older than tables."""
    with pytest.raises(EmqError, match=sentence):
        load_checkpoint(changed_tables(tmp_path / "other.emq", change))


def test_a_damaged_file_of_an_old_format_is_one_sentence(tmp_path: Path) -> None:
    """Truncated and altered anywhere."""
    path = tmp_path / "old.emq"
    with_version(path, 2)
    data = path.read_bytes()
    for position in range(len(data)):
        for spoilt in (data[:position], data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]):
            path.write_bytes(spoilt)
            with pytest.raises(EmqError) as error:
                load_checkpoint(path)
            assert_one_sentence(error, path)


Change = Callable[[dict[str, Any]], object]


def _first(values: dict[str, Any], kind: str) -> dict[str, Any]:
    entry: dict[str, Any] = values[kind][0]
    return entry


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda header: header.update(note=1), "unknown field"),
        (lambda header: header.update(children=[]), "length >= 1"),
        (lambda header: header["children"][0].update(weights=9), "weight width 9; allowed: 1..8"),
        (lambda header: header["children"][0].update(activations=1), "activation width 1; allowed: 2..8"),
        (lambda header: header["children"].append(header["children"][0]), "names child '1' twice"),
        (lambda header: header["children"][0].update(name="a b"), "cannot name a child"),
        (lambda header: header["children"][0].update(name="float", weights=32, activations=32), "in float"),
        (lambda header: header["children"][0].update(name="x", weights={"*": 1, "conv9": 2}), "layer 'conv9'"),
        (lambda header: header["children"][0].update(name="x", weights={"*": 1, "conv1": 2}), "stays at 8 bits"),
        (lambda header: header["children"].pop(0), "needs bits and a scale for each child"),
        (lambda header: header["card"].update(accuracy={"9": 50.0}), "accuracy names child '9'"),
        (lambda header: header["card"].update(trained=["9"]), "trained names child '9'"),
        (lambda header: header["card"].update(accuracy={"4": 101.0}), "<= 100"),
        (lambda header: header["card"].update(model="a\nb"), "matching regex"),
        (lambda header: header["card"].update(model="a\n"), "matching regex"),
        (lambda header: header["card"]["classes"].append("a\n"), "matching regex"),
        (lambda header: header["card"].update(classes=[]), "length >= 1"),
        (lambda header: header["card"]["preprocessing"].update(std=[0.5, 0.5]), "one mean and one std per channel"),
        (lambda header: header["card"]["preprocessing"].update(std=[0.0]), "> 0"),
        (lambda header: header["card"]["preprocessing"].update(height=1 << 20), "<= 65536"),
        (lambda header: _first(header, "layers").update(site="nowhere"), "reads site 'nowhere'"),
        (lambda header: _first(header, "layers").update(kind="float"), "Invalid enum value"),
        (lambda header: _first(header, "layers").update(shape=[1 << 40, 1]), "<= 65536"),
        (lambda header: _first(header, "layers").update(shape=[8, 1, 3, 4]), "'pinned' has type"),
        (lambda header: header["layers"][1].update(kind="int8"), "tensor"),
        (lambda header: header["layers"].append(header["layers"][0]), "a layer is there twice"),
        (lambda header: _first(header, "sites").update(scales=[0.0] * 8), "> 0"),
        (lambda header: _first(header, "sites").update(scales=[1e40] * 8), "<= 1e"),
        (lambda header: _first(header, "sites").update(bits=[9] * 8), "<= 8"),
        (lambda header: header["hashes"].update(plane0="x"), "matching regex"),
        (lambda header: header["hashes"].update(plane0="0" * 64 + "\n"), "matching regex"),
        (lambda header: header["hashes"].update({"float/new": "0" * 32}), "tensor 'float/new' is missing"),
    ],
)
def test_a_header_that_lies_is_one_sentence(saved: Path, tmp_path: Path, change: Change, sentence: str) -> None:
    """Even one whose own hash was made to fit: nothing of it is believed beyond its bounds."""
    data = saved.read_bytes()
    start, entries = table(saved)
    header = json.loads(entries["__metadata__"]["emqdeploy"])
    change(header)
    text = json.dumps(header)
    entries["__metadata__"] = {"emqdeploy": text, "digest": hash_text(text)}
    top = json.dumps(entries).encode()
    path = tmp_path / "lies.emq"
    path.write_bytes(len(top).to_bytes(8, "little") + top + data[start:])
    with pytest.raises(EmqError, match=sentence) as error:
        load_checkpoint(path)
    assert_one_sentence(error, path)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("scale/4", np.float32("inf"), "no number for a kernel"),
        ("scale/4", np.float32(-1), "no number for a kernel"),
        ("bias/4", np.float32("nan"), "no number for a kernel"),
        ("sign/4", np.int8(0), "neither 1 nor -1"),
        ("bits/4", np.int8(5), "uses .* to 5"),
        ("skeleton", np.uint8(0), "cannot be unpacked"),
    ],
)
def test_numbers_that_no_kernel_takes_are_refused(
    saved: Path, tmp_path: Path, name: str, value: Any, sentence: str
) -> None:
    """Whatever their hash says."""
    with TensorFile(saved, "") as file:
        header = json.loads(file.header)
        file.hashes = header["hashes"]
        tensors = {one: file.tensor(one).copy() for one in file.hashes}
    tensors[name][0] = value
    header["hashes"][name] = hash_tensor(tensors[name])
    path = tmp_path / "spoilt.emq"
    write_tensors(path, tensors, json.dumps(header))
    with pytest.raises(EmqError, match=sentence) as error:
        load_checkpoint(path)
    assert_one_sentence(error, path)


def test_a_graph_that_swells_is_refused(small: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes may unpack to gigabytes; a graph without weights has a limit."""
    path = tmp_path / "bomb.emq"
    save_checkpoint(path, small.checkpoint)
    load_checkpoint(path)
    monkeypatch.setattr(module, "LARGEST_SKELETON", 1 << 10)
    with pytest.raises(EmqError, match="its graph is cut off, or larger than"):
        load_checkpoint(path)


def test_a_failed_write_leaves_the_old_file(small: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash while saving must not cost the last good checkpoint."""
    path = tmp_path / "a.emq"
    path.write_bytes(b"old")

    def fail(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(EmqError, match="disk is full"):
        save_checkpoint(path, small.checkpoint)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_device_without_torch_classifies(small: Deployed, saved: Path, tmp_path: Path) -> None:
    """Loading and running a checkpoint needs neither torch nor the onnx package."""
    np.save(tmp_path / "images.npy", small.images)
    code = """
import sys
sys.modules["torch"] = sys.modules["onnx"] = sys.modules["onnx_ir"] = None
import numpy as np
from emqdeploy.format.emq import load_checkpoint
from emqdeploy.runtimes.base import open_runtime
runtime = open_runtime(load_checkpoint(sys.argv[1], 4), "onnxruntime", threads=1)
np.save(sys.argv[3], runtime(np.load(sys.argv[2])))
"""
    arguments = [str(saved), str(tmp_path / "images.npy"), str(tmp_path / "logits.npy")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=120)
    logits = np.load(tmp_path / "logits.npy")
    assert logits.shape == (16, 10)
    from emqdeploy.runtimes.base import open_runtime

    np.testing.assert_array_equal(logits, open_runtime(small.checkpoint, children=[4], threads=1)(small.images))
