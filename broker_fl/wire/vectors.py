"""Golden vectors for other implementations: ``python -m broker_fl.wire.vectors schemas/vectors/``.

What is in the files, and how to read them, is said in ``schemas/README.md``. Bytes are written as base64.
"""

from __future__ import annotations

import base64
import json
import math
import sys
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from broker_fl.model import DTYPES, Model
from broker_fl.wire import messages as m
from broker_fl.wire.chunks import checksum, cut
from broker_fl.wire.encodings import ENCODINGS, encoding
from broker_fl.wire.examples import PAYLOAD, TASK, crc32, examples
from broker_fl.wire.frames import MAX_BODY_BYTES, pack_chunk
from broker_fl.wire.vectors_coarse import Json, base64_of, coarse, invalid_encoded

CHUNK_BYTES = 4_096


def vectors() -> dict[str, Any]:
    """The content of each file, by name."""
    return {
        "valid.json": [_valid(name, message) for name, message in examples().items()],
        "invalid.json": [_invalid(name, body, reason) for name, (body, reason) in invalid_frames().items()],
        "invalid_manifests.json": invalid_manifests(),
        "models.json": [
            _model(name, model, ["b", "d"] if name == "buffers" else []) for name, model in models().items()
        ],
        "coarse.json": coarse(),
        "invalid_encoded.json": invalid_encoded(),
        "invalid_chunks.json": invalid_chunks(),
    }


def to_text(content: Any) -> str:
    """As it stands in the file."""
    return json.dumps(content, indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def write(folder: Path) -> None:
    """Write all files."""
    for name, content in vectors().items():
        (folder / name).write_text(to_text(content), encoding="utf-8")


def to_json(value: Any) -> Any:
    """A msgpack value in JSON: ``bin`` as ``{"base64": …}``, NaN and infinities as ``{"float": …}``."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if isinstance(value, dict):
        return {key: to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(inner) for inner in value]
    return value


# ---------------------------------------------------------------- messages


def body_of(message: m.Message) -> bytes:
    """As it is published; kinds with a payload carry ``PAYLOAD``."""
    if isinstance(message, m.WITH_PAYLOAD):
        return pack_chunk(message.KIND, message.model_dump(), memoryview(PAYLOAD))
    return message.pack()


def _valid(name: str, message: m.Message) -> Json:
    fields = {"v": 1, "kind": message.KIND, **message.model_dump()}
    payload = base64_of(PAYLOAD) if isinstance(message, m.WITH_PAYLOAD) else None
    return {"name": name, "body": base64_of(body_of(message)), "header": to_json(fields), "payload": payload}


# ---------------------------------------------------------------- bodies that must be refused


def _frame(fields: Json) -> bytes:
    body = msgpack.packb(fields)
    assert isinstance(body, bytes)  # noqa: S101 - for the type checker
    return body


def _changed(message: m.Message, **changes: Any) -> bytes:
    """The message with other fields; ``...`` leaves one out."""
    fields = {"v": 1, "kind": message.KIND, **message.model_dump(), **changes}
    return _frame({key: value for key, value in fields.items() if value is not ...})


def invalid_frames() -> dict[str, tuple[bytes, str]]:
    """Bodies with words of why they are refused."""
    return _invalid_headers() | _invalid_fields() | _invalid_payloads()


def _invalid_headers() -> dict[str, tuple[bytes, str]]:
    plain = examples()["heartbeat"].pack()
    array, over = b"\xdd" + (3_000_000).to_bytes(4, "big"), b"\xdf\xff\xff\xff\xff"
    return {
        "nothing": (b"", "the body is empty"),
        "text": (b"heartbeat", "the body is not a msgpack map"),
        "an array": (msgpack.packb([1, "heartbeat"]), "the body is not a msgpack map"),
        "cut off": (plain[:-1], "the body ends inside the map"),
        "something after the map": (plain + b"\x00", "only a bin may follow the header"),
        "a map with an integer key": (msgpack.packb({1: 1}), "keys are strings"),
        "bytes that are not UTF-8": (plain.replace(b"site-1", b"site-\xff"), "strings are UTF-8"),
        "arrays in arrays": (array * 500, "claimed elements are not there"),
        "a huge map": (over, "claimed entries are not there"),
        "no version": (_frame({"kind": "rejoin"}), "the version is missing"),
        "another version": (_frame({"v": 2, "kind": "rejoin"}), "version 2 is not spoken"),
        "a version that is no integer": (_frame({"v": True, "kind": "rejoin"}), "the version is an integer"),
        "no kind": (_frame({"v": 1}), "the kind is missing"),
        "an unknown kind": (_frame({"v": 1, "kind": "greeting"}), "the kind is unknown"),
    }


def _invalid_fields() -> dict[str, tuple[bytes, str]]:
    all_of = examples()
    heartbeat, result = all_of["heartbeat"], all_of["result"]
    return {
        "a field is missing": (_changed(heartbeat, session=...), "session is required"),
        "a string for a number": (_changed(result, num_examples="120"), "num_examples is an integer"),
        "a float for an integer": (_changed(result, num_examples=120.0), "num_examples is an integer"),
        "a negative count": (_changed(result, num_examples=-1), "num_examples is at least 0"),
        "an integer of 64 bits": (_changed(result, num_examples=2**63), "num_examples is at most 2^63-1"),
        "a learner with a dot": (_changed(heartbeat, learner="site.1"), "ids have no dots"),
        "an empty id": (_changed(heartbeat, learner=""), "ids have 1 to 64 characters"),
        "a long id": (_changed(heartbeat, learner="x" * 65), "ids have 1 to 64 characters"),
        "a time that is not finite": (
            _changed(all_of["accepted"], receive_s=math.inf),
            "times are finite; only metrics may be infinite or NaN",
        ),
        "an unknown phase": (
            _changed(heartbeat, tasks=[{"task": TASK.model_dump(), "phase": "thinking"}]),
            "the phase is unknown",
        ),
        "a nested parameter": (
            _changed(all_of["task"], parameters={"x": [1]}),
            "parameters are plain values",
        ),
        "an unknown job setting": (
            _changed(all_of["submit"], spec={"name": "digits", "round": 5}),
            "unknown settings of a job are refused",
        ),
        "chunks that are too small": (
            _changed(all_of["task"], chunk_bytes=100),
            "chunk_bytes is at least 4096",
        ),
    }


def _invalid_payloads() -> dict[str, tuple[bytes, str]]:
    all_of = examples()
    plain, framed = all_of["heartbeat"].pack(), body_of(all_of["model_chunk"])
    header = framed[: -len(PAYLOAD) - 5]
    return {
        "a chunk frame without payload": (header, "the payload is missing"),
        "a message with payload": (plain + b"\xc4\x01x", "this kind has no payload"),
        "a payload that is cut off": (framed[:-1], "the payload is shorter than its length says"),
        "something after the payload": (framed + b"x", "the payload is longer than its length says"),
        "a payload's length that is cut off": (header + b"\xc6\x00\x00", "the payload's length is cut off"),
        "a payload that is a string": (header + b"\xa1x", "the payload is a bin"),
    }


def _invalid(name: str, body: bytes, reason: str) -> Json:
    assert len(body) <= MAX_BODY_BYTES  # noqa: S101 - or it would be refused for another reason
    return {"name": name, "body": base64_of(body), "reason": reason}


# ---------------------------------------------------------------- models


def models() -> dict[str, Model]:
    """Models for layout, digests and encodings, by a name for the case."""
    special = [0.0, -0.0, 1.0, -1.5, 65504.0, 65520.0, 1e-8, 3.4e38, math.inf, -math.inf, math.nan]
    halfway = [1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-8, 1 + 3 * 2.0**-8]
    ramp = np.arange(2_500, dtype=np.float32) / 8
    return {
        "no tensors": Model.of({}),
        "a scalar": Model.of({"x": np.array(1.5, np.float32)}),
        "an empty tensor": Model.of({"x": np.zeros((0, 3), np.float32)}),
        "every element type": Model.of({name: np.arange(3).astype(dtype) for name, dtype in DTYPES.items()}),
        "padding": Model.of(
            {
                "a": np.array([1, -2, 3], np.int8),
                "b": np.array([1.5], np.float64),
                "none": np.zeros(0, np.float64),
                "c": np.array([True, False, True]),
                "d": np.array([[1.0, 2.0]], np.float32),
            }
        ),
        "buffers": Model.of(
            {
                "a": np.array([1 / 3], np.float32),
                "b": np.array([1e6, 1e-9], np.float32),
                "c": np.array([1 / 3], np.float64),
                "d": np.array(1e300),
            }
        ),
        "an empty tensor that aligns": Model.of(
            {"a": np.array(1, np.int8), "none": np.zeros(0), "b": np.array(2, np.int8)}
        ),
        "special values": Model.of({"x": np.array(special, np.float32)}),
        "ties": Model.of({"x": np.array(halfway, np.float32), "y": np.array(halfway, np.float64)}),
        "three chunks": Model.of({"ramp": ramp}),
        "names": Model.of(
            {"größe": np.zeros(1, np.int8), "a/b.c d": np.zeros(1, np.int8), "名": np.ones(1, np.int8)}
        ),
    }


def _model(name: str, model: Model, buffers: list[str]) -> Json:
    names = [key for key, one in ENCODINGS.items() if not one.coarse]
    with np.errstate(all="ignore"):
        encoded = {key: encoding(key, buffers).encode(model) for key in names}
    return {
        "name": name,
        "spec": model.spec.to_wire(),
        "buffers": buffers,
        "spec_msgpack": base64_of(msgpack.packb(model.spec.to_wire())),
        "offsets": model.spec.offsets,
        "num_bytes": model.spec.num_bytes,
        "spec_digest": model.spec.digest,
        "digest": model.digest,
        "encoded": {key: base64_of(buffer.tobytes()) for key, buffer in encoded.items()},
        "chunk_bytes": CHUNK_BYTES,
        "chunks": [
            {
                "index": chunk.index,
                "count": chunk.count,
                "num_bytes": len(chunk.payload),
                "checksums": [chunk.checksum, crc32(bytes(chunk.payload))],
            }
            for chunk in cut(encoded["raw"], CHUNK_BYTES)
        ],
    }


# ---------------------------------------------------------------- manifests and chunks that must be refused


def invalid_manifests() -> list[Json]:
    """Manifests that are well-formed, and contradict themselves or the limit of 1,000,000 bytes."""
    spec = models()["padding"].spec
    good = m.ModelManifest.of(
        spec, version=0, digest="", encoding="raw", chunk_bytes=CHUNK_BYTES
    ).model_dump()
    cases: dict[str, tuple[Json, str]] = {
        "another size than the tensors have": ({"num_bytes": spec.num_bytes + 1}, "num_bytes"),
        "the size without encoding": ({"encoding": "float16"}, "num_bytes"),
        "an unknown encoding": ({"encoding": "int3"}, "encoding"),
        "the size without int8": (
            {"encoding": "int8", "spec": [["x", "float32", [300]]], "num_bytes": 1200, "spec_digest": ""},
            "num_bytes",
        ),
        "a model as its largest elements": ({"encoding": "topk/2"}, "encoding"),
        "one element in one": ({"encoding": "topk/1"}, "encoding"),
        "one element in too many": ({"encoding": "topk/1000001"}, "encoding"),
        "the digest of another spec": ({"spec_digest": "0" * 32}, "spec_digest"),
        "an unknown element type": ({"spec": [["x", "float8", [4]]], "num_bytes": 4}, "element type"),
        "two tensors of one name": (
            {"spec": [["x", "int8", [1]], ["x", "int8", [1]]], "num_bytes": 2, "spec_digest": ""},
            "names must differ",
        ),
        "more than is allowed": (
            {"spec": [["x", "int8", [1_000_001]]], "num_bytes": 1_000_001, "spec_digest": ""},
            "limit",
        ),
        "more than there is in the world": (
            {"spec": [["x", "int8", [2**63 - 1] * 32]], "num_bytes": 4, "spec_digest": ""},
            "limit",
        ),
    }
    return [
        {"name": name, "manifest": good | changes, "reason": reason}
        for name, (changes, reason) in cases.items()
    ]


def invalid_chunks() -> list[Json]:
    """Chunks that do not fit into the model "three chunks" cut by 4096 bytes."""
    chunks = list(cut(models()["three chunks"].buffer, CHUNK_BYTES))
    good = chunks[1]
    payload = bytes(good.payload)
    cases: dict[str, tuple[int, int, str, bytes]] = {
        "an index beyond the count": (3, 3, good.checksum, payload),
        "another count": (1, 4, good.checksum, payload),
        "too short": (1, 3, checksum(memoryview(payload[:-1])), payload[:-1]),
        "too long": (1, 3, checksum(memoryview(payload + b"x")), payload + b"x"),
        "of another place's length": (2, 3, good.checksum, payload),
        "one bit is wrong, by XXH3": (1, 3, good.checksum, b"\x01" + payload[1:]),
        "one bit is wrong, by CRC-32": (1, 3, crc32(payload), b"\x01" + payload[1:]),
        "an unknown checksum": (1, 3, "md5:00", payload),
        "no checksum": (1, 3, "", payload),
    }
    return [
        {"name": name, "index": index, "count": count, "checksum": check, "payload": base64_of(data)}
        for name, (index, count, check, data) in cases.items()
    ]


if __name__ == "__main__":
    write(Path(sys.argv[1]))
