"""What is wrong with a job's settings, in words: field, value, and what is allowed."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from broker_fl.suggestion import expected_one_of
from broker_fl.wire.frames import brief

_PLAIN = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "dict_type": "a table",
    "model_type": "a table",
    "tuple_type": "a list",
    "path_type": "a path, as text",
    "model_attributes_type": "a table with a field 'name', which says what kind it is",
    "none_required": "nothing",
}
_LIMITS = {
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "string_too_short": "at least {min_length} character(s) long",
    "string_too_long": "at most {max_length} characters long",
    "too_long": "at most {max_length} entries long",
    "finite_number": "finite",
    "literal_error": "{expected}",
}
_SHARE_OR_COUNT = {"constrained-float", "constrained-int"}
_ANY_NUMBER = f"{_PLAIN['float_type']} or {_PLAIN['int_type']}"
_NOUNS = {"constrained-float": "a share ", "constrained-int": "a whole number "}


@dataclass(frozen=True, slots=True)
class _Place:
    """A field: its dotted name's parts, the class of the table that it is in, and of the table that it is."""

    path: tuple[str, ...]
    table: type[BaseModel] | None
    model: type[BaseModel] | None


def problems(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """One text for each field that is wrong, in the order of the fields."""
    by_field: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    places: dict[tuple[str, ...], _Place] = {}
    for one in error.errors(include_url=False):
        place = _place(root, one["loc"])
        by_field.setdefault(place.path, []).append(one)
        places[place.path] = place
    return [_text(root, places[path], found) for path, found in by_field.items()]


def _text(root: type[BaseModel], place: _Place, found: list[Mapping[str, Any]]) -> str:
    name, first = ".".join(place.path), found[0]
    match first["type"]:
        case "extra_forbidden":
            return f"unknown field {name!r}: {_nearest(root, place)}"
        case "value_error":
            text = str(first["ctx"]["error"])
            return f"{name}: {text}" if name else text
        case "missing":
            return f"{name} is missing"
        case "union_tag_not_found":
            return f"{name}: the field {first['ctx']['discriminator']} is missing, which says what kind it is"
        case "union_tag_invalid":
            tag, expected = first["ctx"]["tag"], first["ctx"]["expected_tags"]
            return f"{name}.name = {brief(tag)} is not allowed: it must be one of {expected}"
    wanted = " or ".join(dict.fromkeys(_wanted(place, one) for one in found))
    if {one["loc"][-1] for one in found} == _SHARE_OR_COUNT and wanted == _ANY_NUMBER:
        wanted = "a share (a number above 0, to 1) or a count (a whole number)"
    return f"{name} = {brief(first['input'])} is not allowed: it must be {wanted}"


def _wanted(place: _Place, one: Mapping[str, Any]) -> str:
    if one["type"] == "model_type" and place.model is not None:
        return f"a table with {', '.join(place.model.model_fields)}"
    return what_is_allowed(one)


def what_is_allowed(one: Mapping[str, Any]) -> str:
    """One of pydantic's errors in words that go behind "it must be"."""
    kind = str(one["type"])
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind in _LIMITS:
        noun = _NOUNS.get(str(one["loc"][-1]), "")
        return noun + _LIMITS[kind].format(**one.get("ctx", {}))
    return str(one["msg"]).removeprefix("Input should be ")


def _nearest(root: type[BaseModel], place: _Place) -> str:
    """The field that was meant: one of that name in another table, or the nearest in the same."""
    key = place.path[-1]
    named = (name for name in _all_names(root) if name.rpartition(".")[2] == key)
    elsewhere = [name for name in dict.fromkeys(named) if name != ".".join(place.path)]
    if elsewhere:
        return f"did you mean {' or '.join(map(repr, elsewhere))}?"
    return expected_one_of(key, place.table.model_fields if place.table else ())


# ---------------------------------------------------------------- the fields of a model, and of those in it


def _all_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for inner in _models_in(field):
            yield from _all_names(inner, f"{prefix}{name}.")


def _place(root: type[BaseModel], loc: tuple[int | str, ...]) -> _Place:
    """Where ``loc`` is, without what pydantic adds: tags of unions, and names of their members' types."""
    path: list[str] = []
    table: type[BaseModel] | None = None
    model: type[BaseModel] | None = root
    rest = [str(part) for part in loc]
    while rest and model is not None:
        table, name = model, rest.pop(0)
        path.append(name)
        field = table.model_fields.get(name)
        models = list(_models_in(field)) if field else []
        if field and field.discriminator and rest:
            tag = rest.pop(0)
            models = [one for one in models if _tag(one, str(field.discriminator)) == tag]
        model = models[0] if len(models) == 1 else None
    path += [part for part in rest if not _is_type_name(part)]
    return _Place(tuple(path), table, model)


def _is_type_name(part: str) -> bool:
    return part in {"str", "int", "float", "bool", "none"} or part.startswith(("constrained-", "function-"))


def _models_in(field: FieldInfo) -> Iterator[type[BaseModel]]:
    annotation = field.annotation
    members = (
        typing.get_args(annotation)
        if typing.get_origin(annotation) in (typing.Union, types.UnionType)
        else (annotation,)
    )
    for member in members:
        if isinstance(member, type) and issubclass(member, BaseModel):
            yield member


def _tag(model: type[BaseModel], discriminator: str) -> object:
    return model.model_fields[discriminator].default
