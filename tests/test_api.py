"""The Python interface: the commands under their names, results that show themselves, and a cheap import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import emqdeploy
from emqdeploy import EmqError
from emqdeploy.format.child import Child


def test_importing_loads_nothing() -> None:
    """What is worth reading is listed without loading any of it."""
    code = "import sys, emqdeploy; print(*dir(emqdeploy)); print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    names, loaded = (line.split() for line in shown)
    assert set(names) == set(emqdeploy.__all__)
    assert not {"numpy", "torch", "rich", "msgspec"} & set(loaded)
    with pytest.raises(AttributeError, match="no attribute 'benhc'"):
        _ = emqdeploy.benhc  # type: ignore[attr-defined]


def test_every_public_function_is_documented() -> None:
    """Its arguments one by one."""
    for name in emqdeploy.__all__:
        entry = getattr(emqdeploy, name)
        if callable(entry) and name != "EmqError":
            assert "Args:" in (entry.__doc__ or ""), name


def test_a_network_is_trained_exported_proven_measured_and_run(tmp_path: Path) -> None:
    """The whole way, from Python, with lists where the command line has text."""
    made = emqdeploy.train(data="digits", bits=[2, "8"], epochs=1, limit=200, out=tmp_path / "run")
    assert made.checkpoint == tmp_path / "run" / "model.emq"
    assert set(made.accuracy) == set("2345678")
    assert "accuracy of the deployed network" in " ".join(str(made).split())
    assert "<td>unseen</td>" in made._repr_html_()
    mixed = emqdeploy.mix(made.run, budget="size=6bits", images=64, points=2, test_images=20, plot=tmp_path / "mix")
    assert (mixed.checkpoint, mixed.children) == (made.checkpoint, ("mix-size-6bits",))
    assert "mix-size-6bits" in str(mixed)
    written = emqdeploy.export(made.run, bits=[2, 8], test_images=20)
    assert set(written.files) == {"onnx-w2", "onnx-w8"}
    assert all(file.exists() for file in written.files.values())
    found = emqdeploy.verify(written.bundle, bits=Child.of(2).name, images=8)
    assert found
    assert found.wrong == {}
    measured = emqdeploy.bench(written.bundle, bits=2, samples=10, scenario="single", energy="none")
    (row,) = measured.rows
    assert row.latency_ms is not None
    for ending in ("json", "csv", "html"):
        measured.save(tmp_path / f"bench.{ending}")
        assert (tmp_path / f"bench.{ending}").stat().st_size > 100
    with pytest.raises(EmqError, match=r"ends with none of \.json, \.csv, \.html"):
        measured.save(tmp_path / "bench.txt")
    some = emqdeploy.sample_images(written.bundle, data=str(written.bundle / "test-images.npz"))
    assert some.images.shape == (20, 1, 8, 8)
    with emqdeploy.load(written.bundle, bits=[2, 8]) as network:
        network.use(2)
        assert network.run(network.preprocessing.normalize(some.images[:3])).shape == (3, 10)


@pytest.mark.slow
def test_a_float_model_is_quantized(float_weights: Path, tmp_path: Path) -> None:
    """Without labels: an untrained network decides something, too; one that is far from what is expected is refused."""
    about = {"model": "resnet8", "data": "digits", "bits": [4, 8], "images": 64, "reconstruct": "none"}
    said: list[str] = []
    made = emqdeploy.quantize(float_weights, out=tmp_path / "made", unlabelled=True, report=said.append, **about)
    assert made.checkpoint == tmp_path / "made" / "model.emq"
    assert made.float_accuracy is None
    assert set(made.usable) <= set(made.values["verdicts"]) == set("45678")
    assert said
    assert "decisions of the float model" in " ".join(str(made).split())
    with pytest.raises(EmqError, match="99"):
        emqdeploy.quantize(float_weights, out=tmp_path / "poor", expect=99.0, **about)
    assert not (tmp_path / "poor" / "model.emq").exists()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: emqdeploy.bench("x", samplez=3), "unknown option 'samplez' .did you mean 'samples'"),
        (lambda: emqdeploy.train(model="resnet9"), "did you mean 'resnet8'"),
        (lambda: emqdeploy.train(epochz=3), "unknown option 'epochz' .did you mean 'epochs'"),
        (lambda: emqdeploy.load("nowhere"), "nowhere does not exist"),
        (lambda: emqdeploy.export("nowhere", target="onyx"), "did you mean 'onnx'"),
    ],
)
def test_mistakes_are_one_sentence(call: object, sentence: str) -> None:
    """The same ones as on the command line."""
    assert callable(call)
    with pytest.raises(EmqError, match=sentence):
        call()


def test_a_verification_that_failed_says_where() -> None:
    """By child and rung, and it is not true."""
    from emqdeploy.api import VerifyResult

    rung = {"wrong": "its class differs", "first_layer": None}
    entry = {"child": "4", "rungs": {"onnxruntime": rung}, "failed": {"native": "it stopped"}, "origin": None}
    found = VerifyResult({"ok": False, "results": [entry]}, [])
    assert not found
    assert found.wrong == {"4": {"onnxruntime": "its class differs", "native": "it stopped"}}


def test_a_notebook_shows_words_as_words() -> None:
    """What a file says is escaped; headings, captions and lines are all there."""
    from emqdeploy.report.fitting import table
    from emqdeploy.report.shown import as_html, as_text

    made = table("<title>", "child", "<b>", caption="note & more")
    made.add_row("4", "<script>")
    page = as_html([made, "a line\nand <another>"])
    assert "<script>" not in page
    assert "<td>&lt;script&gt;</td>" in page
    assert "<caption>&lt;title&gt;</caption>" in page
    assert "note &amp; more" in page
    assert "<div>a line<br>and &lt;another&gt;</div>" in page
    assert "<script>" in as_text([made])
