"""The dead letters of a federation: read without being taken out, published again, or dropped, one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pika
from pika import exceptions as pika_errors

from broker_fl.errors import BrokerUnavailable, FrameRefused, MessageRefused, SettingError
from broker_fl.security import Security
from broker_fl.topology import Topology
from broker_fl.transports.rabbitmq.addresses import parse_addresses
from broker_fl.transports.rabbitmq.facts import connected
from broker_fl.transports.rabbitmq.failures import NOT_FOUND, channel_failure
from broker_fl.wire.chunks import checksum
from broker_fl.wire.frames import MAX_BODY_BYTES, MAX_CHUNK_HEADER_BYTES, unpack
from broker_fl.wire.messages import DeadLetter, decode

SILENCE_S = 10.0
"""A broker that hands over nothing for so long, although letters are left, has lost them meanwhile."""
_CUT_BYTES = MAX_BODY_BYTES - MAX_CHUNK_HEADER_BYTES - 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """One of them. What cannot be told is empty, or 0."""

    id: str
    """Of its bytes: the same letter has the same one each time."""
    reason: str
    time_s: float
    """When it was refused."""
    queue: str
    """Where it was read."""
    routing_key: str
    sender: str
    """As the routing key says, which the broker's permissions guard."""
    kind: str
    job: str
    num_bytes: int
    body: bytes
    """What was refused, as it was, unless ``is_cut``."""
    is_cut: bool
    fields: dict[str, Any]
    """The header of its frame."""
    tag: int


class DeadLetters:
    """All that were there when it was opened; nobody else reads them meanwhile. Nothing leaves the queue but
    by ``replay`` and ``drop``.
    """

    def __init__(self, channel: Any, topology: Topology, letters: Sequence[Letter]) -> None:
        self.letters = letters
        self._channel = channel
        self._topology = topology

    def replay(self, letter: Letter) -> None:
        """Publish it again, as it was sent; it leaves the dead letters when a queue has it.

        Raises:
            SettingError: only a part of it was kept, or nobody would get it: it stays.
            BrokerUnavailable: whether it was published is not known; it stays.
        """
        exchange = self._exchange(letter)
        if letter.is_cut:
            raise SettingError(f"{letter.id}: only its first {len(letter.body)} bytes were kept")
        try:
            self._channel.basic_publish(
                exchange,
                letter.routing_key,
                letter.body,
                pika.BasicProperties(delivery_mode=2),
                mandatory=True,
            )
        except (pika_errors.UnroutableError, pika_errors.NackError) as error:
            raise SettingError(
                f"{letter.id}: no queue takes {letter.routing_key!r} from exchange {exchange!r} any more: "
                "its controller is not there, and the learner has sent it to the next one if it counted"
            ) from error
        except pika_errors.AMQPError as error:
            raise channel_failure(error, f"publish {letter.id} again") from error
        self.drop(letter)

    def drop(self, letter: Letter) -> None:
        """Take it out for good."""
        self._channel.basic_ack(letter.tag)

    def _exchange(self, letter: Letter) -> str:
        topology = self._topology
        if letter.queue.startswith(topology.inbox("")):
            return topology.updates
        if letter.queue in (topology.reports, topology.control):
            return letter.queue
        raise SettingError(f"{letter.id}: what came from queue {letter.queue!r} cannot be sent there again")


@contextmanager
def dead_letters(url: str, federation: str, security: Security | None = None) -> Iterator[DeadLetters]:
    """Open a federation's dead letters. Those that are still there at the end stay in their order.

    Raises:
        SettingError, AccessDenied, BrokerUnavailable: no connection, or no such queue.
        QueueInUse: somebody else has them open.
    """
    topology = Topology(federation)
    with connected(parse_addresses(url, security)) as (_, connection):
        channel = connection.channel()
        try:
            letters = _read_all(connection, channel, topology.dead)
            channel.confirm_delivery()
        except pika_errors.ChannelClosedByBroker as error:
            if error.reply_code == NOT_FOUND:
                raise SettingError(
                    f"federation {federation!r} has no queue of dead letters here: nobody has used it yet, "
                    "or its node is down"
                ) from error
            raise channel_failure(error, "read the dead letters") from error
        yield DeadLetters(channel, topology, letters)
        # The connection closes: what is neither acked nor published goes back to where it was.


def _read_all(connection: Any, channel: Any, queue: str) -> list[Letter]:
    num_left = channel.queue_declare(queue, passive=True).method.message_count
    letters: list[Letter] = []

    def take(_: Any, method: Any, properties: Any, body: bytes) -> None:
        letters.append(read_letter(method, properties, bytes(body)))

    channel.basic_consume(queue, take, exclusive=True)
    while len(letters) < num_left:
        before = len(letters)
        connection.process_data_events(time_limit=SILENCE_S)
        if len(letters) == before:
            raise BrokerUnavailable(f"queue {queue!r} has {num_left} messages, and hands over {before}")
    return letters


def read_letter(method: Any, properties: Any, raw: bytes) -> Letter:
    """Of what the broker hands over, whoever wrote it."""
    reason, time_s, queue, routing_key, body = _refusal(raw, properties, method.routing_key)
    fields = _fields(body)
    task = fields.get("task")
    job = task.get("job") if isinstance(task, dict) else fields.get("job")
    return Letter(
        id=checksum(memoryview(raw)).partition(":")[2],
        reason=reason,
        time_s=time_s,
        queue=queue,
        routing_key=routing_key,
        sender=routing_key.partition(".")[0] if "." in routing_key else str(fields.get("driver", "")),
        kind=str(fields.get("kind", "")),
        job=job if isinstance(job, str) else "",
        num_bytes=len(body),
        body=body,
        is_cut=len(body) >= _CUT_BYTES,
        fields=fields,
        tag=method.delivery_tag,
    )


def _refusal(raw: bytes, properties: Any, key: str) -> tuple[str, float, str, str, bytes]:
    """Reason, time, queue, routing key and body: of a controller's note, or of RabbitMQ's ``x-death``."""
    try:
        message, payload = decode(raw)
    except MessageRefused:
        message, payload = None, None
    if isinstance(message, DeadLetter) and payload is not None:
        return message.reason, message.time_s, message.source, message.routing_key, bytes(payload)
    death = _newest_death(properties.headers)
    keys, time = death.get("routing-keys"), death.get("time")
    reason = f"by the broker: {death.get('reason', 'unknown')}"
    time_s = time.timestamp() if isinstance(time, datetime) else 0.0
    first = keys[0] if isinstance(keys, list) and keys else key
    return reason, time_s, str(death.get("queue", "")), str(first), raw


def _newest_death(headers: object) -> dict[str, Any]:
    """What ``x-death`` says first; nothing if that is no such entry: headers are a sender's, too."""
    deaths = headers.get("x-death") if isinstance(headers, dict) else None
    death = deaths[0] if isinstance(deaths, list) and deaths else None
    return death if isinstance(death, dict) else {}


def _fields(body: bytes) -> dict[str, Any]:
    try:
        return unpack(body)[0]
    except FrameRefused:
        return {}
