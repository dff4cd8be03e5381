"""Where the time of a round went: by learner, and for the round as a whole. Pure; ``plots.py`` draws it.

Moments are the controller's; how long a learner queued, evaluated and trained is its own measurement, so that
clocks need not agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from broker_fl.record.rounds import RoundRecord
from broker_fl.record.tasks import Column, Outcome, TaskRecord

LANE_PHASES = ("download", "queue", "evaluate", "train", "upload")
ROUND_PHASES = ("send", *LANE_PHASES, "aggregate", "store", "wait")
STRAGGLER_FACTOR = 1.5
"""A learner whose task took longer than so many times the round's median is marked, as late ones are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A phase of one learner's task, in seconds from the round's start."""

    phase: str
    start_s: float
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One learner in a round."""

    learner: str
    outcome: Outcome
    segments: tuple[Segment, ...]
    end_s: float
    straggler: bool = False


def lanes(record: RoundRecord, limit: int) -> list[Lane]:
    """The learners of a round, fastest first; of more than ``limit`` some, the slowest among them."""
    start_s = record.started_s or 0.0
    durations = task_seconds(record)
    threshold = slow_after(record)
    order = sorted(range(len(durations)), key=lambda row: (math.isnan(durations[row]), durations[row]))
    chosen = (
        order
        if len(order) <= limit
        else [order[-1 - i * (len(order) - 1) // (limit - 1)] for i in range(limit)][::-1]
    )
    return [_lane(record.tasks.record(row), start_s, slow=durations[row] > threshold) for row in chosen]


def slow_after(record: RoundRecord) -> float:
    """Seconds of a task from which on a learner counts as a straggler in this round; NaN if no task ended."""
    durations = task_seconds(record)
    ended = durations[np.isfinite(durations)]
    return float(np.median(ended)) * STRAGGLER_FACTOR if len(ended) else math.nan


def task_seconds(record: RoundRecord) -> Column:
    """From sending to the folded update, or else to the result, by learner; NaN where neither came."""
    column = record.tasks.column
    folded, finished = column("folded_s"), column("finished_s")
    return np.where(np.isnan(folded), finished, folded) - column("sent_s")


def _lane(task: TaskRecord, round_start_s: float, *, slow: bool) -> Lane:
    segments = tuple(
        Segment(phase=phase, start_s=start - round_start_s, duration_s=length)
        for phase, start, length in _phases(task)
        if length > 0
    )
    end_s = max((segment.start_s + segment.duration_s for segment in segments), default=0.0)
    straggler = slow or task.outcome == "late"
    return Lane(
        learner=task.learner,
        outcome=task.outcome,
        segments=segments,
        end_s=end_s,
        straggler=straggler,
    )


def _phases(task: TaskRecord) -> list[tuple[str, float, float]]:
    """Phase, start and length: download ends with the acceptance, upload begins with the result's arrival."""
    if task.sent_s is None:
        return []
    accepted_s = task.accepted_s if task.accepted_s is not None else task.finished_s
    if accepted_s is None:
        return []
    work = (
        ("queue", task.queue_s or 0.0),
        ("evaluate", task.evaluate_s or 0.0),
        ("train", task.train_s or 0.0),
    )
    # A message that says "accepted" may be on its way for longer than the work it announces takes.
    latest_s = math.inf if task.finished_s is None else task.finished_s - sum(length for _, length in work)
    at_s = max(task.sent_s, min(accepted_s, latest_s))
    phases = [("download", task.sent_s, at_s - task.sent_s)]
    for phase, length in work:
        phases.append((phase, at_s, length))
        at_s += length
    if task.folded_s is not None and task.finished_s is not None:
        phases.append(("upload", task.finished_s, task.folded_s - task.finished_s))
    return phases


def breakdown(record: RoundRecord) -> dict[str, float]:
    """Seconds by ``ROUND_PHASES`` along the path of the contributor that came last.

    ``wait`` is the rest: for learners that never delivered, for a deadline, and for messages on their way.
    """
    total_s = record.round_s or 0.0
    spent = dict.fromkeys(ROUND_PHASES, 0.0)
    spent |= {"send": record.send_s, "aggregate": record.aggregate_s, "store": record.store_s}
    if (task := _last_contributor(record)) is not None:
        for phase, _, length in _phases(task):
            spent[phase] += max(0.0, length)
        # A lane's download is counted from when sending began.
        spent["download"] = max(0.0, spent["download"] - record.send_s)
    known_s = sum(spent.values())
    if known_s > total_s > 0:  # measured by different clocks
        spent = {phase: length * total_s / known_s for phase, length in spent.items()}
    spent["wait"] = max(0.0, total_s - known_s)
    return spent


def _last_contributor(record: RoundRecord) -> TaskRecord | None:
    folded = record.tasks.column("folded_s")
    if not np.isfinite(folded).any():
        return None
    return record.tasks.record(int(np.nanargmax(folded)))


def typical(rounds: Sequence[RoundRecord]) -> RoundRecord | None:
    """The round of median duration."""
    timed = sorted(
        (record for record in rounds if record.round_s is not None),
        key=lambda record: record.round_s or 0.0,
    )
    return timed[len(timed) // 2] if timed else None
