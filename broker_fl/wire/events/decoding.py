"""Events as they are read: packed, or as lines of JSON."""

from __future__ import annotations

import json
from typing import Any, ClassVar, cast

from pydantic import ValidationError

from broker_fl.errors import FrameRefused
from broker_fl.wire.events import groups, jobs, learners, rounds, tasks
from broker_fl.wire.events.base import Event
from broker_fl.wire.fields import Name
from broker_fl.wire.frames import unpack
from broker_fl.wire.messages import first_problem, kinds_in, parse

EVENT_KINDS = kinds_in(Event, jobs, rounds, tasks, learners, groups)
"""Every kind of event by name."""


class UnknownEvent(Event):
    """An event of a kind that is not known here, from a newer controller."""

    KIND: ClassVar[str] = "unknown"
    kind: Name


def decode_event(body: bytes) -> Event:
    """Read one packed event; one of an unknown kind is an ``UnknownEvent``.

    Raises:
        FrameRefused: no valid frame, or not an event.
    """
    fields, payload = unpack(body)
    if fields["kind"] not in EVENT_KINDS and payload is None and "sequence" in fields:
        fields = {name: fields.get(name) for name in ("kind", "job", "sequence", "time_s")}
        return cast("Event", parse(fields, {fields["kind"]: UnknownEvent}))
    event = parse(fields, EVENT_KINDS)
    if payload is not None or not isinstance(event, Event):
        raise FrameRefused(f"{event.KIND!r} is not an event")
    return event


def event_from_json(line: str) -> Event:
    """Read one line of a JSONL log.

    Raises:
        FrameRefused: no valid JSON, or not an event.
    """
    try:
        fields: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FrameRefused(f"not a line of JSON: {str(error)[:200]}") from error
    if not isinstance(fields, dict) or (cls := EVENT_KINDS.get(str(fields.get("kind")))) is None:
        raise FrameRefused("the line is not an event")
    try:
        event = cls.model_validate_json(line)
    except ValidationError as error:
        raise FrameRefused(f"a {cls.KIND!r} event with a wrong field {first_problem(error)}") from error
    if not isinstance(event, Event):
        raise FrameRefused(f"{event.KIND!r} is not an event")
    return event
