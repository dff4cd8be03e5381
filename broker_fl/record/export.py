"""A history as rows, data frames and JSON."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from broker_fl.errors import SettingError
from broker_fl.record.tasks import TaskRecord, TaskTable

if TYPE_CHECKING:
    from broker_fl.record.history import History

Table = Literal["rounds", "tasks", "versions", "learners", "incidents"]
TABLES: tuple[Table, ...] = ("rounds", "tasks", "versions", "learners", "incidents")


def rows(history: History, table: Table) -> Iterator[dict[str, Any]]:
    """See ``History.to_rows``."""
    if table not in TABLES:
        raise SettingError(f"there is no table {table!r} in a history; it has {', '.join(TABLES)}")
    if table == "tasks":
        return _task_rows(history)
    if table == "incidents":
        return map(_flat, history.incidents)
    tables: dict[str, dict[Any, Any]] = {
        "rounds": history.rounds,
        "versions": history.versions,
        "learners": history.learners,
    }
    return (_flat(tables[table][key]) for key in sorted(tables[table]))


def _task_rows(history: History) -> Iterator[dict[str, Any]]:
    for number in sorted(history.rounds):
        tasks = history.rounds[number].tasks
        for task in chain(tasks.earlier, tasks):
            yield _task_row(number, task)


def _task_row(number: int, task: TaskRecord) -> dict[str, Any]:
    return {"round": number} | _flat(task) | {name: getattr(task, name) for name in task.DERIVED}


def frame(history: History, table: Table) -> Any:
    """See ``History.to_pandas``."""
    try:
        pandas = importlib.import_module("pandas")
    except ImportError as error:
        raise SettingError("a data frame needs pandas: pip install pandas") from error
    if table != "tasks":
        return pandas.DataFrame(list(rows(history, table)))
    # By columns: a dict for each of a million rows would take gigabytes.
    frames = []
    for number in sorted(history.rounds):
        tasks = history.rounds[number].tasks
        if tasks.earlier:
            frames.append(pandas.DataFrame([_task_row(number, task) for task in tasks.earlier]))
        if len(tasks):
            frames.append(pandas.DataFrame({"round": number, **tasks.columns()}))
    return pandas.concat(frames, ignore_index=True) if frames else pandas.DataFrame()


def as_json(history: History, *, tasks: bool) -> str:
    """See ``History.to_json``."""
    names = ("job", "state", "reason", "driver", "num_parameters", "model_bytes", "num_resumed")
    whole: dict[str, Any] = {name: getattr(history, name) for name in names}
    whole |= {
        name: getattr(history, name)
        for name in ("submitted_s", "finished_s", "duration_s", "metrics", "counts")
    }
    whole["parent"] = history.parent.model_dump() if history.parent else None
    whole["spec"] = history.spec.model_dump(mode="json") if history.spec else None
    whole |= {table: list(rows(history, table)) for table in TABLES if tasks or table != "tasks"}
    return json.dumps(_finite(whole), allow_nan=False, separators=(",", ":"))


def _flat(record: Any) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for entry in fields(record):
        value = getattr(record, entry.name)
        if isinstance(value, Mapping):
            if not entry.name.endswith("spreads"):  # what they are the spread of is in the table of tasks
                row |= {f"{entry.name}.{name}": item for name, item in value.items()}
        elif not isinstance(value, TaskTable):
            row[entry.name] = value
    return row


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
