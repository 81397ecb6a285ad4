"""Pictures from anybody: only what is a picture is opened, and none fills the memory."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from emqdeploy.data.images import FORMATS, open_image, read_image
from emqdeploy.errors import EmqError

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


def _png(width: int, height: int) -> bytes:
    """A picture that claims a size; its pixels are a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".eps"])
def test_postscript_starts_no_program(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the file is called."""
    ran = tmp_path / "ran"
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    picture = tmp_path / f"picture{suffix}"
    picture.write_bytes(POSTSCRIPT)
    with pytest.raises(EmqError, match="is not a readable image; replace or remove it"):
        open_image(picture, 3)
    assert not ran.exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("width", "height"), [(10_001, 10_000), (12_000, 12_000), (60_000, 60_000)])
def test_a_picture_that_would_fill_the_memory_is_refused(width: int, height: int, tmp_path: Path) -> None:
    """One sentence, before a pixel is decoded."""
    picture = tmp_path / "bomb.png"
    picture.write_bytes(_png(width, height))
    with pytest.raises(EmqError, match="more than 100 million pixels"):
        open_image(picture, 3)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """Nor any other thing that has no end."""
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(EmqError, match="it is not a regular file"):
        open_image(tmp_path / "pipe.png", 1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FORMATS)
def test_every_kind_of_picture_opens_and_damage_is_one_sentence(kind: str, tmp_path: Path) -> None:
    """Decoders raise many things; a user sees one."""
    pixels = np.random.default_rng(3).integers(0, 256, (16, 16, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    picture = tmp_path / "picture"
    picture.write_bytes(buffer.getvalue())
    assert read_image(picture, 3, 16, 16).shape == (3, 16, 16)
    generator = np.random.default_rng(5)
    for _ in range(200):
        data = np.frombuffer(buffer.getvalue(), np.uint8).copy()
        places = generator.integers(0, len(data), 4)
        data[places] = generator.integers(0, 256, 4)
        picture.write_bytes(data[: generator.integers(1, len(data) + 1)].tobytes())
        with contextlib.suppress(EmqError):
            read_image(picture, 3, 16, 16)
