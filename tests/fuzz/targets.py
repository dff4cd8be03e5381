"""The decoders, each as a function of bytes that raises nothing but what is documented.

What must hold besides is asserted here: what was read can be written and read again, a buffer is complete
when all its chunks are there, a model that was decoded has the spec that it was decoded for.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from pika import frame

from broker_fl.coordination.shares import Share
from broker_fl.errors import (
    AccessDenied,
    AuditBroken,
    BrokerFLError,
    BrokerUnavailable,
    FrameRefused,
    SettingError,
)
from broker_fl.fleet.inventory import load
from broker_fl.jobfile import parse_job, read_job
from broker_fl.model import Model, ModelError, ModelSpec
from broker_fl.roles.learner.policy import read_policy
from broker_fl.transports.rabbitmq.tuned import FrameReader
from broker_fl.wire import messages as m
from broker_fl.wire.chunks import Assembly, checksum, cut
from broker_fl.wire.encodings import Encoding, encoding
from broker_fl.wire.events import Event, decode_event, event_from_json
from broker_fl.wire.examples import examples
from broker_fl.wire.vectors import body_of, models
from tests.fuzz import places, private, stream
from tests.servers import raw_amqp

MAX_MODEL_BYTES = 1 << 20
"""That a manifest may announce here, where a decoder would make room for it."""
CHUNK_BYTES = 4_096
CORPUS = Path(__file__).parent / "corpus"
Decoder = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Target:
    """A decoder, inputs that it takes, and the errors that it may raise."""

    decode: Decoder
    seeds: Callable[[], list[bytes]]
    errors: tuple[type[BrokerFLError], ...] = (FrameRefused,)
    words: tuple[bytes, ...] = field(default=())
    """What inputs are made of, where they are no msgpack."""

    def run(self, data: bytes) -> bool:
        """Whether the decoder takes the input; what it may not raise comes out."""
        try:
            self.decode(data)
        except self.errors:
            return False
        return True


def kept(name: str) -> list[bytes]:
    """The corpus of a target, one input a line, in hexadecimal digits."""
    path = CORPUS / f"{name}.hex"
    return [bytes.fromhex(line) for line in path.read_text().split()] if path.exists() else []


# ---------------------------------------------------------------- frames, messages, events


def _frame(data: bytes) -> None:
    broken = m.broken_result(data)
    assert broken is None or isinstance(broken[1], m.TaskRef)
    message, _ = m.decode(data)
    again = body_of(message)
    assert repr(m.decode(again)[0]) == repr(message)
    if isinstance(message, m.GroupResult):
        share = Share.of([message])
        share.problem([None] * len(share.learners), 3)
    with suppress(FrameRefused):
        _manifest(message)


def _manifest(message: m.Message) -> None:
    """What a receiver makes room for is bounded by its own limit, whatever the manifest says."""
    manifest = getattr(message, "model", None)
    if isinstance(manifest, m.ModelManifest):
        spec = manifest.model_spec(MAX_MODEL_BYTES)
        assert spec.num_bytes <= MAX_MODEL_BYTES
        Assembly(manifest.num_bytes, manifest.chunk_bytes)
    update = getattr(message, "update", None)
    if isinstance(update, m.UpdateManifest):
        update.check(_models()[0].spec)


def _frames() -> list[bytes]:
    return [body_of(message) for message in examples().values() if not isinstance(message, Event)]


def _event(data: bytes) -> None:
    event = decode_event(data)
    assert repr(decode_event(event.pack())) == repr(event)


def _events() -> list[bytes]:
    return [message.pack() for message in examples().values() if isinstance(message, Event)]


def _json_line(data: bytes) -> None:
    event = event_from_json(data.decode("utf-8", "replace"))
    assert event_from_json(event.to_json()).to_json() == event.to_json()


def _json_lines() -> list[bytes]:
    return [one.to_json().encode() for one in examples().values() if isinstance(one, Event)]


# ---------------------------------------------------------------- AMQP


def _amqp(data: bytes) -> None:
    """Properties as a broker passes them on: any bytes that it has read in its own way."""
    if len(data) < 2:
        raise FrameRefused("no flags")
    sent = frame.Header(1, 5, raw_amqp.RawProperties(data)).marshal()
    for reads_headers in (False, True):
        (found,) = FrameReader(reads_headers=reads_headers).feed(sent)
        assert (found.channel_number, found.body_size) == (1, 5)
        user = found.properties.user_id
        assert user is None or user.encode() in data


def _content_headers() -> list[bytes]:
    return [*raw_amqp.tables("a.learner.b").values(), raw_amqp.in_two_ways("a.learner.b", "a.learner.c")]


# ---------------------------------------------------------------- specs


def _spec(data: bytes) -> None:
    """Rows as a manifest has them; the manifest is right in all else."""
    try:
        rows = msgpack.unpackb(data, use_list=False)
    except Exception as error:
        raise FrameRefused("no rows") from error
    header = {"v": 1, "kind": "model_follows", "request": "r", "job": "j"}
    fields = {"version": 0, "spec": rows, "num_bytes": 0, "chunk_bytes": CHUNK_BYTES}
    try:
        spec = ModelSpec.from_wire(rows)
        fields |= {"spec_digest": spec.digest, "num_bytes": min(spec.num_bytes, 2**63 - 1)}
    except Exception:  # noqa: BLE001 - what else the rows may be is for the decoder to say
        fields["num_bytes"] = 1
    message, _ = m.decode(msgpack.packb(header | {"model": fields}))
    assert isinstance(message, m.ModelFollows)
    spec = message.model.model_spec(MAX_MODEL_BYTES)
    empty = Model(spec, np.zeros(spec.num_bytes, np.uint8))
    assert ModelSpec.from_wire(spec.to_wire()) == spec
    assert sum(array.nbytes for array in empty.values()) <= MAX_MODEL_BYTES


def _specs() -> list[bytes]:
    return [msgpack.packb(model.spec.to_wire()) for model in _models()]


# ---------------------------------------------------------------- chunks


def _chunks(data: bytes) -> None:
    """Length, chunk size and changes of chunks: ``[length, chunk_bytes, [[index, count, cut, flip], …]]``."""
    try:
        length, chunk_bytes, steps = msgpack.unpackb(data, use_list=False)
        length, chunk_bytes = int(length) % (1 << 16), CHUNK_BYTES + int(chunk_bytes) % (1 << 12)
        steps = [tuple(int(value) for value in step) for step in steps[:64]]
    except Exception as error:
        raise FrameRefused("no steps") from error
    whole = (np.arange(length) % 251).astype(np.uint8)
    chunks = list(cut(whole, chunk_bytes))
    assembly, there = Assembly(length, chunk_bytes), set()
    for index, count, cut_off, flip in (step for step in steps if len(step) == 4):
        chunk = chunks[index % len(chunks)]
        payload = bytearray(chunk.payload)[: len(chunk.payload) - cut_off % 3]
        mark = checksum(memoryview(bytes(payload)))
        if flip % 4 == 1 and payload:
            payload[flip % len(payload)] ^= 1 + flip % 255
        marks = (mark, f"xxh3:{flip:x}", "crc32:", "md5:0", "", mark.upper())
        try:
            assembly.add(
                chunk.index if count >= 0 else index,
                chunk.count + min(count, 0) % 3,
                marks[flip % 8 if flip % 8 < 6 else 0],
                memoryview(bytes(payload)),
            )
        except FrameRefused:
            continue
        there.add(chunk.index if count >= 0 else index)
    assert assembly.complete == (there == set(range(len(chunks))))
    for index in there:
        part = slice(index * chunk_bytes, (index + 1) * chunk_bytes)
        np.testing.assert_array_equal(assembly.buffer[part], whole[part])


def _steps() -> list[bytes]:
    lengths = (0, 1, 4_095, 4_096, 20_000)
    plans = ([[i, 0, 0, 0] for i in range(5)], [[i % 5, -(i % 2), i % 3, i] for i in range(30)])
    return [msgpack.packb([length, 0, plan]) for length in lengths for plan in plans]


# ---------------------------------------------------------------- encodings

_ENCODINGS = ("raw", "float32", "float16", "bfloat16", "int8", "topk/2", "topk/1000")


def _encoded(data: bytes) -> None:
    """Two bytes choose encoding and spec, the rest is the buffer, of the length that both sides know."""
    if len(data) < 2:
        raise FrameRefused("no encoding")
    spec = _models()[data[1] % len(_models())].spec
    found = encoding(_ENCODINGS[data[0] % len(_ENCODINGS)])
    length = found.num_bytes(spec)
    buffer = np.frombuffer(data[2 : 2 + length].ljust(length, b"\0"), np.uint8).copy()
    model = found.decode(buffer, spec)
    assert model.spec == spec
    assert all(
        array.shape == tensor.shape for array, tensor in zip(model.values(), spec.tensors, strict=True)
    )


def _buffers() -> list[bytes]:
    return [
        bytes((number, place)) + found.encode(model).tobytes()
        for number, found in enumerate(map(encoding, _ENCODINGS))
        for place, model in enumerate(_models())
        if _is_writable(model, found)
    ]


def _is_writable(model: Model, found: Encoding) -> bool:
    """Changes of coarse encodings are finite, and not too large for their scales."""
    try:
        found.encode(model)
    except (ModelError, FrameRefused, ValueError):
        return False
    if found.overflow(model) is not None:
        return False
    return all(np.isfinite(model.run(run).astype(np.float64)).all() for run in model.spec.runs)


@cache
def _models() -> tuple[Model, ...]:
    return tuple(models().values())


# ---------------------------------------------------------------- job files


def _job_file(data: bytes) -> None:
    words = data.decode("utf-8", "replace")
    try:
        fields: Mapping[str, Any] = tomllib.loads(words)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SettingError("no TOML") from error
    parse_job(fields, "job.toml")


def _file(read: Callable[[Path], object]) -> Decoder:
    """Reads a user's file."""

    def decode(data: bytes) -> None:
        path = _scratch() / "a.toml"
        path.write_bytes(data)
        read(path)

    return decode


@cache
def _scratch() -> Path:
    import tempfile

    return Path(tempfile.mkdtemp(prefix="fuzz-"))


def _job_files() -> list[bytes]:
    root = Path(__file__).parents[2]
    return [path.read_bytes() for path in sorted((root / "examples").rglob("*.toml"))[:12]] + [_SMALL_JOB]


_SMALL_JOB = b"""name = "digits"
buffers = ["*running_mean"]
parameters = { epochs = 5, learning_rate = 0.2, nesterov = true }
[protocol]
name = "asynchronous"
max_lead = 3
min_learners = 10
deadline_s = 60.0
[rule]
name = "fedbuff"
[pacing]
name = "aimd"
[selector]
name = "all"
where = { gpu = true }
[termination]
versions = 20
target = { metric = "accuracy", value = 0.9 }
[transfer]
encoding = "topk/10"
[simulation]
speeds = { name = "spread", low = 0.1, high = 1.0 }
"""

_POLICY = b"""[jobs]
names = ["mri-*"]
drivers = ["anna"]
rules = ["fedavg", "fedprox"]
protocols = ["synchronous"]
[limits]
max_epochs = 5
max_steps = 10_000
max_bytes_per_day = 20_000_000_000
[privacy]
min_cohort = 3
aggregation = "none"
"""

_INVENTORY = b"""package = "broker-fl[torch]==0.1.0"
known_hosts = "known_hosts"
[hosts.ops]
address = "ops.example.org"
user = "fl"
[hosts.a]
address = "10.0.0.7"
port = 2222
environment = { OMP_NUM_THREADS = "4" }
[controllers.main]
host = "ops"
config = "controller.toml"
[learners.hospital-a]
host = "a"
app = "app.py:make_learner"
files = ["reading.py"]
join = "hospital-a.join"
"""

_WORDS = (
    *(b"[model]", b"[protocol]", b"[rule]", b"[selector]", b"[pacing]", b"[termination]", b"[transfer]"),
    *(
        b"[simulation]",
        b"[[rule]]",
        b'name = "',
        b"= [",
        b"= {",
        b"nan",
        b"inf",
        b"1e999",
        b"-1",
        b"0x",
        b"''' ",
    ),
    *(b"app = ", b'file = "', b"99999999999999999999", b"1979-05-27T07:32:00Z", b"\\uD800", b"\xff", b"\0"),
)

_OF_PROXIES = (AccessDenied, BrokerUnavailable, SettingError)

TARGETS: dict[str, Target] = {
    "frame": Target(_frame, _frames),
    "event": Target(_event, _events),
    "event_json": Target(_json_line, _json_lines, words=(b'"kind":', b"null", b"NaN", b"1e999", b"[" * 50)),
    "amqp_header": Target(_amqp, _content_headers, words=(b"\xff\xff\xff\xff", b"\x20\x10", b"\xff\xff")),
    "spec": Target(_spec, _specs),
    "chunks": Target(_chunks, _steps),
    "encoding": Target(_encoded, _buffers, words=(b"\x7f\xc0\0\0", b"\xff\xff\xff\xff", b"\0" * 8)),
    "job_file": Target(_job_file, _job_files, (SettingError,), _WORDS),
    "job_file_bytes": Target(_file(read_job), _job_files, (SettingError,), _WORDS),
    "policy_file": Target(_file(read_policy), lambda: [_POLICY], (SettingError,), _WORDS),
    "inventory_file": Target(_file(load), lambda: [_INVENTORY], (SettingError,), _WORDS),
    "join_file": Target(private.join_file, private.join_files, (SettingError,), private.FILE_WORDS),
    "token_file": Target(private.token_file, private.token_files, (SettingError,), private.FILE_WORDS),
    "enrolment_request": Target(
        private.enrolment_request, private.enrolment_requests, words=private.JSON_WORDS
    ),
    "audit_log": Target(private.audit_log, private.audit_logs, (AuditBroken,), private.JSON_WORDS),
    "amqp_stream": Target(stream.stream, stream.streams, words=stream.WORDS),
    "broker_url": Target(places.broker_url, places.broker_urls, (SettingError,), places.URL_WORDS),
    "store_url": Target(places.store_url, places.store_urls, (SettingError,), places.URL_WORDS),
    "proxy_url": Target(places.proxy_url, places.proxy_urls, (SettingError,), places.URL_WORDS),
    "proxy_answer": Target(places.proxy_answer, places.proxy_answers, _OF_PROXIES, places.NUMBER_WORDS),
    "dead_letter": Target(places.dead_letter, places.dead_letters, words=places.LETTER_WORDS),
    "usage_file": Target(places.usage_file, places.usage_files, (SettingError,), places.NUMBER_WORDS),
    "audit_head": Target(places.audit_head, places.audit_heads, (SettingError,), places.NUMBER_WORDS),
}
IS_MSGPACK = frozenset({"frame", "event", "spec", "chunks", "dead_letter"})
