"""The .emq file: everything comes back, a narrow width reads little, and a broken file is one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from emqdeploy import checkpoint as module
from emqdeploy.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.frozen import FrozenNetwork

from .conftest import Deployed

EMPTY = FrozenNetwork({}, {}, (8,))


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
    assert loaded.metadata == json.loads(json.dumps(small.checkpoint.metadata))
    assert loaded.skeleton == small.checkpoint.skeleton
    assert loaded.network.widths == small.checkpoint.network.widths
    assert loaded.classes == small.checkpoint.classes
    assert loaded.trained_bits == (2, 4, 8)
    assert loaded.bytes_read == loaded.size_bytes == saved.stat().st_size
    for bits in loaded.network.widths:
        expected = small.checkpoint.network.initializers(bits)
        arrays = loaded.network.initializers(bits)
        assert list(arrays) == list(expected)
        for name, array in arrays.items():
            assert array.dtype == expected[name].dtype
            np.testing.assert_array_equal(array, expected[name], err_msg=name)


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_narrow_width_reads_only_what_it_needs(small: Deployed, saved: Path, bits: int) -> None:
    """A b-bit load costs b/8 of the codes: header and needed tensors, never another plane or width."""
    loaded = load_checkpoint(saved, bits)
    start, entries = table(saved)
    needed = {f"plane{index}" for index in range(bits)} | {"pinned", "skeleton"}
    needed |= {f"{field}/{bits}" for field in ("scale", "bias", "slope", "offset", "bits")}
    sizes = [end - begin for begin, end in (entries[name]["data_offsets"] for name in needed)]
    assert loaded.bytes_read <= 1.05 * (start + sum(sizes))
    assert loaded.network.widths == (bits,)
    expected = small.checkpoint.network.initializers(bits)
    for name, array in loaded.network.initializers(bits).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_float_parameters_are_read_at_every_width(small: Deployed, tmp_path: Path) -> None:
    """What stays in float belongs to every bit-width, and to what a graph is filled with."""
    path = tmp_path / "float.emq"
    gain = {"norm.weight": np.arange(3, dtype=np.float32)}
    save_checkpoint(path, replace(small.checkpoint, network=replace(small.checkpoint.network, floats=gain)))
    for bits in (None, 2):
        network = load_checkpoint(path, bits).network
        assert network.initializers(2)["norm.weight"].tolist() == [0, 1, 2]


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
    """A device may keep only the width it uses; the copy must not claim the others."""
    path = tmp_path / "two.emq"
    save_checkpoint(path, load_checkpoint(saved, 2))
    again = load_checkpoint(path)
    assert again.network.widths == (2,)
    expected = small.checkpoint.network.initializers(2)
    for name, array in again.network.initializers(2).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    assert path.stat().st_size < saved.stat().st_size


def test_an_absent_width_lists_the_stored_ones(saved: Path, tmp_path: Path) -> None:
    """The user learns what to ask for instead."""
    path = tmp_path / "two.emq"
    save_checkpoint(path, load_checkpoint(saved, 2))
    with pytest.raises(UsageError, match="no 5-bit network; it holds 2; choose"):
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
    with pytest.raises(EmqError, match="'scale/4' does not match its hash"):
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
        "no fields": safetensors.numpy.save(tensors, {"emqdeploy": "{}", "digest": module._hash(b"{}")}),
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
        *("no fields", "a list", "deep", "huge header", "directory"),
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


def test_a_newer_format_asks_for_an_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old device says that it is old, not that the file is broken."""
    path = tmp_path / "new.emq"
    monkeypatch.setattr(module, "FORMAT_VERSION", 99)
    save_checkpoint(path, Checkpoint(EMPTY, b"", {}, {}))
    monkeypatch.undo()
    with pytest.raises(EmqError, match="format 99, this emqdeploy reads 2; update"):
        load_checkpoint(path)
    monkeypatch.setattr(module, "FORMAT_VERSION", 1)
    save_checkpoint(path, Checkpoint(EMPTY, b"", {}))
    monkeypatch.undo()
    with pytest.raises(EmqError, match="format 1, this emqdeploy reads 2; make the checkpoint again"):
        load_checkpoint(path)


def test_metadata_cannot_replace_the_format(tmp_path: Path) -> None:
    """Fields of ours win over metadata of the same name."""
    path = tmp_path / "a.emq"
    save_checkpoint(path, Checkpoint(EMPTY, b"x", {"widths": [1], "format_version": 7, "note": "n"}, {}))
    assert load_checkpoint(path).metadata == {"note": "n"}


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
from emqdeploy.checkpoint import load_checkpoint
from emqdeploy.runtimes.base import open_runtime
runtime = open_runtime(load_checkpoint(sys.argv[1], 4), "onnxruntime", threads=1)
np.save(sys.argv[3], runtime(np.load(sys.argv[2])))
"""
    arguments = [str(saved), str(tmp_path / "images.npy"), str(tmp_path / "logits.npy")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=120)
    logits = np.load(tmp_path / "logits.npy")
    assert logits.shape == (16, 10)
    from emqdeploy.runtimes.base import open_runtime

    np.testing.assert_array_equal(logits, open_runtime(small.checkpoint, bits=[4], threads=1)(small.images))
