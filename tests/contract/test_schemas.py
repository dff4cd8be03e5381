"""The code against ``schemas/``: JSON Schemas, golden vectors, and the tables of the README."""

from __future__ import annotations

import base64
import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import jsonschema
import msgpack
import numpy as np
import pytest
import xxhash

from broker_fl.errors import FrameRefused
from broker_fl.model import DTYPES, FLOATS, Model, ModelSpec
from broker_fl.topology import Exchange, Queue, Topology
from broker_fl.transports.rabbitmq.channel import queue_arguments
from broker_fl.wire import frames, schema, vectors
from broker_fl.wire.chunks import Assembly, checksum, cut
from broker_fl.wire.encodings import ENCODINGS, NAMES, encoding
from broker_fl.wire.events import EVENT_KINDS, decode_event
from broker_fl.wire.examples import PAYLOAD, examples
from broker_fl.wire.messages import KINDS, Message, ModelManifest, decode

SCHEMAS = Path(__file__).parents[2] / "schemas"
README = (SCHEMAS / "README.md").read_text(encoding="utf-8")
ALL_KINDS = KINDS | EVENT_KINDS


def vector(name: str) -> Any:
    return json.loads((SCHEMAS / "vectors" / name).read_text(encoding="utf-8"))


def named(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", vector(name), ids=lambda case: case["name"])


def read(body: bytes) -> tuple[Message, memoryview | None]:
    """As a role does: events are unpacked from batches by another function."""
    fields, _ = frames.unpack(body)
    return (decode_event(body), None) if fields["kind"] in EVENT_KINDS else decode(body)


# ---------------------------------------------------------------- JSON Schemas


def test_no_two_kinds_have_one_name() -> None:
    assert not set(KINDS) & set(EVENT_KINDS)


def test_the_schemas_are_those_of_the_classes() -> None:
    wanted = {name: schema.to_text(content) for name, content in schema.schemas().items()}
    found = {path.name: path.read_text(encoding="utf-8") for path in SCHEMAS.glob("*.schema.json")}
    assert found == wanted, "run: python -m broker_fl.wire.schema schemas/"


def test_every_kind_has_a_schema_and_an_example() -> None:
    assert {path.name.removesuffix(".schema.json") for path in SCHEMAS.glob("*.json")} == {
        *ALL_KINDS,
        "job_spec",
    }
    assert {message.KIND for message in examples().values()} == set(ALL_KINDS)


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.schema.json")), ids=lambda path: path.name)
def test_a_schema_is_one_of_draft_2020_12_and_says_what_it_is_of(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(content)
    assert content["title"] == path.name.removesuffix(".schema.json")
    assert content["$id"] == f"urn:broker-fl:1:{content['title']}"
    assert content["description"]
    assert "class" not in content["description"].lower()


@pytest.mark.parametrize("name", examples())
def test_an_example_is_valid_by_its_schema_and_stays_so_with_unknown_fields(name: str) -> None:
    validator, header = _validator_and_header(examples()[name])
    validator.validate(header)
    validator.validate(header | {"of_a_later_release": 1})


@pytest.mark.parametrize("name", examples())
def test_a_schema_holds_version_kind_and_required_fields(name: str) -> None:
    validator, header = _validator_and_header(examples()[name])
    required = [key for key, field in type(examples()[name]).model_fields.items() if field.is_required()]
    for key in ("v", "kind", *required):
        assert not validator.is_valid({k: v for k, v in header.items() if k != key}), key
    assert not validator.is_valid(header | {"v": 2})
    assert not validator.is_valid(header | {"kind": "another"})


def _validator_and_header(message: Message) -> tuple[jsonschema.Draft202012Validator, Any]:
    """The header as a msgpack reader gets it; JSON Schema knows no bytes and calls them strings."""
    content = json.loads((SCHEMAS / f"{message.KIND}.schema.json").read_text(encoding="utf-8"))
    unpacker = msgpack.Unpacker()
    unpacker.feed(vectors.body_of(message))
    return jsonschema.Draft202012Validator(content), _bytes_as_text(unpacker.unpack())


def _bytes_as_text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, list):
        return [_bytes_as_text(inner) for inner in value]
    return {key: _bytes_as_text(inner) for key, inner in value.items()} if isinstance(value, dict) else value


# ---------------------------------------------------------------- golden vectors


def test_the_vectors_are_those_of_the_code() -> None:
    wanted = {name: vectors.to_text(content) for name, content in vectors.vectors().items()}
    found = {path.name: path.read_text(encoding="utf-8") for path in (SCHEMAS / "vectors").iterdir()}
    assert found == wanted, "run: python -m broker_fl.wire.vectors schemas/vectors/"


@named("valid.json")
def test_a_valid_body_is_read_and_packs_to_the_same_bytes(case: Any) -> None:
    body = base64.b64decode(case["body"])
    message, payload = read(body)
    assert payload == (PAYLOAD if case["payload"] else None)
    assert vectors.body_of(message) == body
    assert vectors.to_json(message.model_dump()) | {"v": 1, "kind": message.KIND} == case["header"]


@named("valid.json")
def test_a_valid_body_may_come_in_wider_msgpack_forms_and_any_order(case: Any) -> None:
    """Other libraries write wide integers and lengths, and fields in another order."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(base64.b64decode(case["body"]))
    header = dict(reversed(unpacker.unpack().items()))
    rest = base64.b64decode(case["body"])[unpacker.tell() :]
    again, _ = read(_wide(header) + rest)
    assert vectors.to_json(again.model_dump()) | {"v": 1, "kind": again.KIND} == case["header"]


def _wide(value: Any) -> bytes:
    if isinstance(value, dict):
        items = b"".join(_wide(key) + _wide(inner) for key, inner in value.items())
        return b"\xdf" + len(value).to_bytes(4, "big") + items
    if isinstance(value, list):
        return b"\xdd" + len(value).to_bytes(4, "big") + b"".join(_wide(inner) for inner in value)
    if isinstance(value, str):
        data = value.encode()
        return b"\xdb" + len(data).to_bytes(4, "big") + data
    if isinstance(value, int) and not isinstance(value, bool):
        return b"\xd3" + value.to_bytes(8, "big", signed=True)
    packed = msgpack.packb(value)
    assert isinstance(packed, bytes)
    return packed


@named("invalid.json")
def test_an_invalid_body_is_refused_in_words(case: Any) -> None:
    with pytest.raises(FrameRefused) as caught:
        decode(base64.b64decode(case["body"]))
    assert 10 < len(str(caught.value)) < 600


@named("invalid_manifests.json")
def test_a_manifest_that_contradicts_itself_is_refused(case: Any) -> None:
    manifest = ModelManifest.model_validate(_tuples(case["manifest"]))
    with pytest.raises(FrameRefused):
        manifest.model_spec(max_bytes=1_000_000)


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(inner) for inner in value)
    return {key: _tuples(inner) for key, inner in value.items()} if isinstance(value, dict) else value


@named("models.json")
def test_a_models_layout_and_digests_are_as_written(case: Any) -> None:
    spec = ModelSpec.from_wire(case["spec"])
    assert (list(spec.offsets), spec.num_bytes, spec.digest) == (
        case["offsets"],
        case["num_bytes"],
        case["spec_digest"],
    )
    raw = base64.b64decode(case["encoded"]["raw"])
    assert Model(spec, np.frombuffer(raw, np.uint8)).digest == case["digest"]
    packed = base64.b64decode(case["spec_msgpack"])
    assert packed == msgpack.packb(case["spec"])
    assert xxhash.xxh3_128_hexdigest(packed) == case["spec_digest"]
    assert xxhash.xxh3_128_hexdigest(case["spec_digest"].encode() + raw) == case["digest"]


@named("models.json")
def test_a_models_encodings_are_as_written(case: Any) -> None:
    spec = ModelSpec.from_wire(case["spec"])
    model = Model(spec, np.frombuffer(base64.b64decode(case["encoded"]["raw"]), np.uint8))
    assert set(case["encoded"]) == {name for name, one in ENCODINGS.items() if not one.coarse}
    for name, data in case["encoded"].items():
        encoded = base64.b64decode(data)
        used = encoding(name, case["buffers"])
        assert used.num_bytes(spec) == len(encoded)
        assert used.encode(model).tobytes() == encoded
        again = used.decode(np.frombuffer(encoded, np.uint8), spec)
        assert again.spec == spec
        assert used.encode(again).tobytes() == encoded, "decoding loses nothing"


@named("coarse.json")
def test_changes_are_encoded_and_decoded_as_written(case: Any) -> None:
    spec, used = ModelSpec.from_wire(case["spec"]), encoding(case["encoding"], case["buffers"])
    raw, encoded, decoded = (
        np.frombuffer(base64.b64decode(case[key]), np.uint8) for key in ("raw", "encoded", "decoded")
    )
    assert used.num_bytes(spec) == encoded.nbytes <= spec.num_bytes
    assert used.encode(Model(spec, raw)).tobytes() == encoded.tobytes()
    assert used.decode(encoded, spec).buffer.tobytes() == decoded.tobytes()


@named("coarse.json")
def test_a_reader_made_from_the_readme_alone_decodes_them_the_same(case: Any) -> None:
    """Byte by byte with the standard library; bfloat16, which it lacks, by hand."""
    encoded, decoded, at = base64.b64decode(case["encoded"]), b"", 0
    for dtype, num_bytes, is_buffer in runs_of(case["spec"], case["buffers"]):
        size = DTYPES[dtype].itemsize
        count = num_bytes // size
        decoded += bytes(-len(decoded) % size)  # padding
        if case["encoding"] == "int8":
            length, read = 4 * -(-count // 256) + count, read_int8
        else:
            length = (4 + size) * -(-count // int(case["encoding"].split("/")[1]))
            read = read_sparse
        if is_buffer or dtype not in FLOATS or length >= num_bytes:
            decoded, at = decoded + encoded[at : at + num_bytes], at + num_bytes
        else:
            decoded, at = decoded + read(encoded[at : at + length], count, dtype), at + length
    assert at == len(encoded)
    assert decoded == base64.b64decode(case["decoded"])


def runs_of(spec: Any, buffers: list[str]) -> list[list[Any]]:
    """Element type and length of each, and whether it is of buffers; here no gap parts two of one type."""
    runs: list[list[Any]] = []
    for name, dtype, shape in spec:
        num_bytes = math.prod(shape) * DTYPES[dtype].itemsize
        if runs and runs[-1][::2] == [dtype, name in buffers]:
            runs[-1][1] += num_bytes
        elif num_bytes:
            runs.append([dtype, num_bytes, name in buffers])
    return runs


def read_int8(section: bytes, count: int, dtype: str) -> bytes:
    num_blocks = -(-count // 256)
    scales = struct.unpack_from(f"<{num_blocks}f", section)
    numbers = struct.unpack_from(f"<{count}b", section, 4 * num_blocks)
    products = [number * scales[index // 256] for index, number in enumerate(numbers)]
    if dtype == "float64":
        return struct.pack(f"<{count}d", *products)
    words = struct.unpack(f"<{count}I", singles := struct.pack(f"<{count}f", *products))
    if dtype == "float16":
        return struct.pack(f"<{count}e", *struct.unpack(f"<{count}f", singles))
    if dtype == "bfloat16":
        return struct.pack(f"<{count}H", *((w + 0x7FFF + ((w >> 16) & 1)) >> 16 for w in words))
    return singles


def read_sparse(section: bytes, count: int, dtype: str) -> bytes:
    size = DTYPES[dtype].itemsize
    num_sent = len(section) // (4 + size)
    run = bytearray(count * size)
    for index, place in enumerate(struct.unpack_from(f"<{num_sent}I", section)):
        start = 4 * num_sent + index * size
        run[place * size : (place + 1) * size] = section[start : start + size]
    return bytes(run)


@named("invalid_encoded.json")
def test_an_encoded_buffer_that_no_sender_writes_is_refused(case: Any) -> None:
    encoded = np.frombuffer(base64.b64decode(case["encoded"]), np.uint8)
    with pytest.raises(FrameRefused, match=case["reason"]):
        encoding(case["encoding"]).decode(encoded, ModelSpec.from_wire(case["spec"]))


@named("models.json")
def test_a_models_chunks_are_as_written(case: Any) -> None:
    buffer = np.frombuffer(base64.b64decode(case["encoded"]["raw"]), np.uint8)
    assembly = Assembly(case["num_bytes"], case["chunk_bytes"])
    for chunk, written in zip(cut(buffer, case["chunk_bytes"]), case["chunks"], strict=True):
        assert (chunk.index, chunk.count, len(chunk.payload)) == (
            written["index"],
            written["count"],
            written["num_bytes"],
        )
        assert chunk.checksum == written["checksums"][0]
        for known in written["checksums"]:
            assembly.add(chunk.index, chunk.count, known, chunk.payload)
    assert assembly.complete
    assert assembly.buffer.tobytes() == buffer.tobytes()


@named("invalid_chunks.json")
def test_a_chunk_that_does_not_fit_changes_nothing(case: Any) -> None:
    whole = next(case for case in vector("models.json") if case["name"] == "three chunks")
    assembly = Assembly(whole["num_bytes"], whole["chunk_bytes"])
    assembly.buffer[:] = 7
    with pytest.raises(FrameRefused):
        assembly.add(
            case["index"], case["count"], case["checksum"], memoryview(base64.b64decode(case["payload"]))
        )
    assert (assembly.buffer == 7).all()
    assert assembly.num_missing == 3


def test_the_vectors_cover_every_element_type_encoding_and_special_value() -> None:
    types = {row[1] for case in vector("models.json") for row in case["spec"]}
    assert types == set(DTYPES)
    special = next(case for case in vector("models.json") if case["name"] == "special values")
    values = np.frombuffer(base64.b64decode(special["encoded"]["float16"]), np.float16)
    assert math.isnan(values[-1])
    assert values[4] == 65504
    assert np.isinf(values[5:10:2]).tolist() == [True, True, True]


# ---------------------------------------------------------------- the tables of the README


def table(heading: str) -> list[list[str]]:
    """Rows of the first table below a heading, without backquotes."""
    section = README.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    rows = [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines]
    return rows[2:]


def test_the_readme_lists_every_limit_as_it_is() -> None:
    from broker_fl import model
    from broker_fl.wire import fields

    limits = {row[0]: int(row[1].replace(",", "")) for row in table("Limits")}
    assert limits == {
        name: getattr(module, name)
        for module in (frames, fields, model)
        for name in vars(module)
        if name.startswith(("MAX_", "MIN_"))
    }


def test_the_readme_lists_every_kind_once() -> None:
    listed = re.findall(r"^\| `([a-z_]+)` \|", README, re.MULTILINE)
    assert sorted(kind for kind in listed if kind in ALL_KINDS) == sorted(ALL_KINDS)


def test_the_readme_lists_every_exchange_and_queue_with_its_arguments() -> None:
    topology = Topology("F")
    entities = {
        *topology.for_controller(),
        *topology.for_inbox("<inbox>"),
        *topology.for_learner("<learner>"),
        *topology.for_driver("<driver>"),
        *topology.for_watcher("<watcher>", "<job>"),
    }
    exchanges = {(entity.name, entity.type) for entity in entities if isinstance(entity, Exchange)}
    queues = {
        (entity.name, json.dumps(queue_arguments(entity), sort_keys=True))
        for entity in entities
        if isinstance(entity, Queue)
    }
    bindings = {
        (entity.exchange, entity.routing_key, entity.queue)
        for entity in entities
        if not isinstance(entity, Exchange | Queue)
    }
    assert {(row[0], row[1]) for row in table("Exchanges")} == exchanges
    assert {(row[0], json.dumps(json.loads(row[1]), sort_keys=True)) for row in table("Queues")} == queues
    assert {(row[0], row[1], row[2]) for row in table("Bindings")} == bindings


def test_the_readme_lists_every_element_type_with_its_size() -> None:
    assert {row[0]: int(row[1]) for row in table("Element types")} == {
        name: dtype.itemsize for name, dtype in DTYPES.items()
    }


def test_the_readme_lists_every_encoding() -> None:
    assert [row[0] for row in table("Encodings")] == list(NAMES)


def test_a_checksum_of_either_kind_is_known() -> None:
    assert checksum(memoryview(b"")) == "xxh3:2d06800538d394c2"
