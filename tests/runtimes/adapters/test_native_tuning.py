"""Which kernel was fastest is kept: read back where it fits, ignored where it does not, and only ever a choice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emqdeploy.runtimes.adapters.native_runtime import NativeRuntime
from emqdeploy.runtimes.native_library import forget_tuning, instruction_sets, library_path

from .test_native import assert_exact, deployed

pytestmark = pytest.mark.skipif(
    library_path() is None or "avx2" not in instruction_sets() or not Path("/proc/cpuinfo").exists(),
    reason="needs emqdeploy-native, kernels to choose among, and a system that names its processor",
)

MODEL = "preact-resnet8"
CHILD = "2a2"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of its own, and an instruction set with four kernels to choose among."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("EMQ_ISA", "avx2")
    return tmp_path / "cache" / "emqdeploy"


def methods() -> list[str]:
    """Opens a network; how its layers are computed at a child, but for those that there is one kernel for."""
    with NativeRuntime(deployed(MODEL).checkpoint, threads=1) as runtime:
        found = [layer.computed_as for layer in runtime.precision(CHILD)]
    return [method for method in found if method != "int8, depthwise"]


def kept(cache: Path) -> Path:
    """The one file that there is."""
    (file,) = cache.iterdir()
    return file


def edited(text: str, method: str) -> str:
    """The same entries with another choice, wherever there are several kernels."""
    return "\n".join(f"{line.partition(' = ')[0]} = {method}" if " = " in line else line for line in text.splitlines())


def test_what_was_fastest_is_kept_and_taken(cache: Path) -> None:
    """A later start reads the file; another choice in it is taken where the layer can be computed so."""
    methods()
    file = kept(cache)
    assert (file.stat().st_mode & 0o777, file.name.startswith("kernels-")) == (0o600, True)
    entries = [line.rpartition(" = ")[2] for line in file.read_text().splitlines()[2:]]
    assert set(entries) <= {"int8, AVX2", "int16, AVX2", "int16 deferred, AVX2", "lookup, AVX2"}
    file.write_text(edited(file.read_text(), "int16, AVX2"))
    assert set(methods()) == {"int16, AVX2"}
    file.write_text(edited(file.read_text(), "lookup, AVX2"))
    assert "lookup, AVX2" in methods()  # those that read negative codes cannot
    images = deployed(MODEL).images[:1]
    assert_exact(deployed(MODEL).checkpoint, images)


def test_tuning_again_forgets(cache: Path) -> None:
    """What ``--tune`` calls: the choices are gone, other files stay, and the next network makes them again."""
    methods()
    name = kept(cache).name
    (cache / "proofs").mkdir()
    forget_tuning()
    assert [one.name for one in cache.iterdir()] == ["proofs"]
    forget_tuning()
    methods()
    assert {one.name for one in cache.iterdir()} == {name, "proofs"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe" * 99,
        b"emqdeploy kernels 1\n",
        b"emqdeploy kernels 1\nanother processor\n1 2 3 = int8, AVX2\n",
        b"{header}\n1 2 3 = \n",
        b"{header}\n" + b"1 2 3 = int8, AVX2\n" * 60_000,
        b"{header}\n" + b"1" * 500 + b" = int8, AVX2\n",
        b"{header}\nno entry\n",
        b"{header}\n1 2 = \x1b[31m\n",
        b"{header}\n1 2 = int8\0, AVX2\n",
    ],
)
def test_a_damaged_file_is_ignored(cache: Path, content: bytes) -> None:
    """It is replaced by a good one."""
    methods()
    file = kept(cache)
    good = file.read_bytes()
    header = b"\n".join(good.splitlines()[:2])
    file.write_bytes(content.replace(b"{header}", header))
    methods()
    assert {line.partition(b" = ")[0] for line in file.read_bytes().splitlines()} >= {
        line.partition(b" = ")[0] for line in good.splitlines()
    }


@pytest.mark.parametrize("method", ["int8, VNNI", "portable", "", "../../x", "lookup"])
def test_a_kernel_that_is_none_of_these_is_not_taken(cache: Path, method: str) -> None:
    """Names are compared with the kernels that there are."""
    methods()
    kept(cache).write_text(edited(kept(cache).read_text(), method))
    assert set(methods()) <= {"int8, AVX2", "int16, AVX2", "int16 deferred, AVX2", "lookup, AVX2"}


def test_what_is_no_file_is_left_alone(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe is not waited for, a link is not followed, and where nothing can be written nothing is."""
    first = methods()
    file = kept(cache)
    content = edited(file.read_text(), "int16, AVX2")
    for place in ("pipe", "link", "folder"):
        file.unlink()
        target = tmp_path / "target"
        target.write_text(content)
        if place == "pipe":
            os.mkfifo(file)
        elif place == "link":
            file.symlink_to(target)
        else:
            file.mkdir()
        assert len(methods()) == len(first)
        assert target.read_text() == content
        if place == "folder":
            assert [one.name for one in cache.iterdir()] == [file.name]
    for nowhere in (str(target), "/proc/1/none", "", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", nowhere)
        monkeypatch.setenv("HOME", nowhere)
        assert len(methods()) == len(first)
    assert not Path("relative").exists()
