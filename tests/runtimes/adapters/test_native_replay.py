"""The native kernels on processors that have no Python: ARM in an emulator, and the same program on this one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from emqdeploy.format.emq import load_checkpoint
from emqdeploy.runtimes.native_library import instruction_sets, library_path

from ..test_native_file import KEPT, classified, pixels_for
from .native_cases import write_cases

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
ARM = ROOT / "build" / "arm"
HEADERS = f"-I{ROOT / 'native' / 'include'}"
needs_arm = pytest.mark.skipif(
    not (ARM / "replay").exists() or shutil.which("qemu-aarch64") is None,
    reason="make arm builds the program, qemu-user runs it",
)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of networks with what the reference computes."""
    path = tmp_path_factory.mktemp("cases") / "cases"
    write_cases(path)
    return path


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program for this processor, with the library that is installed."""
    library, program = library_path(), tmp_path_factory.mktemp("replay") / "replay"
    assert library is not None
    link = (library, f"-Wl,-rpath,{library.parent}")
    printed("c++", "-std=c++17", HEADERS, ROOT / "native" / "tests" / "replay.cpp", *link, "-o", program)
    return program


def on_arm(processor: str, *command: str | Path, **variables: str) -> list[str]:
    """Runs a program on an emulated processor; returns what it prints."""
    return printed("qemu-aarch64", "-cpu", processor, *command, **variables)


def printed(*command: str | Path, **variables: str) -> list[str]:
    """Runs a command that has to succeed; returns the lines that it prints."""
    done = subprocess.run(command, env={**os.environ, **variables}, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@needs_arm
@pytest.mark.parametrize(
    ("instructions", "kernel", "method"),
    [
        ("neon", "int8", "int8, NEON"),
        ("neon", "int16", "int16 deferred, NEON"),
        ("neon", "lookup", "lookup, NEON"),
        ("dotprod", "int8", "int8, dotprod"),
        ("i8mm", "int8", "int8, i8mm"),
        ("portable", "int8", "int8, portable"),
    ],
)
def test_arm_kernels_are_exact(cases: Path, instructions: str, kernel: str, method: str) -> None:
    """Every code and every answer is the reference's, and the kernel that was asked for computed some of them."""
    lines = on_arm("max", ARM / "replay", cases, EMQ_ISA=instructions, EMQ_KERNEL=kernel)
    assert lines[0].startswith("exact: 4 networks,")
    assert method in lines


@needs_arm
@pytest.mark.parametrize(
    ("processor", "there"),
    [
        ("cortex-a53", "neon portable"),
        ("neoverse-n1", "dotprod neon portable"),
        ("max", "i8mm dotprod neon portable"),
    ],
)
def test_an_arm_processor_gets_the_kernels_that_it_can_run(processor: str, there: str) -> None:
    """The system says what the processor has; what it lacks would end the process."""
    assert on_arm(processor, ARM / "replay") == [there]


@needs_arm
def test_the_example_answers_on_arm_as_python(tmp_path: Path) -> None:
    """A file that Python saved, opened there by a program in C, gives every child's class and probability."""
    program, checkpoint = tmp_path / "classify", load_checkpoint(KEPT)
    example = ROOT / "examples" / "c" / "classify.c"
    printed("aarch64-linux-gnu-gcc", "-std=c99", HEADERS, "-c", example, "-o", program.with_suffix(".o"))
    printed("aarch64-linux-gnu-g++", "-static", program.with_suffix(".o"), ARM / "libemq.a", "-o", program)
    pixels = pixels_for(checkpoint, 1)
    (tmp_path / "image.raw").write_bytes(pixels.tobytes())
    assert on_arm("max", program, KEPT, tmp_path / "image.raw") == classified(checkpoint, pixels)


@pytest.mark.parametrize("instructions", instruction_sets() if library_path() else [])
def test_the_program_is_exact_on_this_processor(cases: Path, replay: Path, instructions: str) -> None:
    """A program in plain C terms, which knows no Python, opens what Python saved and finds every code."""
    assert printed(replay, cases, EMQ_ISA=instructions)[0].startswith("exact: 4 networks,")
