"""JSON Schemas of every kind, made from the classes: ``python -m broker_fl.wire.schema schemas/``."""

from __future__ import annotations

import ast
import inspect
import json
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from broker_fl.wire import events, job, messages, pacing, protocols, rules, selectors
from broker_fl.wire.frames import PROTOCOL_VERSION

Schema = dict[str, Any]
_CLASSES: dict[str, type[BaseModel]] = {
    name: cls
    for module in (job, pacing, protocols, rules, selectors, messages, events)
    for name, cls in inspect.getmembers(module, inspect.isclass)
    if issubclass(cls, BaseModel) and cls is not BaseModel
}


def schemas() -> dict[str, Schema]:
    """The schema of each message kind, each event kind and of a job, by file name."""
    kinds = messages.KINDS | events.EVENT_KINDS
    found = {f"{kind}.schema.json": _kind_schema(kind, cls) for kind, cls in kinds.items()}
    found["job_spec.schema.json"] = _headed("job_spec", _described(job.JobSpec))
    return dict(sorted(found.items()))


def to_text(schema: Schema) -> str:
    """As it stands in the file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def write(folder: Path) -> None:
    """Write all schemas into ``folder``, and remove those of kinds that are gone."""
    wanted = {name: to_text(schema) for name, schema in schemas().items()}
    for path in folder.glob("*.schema.json"):
        if path.name not in wanted:
            path.unlink()
    for name, content in wanted.items():
        (folder / name).write_text(content, encoding="utf-8")


def _kind_schema(kind: str, cls: type[BaseModel]) -> Schema:
    schema = _described(cls)
    fields = {
        "v": {"const": PROTOCOL_VERSION, "description": "Protocol version."},
        "kind": {"const": kind},
        **schema.get("properties", {}),
    }
    schema |= {"properties": fields, "required": ["v", "kind", *schema.get("required", [])]}
    return _headed(kind, schema)


def _headed(name: str, schema: Schema) -> Schema:
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:broker-fl:{PROTOCOL_VERSION}:{name}",
        "title": name,
        "description": schema.pop("description", ""),
        "type": "object",
    }
    return head | {key: value for key, value in schema.items() if key not in head}


def _described(cls: type[BaseModel]) -> Schema:
    """The schema that pydantic makes, with the words that stand below the fields in the source."""
    schema = cls.model_json_schema()
    _describe_fields(schema, cls)
    for name, part in schema.get("$defs", {}).items():
        _describe_fields(part, _CLASSES[name])
    _drop_titles(schema)
    return schema


def _describe_fields(schema: Schema, cls: type[BaseModel]) -> None:
    if "description" in schema:
        schema["description"] = " ".join(schema["description"].replace("``", "`").split())
    for base in reversed(cls.__mro__):
        for field, words in _words_below_fields(base).items():
            if field in cls.model_fields:  # others are class variables
                schema["properties"][field]["description"] = words


def _drop_titles(schema: Any) -> None:
    """Pydantic titles each property with its own name, which says nothing."""
    if isinstance(schema, dict):
        for part in schema.get("properties", {}).values():
            part.pop("title", None)
        for part in schema.values():
            _drop_titles(part)
    elif isinstance(schema, list):
        for part in schema:
            _drop_titles(part)


@cache
def _words_below_fields(cls: type) -> dict[str, str]:
    """The docstrings of a class's attributes: a string that stands by itself below an annotation."""
    if cls not in _CLASSES.values():
        return {}
    definition = ast.parse(inspect.getsource(cls)).body[0]
    lines = definition.body if isinstance(definition, ast.ClassDef) else []
    found = {}
    for line, below in pairwise(lines):
        if isinstance(line, ast.AnnAssign) and isinstance(below, ast.Expr):
            words = str(ast.literal_eval(below.value))
            found[ast.unparse(line.target)] = " ".join(words.replace("``", "`").split())
    return found


if __name__ == "__main__":
    write(Path(sys.argv[1]))
