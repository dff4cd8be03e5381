"""What a controller says without being asked: events as they happen, and messages that it refused."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import FailFast

from broker_fl.wire.fields import Count, Identifier, Seconds, Text
from broker_fl.wire.messages.parts import Message


class EventBatch(Message):
    """Events of one job as they happen, packed, in order; exchange ``events``, key ``<job>``."""

    KIND: ClassVar[str] = "event_batch"
    job: Identifier
    events: Annotated[tuple[bytes, ...], FailFast()]


class DeadLetter(Message):
    """Header of a frame whose payload (cut off at ``MAX_BODY_BYTES``) is a body that was refused, and why."""

    KIND: ClassVar[str] = "dead_letter"
    source: Text
    """The queue it came from."""
    routing_key: Text
    reason: Text
    time_s: Seconds
    user: Text = ""
    """The account that sent it, by the broker's word; empty: the broker did not say."""
    needs_account: bool = False
    """Whether the controller that refused it hears nobody but enrolled accounts."""
    num_bytes: Count = 0
    """Of the body, where the payload is only its beginning; 0: it is all of it."""
