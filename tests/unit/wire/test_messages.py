"""Message kinds: round trips, limits, manifests held against their spec, and hostile input."""

from __future__ import annotations

import math
import time
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from broker_fl.errors import FrameRefused
from broker_fl.model import DTYPES, Model, ModelSpec, TensorSpec
from broker_fl.wire import messages as m
from broker_fl.wire.chunks import Assembly
from broker_fl.wire.encodings import ENCODINGS
from broker_fl.wire.examples import examples
from broker_fl.wire.fields import MAX_INT, MAX_METRICS, MAX_PARAMETERS, MAX_TEXT_CHARS, text
from broker_fl.wire.frames import MAX_BODY_BYTES, MAX_CHUNK_BYTES, MAX_CHUNK_HEADER_BYTES, pack_chunk
from broker_fl.wire.messages import KINDS, ModelManifest, UpdateManifest, decode
from broker_fl.wire.vectors import body_of

TASK: dict[str, Any] = {"job": "j", "round": 0}
RESULT: dict[str, Any] = {"v": 1, "kind": "result", "learner": "l", "task": TASK}
MESSAGES = {name: message for name, message in examples().items() if message.KIND in KINDS}


def pack(fields: dict[str, Any]) -> bytes:
    body = msgpack.packb(fields)
    assert isinstance(body, bytes)
    return body


@pytest.mark.parametrize("name", MESSAGES)
def test_every_kind_comes_back(name: str) -> None:
    message, payload = decode(body_of(MESSAGES[name]))
    assert type(message) is type(MESSAGES[name])
    assert message.pack() == MESSAGES[name].pack()
    assert (payload is not None) == isinstance(message, m.WITH_PAYLOAD)


@pytest.mark.parametrize("name", MESSAGES)
def test_unknown_fields_are_ignored_and_optional_ones_have_defaults(name: str) -> None:
    message = MESSAGES[name]
    required = {key for key, field in type(message).model_fields.items() if field.is_required()}
    fields = {"v": 1, "kind": message.KIND, **message.model_dump(), "later": {"x": [1]}}
    fields = {key: value for key, value in fields.items() if key in required | {"v", "kind", "later"}}
    rest = b"\xc4\x00" if isinstance(message, m.WITH_PAYLOAD) else b""
    decoded, _ = decode(pack(fields) + rest)
    assert not hasattr(decoded, "later")


@pytest.mark.parametrize("name", MESSAGES)
def test_every_required_field_is_missed_by_name(name: str) -> None:
    message = MESSAGES[name]
    rest = b"\xc4\x00" if isinstance(message, m.WITH_PAYLOAD) else b""
    for key, field in type(message).model_fields.items():
        fields = {"v": 1, "kind": message.KIND, **message.model_dump()}
        del fields[key]
        if field.is_required():
            with pytest.raises(
                FrameRefused, match=f"{message.KIND!r} message with a wrong field {key!r}: Field required"
            ):
                decode(pack(fields) + rest)


@pytest.mark.parametrize("message", [m.Rejoin(), m.Cancel(task=m.TaskRef(job="j", round=0))])
def test_messages_cannot_be_changed(message: m.Message) -> None:
    with pytest.raises(ValidationError):
        message.reason = "another"  # type: ignore[attr-defined]


@given(st.data())
def test_damaged_messages_are_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    body = bytearray(body_of(MESSAGES[data.draw(st.sampled_from(sorted(MESSAGES)))]))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        message, _ = decode(bytes(body))
    except FrameRefused as error:
        assert len(str(error)) < 700  # noqa: PT017 - it may also be valid
    else:
        assert decode(body_of(message))[0].pack() == message.pack()


_JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(MESSAGES)), st.data())
def test_a_field_of_any_other_type_is_read_or_refused_and_nothing_else(
    name: str, data: st.DataObject
) -> None:
    message = MESSAGES[name]
    fields = {"v": 1, "kind": message.KIND, **message.model_dump()}
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(_JUNK)
    rest = b"\xc4\x00" if isinstance(message, m.WITH_PAYLOAD) else b""
    try:
        decode(pack(fields) + rest)
    except FrameRefused as error:
        assert str(error)  # noqa: PT017 - it may also be valid


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"num_examples": -1}, "num_examples"),
        ({"num_examples": 2**63}, "num_examples"),
        ({"num_examples": True}, "num_examples"),
        ({"num_examples": 1.0}, "num_examples"),
        ({"metrics": {"": 1.0}}, "metrics"),
        ({"metrics": {"x" * 129: 1.0}}, "metrics"),
        ({"metrics": {f"m{i}": 1.0 for i in range(MAX_METRICS + 1)}}, "metrics"),
        ({"metrics": {"loss": "low"}}, "metrics.loss"),
        ({"metrics": {"loss": True}}, "metrics.loss"),
        ({"timings": {"train_s": math.nan}}, "timings.train_s"),
        ({"timings": {"train_s": -0.1}}, "timings.train_s"),
        ({"learner": "a.b"}, "learner"),
        ({"learner": "a\n"}, "learner"),
        ({"learner": "ä"}, "learner"),
        ({"task": TASK | {"attempt": None}}, "task.attempt"),
        ({"update": {"num_bytes": 4, "chunk_bytes": 4095}}, "update.chunk_bytes"),
        ({"update": {"num_bytes": 4, "chunk_bytes": MAX_CHUNK_BYTES + 1}}, "update.chunk_bytes"),
        ({"update": {"num_bytes": 4, "chunk_bytes": 4096, "spec_digest": "A" * 32}}, "update.spec_digest"),
    ],
)
def test_a_result_with_a_wrong_field_is_refused_by_its_name(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(FrameRefused, match=f"wrong field '{where}"):
        decode(pack(RESULT | changes))


@pytest.mark.parametrize(
    "parameters",
    [
        {"x": 2**63},
        {"x": 10**18 * 2},
        {"x": -(2**63)},
        {"x": math.inf},
        {"x": math.nan},
        {"x": "y" * (MAX_TEXT_CHARS + 1)},
        {"x": [1]},
        {"x": {"y": 1}},
        {"x": b"bytes"},
        {"": 1},
        {f"p{i}": i for i in range(MAX_PARAMETERS + 1)},
    ],
    ids=lambda parameters: str(parameters)[:30],
)
def test_parameters_are_a_bounded_number_of_plain_values(parameters: dict[str, Any]) -> None:
    join = {"v": 1, "kind": "join", "learner": "l", "session": "s", "attributes": parameters}
    fine = all(isinstance(value, int) and -(2**63) <= value <= MAX_INT for value in parameters.values())
    if fine and "" not in parameters and len(parameters) <= MAX_PARAMETERS:
        message, _ = decode(pack(join))
        assert isinstance(message, m.Join)
        assert message.attributes == parameters
    else:
        with pytest.raises(FrameRefused, match="wrong field 'attributes"):
            decode(pack(join))


@pytest.mark.parametrize("value", ["text", 7, -(2**63), 2**63 - 1, 1.0, 0.5, True, False, None])
def test_parameters_keep_their_types(value: str | float | bool | None) -> None:
    message, _ = decode(m.Join(learner="l", session="s", attributes={"x": value}).pack())
    assert isinstance(message, m.Join)
    assert type(message.attributes["x"]) is type(value)
    assert message.attributes["x"] == value


def test_metrics_may_be_nan_or_infinite_and_nil_is_nan() -> None:
    metrics = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": None, "e": 1}
    message, _ = decode(pack(RESULT | {"metrics": metrics}))
    assert isinstance(message, m.Result)
    assert math.isnan(message.metrics["a"])
    assert math.isnan(message.metrics["d"])
    assert (message.metrics["b"], message.metrics["c"], message.metrics["e"]) == (math.inf, -math.inf, 1.0)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("short", "short"),
        (ValueError("no"), "no"),
        ("\udcff.bin", "\\udcff.bin"),
        ("x" * 5_000, "x" * (MAX_TEXT_CHARS - 1) + "…"),
        ("\U0001f600" * 5_000, "\U0001f600" * (MAX_TEXT_CHARS - 1) + "…"),
    ],
    ids=["short", "an error", "not UTF-8", "long", "long in bytes"],
)
def test_anything_can_be_made_a_reason(value: object, expected: str) -> None:
    assert text(value) == expected
    decode(m.Failed(learner="l", task=m.TaskRef(job="j", round=0), reason=text(value)).pack())


def test_the_largest_report_and_chunk_header_fit_into_their_frames() -> None:
    wide = "\U0001f600"
    metrics = {f"{i:03}{wide * 125}": 1.0 for i in range(MAX_METRICS)}
    result = m.Result(
        learner="x" * 64,
        task=m.TaskRef(job="x" * 64, round=MAX_INT, attempt=MAX_INT),
        metrics=metrics,
        evaluation=metrics,
    )
    assert len(result.pack()) < MAX_BODY_BYTES
    attributes: dict[str, Any] = {f"{i:03}{wide * 125}": wide * MAX_TEXT_CHARS for i in range(MAX_PARAMETERS)}
    assert len(m.Join(learner="l", session="s", attributes=attributes).pack()) < MAX_BODY_BYTES
    dead = m.DeadLetter(
        source=wide * MAX_TEXT_CHARS,
        routing_key=wide * MAX_TEXT_CHARS,
        reason=wide * MAX_TEXT_CHARS,
        time_s=1e300,
    )
    body = pack_chunk(
        dead.KIND, dead.model_dump(), memoryview(bytes(MAX_BODY_BYTES - MAX_CHUNK_HEADER_BYTES - 5))
    )
    assert decode(body)[0] == dead


# ---------------------------------------------------------------- hostile input


ROWS = [["x", "bool", []]]
MODEL: dict[str, Any] = {"version": 0, "spec": ROWS, "num_bytes": 1, "chunk_bytes": 4096}
FOLLOWS: dict[str, Any] = {"v": 1, "kind": "model_follows", "request": "r", "job": "j", "model": MODEL}


@pytest.mark.parametrize(
    "fields",
    [
        RESULT | {"metrics": {str(i): "" for i in range(300_000)}},
        RESULT | {"metrics": {str(i): "" for i in range(4_000)}},
        {"v": 1, "kind": "heartbeat", "learner": "l", "session": "s", "tasks": [None] * 3_000_000},
        {"v": 1, "kind": "heartbeat", "learner": "l", "session": "s", "tasks": [{}] * 1_000_000},
        {"v": 1, "kind": "events", "request": "r", "events": [1] * 3_000_000},
        {"v": 1, "kind": "leave", "learner": "x" * 3_000_000, "session": "s"},
        {"v": 1, "kind": "x" * 3_000_000},
        FOLLOWS | {"model": MODEL | {"spec": ROWS * 400_000}},
        FOLLOWS | {"model": MODEL | {"spec": [None] * 3_000_000}},
        FOLLOWS | {"model": MODEL | {"spec": [["x", "bool", [1] * 3_000_000]]}},
        FOLLOWS | {"model": MODEL | {"spec": [["x", "bool", [-1]]]}},
        FOLLOWS | {"model": MODEL | {"spec": [["x", "bool"]]}},
        FOLLOWS | {"model": MODEL | {"spec": [["x", "bool", [], 1]]}},
        FOLLOWS | {"model": MODEL | {"spec": [["x" * 513, "bool", []]]}},
        FOLLOWS | {"model": MODEL | {"spec": [["x", "x" * 1_000_000, []]]}},
    ],
    ids=lambda fields: f"{fields['kind'][:15]}",
)
def test_a_large_wrong_message_is_refused_fast_at_bounded_cost(fields: dict[str, Any]) -> None:
    body = pack(fields)
    tracemalloc.start()
    try:
        started = time.process_time()
        with pytest.raises(FrameRefused) as caught:
            decode(body)
        seconds = time.process_time() - started
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 700
    assert peak < 100 * len(body) + 10_000_000
    assert seconds < 30, "a linear effort, not a square one"


# ---------------------------------------------------------------- manifests

SPEC = ModelSpec.of({"w": np.zeros((4, 3), np.float32), "d": np.zeros(5), "n": np.zeros((), np.int64)})
SPECS = st.lists(
    st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 7), max_size=3).map(tuple)), max_size=6
).map(
    lambda rows: ModelSpec(tuple(TensorSpec(f"t{i}", dtype, shape) for i, (dtype, shape) in enumerate(rows)))
)


@given(SPECS, st.sampled_from(sorted(ENCODINGS)))
def test_a_manifest_made_of_a_spec_gives_it_back(spec: ModelSpec, encoding: str) -> None:
    manifest = ModelManifest.of(spec, version=1, digest="", encoding=encoding, chunk_bytes=4096)
    message, _ = decode(m.ModelFollows(request="r", job="j", model=manifest).pack())
    assert isinstance(message, m.ModelFollows)
    assert message.model.model_spec(max_bytes=spec.num_bytes) == spec
    assert message.model.num_bytes <= spec.num_bytes, "an encoded model is never larger"
    UpdateManifest.of(spec, encoding=encoding, chunk_bytes=4096).check(spec)


def manifest(**changes: Any) -> ModelManifest:
    good = ModelManifest.of(SPEC, version=0, digest="", encoding="raw", chunk_bytes=4096)
    return ModelManifest.model_validate(good.model_dump() | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_bytes": SPEC.num_bytes + 1}, "announces 97 bytes; as 'raw' the model has 96"),
        ({"encoding": "float16"}, "announces 96 bytes; as 'float16' the model has 48"),
        ({"encoding": "zip"}, "encoding 'zip' is not one of raw, float32, float16, bfloat16"),
        ({"spec_digest": "0" * 32}, "the spec's digest is [0-9a-f]{32}, the manifest says 0000"),
        ({"spec": (("w", "float33", ()),)}, "tensor 'w': element type 'float33'"),
        ({"spec": (("w", "int8", ()), ("w", "int8", ()))}, "more than once: w"),
        ({"spec": (("w", "float64", (2**62,) * 32),)}, "tensor 'w': shape .* is not usable"),
        ({"spec": (("w", "int8", (1001,)),), "num_bytes": 1001}, "the model has 1001 bytes; at most 1000"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(FrameRefused, match=words) as caught:
        manifest(**changes).model_spec(max_bytes=1_000)
    assert len(str(caught.value)) < 700


def test_a_manifest_without_digests_is_taken() -> None:
    assert manifest(spec_digest="", digest="").model_spec(max_bytes=96) == SPEC


def test_a_hundred_thousand_tensors_of_one_name_are_refused_in_time() -> None:
    rows = tuple(("x", "int8", ()) for _ in range(100_000))
    started = time.process_time()
    with pytest.raises(FrameRefused, match="more than once: x"):
        manifest(spec=rows).model_spec(max_bytes=1_000_000)
    assert time.process_time() - started < 20


def test_an_update_of_another_model_or_size_is_refused() -> None:
    good = UpdateManifest.of(SPEC, encoding="float16", chunk_bytes=4096)
    good.check(SPEC)
    good.model_copy(update={"spec_digest": ""}).check(SPEC)
    other = ModelSpec.of({"w": np.zeros((3, 4), np.float32), "d": np.zeros(5), "n": np.zeros((), np.int64)})
    with pytest.raises(FrameRefused, match="of a model with digest"):
        good.check(other)
    with pytest.raises(FrameRefused, match="announces 47 bytes; as 'float16' the model has 48"):
        good.model_copy(update={"num_bytes": 47}).check(SPEC)


def test_keeping_track_of_chunks_costs_little_beside_them() -> None:
    tracemalloc.start()
    try:
        assembly = Assembly(1 << 30, 4_096)  # promised by the system, not taken before it is written to
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert assembly.count == 262_144
    assert peak - assembly.buffer.nbytes < 1_000_000


def test_a_models_digest_travels_with_its_manifest() -> None:
    model = Model.of({"w": np.ones(3, np.float32)})
    made = ModelManifest.of(model.spec, version=2, digest=model.digest, encoding="raw", chunk_bytes=4096)
    assert (made.digest, made.spec_digest, made.num_bytes) == (model.digest, model.spec.digest, 12)
