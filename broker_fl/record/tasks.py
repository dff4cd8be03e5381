"""The tasks of one round, a row per learner, in columns: 10,000 learners × 100 rounds are a million rows."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[np.float64]
Outcome = Literal["open", "finished", "folded", "failed", "late", "refused", "cancelled"]
OUTCOMES: tuple[Outcome, ...] = ("open", "finished", "folded", "failed", "late", "refused", "cancelled")
MAX_METRICS = 64
"""Metrics that a round keeps by learner, of training and of evaluation each: learners choose their names."""

TIMES = ("sent_s", "accepted_s", "started_s", "finished_s", "received_s", "folded_s", "committed_s")
DURATIONS = ("receive_s", "queue_s", "evaluate_s", "train_s", "upload_s", "fold_s")
COUNTS = (
    "attempt", "version", "committed_version", "staleness", "num_examples", "num_steps",
    "bytes_down", "messages_down", "bytes_up", "messages_up", "peak_memory_bytes",
)  # fmt: skip
COLUMNS = (*TIMES, *DURATIONS, "weight", "num_epochs", *COUNTS)

_NAN = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How a value lies over learners; only finite values count."""

    min: float
    lower: float
    """The lower quartile."""
    mean: float
    upper: float
    """The upper quartile."""
    max: float
    num_learners: int

    @classmethod
    def of(cls, values: Column) -> Spread | None:
        """The spread of the finite values; None if there are none."""
        finite = values[np.isfinite(values)]
        if not len(finite):
            return None
        least, most = float(finite.min()), float(finite.max())
        # Divided first: the sum of the largest floats is not finite. The least of all have no half.
        lower, upper = np.clip(np.quantile(finite / 2, (0.25, 0.75)) * 2, least, most)
        mean = 2 * float((finite / (2 * len(finite))).sum())
        return cls(
            min=least,
            lower=float(lower),
            mean=min(max(mean, least), most),
            upper=float(upper),
            max=most,
            num_learners=len(finite),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """What became of one learner's task.

    Times are Unix time by the controller's clock; durations were measured where they passed. None where it
    never came to that, or where it is not known.
    """

    learner: str
    outcome: Outcome
    reason: str
    """Why it failed, was late, was refused or was cancelled."""
    attempt: int
    version: int | None
    """That the learner was given."""
    sent_s: float | None
    """When sending began."""
    accepted_s: float | None
    """When the learner had task and model, whole, and said so."""
    started_s: float | None
    """When it began to compute, reckoned back from its result."""
    finished_s: float | None
    """When its result was here."""
    received_s: float | None
    """When its update was here, whole."""
    folded_s: float | None
    committed_s: float | None
    """When the version that holds its update was stored."""
    committed_version: int | None
    """That version."""
    receive_s: float | None
    """From the task's arrival at the learner to the last byte of the model."""
    queue_s: float | None
    evaluate_s: float | None
    train_s: float | None
    upload_s: float | None
    fold_s: float | None
    weight: float | None
    staleness: int | None
    """Versions that were committed between the one it was given and the fold of its update."""
    num_examples: int | None
    num_steps: int | None
    num_epochs: float | None
    bytes_down: int | None
    messages_down: int | None
    bytes_up: int | None
    """Of the update, as received."""
    messages_up: int | None
    peak_memory_bytes: int | None
    """Most that the learner's process had had in memory by then."""
    workload: Mapping[str, float]
    """The task parameters that pacing set, as far as they are numbers."""
    metrics: Mapping[str, float]
    evaluation: Mapping[str, float]

    DERIVED: ClassVar = ("ms_per_step", "ms_per_epoch", "round_trip_s")

    @property
    def ended_s(self) -> float | None:
        """When its update was folded, or else its result arrived."""
        return self.folded_s if self.folded_s is not None else self.finished_s

    @property
    def round_trip_s(self) -> float | None:
        """From sending to the folded update, or else to the result."""
        ended_s = self.ended_s
        return None if ended_s is None or self.sent_s is None else ended_s - self.sent_s

    @property
    def ms_per_step(self) -> float | None:
        """Milliseconds of training for each optimiser step."""
        return _ms_per(self.train_s, self.num_steps)

    @property
    def ms_per_epoch(self) -> float | None:
        """Milliseconds of training for each pass over the learner's examples."""
        return _ms_per(self.train_s, self.num_epochs)


def _ms_per(train_s: float | None, number: float | None) -> float | None:
    return train_s * 1000 / number if train_s and number else None


class TaskTable:
    """Rows by learner, in the order in which they were selected. Written by ``History``."""

    __slots__ = (
        "_columns", "_outcomes", "_rows",
        "earlier", "evaluation", "learners", "metrics", "reasons", "workload",
    )  # fmt: skip

    def __init__(self) -> None:
        self.learners: list[str] = []
        self.workload: dict[str, array[float]] = {}
        self.metrics: dict[str, array[float]] = {}
        self.evaluation: dict[str, array[float]] = {}
        self.earlier: list[TaskRecord] = []
        """Tasks of attempts that were given up: the learner has a newer one in this round."""
        self.reasons: dict[int, str] = {}
        self._rows: dict[str, int] = {}
        self._outcomes = bytearray()
        # A column is as long as the last row in which it has a value.
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

    def row(self, learner: str) -> int:
        """The learner's row; a new one for a learner that was not selected as far as we know."""
        if (row := self._rows.get(learner)) is None:
            self.extend((learner,))
            row = len(self) - 1
        return row

    def begin_anew(self, row: int) -> None:
        """Keep what is known of a row in ``earlier``, and blank it: its task begins anew."""
        self.earlier.append(self.record(row))
        self._outcomes[row] = 0
        self.reasons.pop(row, None)
        for columns in (self._columns, self.workload, self.metrics, self.evaluation):
            for column in columns.values():
                if row < len(column):
                    column[row] = _NAN

    def set(self, row: int, name: str, value: float) -> None:
        """Set one value."""
        self._put(self._columns[name], row, value)

    def get(self, row: int, name: str) -> float:
        """One value; NaN where there is none."""
        column = self._columns[name]
        return column[row] if row < len(column) else _NAN

    def set_named(self, columns: dict[str, array[float]], row: int, values: Mapping[str, Any]) -> None:
        """Set the numbers of one row in ``self.workload``, ``self.metrics`` or ``self.evaluation``."""
        for name, value in values.items():
            if not isinstance(value, int | float) or (name not in columns and len(columns) >= MAX_METRICS):
                continue
            self._put(columns.setdefault(name, array("d")), row, value)

    def _put(self, column: array[float], row: int, value: float) -> None:
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
        return self._padded(self._columns[name])

    def outcomes(self) -> npt.NDArray[np.uint8]:
        """A copy of the outcomes, as places in ``OUTCOMES``."""
        return np.array(self._outcomes, dtype=np.uint8)

    def named(self, columns: Mapping[str, array[float]], name: str) -> Column:
        """A copy of a column of ``self.workload``, ``self.metrics`` or ``self.evaluation``; NaN where there
        is no value.
        """
        return self._padded(columns.get(name, ()))

    def _padded(self, column: Sequence[float]) -> Column:
        values = np.full(len(self), _NAN)
        values[: len(column)] = column
        return values

    def columns(self) -> dict[str, Any]:
        """Every column of the newest attempts, ready for a data frame."""
        table: dict[str, Any] = {
            "learner": list(self.learners),
            "outcome": [OUTCOMES[code] for code in self._outcomes],
            "reason": [self.reasons.get(row, "") for row in range(len(self))],
        }
        table |= {name: self.column(name) for name in COLUMNS}
        for group, columns in self._groups().items():
            table |= {f"{group}.{name}": self.named(columns, name) for name in columns}
        return table | self._derived(table)

    @staticmethod
    def _derived(table: Mapping[str, Any]) -> dict[str, Column]:
        """``TaskRecord.DERIVED``."""
        train_ms = np.where(table["train_s"] > 0, table["train_s"] * 1000, _NAN)
        steps, epochs = (np.where(table[name] > 0, table[name], _NAN) for name in ("num_steps", "num_epochs"))
        ended = np.where(np.isnan(table["folded_s"]), table["finished_s"], table["folded_s"])
        return {
            "ms_per_step": train_ms / steps,
            "ms_per_epoch": train_ms / epochs,
            "round_trip_s": ended - table["sent_s"],
        }

    def _groups(self) -> dict[str, dict[str, array[float]]]:
        return {"workload": self.workload, "metrics": self.metrics, "evaluation": self.evaluation}

    def record(self, row: int) -> TaskRecord:
        """One row as a value."""
        values: dict[str, Any] = {name: _some(self.get(row, name)) for name in COLUMNS}
        values |= {name: int(values[name]) for name in COUNTS if values[name] is not None}
        values["attempt"] = values["attempt"] or 0
        values |= {group: _row_of(columns, row) for group, columns in self._groups().items()}
        return TaskRecord(
            learner=self.learners[row],
            outcome=OUTCOMES[self._outcomes[row]],
            reason=self.reasons.get(row, ""),
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
