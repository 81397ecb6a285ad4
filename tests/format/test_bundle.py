"""The bundle: what a manifest may claim, and that two exports never mix."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.bundle import NOT_RUN, VERIFIED, Artefact, Bundle
from emqdeploy.format.bundle_writer import BundleWriter, open_or_repair
from emqdeploy.format.card import Card, DataSource, Pixels
from emqdeploy.format.child import Child, parse_children
from emqdeploy.format.precision import LayerPrecision

CARD = Card(
    model="resnet8",
    classes=("a", "b"),
    preprocessing=Pixels(1, 8, 8, (0.5,), (0.25,)),
    data=DataSource("digits"),
    accuracy={"4": 98.5},
    trained=("2", "4"),
)
MIXED = Child("mixed", {"*": 4, "second": 2}, 4)
CHILDREN = (*parse_children("2,4"), MIXED, Child.of(8))
LAYERS = (
    LayerPrecision("first", 8, "int8", "float32", False),
    LayerPrecision("second", 4, "int8", "int8", True),
    LayerPrecision("last", 4, "int8", "int8", True),
)


def add(writer: BundleWriter, child: str, data: bytes = b"graph", **changes: Any) -> Artefact:
    """Adds one small artefact."""
    staged = writer.staging / "file"
    staged.write_bytes(data)
    about: dict[str, Any] = {"target": "onnx", "flavour": "int8", "role": "child", "status": VERIFIED} | changes
    about = {"id": f"onnx-w{child}", "children": (child,), "layers": LAYERS} | about
    return writer.add(staged, f"onnx/w{child}.onnx", **about)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A checkpoint and two artefacts."""
    (tmp_path / "model.emq").write_bytes(b"checkpoint")
    with BundleWriter(tmp_path / "bundle", CARD, CHILDREN) as writer:
        writer.stage_checkpoint(tmp_path / "model.emq")
        add(writer, "2")
        add(writer, "4", shared=("model.emq",))
    return tmp_path / "bundle"


def test_what_is_written_is_read(bundle: Path) -> None:
    """Every field survives, and the directory holds nothing but what the manifest names."""
    opened = Bundle.open(bundle)
    assert Bundle.open(bundle / "manifest.json") == opened
    assert [artefact.id for artefact in opened.artefacts] == ["onnx-w2", "onnx-w4"]
    assert opened.artefacts[0].layers == LAYERS
    assert opened.artefacts[0].computed_as == "int8 (2 of 3 layers), else float32"
    assert opened.artefacts[0].stored_as == "int8"
    assert opened.artefacts[0].integer_layers == 2
    assert (opened.card, opened.children) == (CARD, CHILDREN)
    assert opened.exported == CHILDREN[:2]
    assert opened.children_of(opened.artefacts[1]) == (Child.of(4),)
    assert opened.checkpoint_path == bundle / "model.emq"
    assert opened.file_of(opened.find("onnx", 4)).read_bytes() == b"graph"
    files = sorted(str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file())
    assert files == ["manifest.json", "model.emq", "onnx/w2.onnx", "onnx/w4.onnx"]
    assert not list(bundle.glob(".*"))


def test_a_second_export_adds_and_replaces(bundle: Path, tmp_path: Path) -> None:
    """Other artefacts stay; one of the same id is replaced by the new file."""
    with BundleWriter(bundle, CARD, CHILDREN) as writer:
        writer.stage_checkpoint(tmp_path / "model.emq")
        add(writer, "4", b"new graph", status=NOT_RUN)
        add(writer, "8", role="baseline", children=())
    opened = Bundle.open(bundle)
    assert [artefact.id for artefact in opened.artefacts] == ["onnx-w2", "onnx-w4", "onnx-w8"]
    assert opened.find("onnx", 4).status == NOT_RUN
    assert opened.baselines == (opened.artefacts[2],)
    assert opened.exported == CHILDREN[:2]


def test_another_checkpoint_is_not_mixed_in(bundle: Path, tmp_path: Path) -> None:
    """Artefacts of two networks under one manifest would lie about one of them."""
    (tmp_path / "other.emq").write_bytes(b"another")
    with (
        BundleWriter(bundle, CARD, CHILDREN) as writer,
        pytest.raises(UsageError, match="bundle of another checkpoint"),
    ):
        writer.stage_checkpoint(tmp_path / "other.emq")


def test_a_repaired_bundle_takes_no_other_network_in(bundle: Path, tmp_path: Path) -> None:
    """A damaged checkpoint was dropped: artefacts that do without it still belong to that network."""
    (bundle / "model.emq").write_bytes(b"damaged")
    opened = open_or_repair(bundle, lambda _: None)
    assert (opened.checkpoint, [artefact.id for artefact in opened.artefacts]) == (None, ["onnx-w2"])
    other = msgspec.structs.replace(CARD, accuracy={"4": 70.0})
    with (
        BundleWriter(bundle, other, CHILDREN) as writer,
        pytest.raises(UsageError, match="bundle of another checkpoint"),
    ):
        writer.stage_checkpoint(tmp_path / "model.emq")
    with BundleWriter(bundle, CARD, CHILDREN) as writer:
        writer.stage_checkpoint(tmp_path / "model.emq")
        add(writer, "4", shared=("model.emq",))
    assert [artefact.id for artefact in Bundle.open(bundle).artefacts] == ["onnx-w2", "onnx-w4"]


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    """Neither an empty directory nor a staged file."""

    def fail(writer: BundleWriter) -> None:
        (writer.staging / "unproven").write_bytes(b"x")
        raise ValueError("not proven")

    with pytest.raises(ValueError, match="not proven"), BundleWriter(tmp_path / "new", CARD, CHILDREN) as writer:
        fail(writer)
    assert not (tmp_path / "new").exists()


def test_the_second_of_two_exports_is_refused(bundle: Path) -> None:
    """A real second process; the lock goes with the first export, also when that is killed."""
    code = (
        "import sys; from pathlib import Path; from emqdeploy.format.bundle_writer import BundleWriter\n"
        "with BundleWriter(Path(sys.argv[1]), None, ()): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(bundle)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(EmqError, match=r"another export is writing to .*; wait for it"),
            BundleWriter(bundle, CARD, ()),
        ):
            pass
        other.kill()
    assert list(bundle.glob(".unproven-*"))
    with BundleWriter(bundle, CARD, CHILDREN) as writer:
        add(writer, "2")
    assert not list(bundle.glob(".*"))


Change = Callable[[dict[str, Any], Path], object]


def _drop(values: dict[str, Any], bundle: Path) -> None:
    (bundle / "onnx/w4.onnx").unlink()


def _link(values: dict[str, Any], bundle: Path) -> None:
    (bundle / "onnx/w4.onnx").unlink()
    (bundle / "onnx/w4.onnx").symlink_to("/etc/hostname")


def _old(values: dict[str, Any]) -> None:
    """What schema 1 had at its top; what is damaged in it does not matter any more."""
    values.clear()
    values.update(schema=1, model="resnet8", bits=[2, 4], artefacts=7)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda values, _: values.update(schema=3), "has schema 3, this emqdeploy reads 2; update emqdeploy"),
        (lambda values, _: _old(values), "has schema 1, this emqdeploy reads 2; .* export again"),
        (lambda values, _: values.pop("schema"), "has schema None"),
        (lambda values, _: values["card"].pop("classes"), "is damaged"),
        (lambda values, _: values.update(note=1), "is damaged .*unknown field"),
        (lambda values, _: values["children"][0].update(weights=9), "weight width 9; allowed: 1..8"),
        (lambda values, _: values["children"].append(values["children"][0]), "names child '.*' twice"),
        (lambda values, _: values["card"].update(accuracy={"5": 50}), "accuracy names child '5'"),
        (lambda values, _: values["artefacts"][0].update(children=["5"]), "names child '5', which the bundle"),
        (lambda values, _: values["artefacts"][0].update(children=[]), "is a child with 0 children"),
        (lambda values, _: values["artefacts"][0].update(role="baseline"), "is a baseline with 1 children"),
        (lambda values, _: values["artefacts"][0].update(size_bytes=-1), "is damaged"),
        (lambda values, _: values["artefacts"][0]["layers"][0].update(integer="yes"), "is damaged"),
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
    with pytest.raises(UsageError, match="holds no openvino child at 4 bits; it holds onnx-w2, onnx-w4"):
        Bundle.open(bundle).find("openvino", 4)
    with pytest.raises(UsageError, match="no child '5' here; available: 2, 4, mixed, 8"):
        Bundle.open(bundle).find("onnx", 5)
    with pytest.raises(UsageError, match="holds no onnx child at mixed"):
        Bundle.open(bundle).find("onnx", "mixed")
    with pytest.raises(EmqError, match="is no bundle"):
        Bundle.open(tmp_path)
    (bundle / "manifest.json").write_text("{")
    with pytest.raises(EmqError, match="is damaged"):
        Bundle.open(bundle)


def test_reading_needs_no_heavy_package() -> None:
    """A device opens a bundle before it decides on a runtime."""
    code = (
        "import sys, emqdeploy.format.bundle;"
        " print([m for m in ('torch', 'numpy', 'onnxruntime', 'onnx') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def contents(bundle: Path) -> dict[str, bytes]:
    """Every file of a bundle, by its place."""
    return {str(path.relative_to(bundle)): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}


def export_again(bundle: Path, report: Callable[[str], None] = lambda _: None) -> None:
    """An export that changes a file and its companion at fixed places, and adds an artefact."""
    with BundleWriter(bundle, CARD, CHILDREN, report) as writer:
        writer.stage_checkpoint(bundle.parent / "model.emq")
        for child, data in (("4", b"new graph!"), ("2", b"graph"), ("mixed", b"mixed")):
            companion = writer.staging / "weights"
            companion.write_bytes(b"weights of " + data)
            add(writer, child, data, shared=("model.emq",), companions={f"onnx/w{child}.bin": companion})


def killed_at(step: int, work: Callable[[], None]) -> bool:
    """Runs something in a child that ends without a word before its n-th step on the disk; whether it came so far."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    left = step

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(9)
            return function(*arguments, **options)

        return call

    for module, name in ((os, "replace"), (os, "fsync"), (os, "mkdir"), (os, "unlink"), (shutil, "copyfile")):
        setattr(module, name, deadly(getattr(module, name)))
    try:
        work()
    finally:
        os._exit(0)


def test_an_export_that_is_killed_anywhere_leaves_a_bundle_that_opens(bundle: Path) -> None:
    """At every step on the disk; the next export ends as if nothing had happened."""
    with BundleWriter(bundle, CARD, CHILDREN) as writer:
        companion = writer.staging / "weights"
        companion.write_bytes(b"old")
        add(writer, "4", companions={"onnx/w4.bin": companion}, shared=("model.emq",))
    before = bundle.parent / "before"
    shutil.copytree(bundle, before)
    export_again(bundle)
    undisturbed = contents(bundle)
    step = 0
    while True:
        shutil.rmtree(bundle)
        shutil.copytree(before, bundle)
        if not killed_at(step, lambda: export_again(bundle)):
            break
        opened = Bundle.open(bundle)
        for artefact in opened.artefacts:
            opened.file_of(artefact)
        lines: list[str] = []
        export_again(bundle, lines.append)
        assert not lines  # there was nothing to repair
        found = contents(bundle)
        assert found.keys() == undisturbed.keys()
        assert {name: data for name, data in found.items() if name != "manifest.json"} == {
            name: data for name, data in undisturbed.items() if name != "manifest.json"
        }
        again = {artefact.id: artefact for artefact in Bundle.open(bundle).artefacts}
        assert again.keys() == {"onnx-w2", "onnx-w4", "onnx-wmixed"}
        step += 1
    assert step > 30


@pytest.mark.parametrize("damage", ["another size", "another hash", "missing", "companion"])
def test_an_export_repairs_what_the_manifest_does_not_fit(bundle: Path, damage: str) -> None:
    """As an export of an earlier version left it when it was killed: the artefact is dropped with one line."""
    export_again(bundle)
    victim = bundle / ("onnx/w4.bin" if damage == "companion" else "onnx/w4.onnx")
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(b"x" * (victim.stat().st_size + (damage != "another hash")))
    lines: list[str] = []
    opened = open_or_repair(bundle, lines.append)
    if damage == "another hash":  # opening looks at sizes; hashes are compared on use, and by every export
        with BundleWriter(bundle, CARD, CHILDREN, lines.append):
            opened = Bundle.open(bundle)
    assert len(lines) == 1
    assert lines[0].startswith("onnx-w4 leaves the bundle: ")
    assert [artefact.id for artefact in opened.artefacts] == ["onnx-w2", "onnx-wmixed"]
    export_again(bundle, lines.append)
    assert len(lines) == 1
    assert Bundle.open(bundle).file_of(Bundle.open(bundle).find("onnx", 4)).read_bytes() == b"new graph!"
