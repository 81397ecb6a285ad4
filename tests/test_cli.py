"""The command line as a user meets it: what it prints, what it refuses, and that it never shows a traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from emqdeploy.cli import main


class Outcome(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object of standard output."""
        value: dict[str, Any] = json.loads(self.out)
        return value


Run = Callable[..., Outcome]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], trained: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command beside a trained run; file descriptors are captured, so nothing slips past."""
    monkeypatch.chdir(trained)

    def call(*arguments: str) -> Outcome:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(list(arguments))
        out, err = capfd.readouterr()
        return Outcome(int(stop.value.code or 0), out, err)

    return call


def test_train_prints_one_json_object(trained: Path) -> None:
    """Scripts parse standard output; progress goes to standard error."""
    values = json.loads((trained / "train.json").read_text())
    assert {"checkpoint", "accuracy", "seconds", "sample_passes"} <= set(values)
    assert set(values["accuracy"]) == {str(bits) for bits in range(1, 9)}
    assert values["checkpoint"] == "runs/digits-resnet8-001/model.emq"
    assert values["sample_passes"] == 4 * 2 * 360


def test_export_without_a_path_takes_the_latest_run(run: Run) -> None:
    """The line of the brief, as it stands, and the keys that scripts rely on."""
    outcome = run("export", "--bits", "4", "--target", "onnx", "--json")
    assert outcome.code == 0
    (artefact,) = outcome.json["artefacts"]
    keys = {
        "bits",
        "children",
        "path",
        "size_bytes",
        "stored_as",
        "computed_as",
        "integer_layers",
        "layers",
        "parity",
        "status",
    }
    assert keys <= set(artefact)
    assert artefact["parity"]["top1_agreement"] == 1.0
    assert artefact["parity"]["max_step_error"] == 0
    assert artefact["parity"]["differing_codes"] == 0
    assert artefact["parity"]["codes"] > 0
    assert artefact["integer_layers"] == len(artefact["layers"]) == 10
    assert Path(artefact["path"]).stat().st_size == artefact["size_bytes"]
    assert not list(Path("runs").glob("**/.unproven*"))


@pytest.mark.parametrize(
    ("arguments", "package", "ids", "computed"),
    [
        ("--bits 2,4 --storage packed", "onnx", "onnx-packed-w2 onnx-packed-w4", "int8"),
        ("--bits 1,8 --storage master", "onnx", "onnx-master-w1 onnx-master-w8", "int8"),
        ("--bits 2,8 --selector if", "onnx", "onnx-w2 onnx-w8 onnx-selector-if", "int8"),
        ("--bits 2 --layout triton", "onnx", "triton-onnx-w2", "int8"),
        ("--bits 2,8 --target openvino", "openvino", "openvino-w2 openvino-w8", "int8"),
        ("--bits 8 --target tensorrt-onnx", "onnx", "tensorrt-onnx-w8", "unknown until loaded"),
        ("--bits 8 --target tensorrt", "tensorrt_rtx", "tensorrt-rtx-w8", "unknown until loaded"),
    ],
)
def test_every_target_enters_the_bundle(
    run: Run, tmp_path: Path, arguments: str, package: str, ids: str, computed: str
) -> None:
    """Each form is proven, says what it computes in, and is found again in the manifest with its hash."""
    from emqdeploy.format.bundle import NOT_RUN, VERIFIED, Bundle

    pytest.importorskip(package)
    outcome = run("export", *arguments.split(), "--out", str(tmp_path / "bundle"), "--json")
    assert outcome.code == 0, outcome.err
    assert " ".join(artefact["id"] for artefact in outcome.json["artefacts"]) == ids
    bundle = Bundle.open(tmp_path / "bundle")
    assert " ".join(artefact.id for artefact in bundle.artefacts) == ids
    for artefact in bundle.artefacts:
        assert bundle.file_of(artefact).is_file()
        assert artefact.computed_as == computed
        assert artefact.status == (VERIFIED if computed == "int8" else NOT_RUN)
        assert artefact.parity["images"] >= 40
        assert artefact.parity["unsafe_flips"] <= (1 if artefact.target == "openvino" else 0)
        assert len(artefact.layers) == 10
    assert not list((tmp_path / "bundle").glob(".*"))
    table = run("export", *arguments.split(), "--out", str(tmp_path / "bundle"))
    assert ids.split()[0].rpartition("-w")[2] in table.out


def test_baselines_are_measured(run: Run, tmp_path: Path) -> None:
    """The float weights of the run and onnxruntime's own int8 of them, with the accuracy of each."""
    outcome = run("export", "--bits", "8", "--with-baselines", "--out", str(tmp_path / "bundle"), "--json")
    assert outcome.code == 0, outcome.err
    _, plain, int8 = outcome.json["artefacts"]
    assert [(one["id"], one["role"], one["bits"]) for one in (plain, int8)] == [
        ("onnx-float32", "baseline", []),
        ("onnx-static-int8", "baseline", []),
    ]
    assert (plain["computed_as"], int8["computed_as"]) == ("float32", "int8")
    assert len(plain["layers"]) == len(int8["layers"]) == 10
    assert int8["size_bytes"] < 0.5 * plain["size_bytes"]
    assert plain["parity"]["accuracy"] > 50
    moved = str(shutil.copy(CHECKPOINT, tmp_path / "moved.emq"))
    outcome = run("export", moved, "--bits", "8", "--with-baselines", "--json")
    assert outcome.code == 1
    assert "needs the float weights of the run" in outcome.err


def test_shared_files_become_plain_ones_without_torch(run: Run, tmp_path: Path) -> None:
    """On a device: the bundle's own master is all that is needed, and the plain files answer alike."""
    from emqdeploy.format.bundle import Bundle

    bundle = tmp_path / "bundle"
    run("export", "--bits", "2,4", "--storage", "master", "--out", str(bundle), "--json")
    blocked = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] == 'torch': raise ModuleNotFoundError(name, name='torch')\n"
        "sys.meta_path.insert(0, Block())\n"
        "from emqdeploy.cli import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", blocked, "materialize", str(bundle), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert [artefact["id"] for artefact in json.loads(result.stdout)["artefacts"]] == ["onnx-w2", "onnx-w4"]
    held = [artefact.id for artefact in Bundle.open(bundle).artefacts]
    assert held == ["onnx-master-w2", "onnx-master-w4", "onnx-w2", "onnx-w4"]
    again = run("export", str(bundle), "--bits", "8", "--json")
    assert again.json["bundle"] == str(bundle)


def test_bench_measures_every_bit_width(run: Run, tmp_path: Path) -> None:
    """One row per bit-width with everything that was measured, and the files that were asked for."""
    out, csv = tmp_path / "bench.json", tmp_path / "bench.csv"
    outcome = run(
        *("bench", "--device", "cpu", "--bits", "2,8", "--samples", "20", "--switches", "20", "--energy", "none"),
        *("--runtime", "onnxruntime", "--out", str(out), "--csv", str(csv), "--json"),
    )
    assert outcome.code == 0
    assert outcome.json["environment"]["cores"] == os.cpu_count()
    assert json.loads(out.read_text()) == outcome.json
    assert [line.split(",")[0] for line in csv.read_text().splitlines()] == ["label", "2 bits", "8 bits"]
    for row, bits in zip(outcome.json["rows"], (2, 8), strict=True):
        assert row["bits"] == bits
        assert 0 < row["latency_ms"]["p50"] <= row["latency_ms"]["p90"] <= row["latency_ms"]["p99"]
        assert len(row["samples_ms"]) == 20
        assert row["accuracy"] == pytest.approx(row["reference_accuracy"], abs=0.6)
        assert row["size_bytes"] > 0
        assert row["rss_bytes"] > 0
        assert row["load_ms"] > 0
        assert row["computed_as"] == "int8"
        assert row["energy"] == {"not_measured": "it was not asked for"}
    small, large = (row["size_bytes"] for row in outcome.json["rows"])
    assert small < large
    assert len(outcome.json["switches"]) == 20


def test_a_bench_is_replayed_from_its_data_and_from_its_report(run: Run, tmp_path: Path) -> None:
    """The same rows, samples and settings again, of the network that the command line names, or the latest run."""
    data, page = tmp_path / "bench.json", tmp_path / "bench.html"
    measured = ("bench", "--bits", "2,8", "--samples", "10", "--switches", "4", "--threads", "1", "--energy", "none")
    first = run(*measured, "--out", str(data), "--html", str(page), "--json").json
    for file, network in ((data, ()), (page, ("runs/digits-resnet8-001",))):
        again = run("bench", *network, "--replay", str(file), "--json").json
        assert again["settings"] | {"path": None} == first["settings"] | {"path": None}
        rows = [(row["label"], len(row["samples_ms"])) for row in again["rows"]]
        assert rows == [(row["label"], 10) for row in first["rows"]]
        assert rows[:2] == [("2 bits", 10), ("8 bits", 10)]
        assert again["started"] > first["started"]
    refused = run("bench", "--replay", str(data), "--bits", "4")
    assert refused.code == 2
    assert "leave out --bits" in refused.err


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_eval_agrees_with_what_training_measured(run: Run, runtime: str) -> None:
    """The accuracy in the file is that of the deployed network."""
    outcome = run("eval", "--bits", "3,8", "--runtime", runtime, "--json")
    trained = json.loads(Path("train.json").read_text())["accuracy"]
    for bits, percent in outcome.json["accuracy"].items():
        assert percent == pytest.approx(trained[bits], abs=0.6)


def test_verify_covers_every_rung(run: Run) -> None:
    """Fused onnxruntime is exact; torch and the unfused graph may differ in ties only."""
    outcome = run("verify", "--bits", "1,4", "--images", "64", "--json")
    assert outcome.code == 0
    assert outcome.json["ok"] is True
    for result in outcome.json["results"]:
        assert {"onnxruntime", "unfused", "torch"} <= set(result["rungs"])
        assert result["rungs"]["onnxruntime"]["differing_codes"] == 0


def test_inspect_describes_layers_and_bits(run: Run) -> None:
    """What the file holds, with effective bits per weight."""
    values = run("inspect", "--json").json
    assert {"bits", "children", "layers", "size_bytes", "card"} <= set(values)
    assert values["bits"] == list(range(1, 9))
    assert values["size_bytes"] == Path(values["path"]).stat().st_size
    pinned = [layer["name"] for layer in values["layers"] if layer["pinned"]]
    assert pinned[0] == "conv1"
    assert pinned[-1] == "fc"


def test_predict_classifies_a_picture(run: Run, tmp_path: Path) -> None:
    """A real digit, written as a PNG, is recognised at 8 and at 2 bits and from an exported file."""
    from PIL import Image

    from emqdeploy.data import load_dataset

    test = load_dataset("digits").test
    Image.fromarray(test.images[0, 0]).save(tmp_path / "digit.png")
    exported = "runs/digits-resnet8-001/bundle/model-w4.onnx"
    for arguments in (["--bits", "8"], ["--bits", "2"], [exported]):
        values = run("predict", str(tmp_path / "digit.png"), *arguments, "--json").json["images"][0]
        assert sum(entry["probability"] for entry in values["predictions"]) <= 1 + 1e-9
        assert values["class"] == values["predictions"][0]["class"]
    assert values["class"] == str(test.labels[0])


def test_tables_are_printed_without_json(run: Run) -> None:
    """Every command says something to a person."""
    for arguments in (["inspect"], ["doctor"], ["eval", "--bits", "8"], ["verify", "--bits", "8", "--images", "8"]):
        outcome = run(*arguments)
        assert outcome.code == 0
        assert "┃" in outcome.out


def test_doctor_reports_every_part(run: Run) -> None:
    """Each part was really imported."""
    values = run("doctor", "--json").json
    assert values["ok"] is True
    assert {check["part"] for check in values["checks"]} >= {"onnxruntime", "torch", "torchvision", "sklearn"}
    assert {check["part"] for check in values["checks"] if check["optional"]} >= {
        "openvino",
        "tensorrt_rtx",
        "tensorrt",
    }


def test_version_and_help(run: Run) -> None:
    """The first two things that anybody types."""
    assert re.fullmatch(r"emqdeploy \d+\.\d+\.\d+\n", run("--version").out)
    for command in ("train", "eval", "export", "verify", "bench", "predict", "inspect", "demo", "doctor"):
        outcome = run(command, "--help")
        assert outcome.code == 0
        assert command in ("demo", "doctor") or "Example" in outcome.out
    alone = run()
    assert (alone.code, alone.err) == (0, "")
    assert alone.out == run("--help").out


def test_help_imports_nothing_heavy() -> None:
    """`--help` answers at once: none of the packages that the commands need, and of ours the commands alone."""
    code = (
        "import sys\nfrom emqdeploy.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = shown.stderr.split()
    assert "materialize" in shown.stdout
    assert not {"torch", "numpy", "onnxruntime", "onnx", "msgspec", "rich"} & set(loaded)
    ours = {name.split(".")[1] for name in loaded if name.startswith("emqdeploy.")}
    assert ours == {"cli", "ending", "errors"}


CHECKPOINT = "runs/digits-resnet8-001/model.emq"


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ("train --model resnet9", 2, "did you mean 'resnet8'"),
        ("train --data digitz", 2, "digits"),
        ("train --bits 0,4", 2, "allowed: 1..8"),
        ("train --bits 4,4", 2, "names child '4' twice"),
        ("train --bits four", 2, "give weight widths 1..8"),
        ("train --bits 33", 2, "allowed: 1..8"),
        ("train --prune-rate 1", 2, "--prune-rate is 1"),
        ("train --prune-rate 0.99 --epochs 3 --limit 400", 2, "fewer than a batch"),
        ("train --act-bits nine", 2, "--act-bits is 'nine'"),
        ("train --epochs many", 2, "valid integer"),
        ("train --keep-8bit conv99", 1, "no such layer"),
        ("train --data imagefolder:nowhere", 2, "nowhere"),
        ("train --out train.json", 1, "cannot write"),
        ("train --out runs/digits-resnet8-001", 2, "already holds a run"),
        ("train --resume nowhere", 2, "holds no run"),
        ("train --resume runs/digits-resnet8-001 --epochs 9", 2, "(now 9); leave these out"),
        ("train --colour red", 2, "No such option"),
        ("trian", 2, "No such command"),
        ("export --target tflite", 2, "known: onnx"),
        ("export --bits 9", 2, "no child '9' here; available: 1, 2, 3"),
        ("export --out train.json", 1, "cannot write"),
        ("export --storage zip", 2, "known: int8, master, packed"),
        ("export --selector switch", 2, "known: if"),
        ("export --selector if --bits 4", 2, "only 4 is given; name several"),
        ("export --layout docker", 2, "known: plain, triton"),
        ("export --layout triton --storage master", 2, "needs self-contained files"),
        ("export --layout triton --target tensorrt-onnx", 2, "use --target tensorrt"),
        ("export --target tensorrt-onnx --storage packed", 2, "is a form of --target onnx"),
        ("export --target openvino --selector if", 2, "is not for --target openvino"),
        ("export --max-batch 0", 2, "give at least 1"),
        ("bench --device toaster", 2, "known: auto, cpu"),
        ("bench --scenario triple", 2, "known: adaptive, offline, single, switch"),
        ("bench --trace nowhere", 2, "known: random, round-robin"),
        ("bench --batch 1,x", 2, "whole numbers"),
        ("bench --data fashion", 2, "unknown data set"),
        ("bench nowhere.emq", 2, "does not exist"),
        ("bench --samples 0", 2, "samples"),
        ("eval --runtime tvm", 2, "known: native, onnxruntime, openvino, tensorrt, torch"),
        ("inspect train.json", 1, "is not an .emq file"),
        ("predict nowhere.png", 2, "nowhere.png"),
        ("predict train.json", 1, "train.json"),
        ("predict train.json foreign.onnx", 1, "foreign.onnx"),
    ],
)
def test_bad_input_is_one_sentence(run: Run, arguments: str, code: int, sentence: str) -> None:
    """Exit code 2 for usage, 1 otherwise; one line; no traceback; nothing on standard output; nothing half-written."""
    before = sorted(Path().rglob("*"))
    outcome = run(*arguments.split(), *([] if arguments == "trian" else ["--json"]))
    last = outcome.err.strip().splitlines()[-1]
    assert outcome.code == code, outcome.err
    assert last.startswith("error: ")
    assert sentence in last
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    assert sorted(Path().rglob("*")) == before


def test_absent_bit_width_lists_the_stored_ones(run: Run, tmp_path: Path) -> None:
    """A checkpoint of 2 to 4 bits has no 8-bit network."""
    outcome = run("train", "--bits", "2,4", "--epochs", "1", "--limit", "100", "--out", str(tmp_path / "run"), "--json")
    assert outcome.code == 0, outcome.err
    for command in ("export", "eval", "bench", "verify"):
        outcome = run(command, str(tmp_path / "run"), "--bits", "8", "--json")
        assert outcome.code == 2
        assert "2, 3, 4" in outcome.err


@pytest.mark.parametrize("damage", ["truncate", "flip", "foreign", "empty"])
def test_damaged_files_are_refused(run: Run, tmp_path: Path, damage: str) -> None:
    """A truncated, altered or foreign file never runs, neither a checkpoint nor an exported one."""
    run("export", "--bits", "4", "--json")
    for original in (Path(CHECKPOINT), Path(CHECKPOINT).parent / "bundle" / "model-w4.onnx"):
        data = bytearray(original.read_bytes())
        if damage == "truncate":
            data = data[: len(data) * 2 // 3]
        elif damage == "flip":
            data[len(data) // 2] ^= 0x10
        elif damage == "foreign":
            data = bytearray(np.random.default_rng(0).bytes(5000))
        else:
            data = bytearray()
        broken = tmp_path / original.name
        broken.write_bytes(data)
        outcome = run("bench", str(broken), "--json")
        assert outcome.code == 1
        assert outcome.out == ""
        assert len(outcome.err.strip().splitlines()) == 1
        assert str(broken) in outcome.err


def test_bench_says_why_accuracy_is_missing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the data set the rest is measured, and nobody has to guess what happened to the accuracy."""
    from emqdeploy.errors import EmqError
    from emqdeploy.runtimes import test_images

    def missing(*arguments: Any) -> None:
        raise EmqError("the data set is not at hand")

    monkeypatch.setattr(test_images, "dataset_of", missing)
    outcome = run("bench", "--bits", "8", "--samples", "10", "--energy", "none", "--json")
    assert outcome.code == 0
    assert outcome.json["rows"][0]["accuracy"] is None
    assert "accuracy is not measured: the data set is not at hand" in outcome.err


def test_debug_shows_the_traceback(run: Run) -> None:
    """Behind any command, for whoever wants to know more."""
    outcome = run("inspect", "train.json", "--debug")
    assert outcome.code == 1
    assert "Traceback" in outcome.err


def test_a_device_without_torch_says_what_to_install(tmp_path: Path) -> None:
    """Only training needs torch; a device that tries gets one sentence, and `doctor` names the extra."""
    blocked = "import sys; sys.modules['torch'] = None; from emqdeploy.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", blocked]
    train = subprocess.run([*command, "train"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert train.returncode == 1
    assert train.stderr.strip() == (
        'error: this command needs torch, which is not installed; run: pip install "emqdeploy[all]"'
    )
    doctor = subprocess.run([*command, "doctor"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "emqdeploy[train]" in doctor.stdout


def test_interrupted_training_says_how_to_go_on(run: Run, tmp_path: Path) -> None:
    """A real Ctrl-C in a real process: saved, one sentence, and the command that it names finishes the run."""
    command = [
        sys.executable,
        "-m",
        "emqdeploy",
        "train",
        "--epochs",
        "4",
        "--limit",
        "300",
        "--bits",
        "2,8",
        "--out",
        str(tmp_path / "run"),
    ]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("float epoch 1/4"):
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGINT
    assert out == ""
    assert "Traceback" not in err
    resume = f"train --resume {tmp_path / 'run'}"
    assert err.strip().splitlines()[-1].endswith(f"emqdeploy {resume}")
    assert run(*resume.split(), "--json").json["sample_passes"] == 2 * 4 * 270


def test_full_disk_is_one_sentence(trained: Path, tmp_path: Path) -> None:
    """A disk that fills up while the checkpoint is written: a real file-size limit of the operating system."""
    command = (
        f"ulimit -f 40; exec {sys.executable} -m emqdeploy export {trained / CHECKPOINT} --bits 4 --out {tmp_path}/out"
    )
    result = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "out").glob("*.onnx"))
