"""From the body of an AMQP message to the message, or to what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from broker_fl.errors import FrameRefused
from broker_fl.wire.frames import brief, unpack
from broker_fl.wire.messages import answers, membership, notices, requests, results, tasks
from broker_fl.wire.messages.notices import DeadLetter
from broker_fl.wire.messages.parts import Message, TaskRef, kinds_in
from broker_fl.wire.messages.results import GroupResult, Result, UpdateChunk
from broker_fl.wire.messages.tasks import ModelChunk

KINDS = kinds_in(Message, membership, tasks, results, requests, answers, notices)
"""Every kind that is understood, by name; events are not messages to a role and have a table of their own."""

WITH_PAYLOAD = (UpdateChunk, ModelChunk, DeadLetter)


def decode(body: bytes) -> tuple[Message, memoryview | None]:
    """Read one frame: the message, and the payload if its kind has one (a view of ``body``).

    Raises:
        FrameRefused: no valid frame, an unknown kind, or a field that is missing or not allowed; names kind
        and field.
    """
    fields, payload = unpack(body)
    message = parse(fields, KINDS)
    if isinstance(message, WITH_PAYLOAD) is (payload is None):
        raise FrameRefused(f"a {message.KIND!r} frame {'without' if payload is None else 'with'} a payload")
    return message, payload


def parse(fields: dict[str, Any], kinds: Mapping[str, type[Message]]) -> Message:
    """Make the message of a frame's header; ``kinds`` are those that are understood.

    Raises:
        FrameRefused: the kind is unknown, or a field is missing or not allowed.
    """
    kind = fields["kind"]
    if (cls := kinds.get(kind)) is None:
        raise FrameRefused(f"messages of kind {brief(kind)} are not known here")
    try:
        return cls.model_validate(fields)
    except ValidationError as error:
        raise FrameRefused(f"a {kind!r} message with a wrong field {first_problem(error)}") from error


def broken_result(body: bytes) -> tuple[str, TaskRef] | None:
    """Learner (or group) and task of a ``result`` (or ``group_result``) whose other fields are wrong; None if
    it is no such thing. A result inside of a chunk is one, too.
    """
    try:
        fields, _ = unpack(body)
        if fields["kind"] == UpdateChunk.KIND and isinstance(fields.get("result"), dict):
            fields = {**fields["result"], "kind": Result.KIND}
        names = {Result.KIND: "learner", GroupResult.KIND: "group"}
        if (name := names.get(fields["kind"])) is None:
            return None
        result = Result.model_validate({"learner": fields.get(name), "task": fields.get("task")})
    except (FrameRefused, ValidationError):
        return None
    return result.learner, result.task


def first_problem(error: ValidationError) -> str:
    """Where and what the first problem is, in a few words, whatever the sender wrote."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part)[:100] for part in first["loc"][:10])
    return f"{where!r}: {first['msg'][:300]}"
