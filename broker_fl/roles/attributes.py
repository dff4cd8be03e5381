"""What a learner tells of itself when it joins."""

from __future__ import annotations

from collections.abc import Mapping

import msgpack
from pydantic import TypeAdapter, ValidationError

from broker_fl.errors import AppError, FrameRefused
from broker_fl.interfaces import Learner, Parameters
from broker_fl.wire import fields

_HOW = "it is a dict of texts, numbers and booleans by name"
MAX_BYTES = 8_192
"""Of one learner's attributes as msgpack; they go into an event of each job that runs."""


def check_size(who: str, attributes: Parameters) -> None:
    """Hold what a learner or a group tells of itself against the limit.

    Raises:
        FrameRefused: it is more.
    """
    if (num_bytes := len(msgpack.packb(dict(attributes)))) > MAX_BYTES:
        raise FrameRefused(f"the attributes of {who!r} take {num_bytes} bytes; at most {MAX_BYTES}")


def attributes_of(learner_id: str, learner: Learner, given: Parameters) -> Parameters:
    """Its optional ``attributes``, read once; ``given`` are those of whoever runs it, who has the last word.

    Raises:
        AppError: they are no dict, or one of them cannot travel.
    """
    own = getattr(learner, "attributes", None)
    where = f"the attributes of learner {learner_id} ({type(learner).__name__}.attributes)"
    if own is None:
        return _checked(where, learner_id, given)
    if not isinstance(own, Mapping):
        raise AppError(f"{where} are a {type(own).__name__}; {_HOW}")
    try:
        told: Parameters = TypeAdapter(fields.Parameters).validate_python({**own, **given}, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = f"{first['loc'][0]}: " if first["loc"] else ""
        raise AppError(f"{where} cannot be told: {name}{first['msg']}; {_HOW}") from None
    return _checked(where, learner_id, told)


def _checked(where: str, learner_id: str, told: Parameters) -> Parameters:
    try:
        check_size(learner_id, told)
    except FrameRefused as error:
        raise AppError(f"{where} cannot be told: {error}") from None
    return told
