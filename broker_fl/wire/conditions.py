"""What a learner's attribute must be: the values of a selector's ``where``.

========================  ==============================================================================
``"eu"``, ``8``, ``true``  the attribute is equal to it; a boolean is no number
``["eu", "uk"]``          it is equal to one of these
``{min = 1, max = 8}``    it is a number between these, both included; one of them may be missing
``{min = "0.2"}``         it is, or has in it, a version that is not older (``max``: not newer)
========================  ==============================================================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PlainSerializer, PlainValidator, WithJsonSchema

from broker_fl.wire.fields import MAX_PARAMETERS, Name, parameter
from broker_fl.wire.frames import brief
from broker_fl.wire.settings import Setting

Scalar = str | int | float | bool | None
Bound = str | int | float
Version = tuple[tuple[int, ...], bool]
"""Its numbers without zeros at the end, and whether it is released; versions compare as these do."""

MAX_VALUES = 1_000
"""In all conditions of one ``where`` together."""
MAX_CHARS = 128
"""Of a text to compare with."""

_VERSION = re.compile(
    r"(?:^|\s)v?([0-9]{1,9}(?:\.[0-9]{1,9})*)"
    r"([-_.]?(?:a|b|c|rc|alpha|beta|pre|preview|dev)[-_.]?[0-9]*)?"
    r"(?:[-_.]?(?:post|dev)[-_.]?[0-9]*)?(?:\+\S*)?(?=\s|$)",
    re.IGNORECASE,
)


@lru_cache(maxsize=256)  # a hundred thousand learners run few versions
def version(text: str) -> Version | None:
    """The first word that is a version; None if there is none.

    What is before a release (``rc1``, ``dev``) is older than the release; what comes after it (``post1``,
    ``+cu121``) counts as the release.
    """
    found = _VERSION.search(text)
    if found is None:
        return None
    numbers = [int(number) for number in found[1].split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers), found[2] is None


class Range(Setting):
    """From ``min`` to ``max``, both included: numbers, or versions as texts."""

    min: Bound | None = None
    max: Bound | None = None

    def contains(self, value: Scalar) -> bool:
        """Whether it is of the same kind, and within."""
        if isinstance(self.min if self.min is not None else self.max, str) != isinstance(value, str):
            return False
        place = _place(value)
        return (
            place is not None
            and (self.min is None or _place(self.min) <= place)
            and (self.max is None or place <= _place(self.max))
        )


def _place(value: Scalar) -> Any:
    """What ranges compare: a number, or a version; None if it is neither."""
    if isinstance(value, str):
        return version(value)
    return None if isinstance(value, bool) else value


AnyCondition = Scalar | tuple[Scalar, ...] | Range


def is_met(condition: AnyCondition, value: Scalar) -> bool:
    """Whether an attribute that is there meets the condition."""
    if isinstance(condition, Range):
        return condition.contains(value)
    if isinstance(condition, tuple):
        return any(_are_equal(one, value) for one in condition)
    return _are_equal(condition, value)


def _are_equal(wanted: Scalar, value: Scalar) -> bool:
    return isinstance(wanted, bool) == isinstance(value, bool) and wanted == value


def _condition(given: Any) -> AnyCondition:
    if isinstance(given, Range):
        return given
    if isinstance(given, Mapping):
        return _range(given)
    if isinstance(given, list | tuple):
        if not given:
            raise ValueError("an empty list matches no learner: name at least one value")
        return tuple(_scalar(one) for one in given)
    return _scalar(given)


def _scalar(given: Any) -> Scalar:
    if isinstance(given, str) and len(given) > MAX_CHARS:
        raise ValueError(f"a text has {len(given)} characters; at most {MAX_CHARS} are allowed here")
    checked: Scalar = parameter(given)
    return checked


def _range(given: Mapping[Any, Any]) -> Range:
    unknown = [key for key in given if key not in Range.model_fields]
    if unknown:
        raise ValueError(f"unknown field {brief(unknown[0])}: a range has 'min' and 'max'")
    bounds = {name: _scalar(value) for name, value in given.items() if value is not None}
    if not bounds:
        raise ValueError("a range needs 'min', 'max' or both")
    for name, value in bounds.items():
        if _place(value) is None:
            raise ValueError(f"'{name}' = {brief(value)} is neither a number nor a version like '0.2.1'")
    if len({isinstance(value, str) for value in bounds.values()}) == 2:
        raise ValueError("'min' and 'max' must be of one kind: two numbers, or two versions")
    if len(bounds) == 2 and _place(bounds["min"]) > _place(bounds["max"]):
        raise ValueError(
            f"'min' = {brief(bounds['min'])} is above 'max' = {brief(bounds['max'])}: nothing is in between"
        )
    return Range.model_construct(min=bounds.get("min"), max=bounds.get("max"))


def _as_written(condition: AnyCondition) -> Any:
    """As it stands in a job file."""
    if isinstance(condition, Range):
        bounds = {"min": condition.min, "max": condition.max}
        return {name: bound for name, bound in bounds.items() if bound is not None}
    return list(condition) if isinstance(condition, tuple) else condition


def _not_too_many(where: dict[str, AnyCondition]) -> dict[str, AnyCondition]:
    count = sum(len(one) if isinstance(one, tuple) else 1 for one in where.values())
    if count > MAX_VALUES:
        raise ValueError(f"{count} values; at most {MAX_VALUES} are allowed in all")
    return where


_SCALAR_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "maxLength": MAX_CHARS},
        {"type": "number"},
        {"type": "boolean"},
        {"type": "null"},
    ]
}
_BOUND_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "string", "maxLength": MAX_CHARS}, {"type": "number"}, {"type": "null"}]
}
_CONDITION_SCHEMA: dict[str, Any] = {
    "anyOf": [
        *_SCALAR_SCHEMA["anyOf"],
        {"type": "array", "items": _SCALAR_SCHEMA, "minItems": 1, "maxItems": MAX_VALUES},
        {
            "type": "object",
            "properties": {"min": _BOUND_SCHEMA, "max": _BOUND_SCHEMA},
            "minProperties": 1,
            "additionalProperties": False,
        },
    ]
}
Condition = Annotated[
    AnyCondition,
    PlainValidator(_condition),
    PlainSerializer(_as_written, return_type=Any),
    WithJsonSchema(_CONDITION_SCHEMA),
]
Where = Annotated[dict[Name, Condition], Field(max_length=MAX_PARAMETERS), AfterValidator(_not_too_many)]
"""Conditions by the name of the attribute; all of them must be met."""
