"""The tasks of one round, a row per learner, in columns: 10,000 learners × 100 rounds are a million rows."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[np.float64]
Outcome = Literal["open", "finished", "folded", "failed", "late", "refused"]
OUTCOMES: tuple[Outcome, ...] = ("open", "finished", "folded", "failed", "late", "refused")
MAX_METRICS = 64
"""Metrics that a round keeps by learner, of training and of evaluation each: learners choose their names."""

TIMES = ("sent_s", "accepted_s", "finished_s", "folded_s")
DURATIONS = ("receive_s", "queue_s", "evaluate_s", "train_s", "upload_s", "fold_s")
COUNTS = ("attempt", "num_examples", "num_steps", "num_bytes", "num_messages")
COLUMNS = (*TIMES, *DURATIONS, "weight", *COUNTS)

_NAN = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How a value lies over learners; only finite values count."""

    min: float
    mean: float
    max: float
    num_learners: int

    @classmethod
    def of(cls, values: Column) -> Spread | None:
        """The spread of the finite values; None if there are none."""
        finite = values[np.isfinite(values)]
        if not len(finite):
            return None
        return cls(
            min=float(finite.min()),
            mean=float(finite.mean()),
            max=float(finite.max()),
            num_learners=len(finite),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """What became of one learner's task.

    Times are Unix time by the controller's clock; None where it never came to that.
    """

    learner: str
    outcome: Outcome
    reason: str
    """Why it failed, was late or was refused."""
    attempt: int
    sent_s: float | None
    """When sending began."""
    accepted_s: float | None
    finished_s: float | None
    folded_s: float | None
    receive_s: float | None
    queue_s: float | None
    evaluate_s: float | None
    train_s: float | None
    upload_s: float | None
    fold_s: float | None
    weight: float | None
    num_examples: int | None
    num_steps: int | None
    num_bytes: int | None
    """Of the update, as received."""
    num_messages: int | None
    metrics: Mapping[str, float]
    evaluation: Mapping[str, float]

    @property
    def ended_s(self) -> float | None:
        """When its update was folded, or else its result arrived."""
        return self.folded_s if self.folded_s is not None else self.finished_s


class TaskTable:
    """Rows by learner, in the order in which they were selected. Written by ``History``."""

    __slots__ = ("_columns", "_outcomes", "_rows", "evaluation", "learners", "metrics", "reasons")

    def __init__(self) -> None:
        self.learners: list[str] = []
        self.metrics: dict[str, array[float]] = {}
        self.evaluation: dict[str, array[float]] = {}
        self.reasons: dict[int, str] = {}
        self._rows: dict[str, int] = {}
        self._outcomes = bytearray()
        self._columns: dict[str, array[float]] = {name: array("d") for name in COLUMNS}

    def __len__(self) -> int:
        return len(self.learners)

    def __contains__(self, learner: str) -> bool:
        return learner in self._rows

    def __iter__(self) -> Iterator[TaskRecord]:
        return (self.record(row) for row in range(len(self)))

    def __getitem__(self, learner: str) -> TaskRecord:
        return self.record(self._rows[learner])

    def extend(self, learners: Iterable[str]) -> None:
        """Add an open row for each learner that has none."""
        new = [learner for learner in dict.fromkeys(learners) if learner not in self._rows]
        self._rows.update(zip(new, range(len(self), len(self) + len(new)), strict=True))
        self.learners.extend(new)
        self._outcomes.extend(bytes(len(new)))
        blank = array("d", [_NAN]) * len(new)
        for column in self._columns.values():
            column.extend(blank)

    def row(self, learner: str) -> int:
        """The learner's row; a new one for a learner that was not selected as far as we know."""
        if (row := self._rows.get(learner)) is None:
            self.extend((learner,))
            row = len(self) - 1
        return row

    def clear(self, row: int) -> None:
        """Forget what is known of a row: its task begins anew."""
        self._outcomes[row] = 0
        self.reasons.pop(row, None)
        for columns in (self._columns, self.metrics, self.evaluation):
            for column in columns.values():
                if row < len(column):
                    column[row] = _NAN

    def set(self, row: int, name: str, value: float) -> None:
        """Set one value."""
        self._columns[name][row] = value

    def get(self, row: int, name: str) -> float:
        """One value; NaN where there is none."""
        return self._columns[name][row]

    def set_metrics(self, columns: dict[str, array[float]], row: int, metrics: Mapping[str, float]) -> None:
        """Set the metrics of one row in ``self.metrics`` or ``self.evaluation``."""
        for name, value in metrics.items():
            if (column := columns.get(name)) is None:
                if len(columns) >= MAX_METRICS:
                    continue
                column = columns[name] = array("d")
            if row >= len(column):
                column.extend(array("d", [_NAN]) * (len(self) - len(column)))
            column[row] = value

    def outcome(self, row: int) -> Outcome:
        """What became of the task."""
        return OUTCOMES[self._outcomes[row]]

    def set_outcome(self, row: int, outcome: Outcome, reason: str = "") -> None:
        """Say what became of the task."""
        self._outcomes[row] = OUTCOMES.index(outcome)
        if reason:
            self.reasons[row] = reason

    def column(self, name: str) -> Column:
        """A copy of one column of ``COLUMNS``; NaN where there is no value."""
        return np.array(self._columns[name])

    def outcomes(self) -> npt.NDArray[np.uint8]:
        """A copy of the outcomes, as places in ``OUTCOMES``."""
        return np.array(self._outcomes, dtype=np.uint8)

    def metric(self, columns: Mapping[str, array[float]], name: str) -> Column:
        """A copy of one metric, from ``self.metrics`` or ``self.evaluation``; NaN where there is no value."""
        values = np.full(len(self), _NAN)
        if (column := columns.get(name)) is not None:
            values[: len(column)] = column
        return values

    def columns(self) -> dict[str, Any]:
        """Every column, ready for a data frame."""
        table: dict[str, Any] = {
            "learner": list(self.learners),
            "outcome": [OUTCOMES[code] for code in self._outcomes],
            "reason": [self.reasons.get(row, "") for row in range(len(self))],
        }
        table |= {name: self.column(name) for name in COLUMNS}
        table |= {f"metrics.{name}": self.metric(self.metrics, name) for name in self.metrics}
        return table | {f"evaluation.{name}": self.metric(self.evaluation, name) for name in self.evaluation}

    def record(self, row: int) -> TaskRecord:
        """One row as a value."""
        values: dict[str, Any] = {name: _some(column[row]) for name, column in self._columns.items()}
        values |= {name: int(values[name]) for name in COUNTS if values[name] is not None}
        values["attempt"] = values["attempt"] or 0
        return TaskRecord(
            learner=self.learners[row],
            outcome=OUTCOMES[self._outcomes[row]],
            reason=self.reasons.get(row, ""),
            metrics=_row_of(self.metrics, row),
            evaluation=_row_of(self.evaluation, row),
            **values,
        )


def _some(value: float) -> float | None:
    return None if math.isnan(value) else value


def _row_of(columns: Mapping[str, array[float]], row: int) -> dict[str, float]:
    return {
        name: value
        for name, column in columns.items()
        if row < len(column) and (value := column[row]) == value
    }
