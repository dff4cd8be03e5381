"""A message on its way from a socket to a role: frames that RabbitMQ makes of what a sender chose."""

from __future__ import annotations

import struct
from typing import Any

from pika import BasicProperties, frame, spec
from pika.channel import ContentFrameAssembler

from broker_fl.errors import FrameRefused
from broker_fl.transports.rabbitmq.consuming import RabbitMQDelivery
from broker_fl.transports.rabbitmq.tuned import FrameReader
from broker_fl.wire.messages import DeadLetter
from tests.servers.raw_amqp import RawProperties, in_two_ways, tables, with_table

_HEAD = struct.Struct(">BHB")
"""Length of the key, length of the properties, and in how many bytes the stream arrives at a time."""
USER = "a.learner.b"
WORDS = (
    b"\xce",
    b"\x01\x00\x00",
    b"\x03\x00\x01\xff\xff\xff\xff",
    b"AMQP\x00\x00\x09\x01",
    b"\xff" * 8,
    b"\xf8\x00",
)


def stream(data: bytes) -> None:
    """Nothing of it is an error: key, properties and body are the sender's, and the frames are right. What
    comes out is the body that was sent, by nobody or by the account that the properties name.
    """
    if len(data) < _HEAD.size:
        raise FrameRefused("no message")
    key_bytes, properties_bytes, pace = _HEAD.unpack_from(data)
    rest = data[_HEAD.size :]
    key, properties = rest[:key_bytes], rest[key_bytes : key_bytes + properties_bytes]
    body = rest[key_bytes + properties_bytes :]
    if len(properties) < 2:
        raise FrameRefused("RabbitMQ sends flags with each message")
    sent = _frames(key, properties, body) + frame.Heartbeat().marshal()
    step = max(1 + pace, len(sent) // 256)
    reader, assembler = FrameReader(), ContentFrameAssembler()
    found: list[Any] = []
    for start in range(0, len(sent), step):
        for one in reader.feed(sent[start : start + step]):
            if isinstance(one, frame.Heartbeat):
                found.append(None)
            elif (message := assembler.process(one)) is not None:
                found.append(message)
    (method, header, received), heartbeat = found
    assert heartbeat is None
    assert received == body
    delivery = RabbitMQDelivery(None, method.method, header.properties, received)  # type: ignore[arg-type]
    assert delivery.user is None or delivery.user.encode() in properties
    DeadLetter(source="q", routing_key=delivery.routing_key, reason="r", time_s=0.0).pack()


def _frames(key: bytes, properties: bytes, body: bytes) -> bytes:
    method: Any = spec.Basic.Deliver("tag", 1, False, "exchange", key)
    pieces = [frame.Method(1, method), frame.Header(1, len(body), RawProperties(properties))]
    pieces += [frame.Body(1, body[start : start + 4_096]) for start in range(0, len(body), 4_096)]
    return b"".join(piece.marshal() for piece in pieces)


def streams() -> list[bytes]:
    """Of a plain message, and of those that broke who read them once."""
    plain = b"".join(BasicProperties(user_id=USER, headers={"a": 1}, delivery_mode=2).encode())
    small = with_table(b"\x01aT" + b"\xff" * 8, USER)
    every = [plain, small, in_two_ways(USER, "a.learner.c"), b"\0\0", *tables(USER).values()]
    keys = [b"b.report", b"b.\xff\xfe", b""]
    return [
        _HEAD.pack(len(key), len(properties), pace) + key + properties + body
        for key, pace in zip(keys, (0, 6, 255), strict=True)
        for properties, body in zip(every, (b"\x80", b"", bytes(9_000), b"x", b"y", b"z", b""), strict=True)
    ]
