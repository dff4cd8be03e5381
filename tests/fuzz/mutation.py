"""Inputs out of valid ones: values of a msgpack tree replaced, dropped, doubled, nested; bytes changed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import msgpack

MAX_BYTES = 1 << 16
"""Longer inputs take long, and reach nothing new."""
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)),
    *(0.0, -0.0, 1.5, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf")),
    *(
        "",
        "x",
        "a.b",
        "raw",
        "int8",
        "topk/3",
        "topk/9999999",
        "float32",
        "bfloat16",
        "bool",
        "../..",
        "\0",
        "é",
    ),
    *("x" * 65, "x" * 5_000, b"", b"\xff", b"\xd9\xff", (), {}, ((),), {"": None}, (1, 2, 3), {1: 2}),
    *(msgpack.ExtType(1, b"x"), msgpack.Timestamp(0, 0)),
)
_LENGTHS = (
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
)
"""Arrays, maps, texts and bytes that claim to be as long as can be."""


def mutated(data: bytes, others: Sequence[bytes], draw: random.Random, *, is_msgpack: bool) -> bytes:
    """A changed input; ``others`` are those that a part may come from."""
    for _ in range(1 + draw.randrange(3)):
        change = _tree if is_msgpack and draw.random() < 0.7 else _raw
        data = change(data, others, draw)
    return data[:MAX_BYTES]


# ---------------------------------------------------------------- trees


def _tree(data: bytes, others: Sequence[bytes], draw: random.Random) -> bytes:
    try:
        unpacker = msgpack.Unpacker(use_list=True, strict_map_key=False)
        unpacker.feed(data)
        tree, rest = unpacker.unpack(), data[unpacker.tell() :]
    except Exception:  # noqa: BLE001 - it is no tree any more
        return _raw(data, others, draw)
    try:
        packed: bytes = msgpack.packb(_changed(tree, draw))
    except Exception:  # noqa: BLE001 - what msgpack cannot say is no input
        return data
    return packed + rest


def _changed(node: Any, draw: random.Random) -> Any:
    """The tree with one place of it changed."""
    if isinstance(node, dict) and node and draw.random() < 0.85:
        return _changed_map(dict(node), draw)
    if isinstance(node, list) and node and draw.random() < 0.85:
        return _changed_list(list(node), draw)
    if isinstance(node, int) and not isinstance(node, bool) and draw.random() < 0.4:
        return max(-(2**63), min(2**64 - 1, node + draw.choice((-1, 1, 2**16, -(2**16)))))
    if draw.random() < 0.08:
        return _nested(node, draw.choice((1, 20, 200, 600)))
    return draw.choice(_ODD)


def _changed_map(node: dict[Any, Any], draw: random.Random) -> dict[Any, Any]:
    key = draw.choice(list(node))
    match draw.randrange(8):
        case 0:
            del node[key]
        case 1:
            node[draw.choice(("", "x", "kind", "v", 3, None, "y" * 200))] = draw.choice(_ODD)
        case 2:
            node[draw.choice(list(node))] = node[key]
        case _:
            node[key] = _changed(node[key], draw)
    return node


def _changed_list(node: list[Any], draw: random.Random) -> list[Any]:
    place = draw.randrange(len(node))
    match draw.randrange(8):
        case 0:
            del node[place]
        case 1:
            return node * draw.choice((2, 3, 50))
        case 2:
            node.insert(place, draw.choice(_ODD))
        case 3:
            draw.shuffle(node)
        case _:
            node[place] = _changed(node[place], draw)
    return node


def _nested(node: Any, depth: int) -> Any:
    for _ in range(depth):
        node = [node]
    return node


# ---------------------------------------------------------------- bytes


def _flip(data: bytes, at: int, draw: random.Random) -> bytes:
    return (
        data[:at] + bytes((data[at] ^ (1 << draw.randrange(8)),)) + data[at + 1 :] if at < len(data) else data
    )


def _cut(data: bytes, at: int, draw: random.Random) -> bytes:
    return data[:at] + data[at + draw.choice((1, 2, 8, 1 << 20)) :]


def _insert(data: bytes, at: int, draw: random.Random) -> bytes:
    return data[:at] + draw.randbytes(draw.choice((1, 4, 16))) + data[at:]


def _claim(data: bytes, at: int, draw: random.Random) -> bytes:
    return data[:at] + draw.choice(_LENGTHS) + data[at + 1 :]


def _repeat(data: bytes, at: int, draw: random.Random) -> bytes:
    part = data[at : at + draw.choice((1, 8, 64))]
    return data[:at] + part * draw.choice((2, 16, 200)) + data[at:]


_RAW: tuple[Callable[[bytes, int, random.Random], bytes], ...] = (
    _flip,
    _flip,
    _cut,
    _insert,
    _claim,
    _repeat,
)


def _raw(data: bytes, others: Sequence[bytes], draw: random.Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    if others and draw.random() < 0.15:
        other = draw.choice(others)
        start = draw.randrange(len(other) + 1)
        return data[:at] + other[start : start + draw.choice((4, 64, 4_096))] + data[at:]
    return draw.choice(_RAW)(data, at, draw)
