"""A checkpoint in parts: a base that runs by itself, and enhancements that each add bit-planes (vertical layering).

The idea is that of Wu et al. (arXiv 2212.05326): one representation, of which the first bit-planes are a whole network.
The base is an ``.emq`` of the narrow children. An enhancement (``.emqx``) holds what the next ``.emq`` has and the one
before has not:

=============  =====================================================================================================
8 bytes        ``EMQX`` and how many bytes the head has, little endian
head           JSON, see `Head`: the hash of the ``.emq`` that it builds on, and that of the one it makes
rest           the header of the ``.emq`` that it makes, and in its order every tensor that the base has not
=============  =====================================================================================================

What is put together is compared with its hash, and then read as any other ``.emq``, through the same checks.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec
from msgspec import Meta

from emqdeploy.errors import EmqError, UsageError, writable_dir
from emqdeploy.files import LARGEST_TEXT, atomic_write_bytes, read_bytes
from emqdeploy.format.card import decode, encode
from emqdeploy.format.child import MASTER_BITS, Child
from emqdeploy.format.emq import SUFFIX, Checkpoint, load_checkpoint, save_checkpoint
from emqdeploy.format.emq_schema import Header, widths_of
from emqdeploy.format.tensor_file import LARGEST_HEADER, read_table

ENHANCEMENT = ".emqx"
INDEX = "parts.json"
LARGEST_PART = 4 << 30
"""Bytes of a part, and of what parts make; one that says more is refused."""

_MAGIC = b"EMQX"
_LARGEST_HEAD = 1 << 16
_REMEDY = "fetch or split it again"

Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Bytes = Annotated[int, Meta(ge=1, le=LARGEST_PART)]


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an enhancement is for.

    Attributes:
        builds_on: SHA-256 of the ``.emq`` that has to be there.
        makes: SHA-256 of the ``.emq`` that comes out.
        size: bytes of that.
    """

    builds_on: Digest
    makes: Digest
    size: Bytes


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of a checkpoint in parts.

    Attributes:
        file: its name.
        size: its bytes.
        sha256: its hash.
        bits: widest weights of the children that are there once it has come.
        children: their names.
    """

    file: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][\w.-]{0,99}$")]
    size: Bytes
    sha256: Digest
    bits: Annotated[int, Meta(ge=1, le=MASTER_BITS)]
    children: tuple[str, ...]


class Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The parts of a checkpoint, the base first."""

    parts: Annotated[tuple[Part, ...], Meta(min_length=1, max_length=MASTER_BITS)]


def split(path: Path, at: Sequence[int], out: Path) -> Index:
    """Writes a checkpoint as a base and enhancements, and `INDEX`, which names them.

    Args:
        path: the ``.emq``.
        at: weight widths, ascending, after which a part ends; the widest is always the end of the last one.
        out: an empty or new directory.

    Raises:
        UsageError: no child is as narrow as the first width, or a width adds none.
        EmqError: the checkpoint cannot be read, or the directory cannot be written.
    """
    checkpoint = load_checkpoint(path)
    widest = {child: _widest(checkpoint, child) for child in checkpoint.network.children}
    ends = sorted({*(bits for bits in at if bits < max(widest.values())), max(widest.values())})
    levels = [(bits, tuple(child for child in widest if widest[child] <= bits)) for bits in ends]
    for (_, fewer), (bits, more) in zip([(0, ()), *levels], levels, strict=False):
        if len(more) == len(fewer):
            known = ", ".join(map(str, sorted(set(widest.values()))))
            raise UsageError(f"--at {bits} would make a part that adds no child; {path} has weights of {known} bits")
    folder = writable_dir(out)
    if any(folder.iterdir()):
        raise UsageError(f"{out} is not empty; name a new directory with --out")
    parts: list[Part] = []
    before = b""
    for bits, children in levels:
        whole = len(children) == len(widest)
        made = read_bytes(path, LARGEST_PART, _REMEDY) if whole else _only(checkpoint, children)
        name = f"{path.stem}-w{bits}{ENHANCEMENT if parts else SUFFIX}"
        data = enhancement(before, made) if parts else made
        atomic_write_bytes(folder / name, data)
        parts.append(Part(name, len(data), _hash(data), bits, tuple(child.name for child in children)))
        before = made
    atomic_write_bytes(folder / INDEX, encode(Index(tuple(parts))))
    return Index(tuple(parts))


def read_index(data: bytes, where: str) -> Index:
    """Reads `INDEX`; ``where`` begins the sentence of an error."""
    try:
        return decode(Index, data)
    except ValueError as error:
        raise EmqError(f"{where} is no list of parts ({error}); {_REMEDY}") from error


def join(folder: Path, out: Path, bits: int | None = None) -> Part:
    """Puts parts together again, up to a weight width or all; the last of them gives the file that was split.

    Raises:
        EmqError: a part is missing, altered or of another checkpoint; nothing is written then.
        UsageError: the base has more bits than were asked for.
    """
    index = read_index(read_bytes(folder / INDEX, LARGEST_TEXT, _REMEDY), str(folder / INDEX))
    wanted = [part for part in index.parts if bits is None or part.bits <= bits]
    if not wanted:
        raise UsageError(f"the base of {folder} has {index.parts[0].bits} bits; ask for as many at least with --bits")
    made = b""
    for part in wanted:
        path = folder / part.file
        data = read_bytes(path, LARGEST_PART, _REMEDY, inside=folder)
        if _hash(data) != part.sha256:
            raise EmqError(f"{path} was altered or is cut off: it does not match its hash in {INDEX}; {_REMEDY}")
        made = apply(made, io.BytesIO(data), str(path)) if made else data
    check(made, str(folder))
    atomic_write_bytes(out, made)
    return wanted[-1]


def check(data: bytes, where: str) -> Checkpoint:
    """Reads an ``.emq`` that lies in memory, with every check that one on the disk passes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"whole{SUFFIX}"
        path.write_bytes(data)
        try:
            return load_checkpoint(path)
        except EmqError as error:
            raise EmqError(str(error).replace(str(path), where)) from error


# --- what an enhancement holds ------------------------------------------------------------------------------------


def enhancement(before: bytes, made: bytes) -> bytes:
    """What ``made`` has and ``before`` has not, both whole ``.emq`` files."""
    held = _hashes(before)
    table, header, start = read_table(made)
    hashes = decode(Header, header).hashes
    head = encode(Head(_hash(before), _hash(made), len(made)))
    parts = [_MAGIC, len(head).to_bytes(4, "little"), head, made[:start]]
    for name, (first, last) in table:
        if held.get(name, (0, 0, ""))[2] != hashes[name]:
            parts.append(made[start + first : start + last])
    return b"".join(parts)


def read_head(stream: BinaryIO, where: str) -> Head:
    """Reads the head of an enhancement; the stream then stands before the rest."""
    begin = _exactly(stream, 8, where)
    length = int.from_bytes(begin[4:], "little")
    if begin[:4] != _MAGIC or length > _LARGEST_HEAD:
        raise EmqError(f"{where} is no enhancement (*{ENHANCEMENT}); name a file that emqdeploy split wrote")
    try:
        return decode(Head, _exactly(stream, length, where))
    except ValueError as error:
        raise EmqError(f"{where} is damaged ({error}); {_REMEDY}") from error


def apply(before: bytes, stream: BinaryIO, where: str) -> bytes:
    """Returns the ``.emq`` that an enhancement makes of another one.

    Args:
        before: the ``.emq`` that is there.
        stream: the enhancement; no more is read of it than belongs to it.
        where: what it is called in the sentence of an error.

    Raises:
        EmqError: it is cut off or altered, or builds on another file.
    """
    head = read_head(stream, where)
    if head.builds_on != _hash(before):
        raise EmqError(f"{where} builds on another file than the one that is there; add the parts in their order")
    length = _exactly(stream, 8, where)
    text = _exactly(stream, min(int.from_bytes(length, "little"), head.size, LARGEST_HEADER), where)
    try:
        table, header, start = read_table(length + text)
        hashes = decode(Header, header).hashes
        held, parts, size = _hashes(before), [length + text], start
        for name, (first, last) in table:
            begin, end, digest = held.get(name, (0, 0, ""))
            same = digest == hashes[name] and end - begin == last - first
            size += last - first
            if size > head.size:
                raise ValueError("it makes more than it says")
            parts.append(before[begin:end] if same else _exactly(stream, last - first, where))
    except (ValueError, KeyError) as error:
        raise EmqError(f"{where} is damaged ({error}); {_REMEDY}") from error
    made = b"".join(parts)
    if _hash(made) != head.makes:
        raise EmqError(f"{where} was altered: what it makes does not match its hash; {_REMEDY}")
    return made


def _hashes(emq: bytes) -> dict[str, tuple[int, int, str]]:
    """Where each tensor of an ``.emq`` lies, and its hash."""
    table, header, start = read_table(emq)
    hashes = decode(Header, header).hashes
    return {name: (start + first, start + last, hashes[name]) for name, (first, last) in table}


def _only(checkpoint: Checkpoint, children: tuple[Child, ...]) -> bytes:
    """The ``.emq`` of a few children."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"part{SUFFIX}"
        save_checkpoint(path, replace(checkpoint, network=replace(checkpoint.network, children=children)))
        return path.read_bytes()


def _widest(checkpoint: Checkpoint, child: Child) -> int:
    """The most bits that a layer's codes have at a child; layers that stay at 8 bits are in the base anyway."""
    switchable = [name for name, layer in checkpoint.network.layers.items() if not layer.pinned]
    return max(widths_of([child], switchable), default=1)


def _exactly(stream: BinaryIO, count: int, where: str) -> bytes:
    parts, left = [], count
    while left:
        part = stream.read(min(left, 1 << 20))
        if not part:
            raise EmqError(f"{where} is cut off; {_REMEDY}")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
