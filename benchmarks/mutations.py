"""Damage that knows the structure of what it damages: JSON values, protobuf fields, tensors, and plain bytes.

Digests are made anew behind the damage, as somebody who wants to be believed would do, so that it reaches the readers.
"""

from __future__ import annotations

import base64
import copy
import gzip
import json
import random
import re
import zlib
from typing import Any

import numpy as np

from emqdeploy.format.protobuf import BYTES, VARINT, fields
from emqdeploy.format.tensor_file import hash_tensor, hash_text

ODD: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 7, 8, 9, 127, 255, 256, 65536, 1 << 31, 1 << 62, 1 << 63, 1 << 70, -(1 << 63)),
    *(0.5, -0.0, 1e-320, 1e30, 1e308, -1e308, "", "a", "*", "4", "2a4", "float32", "../x", "/etc/passwd", "\x00"),
    *("\x1b[31m", "\ud800", "ä" * 600, "x" * 2000, [], {}, [[]], [1, 2], {"*": 4}, [{}], {"a": {"b": []}}),
)
_PIECES = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80" * 10,
    b"\xff" * 9,
    b"\n",
    b"{",
    b"}",
    b'"',
    b"<",
    b"nan",
    b"1e999",
    b"\x0a\x04",
)


def damaged_bytes(data: bytes, dice: random.Random) -> bytes:
    """Some bytes changed, lost, repeated or cut off."""
    found = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 4, 16))):
        place, length = dice.randrange(len(found) + 1), dice.choice((1, 1, 2, 4, 8, 64))
        kind = dice.randrange(5)
        if kind == 0 and place < len(found):
            found[place] ^= 1 << dice.randrange(8)
        elif kind == 1:
            found[place : place + length] = dice.randbytes(length)
        elif kind == 2:
            del found[place : place + length]
        elif kind == 3:
            found[place:place] = dice.choice(_PIECES)
        else:
            other = dice.randrange(len(found) + 1)
            found[place:place] = found[other : other + length]
    return bytes(found[: dice.randrange(len(found) + 1)] if dice.random() < 0.05 else found)


def damaged_json(values: Any, dice: random.Random) -> Any:
    """A few values replaced, lost, repeated or swapped, anywhere in it; what is given is changed."""
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        place = _somewhere(values, dice)
        if place is None:
            return dice.choice(ODD)
        holder, key = place
        kind = dice.randrange(6)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, list):
            holder.insert(dice.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
        elif kind == 1:
            holder[dice.choice(("a", "*", "schema", "\x1b", "x" * 600))] = copy.deepcopy(holder[key])
        elif kind == 2:
            other, name = _somewhere(values, dice) or place
            holder[key] = copy.deepcopy(other[name])
        elif kind == 3 and isinstance(holder[key], (int, float)):
            holder[key] = holder[key] * dice.choice((-1, 2, 10, 1000)) + dice.choice((-1, 0, 1))
        elif kind == 4 and isinstance(holder[key], str):
            holder[key] = damaged_bytes(holder[key].encode("utf-8", "replace"), dice).decode("utf-8", "replace")
        else:
            holder[key] = copy.deepcopy(dice.choice(ODD))
    return values


def _somewhere(values: Any, dice: random.Random) -> tuple[Any, Any] | None:
    """A value in nested values, by what holds it and under which key; deep ones are as likely as shallow ones."""
    place = None
    while isinstance(values, (dict, list)) and values and (place is None or dice.random() < 0.8):
        place = values, dice.choice(list(values)) if isinstance(values, dict) else dice.randrange(len(values))
        values = values[place[1]]
    return place


def as_json(values: Any) -> bytes:
    """As JSON, half of a surrogate pair included."""
    return json.dumps(values).encode()


def damaged_emq(data: bytes, dice: random.Random) -> bytes:
    """An ``.emq`` whose header, tensors or table is damaged, with every digest made anew."""
    length = int.from_bytes(data[:8], "little")
    table, body = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
    texts = table.pop("__metadata__")
    header = json.loads(texts["emqdeploy"])
    names = list(table)
    kind = dice.randrange(5)
    if kind == 0:
        hashes = header.pop("hashes")
        header = damaged_json(header, dice)
        if isinstance(header, dict):
            header["hashes"] = hashes
    elif kind == 1:
        for name in dice.choices(names, k=dice.choice((1, 2, 4))):
            start, end = table[name]["data_offsets"]
            if end > start:
                size = min(dice.choice((1, 4, 64)), end - start)
                place = dice.randrange(start, end - size + 1)
                body[place : place + size] = dice.choice((dice.randbytes(size), b"\xff" * size, b"\0" * size))
    elif kind == 2:
        one, other = dice.choice(names), dice.choice(names)
        table[one], table[other] = table[other], table[one]
    elif kind == 3:
        table = damaged_json(table, dice)
    else:
        start, end = table["skeleton"]["data_offsets"]
        body[start:end] = damaged_bytes(bytes(body[start:end]), dice)[: end - start].ljust(end - start, b"\0")
    return _as_emq(header, table, bytes(body))


def _as_emq(header: Any, table: Any, body: bytes) -> bytes:
    """The file, with every digest made anew."""
    if isinstance(header, dict) and isinstance(header.get("hashes"), dict):
        header["hashes"] |= _hashes(table, body)
    text = as_json(header).decode()
    if isinstance(table, dict):
        table["__metadata__"] = {"emqdeploy": text, "digest": hash_text(text)}
    head = as_json(table)
    head += b" " * (-(8 + len(head)) % 64)
    return len(head).to_bytes(8, "little") + head + body


def damaged_skeleton(data: bytes, dice: random.Random) -> bytes:
    """An ``.emq`` with damage in its graph once that is unpacked; what lies behind it moves along."""
    length = int.from_bytes(data[:8], "little")
    table, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    header = json.loads(table.pop("__metadata__")["emqdeploy"])
    start, end = table["skeleton"]["data_offsets"]
    graph = zlib.decompress(body[start:end])
    graph = damaged_graph(graph, dice) if dice.random() < 0.4 else rewired(graph, dice)
    packed = zlib.compress(graph, 1)
    for entry in table.values():
        if entry["data_offsets"][0] >= end:
            entry["data_offsets"] = [place + len(packed) - (end - start) for place in entry["data_offsets"]]
    table["skeleton"] |= {"shape": [len(packed)], "data_offsets": [start, start + len(packed)]}
    return _as_emq(header, table, body[:start] + packed + body[end:])


def rewired(graph: bytes, dice: random.Random) -> bytes:
    """A graph of the same operators with other wires, places, names and small numbers: much of it is a graph still."""
    from onnx import ModelProto, helper

    model = ModelProto.FromString(graph)
    nodes = model.graph.node
    for _ in range(dice.choice((1, 1, 2, 4))):
        node, other = dice.choice(nodes), dice.choice(nodes)
        numbers = [one for one in node.attribute if one.ints or one.i]
        kind = dice.randrange(7)
        if kind == 0 and node.input:
            node.input[dice.randrange(len(node.input))] = dice.choice((*other.input, *other.output))
        elif kind == 1 and len(nodes) > 1:
            nodes.remove(node)
        elif kind == 2:
            node.op_type = other.op_type
        elif kind == 3:
            fresh = helper.make_node(
                node.op_type, list(node.input), [dice.choice(("fresh", *other.output))], name="fresh"
            )
            fresh.attribute.extend(node.attribute)
            nodes.insert(dice.randrange(len(nodes) + 1), fresh)
        elif kind == 4 and numbers:
            one, value = dice.choice(numbers), dice.choice((-1, 0, 1, 2, 3, 4, 7, 8, 9, 64, 4096, 1 << 31, 1 << 62))
            if one.ints:
                one.ints[dice.randrange(len(one.ints))] = value
            else:
                one.i = value
        elif kind == 5:
            node.attribute.extend(list(other.attribute))  # which may be its own
        else:
            constant = dice.choice(model.graph.initializer)
            (constant if dice.random() < 0.5 else node).name = dice.choice((*other.input, *other.output))
    found: bytes = model.SerializeToString()
    return found


def _hashes(table: Any, body: bytes) -> dict[str, str]:
    found = {}
    types = {"U8": np.uint8, "I8": np.int8, "F32": np.float32}
    for name, entry in table.items() if isinstance(table, dict) else ():
        try:
            start, end = entry["data_offsets"]
            found[name] = hash_tensor(np.frombuffer(body[start:end], types[entry["dtype"]]).reshape(entry["shape"]))
        except (ValueError, TypeError, KeyError, OverflowError):
            continue
    return found


def damaged_graph(data: bytes, dice: random.Random, depth: int = 0) -> bytes:
    """A protobuf message with one field changed, at any depth; the lengths around it are right."""
    try:
        parts = fields(data, 0, len(data))
    except ValueError:
        return damaged_bytes(data, dice)
    if not parts or (depth and dice.random() < 0.1):
        return damaged_bytes(data, dice)
    chosen = dice.randrange(len(parts))
    pieces = [_piece(data, part) for part in parts]
    number, kind, start, end = parts[chosen]
    action = dice.randrange(8)
    if action == 0:
        pieces[chosen] = b""
    elif action == 1:
        pieces.insert(dice.randrange(len(pieces) + 1), pieces[chosen])
    elif action == 2:
        pieces[chosen] = pieces[chosen] * dice.choice((2, 10, 1000 if len(pieces[chosen]) < 1000 else 2))
    elif kind == BYTES:
        inner = data[start:end]
        changed = damaged_graph(inner, dice, depth + 1) if depth < 8 else damaged_bytes(inner, dice)
        pieces[chosen] = _number(number << 3 | BYTES) + _number(len(changed)) + changed
    elif kind == VARINT:
        value = dice.choice((0, 1, 2, 7, 255, 1 << 20, (1 << 31) - 1, (1 << 63) - 1, (1 << 64) - 1, start + 1))
        pieces[chosen] = _number(number << 3) + _number(value)
    else:
        pieces[chosen] = _number(dice.randrange(1, 30) << 3 | kind) + data[start:end]
    return b"".join(pieces)


def _piece(data: bytes, part: tuple[int, int, int, int]) -> bytes:
    number, kind, start, end = part
    key = _number(number << 3 | kind)
    if kind == VARINT:
        return key + _number(start)
    return key + (_number(end - start) if kind == BYTES else b"") + data[start:end]


def _number(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def resealed(data: bytes, dice: random.Random) -> bytes:
    """A sealed file with damage in its graph or in what it says about itself, and a right seal."""
    from emqdeploy.format import seal

    found = list(seal._SEALED.finditer(data))[-1]
    start, end = found.span(1)
    blank = data[:start] + b"0" * 32 + data[end:]
    if dice.random() < 0.3:
        about = json.loads(seal._metadata(blank))
        changed = as_json(damaged_json(about, dice))
        parts = fields(blank, 0, len(blank))
        entry = next(
            part for part in parts if part[0] == 14 and blank[part[2] : part[3]].startswith(b"\n\temqdeploy\x12")
        )
        inside = b"\n\temqdeploy\x12" + _number(len(changed)) + changed
        whole = b"".join(
            _number(14 << 3 | BYTES) + _number(len(inside)) + inside if part == entry else _piece(blank, part)
            for part in parts
        )
    else:
        whole = damaged_graph(blank, dice)
    places = list(re.finditer(rb"emqdeploy_digest\x12\x20([0-9a-f]{32})", whole))
    if not places:
        return whole
    start, end = places[-1].span(1)
    return whole[:start] + seal._digest(whole[:start] + b"0" * 32 + whole[end:]).encode() + whole[end:]


_TAG = re.compile(rb"<(\w+)[^<>]*?(?:/>|>)")
_VALUE = re.compile(rb'="([^"]*)"')


def damaged_xml(data: bytes, dice: random.Random) -> bytes:
    """A few elements lost, repeated or moved, or values of attributes changed."""
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        if dice.random() < 0.5:
            start, end = _random_match(_VALUE, data, dice).span(1)
            data = data[:start] + _other_value(data, data[start:end], dice) + data[end:]
            continue
        found = _random_match(_TAG, data, dice)
        start, end = found.span()
        closing = b"</" + found[1] + b">"
        if not found[0].endswith(b"/>") and (inside := data.find(closing, end)) >= 0:
            end = inside + len(closing)  # an element with what it holds
        kind = dice.randrange(3)
        piece = data[start:end]
        if kind != 1:
            data = data[:start] + data[end:]
        if kind != 0:
            place = _random_match(_TAG, data, dice).start()
            data = data[:place] + piece + data[place:]
    return data


def _random_match(pattern: re.Pattern[bytes], data: bytes, dice: random.Random) -> re.Match[bytes]:
    """One of the matches, or an empty one in data that has none."""
    found = pattern.search(data, dice.randrange(len(data) + 1)) or pattern.search(data)
    return found or next(re.finditer(rb"()", data))


def _other_value(data: bytes, value: bytes, dice: random.Random) -> bytes:
    kind = dice.randrange(4)
    if kind == 0:
        return _random_match(_VALUE, data, dice)[1]
    if kind == 1 and value.isdigit():
        return b"%d" % (int(value) * dice.choice((-1, 1, 2, 1000, 1 << 40)) + dice.choice((-1, 0, 1)))
    if kind == 2:
        return damaged_bytes(value, dice).translate(None, b'"<')
    return str(dice.choice(ODD[:-8])).encode("utf-8", "replace").translate(None, b'"<')


def as_report(values: Any) -> bytes:
    """A page that carries values."""
    packed = base64.b64encode(gzip.compress(as_json(values), 1))
    return b'<html><script type="application/gzip" id="result">' + packed + b"</script></html>"
