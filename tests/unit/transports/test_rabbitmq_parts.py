"""Parts of the RabbitMQ transport that need no broker."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from itertools import chain, cycle, islice, zip_longest
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.adapters.base_connection import BaseConnection
from pika.adapters.utils import io_services_utils
from pika.channel import ContentFrameAssembler
from pika.exceptions import InvalidFrameError

from broker_fl.errors import FrameRefused
from broker_fl.topology import Queue
from broker_fl.transports.rabbitmq import tuned
from broker_fl.transports.rabbitmq.channel import queue_arguments
from broker_fl.transports.rabbitmq.io import IoThread, backoff
from broker_fl.transports.rabbitmq.tuned import FrameReader, TunedConnection
from broker_fl.wire.frames import MAX_BODY_BYTES, unpack
from tests.servers import raw_amqp


def test_pika_still_has_what_the_tuned_connection_changes() -> None:
    assert io_services_utils._AsyncTransportBase._MAX_RECV_BYTES == 4096
    assert "_MAX_RECV_BYTES" in inspect.getsource(io_services_utils._AsyncTransportBase._consume)
    assert "self._transport = transport" in inspect.getsource(BaseConnection._proto_connection_made)
    assert "self._on_data_available(data)" in inspect.getsource(BaseConnection._proto_data_received)
    assert "self._send_message(channel_number, method, content)" in inspect.getsource(
        AsyncioConnection._send_method
    )
    for method, parameters in {
        AsyncioConnection._send_message: ["channel_number", "method_frame", "content"],
        AsyncioConnection._output_marshaled_frames: ["marshaled_frames"],
        AsyncioConnection._process_frame: ["frame_value"],
    }.items():
        assert list(inspect.signature(method).parameters)[1:] == parameters


def messages(bodies: list[bytes]) -> bytes:
    """As a broker sends them: on two channels in turn, the bodies in frames of 50 bytes, one heartbeat."""
    found: bytes = frame.Heartbeat().marshal()
    pieces: list[list[bytes]] = []
    for number, body in enumerate(bodies):
        channel = 1 + number % 2
        method = spec.Basic.Deliver("tag", number, False, "exchange", "key")
        head = frame.Method(channel, method).marshal()
        head += frame.Header(
            channel, len(body), spec.BasicProperties(headers={"n": number}, user_id=str(number))
        ).marshal()
        pieces.append(
            [head, *(frame.Body(channel, body[i : i + 50]).marshal() for i in range(0, len(body), 50))]
        )
    for first in range(0, len(pieces), 2):  # the frames of two mixed
        mixed = zip_longest(*pieces[first : first + 2], fillvalue=b"")
        found += b"".join(chain.from_iterable(mixed))
    return found


def assembled(frames: Iterable[Any]) -> list[tuple[int, int, bytes]]:
    """What pika makes of the frames: tag, number of the sender, body."""
    assemblers = {1: ContentFrameAssembler(), 2: ContentFrameAssembler()}
    found = []
    for one in frames:
        if isinstance(one, frame.Heartbeat):
            found.append((-1, -1, b""))
        elif (message := assemblers[one.channel_number].process(one)) is not None:
            method, header, body = message
            found.append((method.method.delivery_tag, int(header.properties.user_id), body))
    return found


@given(
    bodies=st.lists(st.binary(max_size=200), max_size=6),
    cuts=st.lists(st.integers(min_value=1, max_value=60), min_size=1),
)
def test_however_a_stream_is_cut_its_messages_come_out_whole(bodies: list[bytes], cuts: list[int]) -> None:
    stream, reader, frames = messages(bodies), FrameReader(), []
    lengths = cycle(cuts)
    while stream:
        length = next(lengths)
        frames += list(reader.feed(stream[:length]))
        stream = stream[length:]
    found = assembled(frames)
    assert found[0] == (-1, -1, b"")
    assert sorted(found[1:]) == [(number, number, body) for number, body in enumerate(bodies)]


def test_a_body_that_does_not_end_where_its_frame_says_is_refused() -> None:
    body = frame.Body(1, b"12345").marshal()
    with pytest.raises(InvalidFrameError):
        list(FrameReader().feed(body[:-1] + b"x"))


def test_of_a_body_that_is_too_long_the_beginning_comes_out_and_the_next_message_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tuned, "MAX_TAKEN_BYTES", 1_010)
    bodies = [bytes(range(250)) * 10, bytes(1_010), b"next", bytes(1_011)]
    stream, reader = messages(bodies), FrameReader()
    frames = [one for at in range(0, len(stream), 77) for one in reader.feed(stream[at : at + 77])]
    found = {number: body for _, number, body in assembled(frames)[1:]}
    assert found == {number: body[:1_010] for number, body in enumerate(bodies)}


def test_no_more_is_taken_of_a_body_than_shows_that_it_is_too_long() -> None:
    (header,) = FrameReader().feed(frame.Header(1, 16 << 20, spec.BasicProperties()).marshal())
    assert header.body_size == MAX_BODY_BYTES + 1
    with pytest.raises(FrameRefused, match="over the limit"):
        unpack(bytes(header.body_size))


def user_of(properties: Any) -> object:
    """Who the reader says has sent a message with these."""
    (found,) = FrameReader().feed(frame.Header(3, 7, properties).marshal())
    assert (found.channel_number, found.body_size) == (3, 7)
    return found.properties.user_id


@given(
    texts=st.lists(st.none() | st.text(max_size=20), min_size=10, max_size=10),
    table=st.none() | st.dictionaries(st.text(max_size=5), st.integers(-5, 5) | st.text(max_size=5)),
    numbers=st.lists(st.none() | st.integers(0, 255), min_size=3, max_size=3),
)
def test_the_sender_is_read_past_all_other_properties(
    texts: list[str | None], table: dict[str, object] | None, numbers: list[int | None]
) -> None:
    kind, encoded, correlation, reply, expires, message, type_, user, app, cluster = texts
    mode, priority, time = numbers
    before = kind, encoded, table, mode, priority, correlation, reply, expires, message, time, type_
    properties = spec.BasicProperties(*before, user, app, cluster)
    assert user_of(properties) == user


def test_a_table_that_nobody_can_read_is_not_read() -> None:
    for what, raw in raw_amqp.tables("mallory").items():
        with pytest.raises((OverflowError, RecursionError)):
            frame.decode_frame(frame.Header(1, 0, raw_amqp.RawProperties(raw)).marshal())
        assert user_of(raw_amqp.RawProperties(raw)) == "mallory", what


@given(table=st.dictionaries(st.text(max_size=5), st.integers(-5, 5) | st.text(max_size=5)))
def test_headers_are_read_where_that_is_wanted_and_they_can_be(table: dict[str, object]) -> None:
    properties = spec.BasicProperties(content_type="text", headers=table, user_id="ana")
    (found,) = FrameReader(reads_headers=True).feed(frame.Header(3, 7, properties).marshal())
    assert (found.properties.headers, found.properties.user_id) == (table, "ana")
    for raw in raw_amqp.tables("mallory").values():
        sent = frame.Header(3, 7, raw_amqp.RawProperties(raw)).marshal()
        (found,) = FrameReader(reads_headers=True).feed(sent)
        assert (found.properties.headers, found.properties.user_id) == ({}, "mallory")


def test_where_a_message_died_is_found_in_any_table_and_nothing_else_of_it() -> None:
    for queue in ("q", "q" * 255):
        table = {"x-death": [{"queue": "another"}], tuned.FIRST_DEATH: queue, "z": 1}
        (found,) = FrameReader().feed(frame.Header(3, 7, spec.BasicProperties(headers=table)).marshal())
        assert found.properties.headers == {tuned.FIRST_DEATH: queue}
    cut = spec.BasicProperties(headers={tuned.FIRST_DEATH: "q" * 1_000})
    (found,) = FrameReader().feed(frame.Header(3, 7, cut).marshal())
    assert found.properties.headers == {tuned.FIRST_DEATH: "q" * 255}


def test_a_sender_that_can_be_read_in_two_ways_is_nobody() -> None:
    raw = raw_amqp.RawProperties(raw_amqp.in_two_ways("mallory", "victim"))
    _, found = frame.decode_frame(frame.Header(1, 0, raw).marshal())
    assert found.properties.user_id == "victim", "pika does not see what RabbitMQ has checked"
    assert user_of(raw) is None


def test_a_message_leaves_as_pika_would_write_it() -> None:
    sent: dict[type, list[bytes]] = {}
    for cls in (AsyncioConnection, TunedConnection):
        connection = cls.__new__(cls)
        connection._body_max_length, connection.bytes_sent, connection.frames_sent = 50, 0, 0
        connection._adapter_emit_data = sent.setdefault(cls, []).append
        for size in (0, 1, 50, 51, 149):
            method = spec.Basic.Publish(exchange="e", routing_key="k")
            properties = spec.BasicProperties(headers={"BCC": ["a", "b"]})
            connection._send_message(3, method, (properties, bytes(range(size))))
    assert b"".join(sent[TunedConnection]) == b"".join(sent[AsyncioConnection])


def test_delays_double_up_to_the_longest_with_jitter() -> None:
    delays = list(islice(backoff(0.1, 30.0), 20))
    for delay_s, longest_s in zip(delays, [0.1 * 2**n for n in range(20)], strict=True):
        assert min(longest_s, 30.0) / 2 <= delay_s <= min(longest_s, 30.0)


@pytest.mark.parametrize(
    ("queue", "arguments"),
    [
        (Queue(name="q"), {"x-queue-type": "classic"}),
        (
            Queue(name="q", quorum=True, single_active_consumer=True, dead_letter_exchange="d"),
            {"x-queue-type": "quorum", "x-single-active-consumer": True, "x-dead-letter-exchange": "d"},
        ),
        (
            Queue(name="q", expires_s=1.5, message_ttl_s=0.25, max_length_bytes=7, overflow="reject-publish"),
            {
                "x-queue-type": "classic",
                "x-expires": 1500,
                "x-message-ttl": 250,
                "x-max-length-bytes": 7,
                "x-overflow": "reject-publish",
            },
        ),
    ],
)
def test_a_queue_is_declared_with_arguments_that_every_broker_takes(
    queue: Queue, arguments: dict[str, object]
) -> None:
    assert queue_arguments(queue) == arguments


def test_calling_the_transport_from_its_own_thread_is_an_error_and_no_deadlock() -> None:
    io = IoThread("test")

    async def inner() -> None:
        pass

    async def outer() -> None:
        io.run(inner(), 1.0)

    with pytest.raises(RuntimeError, match="sink"):
        io.run(outer(), 60.0)
    io.stop(60.0)
