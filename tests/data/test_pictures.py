"""Pictures from anybody: only what is a picture is opened, and none fills the memory."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as given_settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import EpsImagePlugin, Image

from emqdeploy.data import Preprocessing
from emqdeploy.data.images import FORMATS, open_image
from emqdeploy.errors import EmqError

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


def read_image(path: Path, channels: int, height: int, width: int) -> np.ndarray:
    """Reads a picture as a network of that size is tested on it."""
    return Preprocessing(channels, height, width, (0.0,) * channels, (1.0,) * channels).read(path)


def _png(width: int, height: int, depth: int = 8, colours: int = 0, rows: bytes = b"\0") -> bytes:
    """A picture that claims a size; without rows of bytes, a filter's number before each, its pixels are missing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _tiff(pixels: bytes, size: int, depth: int, white_is_zero: bool = False, kind: int = 1) -> bytes:
    """A square picture of one channel; its kind is 1 for numbers without a sign, 2 for signed, 3 for floats."""
    tags = {
        **{256: size, 257: size, 258: depth, 259: 1, 262: 0 if white_is_zero else 1, 273: 8},
        **{277: 1, 278: size, 279: len(pixels), 339: kind},
    }
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory


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


SIDE = 8
RAMP = np.linspace(0, 65535, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)


@given_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrays.arrays(np.uint16, (SIDE, SIDE), elements=st.integers(0, 65535)))
def test_16_bits_are_their_8_bit_twin(tmp_path: Path, values: np.ndarray) -> None:
    """Grey pictures of any format keep the upper half of their values; clipped, nearly all of them would be white."""
    twin = (values >> 8).astype(np.uint8)
    for name in ("grey.png", "grey.tif", "grey.pgm"):
        Image.fromarray(values).save(tmp_path / name)
        for channels in (1, 3):
            pixels = read_image(tmp_path / name, channels, SIDE, SIDE)
            np.testing.assert_array_equal(pixels, np.broadcast_to(twin, (channels, SIDE, SIDE)))


def test_wide_colours_and_other_depths(tmp_path: Path) -> None:
    """Colour of 16 bits is cut as grey is; 12 bits are stretched to what 8 bits can say; either order of bytes."""
    colours = np.stack([RAMP, RAMP[::-1], RAMP.T], -1)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    (tmp_path / "colour.png").write_bytes(_png(SIDE, SIDE, 16, 2, rows))
    np.testing.assert_array_equal(read_image(tmp_path / "colour.png", 3, SIDE, SIDE), (colours >> 8).transpose(2, 0, 1))
    pairs = (RAMP >> 4).reshape(-1, 2).astype(np.uint32)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], -1)
    (tmp_path / "twelve.tif").write_bytes(_tiff(packed.astype(np.uint8).tobytes(), SIDE, 12))
    Image.frombytes("I;16B", (SIDE, SIDE), RAMP.astype(">u2").tobytes()).save(tmp_path / "big.tif")
    for name in ("twelve.tif", "big.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name, 1, SIDE, SIDE)[0], RAMP >> 8)


def test_floats_from_0_to_1_are_scaled(tmp_path: Path) -> None:
    """They are the one range that leaves no doubt; any other is refused with what was found."""
    values = (RAMP / 65535).astype(np.float32)
    Image.fromarray(values).save(tmp_path / "float.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "float.tif", 1, SIDE, SIDE)[0], np.rint(values * 255))
    for other, found in ((values * 255, "from 0 to 255"), (values - 0.5, "from -0.5 to 0.5"), (values * np.nan, "nan")):
        Image.fromarray(other).save(tmp_path / "other.tif")
        with pytest.raises(EmqError, match=f"other.tif holds float values .*{found}.*; scale them to 0 to 1, or save"):
            read_image(tmp_path / "other.tif", 3, SIDE, SIDE)


@pytest.mark.parametrize(
    ("depth", "dtype", "more"),
    [(16, "<i2", {"kind": 2}), (32, "<i4", {"kind": 2}), (32, "<u4", {}), (16, "<u2", {"white_is_zero": True})],
)
def test_integers_without_a_known_white_are_refused(
    depth: int, dtype: str, more: dict[str, Any], tmp_path: Path
) -> None:
    """Signed ones, those of 32 bits, and those that Pillow would show as a negative."""
    pixels = (RAMP >> 1).astype(dtype).tobytes()
    (tmp_path / "strange.tif").write_bytes(_tiff(pixels, SIDE, depth, **more))
    with pytest.raises(EmqError, match=r"strange.tif holds integers of which none is known as white; save it with 8"):
        read_image(tmp_path / "strange.tif", 3, SIDE, SIDE)
