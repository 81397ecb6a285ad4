"""Files of any origin: regular, of bounded size, inside their bundle; what is parsed is what was hashed."""

from __future__ import annotations

import base64
import gzip
import os
import shutil
from pathlib import Path

import pytest

from emqdeploy import files
from emqdeploy.errors import EmqError
from emqdeploy.files import read_bytes
from emqdeploy.format.bundle import Bundle
from emqdeploy.format.emq import load_checkpoint, save_checkpoint
from emqdeploy.measuring.result import load_result
from emqdeploy.report.html.shell import carried_data
from emqdeploy.runtimes.base import bundled_checkpoint
from emqdeploy.runtimes.onnx_file import read_sealed

KEPT = Path(__file__).parent / "data" / "schema2"

READERS = {"emq": load_checkpoint, "json": load_result, "html": carried_data, "onnx": read_sealed}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of a kept bundle."""
    return Path(shutil.copytree(KEPT, tmp_path / "bundle"))


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("kind", ["pipe", "directory", "device"])
def test_only_regular_files_are_read(suffix: str, kind: str, tmp_path: Path) -> None:
    """A pipe without a writer would be waited for without end."""
    path = tmp_path / f"one.{suffix}"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(EmqError, match="is a directory" if kind == "directory" else "not a regular file"):
        READERS[suffix](path)


def test_more_than_can_be_meant_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a large file, nor a small one that unfolds to a large one."""
    path = tmp_path / "one"
    with path.open("wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(EmqError, match="8589934592 bytes, at most 1000 are read; mend it"):
        read_bytes(path, 1000, "mend it")
    packed = base64.b64encode(gzip.compress(b" " * (files.LARGEST_TEXT + 1))).decode()
    page = tmp_path / "report.html"
    page.write_text(f'<script type="application/gzip" id="result">{packed}</script>')
    assert page.stat().st_size < 200_000
    with pytest.raises(EmqError, match="is damaged"):
        carried_data(page)


@pytest.mark.parametrize("name", ["manifest.json", "model-mixed.onnx", "format3.emq"])
def test_no_link_leads_out_of_a_bundle(name: str, bundle: Path, tmp_path: Path) -> None:
    """Not even to the very same bytes."""
    shutil.move(bundle / name, tmp_path / name)
    (bundle / name).symlink_to(tmp_path / name)
    with pytest.raises(EmqError, match=r"leads out of|lies outside the bundle"):
        Bundle.open(bundle)


def test_a_bundle_runs_its_own_checkpoint_only(bundle: Path) -> None:
    """Another valid one of the same size is refused, whichever way it is opened."""
    path, opened = bundle / "format3.emq", Bundle.open(bundle)
    checkpoint = load_checkpoint(path)
    size = save_checkpoint(bundle.parent / "same.emq", checkpoint)
    layer = next(layer for layer in checkpoint.network.layers.values() if not layer.pinned)
    layer.codes.reshape(-1)[0] ^= 1
    assert save_checkpoint(path, checkpoint) == size
    load_checkpoint(path)  # valid by itself
    for use in (lambda: opened.checkpoint_path, lambda: bundled_checkpoint(opened, "onnxruntime")):
        with pytest.raises(EmqError, match="was altered: it does not match its hash in the bundle's manifest"):
            use()
