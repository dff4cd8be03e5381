"""Limits that hold on every transport, and their checks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from broker_fl.errors import SettingError
from broker_fl.topology import Entity, Queue

MAX_BODY_BYTES = 16 << 20
"""RabbitMQ 4.x takes no larger message unless its operator allows it (``max_message_size``)."""
MAX_PREFETCH = 65535
"""AMQP carries it in 16 bits."""
MAX_KEY_BYTES = 255
"""AMQP carries its length in 8 bits."""


def check_body(body: bytes) -> None:
    """Refuse what cannot be a body.

    Raises:
        TypeError: not ``bytes`` (the body is shared, so it must not change).
        ValueError: too large.
    """
    if type(body) is not bytes:
        raise TypeError(f"body must be bytes, not {type(body).__name__}")
    if len(body) > MAX_BODY_BYTES:
        raise ValueError(f"body of {len(body)} bytes; the broker takes at most {MAX_BODY_BYTES}")


def check_prefetch(prefetch: int) -> None:
    """Refuse what cannot be a prefetch.

    Raises:
        ValueError: out of range.
    """
    if not 1 <= prefetch <= MAX_PREFETCH:
        raise ValueError(f"prefetch must be 1 to {MAX_PREFETCH}, not {prefetch}")


def check_routing_keys(routing_keys: Sequence[str]) -> None:
    """Refuse keys that AMQP cannot carry.

    Raises:
        ValueError: one is too long.
    """
    for key in routing_keys:
        if len(key) > MAX_KEY_BYTES or (not key.isascii() and len(key.encode()) > MAX_KEY_BYTES):
            raise ValueError(f"routing key is longer than {MAX_KEY_BYTES} bytes: {key!r}")


def check_entities(entities: Iterable[Entity]) -> None:
    """Refuse declarations that not every supported broker takes.

    Raises:
        SettingError: a combination of settings that does not work everywhere.
    """
    for entity in entities:
        if isinstance(entity, Queue) and entity.single_active_consumer and not entity.quorum:
            raise SettingError(f"queue {entity.name!r}: a single active consumer needs a quorum queue")
