"""Limits that hold on every transport, and their checks."""

from __future__ import annotations

MAX_BODY_BYTES = 16 << 20
"""RabbitMQ 4.x takes no larger message unless its operator allows it (``max_message_size``)."""
MAX_PREFETCH = 65535
"""AMQP carries it in 16 bits."""


def check_body(body: bytes) -> None:
    """
    Raises:
        TypeError: not ``bytes`` (the body is shared, so it must not change).
        ValueError: too large.
    """
    if type(body) is not bytes:
        raise TypeError(f"body must be bytes, not {type(body).__name__}")
    if len(body) > MAX_BODY_BYTES:
        raise ValueError(f"body of {len(body)} bytes; the broker takes at most {MAX_BODY_BYTES}")


def check_prefetch(prefetch: int) -> None:
    """
    Raises:
        ValueError: out of range.
    """
    if not 1 <= prefetch <= MAX_PREFETCH:
        raise ValueError(f"prefetch must be 1 to {MAX_PREFETCH}, not {prefetch}")
