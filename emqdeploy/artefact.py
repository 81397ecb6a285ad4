"""The seal of an exported ONNX file: our metadata and a hash over the whole file, readable without the onnx package."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from emqdeploy.errors import EmqError

METADATA_KEY = "emqdeploy"
_DIGEST_KEY = "emqdeploy_digest"
_BLANK = "0" * 32
_SEALED = re.compile(rb"emqdeploy_digest\x12\x20([0-9a-f]{32})")
"""A metadata entry as protobuf writes it: the key, then tag and length of a 32-character value."""


def seal(model: Any, metadata: str) -> bytes:
    """Serialises an ONNX model with metadata and a digest of the file (taken with the digest's own place blank)."""
    for key, value in ((METADATA_KEY, metadata), (_DIGEST_KEY, _BLANK)):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
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


def read_metadata(data: bytes) -> dict[str, Any]:
    """Returns our metadata of a file whose seal was checked; no package that reads ONNX is needed."""
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
    values: dict[str, Any] = json.loads(data[position : position + length])
    return values


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
