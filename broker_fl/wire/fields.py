"""What fields may hold: the types that message kinds, events and job settings are made of, and their limits.

The limits bound what one message can make its receiver do, and see to it that no event or report outgrows
``MAX_BODY_BYTES``, whatever it is filled with.
"""

from __future__ import annotations

import math
import re
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, FailFast, Field, PlainValidator, WithJsonSchema

from broker_fl.model import MAX_DIMENSIONS, MAX_NAME_CHARS
from broker_fl.wire.frames import MAX_CHUNK_BYTES, MIN_CHUNK_BYTES, brief

MAX_INT = 2**63 - 1
MAX_TEXT_CHARS = 4_000
MAX_REASON_CHARS = 1_000
"""To which we cut why a task failed or an update was refused; others may say it in ``MAX_TEXT_CHARS``."""
MAX_METRICS = 1_000
MAX_PARAMETERS = 128
MAX_TENSORS = 100_000
MAX_LISTED = 20_000
"""Learners that one event names; it says how many there are besides."""
MAX_GROUP = 50_000
"""Members of a group: a task that names all of them stays below ``MAX_BODY_BYTES``."""

_IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{1,64}")


def _identifier(value: str) -> str:
    if not _IDENTIFIER.fullmatch(value):
        raise ValueError(f"{brief(value)} must be 1 to 64 letters, digits, '-' or '_'")
    return value


def parameter(value: Any) -> Any:
    """Check one, instead of pydantic's check of the union, whose errors name each member that it is not.

    Raises:
        ValueError: no text, number, boolean or None, or out of its limits.
    """
    if isinstance(value, str):
        if len(value) > MAX_TEXT_CHARS:
            raise ValueError(f"a text has {len(value)} characters; at most {MAX_TEXT_CHARS} are allowed")
        value.encode()
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is not a finite number")
    elif isinstance(value, int):
        if not -MAX_INT - 1 <= value <= MAX_INT:
            raise ValueError(f"{brief(value)} does not fit into a signed 64-bit integer")
    elif value is not None:
        raise ValueError(f"{brief(value)} is neither a text, a number, a boolean nor nothing")
    return value


def _metric(value: Any) -> Any:
    return math.nan if value is None else value


def listed(value: Any) -> Any:
    """Leave out what an event does not name."""
    return tuple(value[:MAX_LISTED]) if isinstance(value, tuple | list) else value


Identifier = Annotated[
    str, AfterValidator(_identifier), Field(json_schema_extra={"pattern": "^[A-Za-z0-9_-]{1,64}$"})
]
"""A name that is safe in queue names, routing keys and Redis keys: letters, digits, ``-`` and ``_``, at most
64.
"""

Count = Annotated[int, Field(ge=0, le=MAX_INT)]
Positive = Annotated[int, Field(ge=1, le=MAX_INT)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]
"""Words for people; ``text`` makes one of anything."""
Name = Annotated[str, Field(min_length=1, max_length=128)]

_PARAMETER_SCHEMA = {
    "anyOf": [
        {"type": "string", "maxLength": MAX_TEXT_CHARS},
        {"type": "integer", "minimum": -MAX_INT - 1, "maximum": MAX_INT},
        {"type": "number"},
        {"type": "boolean"},
        {"type": "null"},
    ]
}
Parameter = Annotated[
    str | int | float | bool | None, PlainValidator(parameter), WithJsonSchema(_PARAMETER_SCHEMA)
]
"""A task parameter or a learner's attribute; numbers are finite."""
Parameters = Annotated[dict[Name, Parameter], Field(max_length=MAX_PARAMETERS)]

Metric = Annotated[float, BeforeValidator(_metric), WithJsonSchema({"type": ["number", "null"]})]
"""A measured number. A diverged training reports NaN or infinity, so both are allowed; JSON, which has
neither, says null.
"""
Metrics = Annotated[dict[Name, Metric], Field(max_length=MAX_METRICS)]

Digest = Annotated[str, Field(pattern="^([0-9a-f]{32})?$")]
"""32 hex digits; empty where the sender computes none."""
Checksum = Annotated[str, Field(max_length=80)]
EncodingName = Annotated[str, Field(max_length=32)]
Form = Literal["values", "changes"]
"""What an update holds of float tensors: their values, or what training changed in them. Integer and boolean
tensors are values in both.
"""
ChunkBytes = Annotated[int, Field(ge=MIN_CHUNK_BYTES, le=MAX_CHUNK_BYTES)]

_Shape = Annotated[tuple[Count, ...], Field(max_length=MAX_DIMENSIONS)]
SpecRow = tuple[
    Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)],
    Annotated[str, Field(max_length=32)],
    _Shape,
]
"""Name, element type and shape of one tensor."""
SpecRows = Annotated[tuple[SpecRow, ...], Field(max_length=MAX_TENSORS), FailFast()]

TensorNames = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)], ...],
    Field(max_length=MAX_TENSORS),
    FailFast(),
]

Listed = Annotated[
    tuple[Identifier, ...],
    FailFast(),
    BeforeValidator(listed),
    Field(json_schema_extra={"maxItems": MAX_LISTED}),
]
"""Ids of learners; those beyond ``MAX_LISTED`` are left out."""

MemberIds = Annotated[tuple[Identifier, ...], Field(max_length=MAX_GROUP), FailFast()]
"""Ids of members of a group."""


def _shares(value: Any) -> Any:
    return dict(islice(value.items(), MAX_LISTED)) if isinstance(value, dict) else value


Shares = Annotated[
    dict[Identifier, Annotated[float, Field(ge=0, le=1)]],
    BeforeValidator(_shares),
    Field(json_schema_extra={"maxProperties": MAX_LISTED}),
]
"""By learner; those beyond ``MAX_LISTED`` are left out."""


def text(value: object) -> str:
    """``str(value)`` as a ``Text``: cut to its limit, and without what UTF-8 cannot carry (file names in
    error texts).
    """
    words = str(value).encode("utf-8", "backslashreplace").decode()
    return words if len(words) <= MAX_TEXT_CHARS else words[: MAX_TEXT_CHARS - 1] + "…"
