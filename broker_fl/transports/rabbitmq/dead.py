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
from broker_fl.transports.rabbitmq.failures import NOT_FOUND, channel_failure, enrolled
from broker_fl.wire.chunks import checksum
from broker_fl.wire.fields import text
from broker_fl.wire.frames import MAX_BODY_BYTES, MAX_CHUNK_HEADER_BYTES, pack_chunk, unpack_short_header
from broker_fl.wire.messages import DeadLetter, decode

_REFUSED_AGAIN = (
    "sent on by it they would be refused once more. Nothing was sent. Give the join file of a controller's "
    "account (--join; broker-fl enroll NAME --role controller), from which controllers hear what others wrote"
)
SILENCE_S = 10.0
"""A broker that hands over nothing for so long, although letters are left, has lost them meanwhile."""
MAX_NAME_CHARS = 200
"""Of what a refused message calls its kind, its job and its driver: more than any that is accepted."""
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
    user: str
    """The account that sent it, by the broker's word; empty: nobody knows."""
    needs_account: bool
    """Whether it was refused by a controller that hears nobody but enrolled accounts."""
    sender: str
    """Name of the enrolled account that sent it; of others, as the routing key says."""
    kind: str
    job: str
    num_bytes: int
    """Of what was refused; of what is cut, at least."""
    body: bytes
    """What was refused, as it was, unless ``is_cut``."""
    is_cut: bool
    """Whether the controller kept only its beginning."""
    tag: int

    @property
    def header(self) -> dict[str, Any] | None:
        """Of its frame, unpacked each time; empty if there is none, None if it is too long for that."""
        return _header(self.body)


class DeadLetters:
    """All that were there when it was opened; nobody else reads them meanwhile. Nothing leaves the queue but
    by ``replay`` and ``drop``.
    """

    def __init__(self, channel: Any, topology: Topology, letters: Sequence[Letter], user: str) -> None:
        """``user`` is whose connection it is."""
        self.letters = letters
        self._channel = channel
        self._topology = topology
        self.user = user
        self._is_controller = _is_controller(user, topology.federation)

    def check_replay(self, letters: Sequence[Letter]) -> None:
        """Find out, before any of them moves, whether they would be heard.

        Raises:
            SettingError: their controller would refuse them once more; says what to do.
        """
        if self._is_controller:
            return
        if enrolled(self.user) is not None:
            raise SettingError(
                f"{self.user!r} is an account of its own, and controllers hear of it only what it says "
                f"itself: {_REFUSED_AGAIN}"
            )
        if any(letter.needs_account or enrolled(letter.user) is not None for letter in letters):
            raise SettingError(
                "they are of enrolled accounts, or their controller hears nobody else, and each for itself: "
                f"{_REFUSED_AGAIN}"
            )

    def replay(self, letter: Letter) -> None:
        """Publish it again, as it was sent; it leaves the dead letters when a queue has it. From an account
        of a controller it goes as a letter, in which its controller finds who wrote it.

        Raises:
            SettingError: only a part of it was kept, or nobody would hear or get it: it stays.
            BrokerUnavailable: whether it was published is not known; it stays.
        """
        exchange = self._exchange(letter)
        if letter.is_cut:
            raise SettingError(
                f"{letter.id}: only its first {len(letter.body)} bytes were kept, and are not sent again"
            )
        key, body, properties = letter.routing_key, letter.body, pika.BasicProperties(delivery_mode=2)
        if self._is_controller:
            if letter.needs_account and not letter.user:
                raise SettingError(f"{letter.id}: it does not say which account sent it, and is not heard")
            exchange, body, properties.user_id = self._topology.reports, _as_letter(letter), self.user
        try:
            self._channel.basic_publish(exchange, key, body, properties, mandatory=True)
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
    with connected(parse_addresses(url, security)) as (address, connection):
        channel = connection.channel()
        try:
            letters = _read_all(connection, channel, topology)
            channel.confirm_delivery()
        except pika_errors.ChannelClosedByBroker as error:
            if error.reply_code == NOT_FOUND:
                raise SettingError(
                    f"federation {federation!r} has no queue of dead letters here: nobody has used it yet, "
                    "or its node is down"
                ) from error
            raise channel_failure(error, "read the dead letters") from error
        yield DeadLetters(channel, topology, letters, address.user)
        # The connection closes: what is neither acked nor published goes back to where it was.


def _read_all(connection: Any, channel: Any, topology: Topology) -> list[Letter]:
    queue = topology.dead
    num_left = channel.queue_declare(queue, passive=True).method.message_count
    letters: list[Letter] = []

    def take(_: Any, method: Any, properties: Any, body: bytes) -> None:
        letters.append(read_letter(method, properties, bytes(body), topology.federation))

    channel.basic_consume(queue, take, exclusive=True)
    while len(letters) < num_left:
        before = len(letters)
        connection.process_data_events(time_limit=SILENCE_S)
        if len(letters) == before:
            raise BrokerUnavailable(f"queue {queue!r} has {num_left} messages, and hands over {before}")
    return letters


def read_letter(method: Any, properties: Any, raw: bytes, federation: str) -> Letter:
    """Of what the broker hands over, whoever wrote it."""
    message, body = _note(raw, properties, federation) or (_by_broker(method, properties), raw)
    fields = _header(body) or {}
    task = fields.get("task")
    job = task.get("job") if isinstance(task, dict) else fields.get("job")
    return Letter(
        id=checksum(memoryview(raw)).partition(":")[2],
        reason=message.reason,
        time_s=message.time_s,
        queue=message.source,
        routing_key=message.routing_key,
        user=message.user,
        needs_account=message.needs_account,
        sender=_sender(message, fields),
        kind=_name(fields.get("kind")),
        job=_name(job),
        num_bytes=max(len(body), message.num_bytes),
        body=body,
        is_cut=message.num_bytes > len(body) or len(body) >= _CUT_BYTES,
        tag=method.delivery_tag,
    )


def _sender(message: DeadLetter, fields: dict[str, Any]) -> str:
    if (known := enrolled(message.user)) is not None:
        return known[1]
    name, dot, _ = message.routing_key.partition(".")
    return name if dot else _name(fields.get("driver"))


def _name(value: Any) -> str:
    """As a sender wrote it; cut, and empty if it is no string: it may be of any size, and nested."""
    return value[:MAX_NAME_CHARS] if isinstance(value, str) else ""


def _note(raw: bytes, properties: Any, federation: str) -> tuple[DeadLetter, bytes] | None:
    """What a controller wrote about a message, and the message; None if no controller wrote this.

    Under former software RabbitMQ itself moved messages here, for one those whose ``expiration`` was over.
    They are as somebody sent them, may look like a note, and name whom they like; but the broker adds
    headers to them, and leaves the sender's account in them.
    """
    user = properties.user_id or ""
    is_known = _is_controller(user, federation)
    if not is_known and (enrolled(user) is not None or properties.headers is not None):
        return None
    if (_header(raw) or {}).get("kind") != DeadLetter.KIND:
        return None  # nothing that is longer is unpacked at all
    try:
        message, payload = decode(raw)
    except MessageRefused:
        return None
    if not isinstance(message, DeadLetter) or payload is None:
        return None
    # Without an account of its own anybody could have written it: what it says of others is no proof.
    return message if is_known else message.model_copy(update={"user": ""}), bytes(payload)


def _by_broker(method: Any, properties: Any) -> DeadLetter:
    """What RabbitMQ says about a message, in a header that its sender may have begun."""
    deaths = (properties.headers or {}).get("x-death")
    death = deaths[0] if isinstance(deaths, list) and deaths else None
    death = death if isinstance(death, dict) else {}
    keys, time = death.get("routing-keys"), death.get("time")
    key = keys[0] if isinstance(keys, list) and keys else method.routing_key
    return DeadLetter(
        source=text(str(death.get("queue", ""))),
        routing_key=text(key if isinstance(key, str) else repr(key)),
        reason=text(f"by the broker: {death.get('reason', 'unknown')}"),
        time_s=max(0.0, time.timestamp()) if isinstance(time, datetime) else 0.0,
        user=text(properties.user_id or ""),
    )


def _as_letter(letter: Letter) -> bytes:
    header = DeadLetter(
        source=letter.queue,
        routing_key=letter.routing_key,
        reason=letter.reason,
        time_s=letter.time_s,
        user=letter.user,
    )
    return pack_chunk(header.KIND, header.model_dump(), memoryview(letter.body))


def _is_controller(user: str, federation: str) -> bool:
    return user.startswith(f"{federation}.controller.") and enrolled(user) is not None


def _header(body: bytes) -> dict[str, Any] | None:
    """The header of a frame; empty if there is none, None if it is too long."""
    try:
        return unpack_short_header(body)
    except FrameRefused:
        return {}
