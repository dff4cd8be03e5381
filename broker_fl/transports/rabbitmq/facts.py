"""What ``broker-fl doctor`` wants to know about a broker, tried as a role would; nothing stays behind."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import pika
from pika import exceptions as pika_errors

from broker_fl.errors import BrokerUnavailable, QueueInUse
from broker_fl.security import Security
from broker_fl.security.certificates import Validity, of_decoded, of_files
from broker_fl.topology import Binding, Entity, Exchange, Queue, Topology
from broker_fl.transports.rabbitmq.address import Address
from broker_fl.transports.rabbitmq.addresses import Addresses, parse_addresses
from broker_fl.transports.rabbitmq.channel import queue_arguments
from broker_fl.transports.rabbitmq.failures import (
    ACCESS_REFUSED,
    NOT_FOUND,
    channel_failure,
    connection_failure,
    refused_user,
)
from broker_fl.transports.rabbitmq.link import LinkSettings
from broker_fl.transports.rabbitmq.tunnel import blocking_connection

Role = Literal["controller", "learner", "driver", "observer"]
HEARTBEAT_S = 60
CONNECT_TIMEOUT_S = 5.0
_ALARM_WAIT_S = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """What waits in a queue, and who reads it."""

    num_messages: int
    num_consumers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerFacts:
    """One look at a broker."""

    place: str
    product: str
    version: str
    tls: bool
    latency_s: float
    heartbeat_s: int
    """As agreed on; 0: none."""
    alarm: str
    """Why the broker takes no messages at present; empty: it does."""
    missing: tuple[str, ...]
    """Exchanges and queues of the federation that are not there yet."""
    denied: tuple[str, ...]
    """What the role needs to do and may not, in words."""
    different: tuple[str, ...]
    """What exists with other settings than ours."""
    in_use: tuple[str, ...]
    """What somebody else does alone: a learner of that name is running."""
    refused: str = ""
    """The user that may not do what is in ``denied``, as the broker calls it."""
    certificates: tuple[Validity, ...] = ()
    """Ours, the authorities that are trusted, and the server's as it showed it."""
    depths: dict[str, Depth] = field(default_factory=dict)
    """By queue: reports, control, dead."""
    hands_on: bool = False
    """Whether there is the exchange ``nowhere``."""


def look_at_broker(
    url: str,
    *,
    federation: str,
    role: Role,
    learner: str = "",
    security: Security | None = None,
    enrolled: str = "",
) -> BrokerFacts:
    """Connect as the role would, and try what it does; what has to be made for that is deleted again.

    ``learner`` is whose mailbox is tried; else it is one with a name that nobody has. ``enrolled`` is the
    name of an account of its own, which is not to declare what is there since it was enrolled.

    Raises:
        SettingError, AccessDenied, BrokerUnavailable: no connection.
    """
    with connected(parse_addresses(url, security)) as (address, connection):
        look = _Look(connection, Topology(federation), role, learner, enrolled)
        alarms: list[str] = []
        connection.add_on_connection_blocked_callback(
            lambda _, method: alarms.append(method.method.reason or "unknown")
        )
        try:
            look.try_everything()
            connection.process_data_events(_ALARM_WAIT_S)
            return BrokerFacts(
                place=str(address),
                **_greeting(connection),
                tls=address.tls is not None,
                certificates=_certificates(connection, address, security),
                latency_s=look.latency_s(),
                alarm=alarms[0] if alarms else "",
                missing=tuple(look.missing),
                denied=tuple(look.denied),
                refused=look.refused,
                different=tuple(look.different),
                in_use=tuple(look.in_use),
                depths=look.depths,
                hands_on=look.hands_on,
            )
        finally:
            look.tidy_up()


@contextmanager
def connected(addresses: Addresses) -> Iterator[tuple[Address, Any]]:
    """A connection to the first node that answers."""
    *others, last = addresses.nodes
    for address in others:
        try:
            connection = _connection(address)
        except BrokerUnavailable:
            continue
        break
    else:
        address, connection = last, _connection(last)
    try:
        yield address, connection
    finally:
        with suppress(pika_errors.AMQPError):
            connection.close()


def _connection(address: Address) -> Any:
    settings = LinkSettings(
        address=address, name="broker-fl doctor", heartbeat_s=HEARTBEAT_S, connect_timeout_s=CONNECT_TIMEOUT_S
    )
    parameters = settings.parameters()
    parameters.blocked_connection_timeout = None
    try:
        return blocking_connection(parameters, address)
    except Exception as error:
        raise connection_failure(error, address) from error


def _greeting(connection: Any) -> dict[str, Any]:
    properties = connection._impl.server_properties  # noqa: SLF001 - pika has no public name for what it was told
    heartbeat = connection._impl.params.heartbeat  # noqa: SLF001
    return {
        "product": str(properties.get("product", "unknown")),
        "version": str(properties.get("version", "unknown")),
        "heartbeat_s": int(heartbeat or 0),
    }


def _certificates(connection: Any, address: Address, security: Security | None) -> tuple[Validity, ...]:
    if address.tls is None:
        return ()
    shown = connection._impl._transport._sock.getpeercert()  # noqa: SLF001 - as above
    return (*of_files(security or Security()), of_decoded("the server's certificate", shown))


class _Look:
    """Tries one thing after the other, each on a channel of its own: a refusal closes it."""

    def __init__(self, connection: Any, topology: Topology, role: Role, learner: str, enrolled: str) -> None:
        self._connection = connection
        self._topology = topology
        self._trial = f"{enrolled}-{secrets.token_hex(6)}" if enrolled else f"doctor-{secrets.token_hex(4)}"
        self._role = role
        self._enrolled = enrolled
        self._learner = enrolled or learner or self._trial
        self._made: list[Exchange | Queue] = []
        self.missing: list[str] = []
        self.denied: list[str] = []
        self.refused = ""
        self.different: list[str] = []
        self.in_use: list[str] = []
        self.depths: dict[str, Depth] = {}
        self.hands_on = False

    def try_everything(self) -> None:
        may_declare = not self._enrolled or self._role == "controller"
        for entity in self._topology.for_controller():
            self._declare(entity, make=False) if may_declare else self._look_for(entity)
        self.hands_on = self._is_there(Exchange(self._topology.nowhere, "fanout"))
        own, exchanges, queues = self._needs()
        for entity in own:
            if self._enrolled and self._role == "learner":
                self._look_for(entity)
            else:
                self._declare(entity, make=True)
        key = f"{self._learner if self._role == 'learner' else self._trial}.doctor"
        for exchange in exchanges:
            self._attempt(f"write to exchange {exchange}", partial(_publish, exchange=exchange, key=key))
        for queue in queues:
            self._attempt(f"read from queue {queue}", partial(_consume, queue=queue))
        mailbox = self._topology.mailbox(self._learner)
        if mailbox in self.depths and self.depths[mailbox].num_consumers:
            self.in_use.append(f"read from queue {mailbox}")

    def _needs(self) -> tuple[Sequence[Entity], Sequence[str], Sequence[str]]:
        """What the role declares besides what all do, the exchanges it writes to, the queues it reads."""
        topology, trial = self._topology, self._trial
        own: Sequence[Entity]
        if self._role == "controller":
            own = topology.for_inbox(trial)
            if not self._enrolled:
                own = (Exchange(f"{topology.tasks}.{trial}", "direct"), *own)
            writes: Sequence[str] = (topology.tasks, topology.answers, topology.events)
            return own, writes, (topology.reports, topology.control, topology.inbox(trial))
        if self._role == "learner":
            own = topology.for_learner(self._learner)
            return own, (topology.reports, topology.updates), (topology.mailbox(self._learner),)
        watcher = f"{trial}-{secrets.token_hex(4)}"
        own = (*topology.for_driver(trial), *topology.for_watcher(watcher, trial))
        reads = (topology.driver_queue(trial), topology.event_queue(watcher))
        writes = (topology.control,) if self._role == "observer" else (topology.control, topology.updates)
        return own, writes, reads

    def latency_s(self) -> float:
        """Shortest of a few round trips."""
        channel = self._connection.channel()
        times = []
        for _ in range(5):
            start = time.perf_counter()
            channel.basic_qos(prefetch_count=1)
            times.append(time.perf_counter() - start)
        channel.close()
        return min(times)

    def tidy_up(self) -> None:
        """Delete what was made, unless somebody uses it by now."""
        for entity in reversed(self._made):
            with suppress(pika_errors.AMQPError):
                channel = self._connection.channel()
                if isinstance(entity, Exchange):
                    channel.exchange_delete(entity.name, if_unused=True)
                else:
                    channel.queue_delete(entity.name, if_unused=True, if_empty=True)
                channel.close()

    def _declare(self, entity: Entity, *, make: bool) -> None:
        """Declare it if it is there, which changes nothing, or if it may be made."""
        if isinstance(entity, Binding):
            what = f"bind queue {entity.queue} to exchange {entity.exchange}"
            self._attempt(what, partial(_bind, binding=entity))
            return
        noun = "exchange" if isinstance(entity, Exchange) else "queue"
        there = self._is_there(entity)
        if not there and not make:
            self.missing.append(f"{noun} {entity.name}")
        elif self._attempt(f"configure {noun} {entity.name}", partial(_declare, entity=entity)) and not there:
            self._made.append(entity)

    def _look_for(self, entity: Entity) -> None:
        """Note whether it is there, with what everybody may do."""
        if not isinstance(entity, Binding) and not self._is_there(entity):
            noun = "exchange" if isinstance(entity, Exchange) else "queue"
            self.missing.append(f"{noun} {entity.name}")

    def _is_there(self, entity: Exchange | Queue) -> bool:
        """Whether it exists; what waits in it is noted."""
        try:
            channel = self._connection.channel()
            if isinstance(entity, Exchange):
                channel.exchange_declare(entity.name, passive=True)
            else:
                found = channel.queue_declare(entity.name, passive=True).method
                depth = Depth(num_messages=found.message_count, num_consumers=found.consumer_count)
                self.depths[entity.name] = depth
            channel.close()
        except pika_errors.ChannelClosedByBroker as error:
            return bool(error.reply_code != NOT_FOUND)
        return True

    def _attempt(self, what: str, do: Callable[[Any], None]) -> bool:
        channel = self._connection.channel()
        try:
            do(channel)
        except pika_errors.ChannelClosedByBroker as error:
            failure = channel_failure(error, what)
            if isinstance(failure, QueueInUse):
                self.in_use.append(what)
            elif error.reply_code == ACCESS_REFUSED:
                self.denied.append(what)
                self.refused = refused_user(error.reply_text)
            elif error.reply_code != NOT_FOUND:  # it is among the missing
                self.different.append(str(failure))
            return False
        if channel.is_open:
            channel.close()
        return True


def _declare(channel: Any, *, entity: Exchange | Queue) -> None:
    if isinstance(entity, Exchange):
        channel.exchange_declare(entity.name, exchange_type=entity.type, durable=True)
    else:
        channel.queue_declare(entity.name, durable=True, arguments=queue_arguments(entity))


def _bind(channel: Any, *, binding: Binding) -> None:
    channel.queue_bind(binding.queue, binding.exchange, routing_key=binding.routing_key)


_ON_PURPOSE = 406
"""A mistake that the broker sees only after it looked for the permission: nothing is published or read."""


def _publish(channel: Any, *, exchange: str, key: str) -> None:
    with _mistaken("expiration"):
        channel.confirm_delivery()
        channel.basic_publish(exchange, key, b"", pika.BasicProperties(expiration="doctor"))


def _consume(channel: Any, *, queue: str) -> None:
    with _mistaken("x-priority"):
        channel.basic_consume(queue, lambda *_: None, arguments={"x-priority": "doctor"})


@contextmanager
def _mistaken(about: str) -> Iterator[None]:
    try:
        yield
    except pika_errors.ChannelClosedByBroker as error:
        if error.reply_code != _ON_PURPOSE or about not in error.reply_text:
            raise
