"""The bundle: what a manifest may claim, and that two exports never mix."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emqdeploy.bundle import NOT_RUN, VERIFIED, Artefact, Bundle
from emqdeploy.bundle_writer import BundleWriter
from emqdeploy.errors import EmqError, UsageError

ABOUT: dict[str, Any] = {
    "model": "resnet8",
    "classes": ["a", "b"],
    "preprocessing": {"size": 8},
    "input": {"name": "images", "shape": [1, 8, 8], "dtype": "float32"},
    "data": {"name": "digits", "image_size": None},
    "accuracy": {"4": 98.5},
    "trained_bits": [2, 4],
}
LAYERS = tuple(
    {"name": name, "grid_bits": bits, "stored_as": "int8", "computed_as": kernel}
    for name, bits, kernel in (("first", 8, "float32"), ("second", 4, "int8"), ("last", 4, "int8"))
)


def add(writer: BundleWriter, bits: int, data: bytes = b"graph", **changes: Any) -> Artefact:
    """Adds one small artefact."""
    staged = writer.staging / "file"
    staged.write_bytes(data)
    about: dict[str, Any] = {"target": "onnx", "flavour": "int8", "role": "width", "status": VERIFIED} | changes
    about = {"id": f"onnx-w{bits}", "bits": (bits,), "layers": LAYERS} | about
    return writer.add(staged, f"onnx/w{bits}.onnx", **about)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A checkpoint and two artefacts."""
    (tmp_path / "model.emq").write_bytes(b"checkpoint")
    with BundleWriter(tmp_path / "bundle", ABOUT) as writer:
        writer.stage_checkpoint(tmp_path / "model.emq")
        add(writer, 2)
        add(writer, 4, shared=("model.emq",))
    return tmp_path / "bundle"


def test_what_is_written_is_read(bundle: Path) -> None:
    """Every field survives, and the directory holds nothing but what the manifest names."""
    opened = Bundle.open(bundle)
    assert Bundle.open(bundle / "manifest.json") == opened
    assert [artefact.id for artefact in opened.artefacts] == ["onnx-w2", "onnx-w4"]
    assert opened.artefacts[0].layers == LAYERS
    assert opened.artefacts[0].computed_as == "int8 (2 of 3 layers)"
    assert opened.artefacts[0].stored_as == "int8"
    assert opened.artefacts[0].integer_layers == 2
    assert (opened.accuracy, opened.trained_bits, opened.classes) == ({4: 98.5}, (2, 4), ("a", "b"))
    assert opened.checkpoint_path == bundle / "model.emq"
    assert opened.file_of(opened.find("onnx", 4)).read_bytes() == b"graph"
    files = sorted(str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file())
    assert files == ["manifest.json", "model.emq", "onnx/w2.onnx", "onnx/w4.onnx"]
    assert not list(bundle.glob(".*"))


def test_a_second_export_adds_and_replaces(bundle: Path, tmp_path: Path) -> None:
    """Other artefacts stay; one of the same id is replaced by the new file."""
    with BundleWriter(bundle, ABOUT) as writer:
        writer.stage_checkpoint(tmp_path / "model.emq")
        add(writer, 4, b"new graph", status=NOT_RUN)
        add(writer, 8, role="baseline")
    opened = Bundle.open(bundle)
    assert [artefact.id for artefact in opened.artefacts] == ["onnx-w2", "onnx-w4", "onnx-w8"]
    assert opened.find("onnx", 4).status == NOT_RUN
    assert opened.baselines == (opened.artefacts[2],)
    assert opened.selectors == ()


def test_another_checkpoint_is_not_mixed_in(bundle: Path, tmp_path: Path) -> None:
    """Artefacts of two networks under one manifest would lie about one of them."""
    (tmp_path / "other.emq").write_bytes(b"another")
    with BundleWriter(bundle, ABOUT) as writer, pytest.raises(UsageError, match="bundle of another checkpoint"):
        writer.stage_checkpoint(tmp_path / "other.emq")


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    """Neither an empty directory nor a staged file."""

    def fail(writer: BundleWriter) -> None:
        (writer.staging / "unproven").write_bytes(b"x")
        raise ValueError("not proven")

    with pytest.raises(ValueError, match="not proven"), BundleWriter(tmp_path / "new", ABOUT) as writer:
        fail(writer)
    assert not (tmp_path / "new").exists()


def test_the_second_of_two_exports_is_refused(bundle: Path) -> None:
    """A real second process; the lock goes with the first export, also when that is killed."""
    code = (
        "import sys; from pathlib import Path; from emqdeploy.bundle_writer import BundleWriter\n"
        "with BundleWriter(Path(sys.argv[1]), {}): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(bundle)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(EmqError, match=r"another export is writing to .*; wait for it"), BundleWriter(bundle, {}):
            pass
        other.kill()
    assert list(bundle.glob(".unproven-*"))
    with BundleWriter(bundle, ABOUT) as writer:
        add(writer, 2)
    assert not list(bundle.glob(".*"))


Change = Callable[[dict[str, Any], Path], object]


def _drop(values: dict[str, Any], bundle: Path) -> None:
    (bundle / "onnx/w4.onnx").unlink()


def _link(values: dict[str, Any], bundle: Path) -> None:
    (bundle / "onnx/w4.onnx").unlink()
    (bundle / "onnx/w4.onnx").symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda values, _: values.update(schema=2), "has schema 2, this emqdeploy reads 1"),
        (lambda values, _: values.pop("schema"), "has schema None"),
        (lambda values, _: values.pop("classes"), "is damaged"),
        (lambda values, _: values.update(artefacts=7), "is damaged"),
        (lambda values, _: values.update(checkpoint="gone.emq"), "no record of gone.emq"),
        (lambda values, _: values["artefacts"][0].update(role="king"), "is damaged .*king"),
        (lambda values, _: values["artefacts"][0].pop("sha256"), "is damaged"),
        (lambda values, _: values["artefacts"][0].update(id="onnx-w4"), "two artefacts have the same id"),
        (lambda values, _: values["artefacts"][0].update(file="../model.emq"), "lies outside the bundle"),
        (lambda values, _: values["artefacts"][0].update(file="/etc/hostname"), "lies outside the bundle"),
        (_link, "lies outside the bundle"),
        (_drop, "w4.onnx is missing, though"),
        (lambda values, bundle: (bundle / "onnx/w4.onnx").write_bytes(b"gra"), "has 3 of 5 bytes"),
    ],
)
def test_a_manifest_that_lies_is_one_sentence(bundle: Path, change: Change, sentence: str) -> None:
    """Whatever is wrong with it, the file at fault is named and nothing else happens."""
    values = json.loads((bundle / "manifest.json").read_text())
    change(values, bundle)
    (bundle / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(EmqError, match=sentence) as error:
        Bundle.open(bundle)
    assert "\n" not in str(error.value)
    assert str(bundle) in str(error.value)


def test_an_altered_file_is_found_when_it_is_used(bundle: Path) -> None:
    """Same size, other bytes: its hash tells, and so does that of a shared file."""
    opened = Bundle.open(bundle)
    (bundle / "onnx/w2.onnx").write_bytes(b"grAph")
    (bundle / "model.emq").write_bytes(b"chEckpoint")
    with pytest.raises(EmqError, match=r"w2\.onnx was altered: it does not match its hash"):
        opened.file_of(opened.find("onnx", 2))
    with pytest.raises(EmqError, match=r"model\.emq was altered"):
        opened.file_of(opened.find("onnx", 4))


def test_what_is_absent_is_said_with_what_is_there(bundle: Path, tmp_path: Path) -> None:
    """No bundle, no such artefact, no JSON."""
    with pytest.raises(UsageError, match="holds no openvino width at 4 bits; it holds onnx-w2, onnx-w4"):
        Bundle.open(bundle).find("openvino", 4)
    with pytest.raises(EmqError, match="is no bundle"):
        Bundle.open(tmp_path)
    (bundle / "manifest.json").write_text("{")
    with pytest.raises(EmqError, match="is damaged"):
        Bundle.open(bundle)


def test_reading_needs_no_heavy_package() -> None:
    """A device opens a bundle before it decides on a runtime."""
    code = (
        "import sys, emqdeploy.bundle;"
        " print([m for m in ('torch', 'numpy', 'onnxruntime', 'onnx') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
