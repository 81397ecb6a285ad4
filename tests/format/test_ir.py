"""The gate of OpenVINO's IR: what our conversion writes passes, and nothing that is more than that."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from emqdeploy.errors import EmqError
from emqdeploy.exporters.openvino_ir import write_ir
from emqdeploy.exporters.storage import STORAGES
from emqdeploy.format.child import parse_children
from emqdeploy.format.emq import save_checkpoint
from emqdeploy.format.ir import read_ir
from emqdeploy.quant.build import NetworkSpec

from ..conftest import Deployed, deploy

openvino = pytest.importorskip("openvino")

Parts = tuple[str, bytes]


def converted(subject: Deployed, folder: Path) -> Parts:
    """The IR of the narrowest child."""
    save_checkpoint(folder / "net.emq", subject.checkpoint)
    stored = STORAGES["int8"](subject.checkpoint, folder / "net.emq", subject.checkpoint.network.children[0])
    write_ir(stored.data, folder / "net.xml")
    return (folder / "net.xml").read_text(), (folder / "net.bin").read_bytes()


@pytest.fixture(scope="module")
def parts(small: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """Of the small network."""
    return converted(small, tmp_path_factory.mktemp("ir"))


@pytest.mark.parametrize("model", ["preact-resnet8", "mobilenet-micro", "vit-micro"])
def test_every_family_passes(model: str, tmp_path: Path) -> None:
    """And computes the same as before: writing it anew changes nothing."""
    subject = deploy(NetworkSpec(model, 10, (1, 8, 8), 2.0, parse_children("4"), ()))
    xml, weights = converted(subject, tmp_path)
    found, core = read_ir(xml.encode(), weights, subject.checkpoint.card, "net.xml"), openvino.Core()
    models = core.read_model(found.xml, found.weights), core.read_model(tmp_path / "net.xml")
    once, twice = (core.compile_model(model, "CPU")([subject.images])[0] for model in models)
    np.testing.assert_array_equal(once, twice)


def swap(old: str, new: str) -> Callable[[str], str]:
    """Replaces the first of something that is there."""

    def change(xml: str) -> str:
        assert old in xml
        return xml.replace(old, new, 1)

    return change


REFUSED: dict[str, tuple[Callable[[str], str], str]] = {
    "entities": (swap("<net", '<!DOCTYPE n [<!ENTITY a "aa">]><net'), "declares more than elements"),
    "loop": (swap('type="Add"', 'type="Loop"'), "'Loop' is none that a graph of ours has"),
    "state": (swap('type="Convert"', 'type="ReadValue"'), "'ReadValue' is none"),
    "extension": (swap('version="opset1"', 'version="evil"'), "is of 'evil'"),
    "elsewhere": (swap('offset="0"', 'offset="99999999"'), "bytes at 99999999 of"),
    "more": (swap("<layers>", "<layers><body/>"), "holds something that none of ours has"),
    "cut": (lambda xml: xml[: len(xml) // 2], "it is no XML"),
    "classes": (swap('shape="?,1,8,8"', 'shape="?,3,8,8"'), "its input has type f32 and shape"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_ours_is_refused(name: str, small: Deployed, parts: Parts) -> None:
    """In one sentence, before OpenVINO reads it."""
    change, sentence = REFUSED[name]
    with pytest.raises(EmqError, match=f"holds a graph that emqdeploy did not write: .*{sentence}") as error:
        read_ir(change(parts[0]).encode(), parts[1], small.checkpoint.card, "net.xml")
    assert "\n" not in str(error.value)


def test_gigabytes_from_a_shape_are_refused(small: Deployed, parts: Parts) -> None:
    """A target shape in the weights decides how large a value is, whatever the XML says."""
    huge = parts[1] + np.array([1 << 20, 1 << 20], np.int64).tobytes()
    name = f'offset="{len(parts[1])}" size="16"'
    layers = (
        f'<layer id="90001" name="s" type="Const" version="opset1"><data element_type="i64" shape="2" {name}/>'
        '<output><port id="0"/></output></layer>'
        f'<layer id="90002" name="v" type="Const" version="opset1"><data element_type="u8" shape="1" offset="0"'
        ' size="1"/><output><port id="0"/></output></layer>'
        '<layer id="90003" name="b" type="Broadcast" version="opset3"><data mode="numpy"/><input><port id="0"/>'
        '<port id="1"/></input><output><port id="2"/></output></layer>'
    )
    edges = (
        '<edge from-layer="90002" from-port="0" to-layer="90003" to-port="0"/>'
        '<edge from-layer="90001" from-port="0" to-layer="90003" to-port="1"/>'
    )
    xml = parts[0].replace("</layers>", f"{layers}</layers>").replace("</edges>", f"{edges}</edges>")
    with pytest.raises(EmqError, match=r"shape 1048576x1048576, more than 67108864 numbers"):
        read_ir(xml.encode(), huge, small.checkpoint.card, "net.xml")


def test_no_bytes_make_it_fail_otherwise(small: Deployed, parts: Parts) -> None:
    """Any damage is a sentence."""
    dice = np.random.default_rng(5)
    for _ in range(60):
        xml = bytearray(parts[0].encode())
        for place in dice.integers(0, len(xml), 3):
            xml[place] = dice.choice(list(b'<>"0189aZ-,?'))
        with contextlib.suppress(EmqError):
            read_ir(bytes(xml), parts[1], small.checkpoint.card, "net.xml")
