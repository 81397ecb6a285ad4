"""How a command ends that is stopped, or that cannot write: one sentence or silence, the usual code, no leftovers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from emqdeploy.cli import main

NETWORK = Path(__file__).parent / "data" / "format3.emq"
COMMAND = f"{sys.executable} -m emqdeploy"


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a line of bash in a folder of its own."""
    path = str(Path(__file__).parent.parent)
    command = ["bash", "-c", f"set -o pipefail; {line}"]
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def test_a_reader_that_leaves_is_no_failure(tmp_path: Path) -> None:
    """``| head -1``: silence, and no failure in a pipe that looks at codes."""
    for arguments in (f"inspect {NETWORK}", f"inspect {NETWORK} --json", "export --help"):
        done = shell(f"{COMMAND} {arguments} | (head -c 1 >/dev/null; exec <&-)", tmp_path)
        assert (done.returncode, done.stderr) == (0, "")


def test_an_output_of_few_characters_gets_their_spelling(tmp_path: Path) -> None:
    """A log in ASCII costs no result: not at a bench's last line, nor at a name in another script."""
    bench = f"bench {NETWORK} --bits 8 --samples 10 --scenario single --energy none --runtime onnxruntime"
    done = shell(f"PYTHONIOENCODING=ascii {COMMAND} {bench}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\| p50 (us|ms) \|", done.stdout)
    assert re.search(r"8 bits.* onnxruntime", done.stdout)
    done = shell(f"PYTHONIOENCODING=ascii {COMMAND} inspect netzwerk-für-µ", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: netzwerk-f\\xfcr-u does not exist")


@pytest.mark.parametrize("option", ["", "--json"])
def test_a_full_output_is_one_sentence(tmp_path: Path, option: str) -> None:
    """The interpreter's own complaint at the end would have code 120."""
    done = shell(f"{COMMAND} inspect {NETWORK} {option} > /dev/full", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "the disk is full" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_closed_output_is_nowhere(tmp_path: Path) -> None:
    """Neither a failure nor, worse, a file of ours that takes the place of the output."""
    done = shell(f"{COMMAND} export {NETWORK} --bits 8 --out closed >&- 2>&-", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = shell(f"{COMMAND} export {NETWORK} --bits 8 --out open >/dev/null", tmp_path)
    names = [sorted(path.name for path in (tmp_path / folder).iterdir()) for folder in ("closed", "open")]
    assert names[0] == names[1]
    for name in names[0]:
        assert (tmp_path / "closed" / name).read_bytes()[:20] == (tmp_path / "open" / name).read_bytes()[:20]
    done = shell(f"{COMMAND} inspect nothing 2>&-", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_while_importing(tmp_path: Path, name: str, code: int) -> None:
    """The first moments are imports, in which libraries turn an interruption into errors of their own."""
    (tmp_path / "early.py").write_text(
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'emqdeploy.cli.measuring':\n"
        "            try:\n"
        f"                os.kill(os.getpid(), signal.{name})\n"
        "            except BaseException:\n"
        "                raise ImportError('made of an interruption')\n"
        "from emqdeploy.__main__ import main\n"
        "sys.meta_path.insert(0, Finder())\n"
        "main()\n"
    )
    done = shell(f"exec {sys.executable} early.py inspect {NETWORK}", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "error: interrupted\n")


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_in_an_export(tmp_path: Path, name: str, code: int) -> None:
    """What was staged goes away, and so does a directory that holds nothing yet."""
    (tmp_path / "late.py").write_text(
        "import os, signal\n"
        "from emqdeploy.__main__ import main\n"
        "from emqdeploy.workflows import export\n"
        f"export.Prover = lambda *_: os.kill(os.getpid(), signal.{name})\n"
        "main()\n"
    )
    done = shell(f"exec {sys.executable} late.py export {NETWORK} --bits 8 --out bundle", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "error: interrupted\n")
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["late.py"]


@pytest.mark.parametrize("limit", [8, 12, 16, 20])
def test_few_open_files_are_enough_or_named(tmp_path: Path, limit: int) -> None:
    """Whatever could not be opened, the sentence says why; it is not a defect."""
    done = shell(f"ulimit -n {limit}; {COMMAND} export {NETWORK} --bits 8 --out bundle", tmp_path)
    assert "defect" not in done.stderr
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert done.stderr.splitlines()[-1].startswith("error: ")
        assert not (tmp_path / "bundle" / "manifest.json").exists()


def test_no_home_and_no_place_for_temporary_files(tmp_path: Path) -> None:
    """An export needs neither."""
    done = shell(f"unset HOME; TMPDIR=/nonexistent {COMMAND} export {NETWORK} --bits 8 --out bundle", tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("option", ["--out", "--csv", "--html"])
def test_a_bench_knows_first_where_it_cannot_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], option: str
) -> None:
    """Before anything is measured."""
    monkeypatch.chdir(tmp_path)
    for place in ("/dev/full", "missing/file", "."):
        with pytest.raises(SystemExit) as ended:
            main(["bench", str(NETWORK), option, place])
        complaint = capfd.readouterr().err
        assert ended.value.code == 1
        assert complaint.startswith("error: cannot write")
        assert complaint.count("\n") == 1
    assert not list(tmp_path.iterdir())


WRITERS = {
    "train --out out --epochs 1 --limit 80": "out",
    "train --epochs 1 --limit 80": "runs/digits-resnet8-001",
    "quantize float.pt --data digits --model resnet8 --bits 4,8 --images 64 --out out": "out",
    f"export {NETWORK} --bits 8 --out bundle": "bundle",
    f"bench {NETWORK} --bits 8 --samples 4 --scenario single --energy none --out bench.json": "bench.json",
    f"run {NETWORK} --source pictures --bits 8 --energy none --log run.jsonl": "run.jsonl",
}


def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    """Before any work: one sentence, the code of a failure, and nothing left behind."""
    (tmp_path / "in_turn.py").write_text(
        "import sys\n"
        "from emqdeploy import cli\n"
        "for line in sys.stdin:\n"
        "    try:\n"
        "        cli.main(line.split())\n"
        "    except SystemExit as ended:\n"
        "        print(ended.code, file=sys.stderr)\n"
    )
    (tmp_path / "float.pt").touch()
    (tmp_path / "pictures").mkdir()
    there = sorted(tmp_path.iterdir())
    unprivileged = ""
    if os.geteuid() == 0:  # without this capability permissions bind even root
        if shutil.which("setpriv") is None:
            pytest.skip("permissions do not bind the superuser")
        unprivileged = "setpriv --bounding-set=-dac_override"
    tmp_path.chmod(0o555)
    try:
        lines = "\n".join(WRITERS)
        done = shell(f"{unprivileged} {sys.executable} -B in_turn.py <<'END'\n{lines}\nEND", tmp_path)
    finally:
        tmp_path.chmod(0o755)
    said = [f"error: cannot write {name}: permission is denied; choose another" for name in WRITERS.values()]
    found = done.stderr.splitlines()
    assert [one[: len(other)] for one, other in zip(found[::2], said, strict=True)] == said
    assert found[1::2] == ["1"] * len(WRITERS)
    assert sorted(tmp_path.iterdir()) == there
