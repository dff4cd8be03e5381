"""A learner written from schemas/README.md alone, with pika, msgpack and the standard library.

    python tests/foreign_learner.py AMQP_URL FEDERATION LEARNER_ID

It "trains" by adding 1 to every element of every float32 tensor, and evaluates to their mean. Like a learner
in any small language, it has no XXH3 and no arrays library. It ends with its standard input, after a
good-bye.
"""

from __future__ import annotations

import array
import math
import secrets
import struct
import sys
import threading
import time
import zlib
from typing import Any

import msgpack
import pika

Fields = dict[str, Any]
MAX_BODY_BYTES = 4_000_000
MAX_MODEL_BYTES = 1 << 30
SIZES = {
    "float16": 2,
    "float32": 4,
    "float64": 8,
    "bfloat16": 2,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "uint8": 1,
    "bool": 1,
}
PREFETCH = 16


class Refused(Exception):
    """A message that is not taken."""


# ---------------------------------------------------------------- frames


def pack(kind: str, **fields: Any) -> bytes:
    body = msgpack.packb({"v": 1, "kind": kind, **fields})
    assert isinstance(body, bytes)
    return body


def pack_chunk(kind: str, payload: bytes, **fields: Any) -> bytes:
    return pack(kind, **fields) + b"\xc6" + len(payload).to_bytes(4, "big") + payload


def unpack(body: bytes) -> tuple[Fields, bytes | None]:
    if len(body) > MAX_BODY_BYTES:
        raise Refused("too long")
    unpacker = msgpack.Unpacker()
    unpacker.feed(body)
    try:
        unpacker.skip()
        header_end = unpacker.tell()
        header = msgpack.unpackb(body[:header_end])
        payload = msgpack.unpackb(body[header_end:]) if header_end < len(body) else None
    except (ValueError, msgpack.UnpackException) as error:
        raise Refused(f"not a frame: {error!r}") from error
    if not isinstance(header, dict) or header.get("v") != 1:
        raise Refused("another protocol version")
    if payload is not None and not isinstance(payload, bytes):
        raise Refused("the payload is no bin")
    return header, payload


# ---------------------------------------------------------------- models


def wire_type(dtype: str, encoding: str) -> str:
    """The element type on the wire."""
    narrowed = {
        "raw": (),
        "float32": ("float64",),
        "float16": ("float64", "float32"),
        "bfloat16": ("float64", "float32"),
    }
    if encoding not in narrowed:
        raise Refused(f"unknown encoding {encoding}")
    return encoding if dtype in narrowed[encoding] else dtype


def wire_types(spec: list[Any], encoding: str, buffers: Any) -> list[str]:
    """Of each tensor; those that the task names in ``buffers`` are left as they are."""
    return [dtype if name in buffers else wire_type(dtype, encoding) for name, dtype, _shape in spec]


def layout(spec: list[Any], types: list[str]) -> tuple[list[tuple[int, int]], int]:
    """Where each tensor starts, how many elements it has, and the length of the buffer."""
    places, end = [], 0
    for (_name, _dtype, shape), dtype in zip(spec, types, strict=True):
        size = SIZES[dtype]
        start = -(-end // size) * size
        count = math.prod(shape)
        places.append((start, count))
        end = start + count * size
    return places, end


def read_floats(buffer: bytearray, start: int, count: int, dtype: str) -> list[float]:
    if dtype == "bfloat16":
        words = struct.unpack_from(f"<{count}H", buffer, start)
        return list(struct.unpack(f"<{count}f", struct.pack(f"<{count}I", *(word << 16 for word in words))))
    return list(struct.unpack_from(f"<{count}{'e' if dtype == 'float16' else 'f'}", buffer, start))


def write_floats(buffer: bytearray, start: int, values: list[float], dtype: str) -> None:
    if dtype == "bfloat16":
        words = struct.unpack(f"<{len(values)}I", struct.pack(f"<{len(values)}f", *values))
        rounded = ((word + 0x7FFF + ((word >> 16) & 1)) >> 16 for word in words)  # to nearest, ties to even
        struct.pack_into(f"<{len(values)}H", buffer, start, *rounded)
    else:
        struct.pack_into(f"<{len(values)}{'e' if dtype == 'float16' else 'f'}", buffer, start, *values)


def check(payload: bytes, checksum: str) -> None:
    algorithm, _, value = checksum.partition(":")
    if algorithm == "crc32":
        if f"{zlib.crc32(payload):08x}" != value:
            raise Refused("corrupt")
    elif algorithm != "xxh3":  # which this learner cannot compute, and may take without a check
        raise Refused(f"unknown checksum {checksum}")


class Task:
    """A task that this learner holds, until the next one of the same job."""

    num_trainings = 0
    """Of all tasks."""

    def __init__(self, message: Fields) -> None:
        manifest = message["model"]
        self.message = message
        self.spec = manifest["spec"]
        self.encoding = manifest["encoding"]
        self.phase = "receiving"
        self.result: Fields | None = None
        self.failure = ""
        if any(dtype not in SIZES for _name, dtype, _shape in self.spec):
            raise Refused("unknown element type")
        self.types = wire_types(self.spec, self.encoding, message["buffers"])
        self.places, num_bytes = layout(self.spec, self.types)
        if num_bytes != manifest["num_bytes"] or num_bytes > MAX_MODEL_BYTES:
            raise Refused("the manifest does not fit its spec")
        self.chunk_bytes = manifest["chunk_bytes"]
        self.count = max(1, -(-num_bytes // self.chunk_bytes))
        self.buffer = bytearray(num_bytes)
        self.missing = set(range(self.count))

    def receive(self, header: Fields, payload: bytes) -> bool:
        """Take one chunk in; True when the model is whole."""
        index = header["index"]
        start = index * self.chunk_bytes
        length = min(self.chunk_bytes, len(self.buffer) - start)
        fits = header["count"] == self.count and 0 <= index < self.count and len(payload) == length
        if not fits or header["encoding"] != self.encoding:
            raise Refused("the chunk does not fit")
        check(payload, header["checksum"])
        self.buffer[start : start + length] = payload
        self.missing.discard(index)
        return not self.missing

    def update_chunks(self) -> list[bytes]:
        size = self.message["chunk_bytes"]
        count = max(1, -(-len(self.buffer) // size))
        return [bytes(self.buffer[index * size : (index + 1) * size]) for index in range(count)]

    def work(self) -> None:
        """Evaluate, then train; the buffer becomes the update."""
        values = self._floats()
        mean = sum(values) / max(1, len(values))
        evaluation = {"mean": mean} if self.message["evaluate"] else {}
        if self.message["train"]:
            self._recode(self.message["encoding"])
            Task.num_trainings += 1
        self.result = {
            "num_examples": 10,
            "metrics": {"trainings": float(Task.num_trainings)} if self.message["train"] else {},
            "evaluation": evaluation,
            "evaluation_examples": 10,
            "update": self._manifest() if self.message["train"] else None,
        }

    def _floats(self) -> array.array[float]:
        values = array.array("d")
        rows = zip(self.spec, self.types, self.places, strict=True)
        for (_name, dtype, _shape), received, (start, count) in rows:
            if dtype == "float32":
                values.extend(read_floats(self.buffer, start, count, received))
        return values

    def _recode(self, encoding: str) -> None:
        """Add 1 to each float32, and write all in the encoding of the update."""
        types = wire_types(self.spec, encoding, self.message["buffers"])
        places, num_bytes = layout(self.spec, types)
        update = bytearray(num_bytes)
        rows = zip(self.spec, self.types, types, self.places, places, strict=True)
        for (_name, dtype, _shape), received, sent, (source, count), (target, _) in rows:
            if dtype == "float32":
                values = [value + 1 for value in read_floats(self.buffer, source, count, received)]
                write_floats(update, target, values, sent)
            elif received == sent:
                length = count * SIZES[sent]
                update[target : target + length] = self.buffer[source : source + length]
            else:
                raise Refused(f"this learner does not turn {received} into {sent}")
        self.buffer = update

    def _manifest(self) -> Fields:
        return {
            "spec_digest": self.message["model"]["spec_digest"],
            "encoding": self.message["encoding"],
            "num_bytes": len(self.buffer),
            "chunk_bytes": self.message["chunk_bytes"],
        }


# ---------------------------------------------------------------- the learner


class Learner:
    def __init__(self, url: str, federation: str, learner: str) -> None:
        self.id = learner
        self.session = secrets.token_hex(8)
        self.prefix = f"bfl.{federation}."
        self.mailbox = f"{self.prefix}learner.{learner}"
        self.held: dict[str, Task] = {}
        self.heartbeat_s = 5.0
        self.beat_at = 0.0
        self.connection = pika.BlockingConnection(pika.URLParameters(url))
        self.channel = self.connection.channel()
        self.channel.confirm_delivery()

    def declare(self) -> None:
        declare, bind, prefix = self.channel.queue_declare, self.channel.queue_bind, self.prefix
        for kind, names in {
            "direct": ("tasks", "control"),
            "topic": ("updates", "reports", "events"),
        }.items():
            for name in names:
                self.channel.exchange_declare(prefix + name, kind, durable=True)
        dead = prefix + "dead"
        quorum: Fields = {"x-queue-type": "quorum", "x-dead-letter-exchange": dead}
        declare(dead, durable=True, arguments={"x-queue-type": "classic", "x-max-length-bytes": 268435456})
        bind(dead, prefix + "tasks", "dead")
        declare(prefix + "reports", durable=True, arguments=quorum)
        bind(prefix + "reports", prefix + "reports", "#")
        declare(prefix + "control", durable=True, arguments=quorum | {"x-single-active-consumer": True})
        bind(prefix + "control", prefix + "control", "control")
        mailbox = {"x-queue-type": "classic", "x-expires": 604800000, "x-max-length-bytes": 8589934592}
        declare(self.mailbox, durable=True, arguments=mailbox)
        bind(self.mailbox, prefix + "tasks", f"learner.{self.id}")
        bind(self.mailbox, prefix + "tasks", "learners")

    def run(self, stopped: threading.Event) -> None:
        self.declare()
        self.channel.basic_qos(prefetch_count=PREFETCH)
        self.channel.basic_consume(self.mailbox, self._on_message, exclusive=True)
        self._join()
        while not stopped.is_set():
            self.connection.process_data_events(time_limit=0.1)
            if time.monotonic() >= self.beat_at + self.heartbeat_s:
                self.beat_at = time.monotonic()
                self._report("heartbeat", session=self.session, tasks=self._statuses())
        self._report("leave", session=self.session, reason="its standard input ended")
        self.connection.close()

    # -------------------------------------------------------- what goes out

    def _report(self, kind: str, **fields: Any) -> None:
        body = pack(kind, learner=self.id, **fields)
        persistent = pika.BasicProperties(delivery_mode=2)
        self.channel.basic_publish(self.prefix + "reports", f"{self.id}.{kind}", body, persistent)

    def _join(self) -> None:
        attributes = {"language": "another"}
        self._report(
            "join", session=self.session, attributes=attributes, software="foreign", tasks=self._statuses()
        )

    def _statuses(self) -> list[Fields]:
        return [{"task": task.message["task"], "phase": task.phase} for task in self.held.values()]

    def _send_outcome(self, task: Task, wanted: Fields) -> None:
        """As the task wants it, or a request for its update."""
        identity = task.message["task"]
        if task.result is None:
            self._report("failed", task=identity, reason=task.failure[:4000])
            return
        key = f"{self.id}.{wanted['inbox']}"
        who = {"learner": self.id, "task": identity, "session": self.session}
        self._publish(key, pack("result", **who, **task.result))
        if task.result["update"] is None or wanted.get("upload", "at_once") != "at_once":
            return
        chunks = task.update_chunks()
        for index, payload in enumerate(chunks):
            checksum = f"crc32:{zlib.crc32(payload):08x}"
            encoding = task.message["encoding"]
            place = {"index": index, "count": len(chunks), "encoding": encoding, "checksum": checksum}
            self._publish(key, pack_chunk("update_chunk", payload, **who, **place))

    def _publish(self, key: str, body: bytes) -> None:
        """Until the broker takes it: a full inbox rejects."""
        while True:
            try:
                self.channel.basic_publish(self.prefix + "updates", key, body)
            except pika.exceptions.NackError:
                self.connection.sleep(0.5)
            else:
                return

    # -------------------------------------------------------- what comes in

    def _on_message(self, channel: Any, method: Any, _properties: Any, body: bytes) -> None:
        channel.basic_ack(method.delivery_tag)
        handlers = {
            "welcome": self._on_welcome,
            "rejoin": self._on_rejoin,
            "task": self._on_task,
            "model_chunk": self._on_model_chunk,
            "upload_request": self._on_upload_request,
            "cancel": self._on_cancel,
        }
        try:
            header, payload = unpack(body)
            handlers[header["kind"]](header, payload)
        except (Refused, KeyError) as error:
            print(f"refused: {error!r}", file=sys.stderr)

    def _on_welcome(self, message: Fields, _payload: bytes | None) -> None:
        self.heartbeat_s = message["heartbeat_s"]

    def _on_rejoin(self, _message: Fields, _payload: bytes | None) -> None:
        self._join()

    def _on_task(self, message: Fields, _payload: bytes | None) -> None:
        identity = message["task"]
        held = self.held.get(identity["job"])
        if held is not None and held.message["task"] == identity:
            if held.phase == "finished":
                self._send_outcome(held, message)
            return
        self.held.pop(identity["job"], None)
        try:
            self.held[identity["job"]] = Task(message)
        except Refused as error:
            self._report("failed", task=identity, reason=str(error))

    def _on_model_chunk(self, header: Fields, payload: bytes | None) -> None:
        task = self.held.get(header["job"])
        if task is None or payload is None or task.phase != "receiving":
            return
        if task.message["model"]["version"] != header["version"] or not task.receive(header, payload):
            return
        self._report("accepted", task=task.message["task"])
        try:
            task.work()
        except Refused as error:
            task.failure = str(error)
        task.phase = "finished"
        self._send_outcome(task, task.message)

    def _on_upload_request(self, message: Fields, _payload: bytes | None) -> None:
        task = self.held.get(message["task"]["job"])
        if task is not None and task.message["task"] == message["task"] and task.phase == "finished":
            self._send_outcome(task, message)

    def _on_cancel(self, message: Fields, _payload: bytes | None) -> None:
        job, round_ = message["task"]["job"], message["task"]["round"]
        if job in self.held and self.held[job].message["task"]["round"] <= round_:
            del self.held[job]


def main() -> None:
    url, federation, learner = sys.argv[1:]
    stopped = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        stopped.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    Learner(url, federation, learner).run(stopped)


if __name__ == "__main__":
    main()
