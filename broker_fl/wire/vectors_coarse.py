"""Golden vectors of the coarse encodings; ``vectors.py`` writes them."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np

from broker_fl.model import DTYPES, FLOATS, Array, Model
from broker_fl.wire.encodings import encoding

Json = dict[str, Any]
COARSE = ("int8", "topk/10", "topk/100")


def base64_of(data: bytes | memoryview) -> str:
    """Bytes as they stand in the files."""
    return base64.b64encode(data).decode()


def changes() -> dict[str, Model]:
    """Changes for the coarse encodings, by a name for the case."""
    steps = ((np.arange(1_300) * 7919) % 2001 - 1000) / 4096
    return {
        "runs of several tensors": Model.of(
            {
                "a": steps[:300].astype(np.float32).reshape(30, 10),
                "b": steps[300:305].astype(np.float32),
                "none": np.zeros((0, 4), np.float32),
                "n": np.array([7, -1, 2], np.int8),
                "c": steps[:700].astype(np.float32),
            }
        ),
        "buffers": Model.of(
            {one: (steps[:400] * scale).astype(np.float32) for scale, one in enumerate("abcde", start=1)}
        ),
        "every float type": Model.of({name: steps[:300].astype(DTYPES[name]) for name in sorted(FLOATS)}),
        "too short to be shortened": Model.of(
            {"x": steps[:1].astype(np.float32), "y": steps[:2].astype(np.float16)}
        ),
        "no tensors": Model.of({}),
        "a block of zeros, and one too small": Model.of(
            {"x": np.concatenate([np.zeros(256), np.full(256, 1e-37), steps[:256]]).astype(np.float32)}
        ),
        "ties": Model.of({"x": np.array([127, 0.5, -0.5, 1.5, -1.5, 2.5, 127, -127] * 40, np.float32)}),
    }


def coarse() -> list[Json]:
    """Changes in the coarse encodings."""
    return [
        {
            "name": f"{name}, {key}",
            "encoding": key,
            "spec": model.spec.to_wire(),
            "buffers": buffers,
            "raw": base64_of(model.buffer.tobytes()),
            "encoded": base64_of((encoded := encoding(key, buffers).encode(model)).tobytes()),
            "decoded": base64_of(encoding(key, buffers).decode(encoded, model.spec).buffer.tobytes()),
        }
        for name, model in changes().items()
        for buffers in [["b", "e"] if name == "buffers" else []]
        for key in COARSE
    ]


def invalid_encoded() -> list[Json]:
    """Encoded buffers that must be refused."""
    values = np.arange(1, 301) / 8
    single, half = (Model.of({"x": values.astype(one), "b": np.array([True])}) for one in ("f4", "f2"))
    place, value = np.dtype("<u4"), np.dtype("<f4")  # of topk/100: three places, then three elements
    cases: dict[str, tuple[str, Model, int, bytes, str]] = {
        "a scale that is NaN": ("int8", single, 0, np.array(math.nan, value).tobytes(), "scale"),
        "a scale that is infinite": ("int8", single, 4, np.array(math.inf, value).tobytes(), "scale"),
        "a negative scale": ("int8", single, 0, np.array(-1, value).tobytes(), "scale"),
        "a scale too large for float32": ("int8", single, 0, np.array(3e38, value).tobytes(), "scale"),
        "a scale too large for float16": ("int8", half, 0, np.array(1000, value).tobytes(), "scale"),
        "a number below -127": ("int8", single, 8, b"\x80", "-128"),
        "a boolean that is 2": ("int8", single, -1, b"\x02", "boolean"),
        "a place beyond the run": ("topk/100", single, 8, np.array(300, place).tobytes(), "place"),
        "a place twice": ("topk/100", single, 4, np.array(297, place).tobytes(), "place"),
        "places that descend": ("topk/100", single, 0, np.array(299, place).tobytes(), "place"),
        "an element that is NaN": ("topk/100", single, 12, np.array(math.nan, value).tobytes(), "finite"),
        "an element that is infinite": (
            "topk/100",
            single,
            20,
            np.array(math.inf, value).tobytes(),
            "finite",
        ),
        "a boolean that is 3": ("topk/100", single, -1, b"\x03", "boolean"),
    }
    return [
        {
            "name": name,
            "encoding": key,
            "spec": model.spec.to_wire(),
            "encoded": base64_of(_overwritten(encoding(key).encode(model), at, data)),
            "reason": reason,
        }
        for name, (key, model, at, data, reason) in cases.items()
    ]


def _overwritten(buffer: Array, at: int, data: bytes) -> bytes:
    start = at % buffer.nbytes
    body = buffer.tobytes()
    return body[:start] + data + body[start + len(data) :]
