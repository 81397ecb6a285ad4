"""The seal of an exported ONNX file: our metadata and a hash over the whole file, readable without the onnx package."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from emqdeploy.errors import EmqError
from emqdeploy.format.card import (
    Card,
    ChildRecord,
    Name,
    Record,
    Text,
    check_card,
    damaged,
    decode,
    encode,
    read_children,
)
from emqdeploy.format.child import Child

METADATA_KEY = "emqdeploy"

PIXELS_KEY = "emqdeploy_preprocessing"
"""Says once more how a picture becomes the input, as JSON of `Pixels`: for programs in any language."""

_DIGEST_KEY = "emqdeploy_digest"
_BLANK = "0" * 32
_SEALED = re.compile(rb"emqdeploy_digest\x12\x20([0-9a-f]{32})")
"""A metadata entry as protobuf writes it: the key, then tag and length of a 32-character value."""


class Sealed(Record, frozen=True, kw_only=True):
    """What an exported file says about itself.

    Attributes:
        card: about its network.
        children: those that it answers for, in the order of the selector's input where there is one.
        grid_bits: bits of the weight grid, by child and layer.
        stored_as: the type of its weights.
        selector: the kind of selector, None where it holds one child.
    """

    card: Card
    children: Annotated[tuple[ChildRecord, ...], Meta(min_length=1)]
    grid_bits: dict[Name, dict[Name, int]]
    stored_as: Text
    selector: Text | None = None

    def read_children(self) -> tuple[Child, ...]:
        """The children that it answers for."""
        return read_children(self.children)


def seal(model: Any, about: Sealed) -> bytes:
    """Serialises an ONNX model with what it says about itself and a digest, taken with the digest's own place blank."""
    said = {PIXELS_KEY: encode(about.card.preprocessing), METADATA_KEY: encode(about), _DIGEST_KEY: _BLANK.encode()}
    for key, value in said.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value.decode()
    data: bytes = model.SerializeToString(deterministic=True)
    start, end = list(_SEALED.finditer(data))[-1].span(1)
    return data[:start] + _digest(data).encode() + data[end:]


def check_seal(path: Path, data: bytes) -> None:
    """Raises one sentence for a file that is not ours, was truncated or altered."""
    found = list(_SEALED.finditer(data))
    if not found:
        raise EmqError(f"{path} is not an ONNX file that emqdeploy exported, or is truncated; export it again")
    start, end = found[-1].span(1)
    if _digest(data[:start] + _BLANK.encode() + data[end:]) != found[-1].group(1).decode():
        raise EmqError(f"{path} was altered or truncated: it does not match its hash; export it again")


def read_seal(path: Path, data: bytes) -> Sealed:
    """Checks the seal of a file's content and returns what it says; no package that reads ONNX is needed.

    Raises:
        EmqError: one sentence: the file is not ours, truncated, altered, or of another version.
    """
    check_seal(path, data)
    try:
        about = decode(Sealed, _metadata(data))
        children = about.read_children()
        check_card(about.card, children)
        if set(about.grid_bits) != {child.name for child in children}:
            raise ValueError("its grids are not those of its children")
    except (ValueError, LookupError) as error:
        raise damaged(path, error, "export it again with this version") from error
    return about


def _metadata(data: bytes) -> bytes:
    """Our metadata's bytes, found without a package that reads ONNX."""
    key = METADATA_KEY.encode()
    marker = bytes((0x0A, len(key))) + key + b"\x12"  # field 1, its length, the key; field 2 follows
    position = data.rindex(marker) + len(marker)
    length = shift = 0
    while True:  # protobuf's variable-length integer: seven bits a byte, the least significant first
        byte = data[position]
        position += 1
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return data[position : position + length]


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
