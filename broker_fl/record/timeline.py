"""Where the time of a round went: by learner, and for the round as a whole. Pure; ``plots.py`` draws it.

Moments are the controller's; how long a learner queued, evaluated and trained is its own measurement, so that
clocks need not agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from broker_fl.record.history import History
from broker_fl.record.rounds import RoundRecord
from broker_fl.record.tasks import Column, TaskRecord

T = TypeVar("T")

LANE_PHASES = ("download", "queue", "evaluate", "train", "upload")
ROUND_PHASES = ("send", *LANE_PHASES, "aggregate", "store", "wait")
MISSED = ("late", "failed", "refused")
STRAGGLER_FACTOR = 1.5
"""A learner whose task took longer than so many times the round's median is marked, as late ones are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A phase of one learner's task, in seconds from the start of the picture."""

    phase: str
    start_s: float
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What is worth a remark in a lane: ``late``, ``failed``, ``refused`` or ``slow``."""

    at_s: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One learner in a round, or in a window of time."""

    learner: str
    segments: tuple[Segment, ...]
    marks: tuple[Mark, ...] = ()

    @property
    def end_s(self) -> float:
        """When its last phase ends; 0 if it did nothing."""
        return max((segment.start_s + segment.duration_s for segment in self.segments), default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Some time of an asynchronous job, in seconds from submission."""

    start_s: float
    duration_s: float


def lanes(record: RoundRecord, limit: int) -> list[Lane]:
    """The learners of a round, fastest first; of more than ``limit`` some, the slowest among them."""
    start_s = record.started_s or 0.0
    durations = task_seconds(record)
    threshold = slow_after(record)
    order = sorted(range(len(durations)), key=lambda row: (math.isnan(durations[row]), durations[row]))
    chosen = some_of(order, limit)
    return [_lane(record.tasks.record(row), start_s, slow=durations[row] > threshold) for row in chosen]


def some_of(ordered: Sequence[T], limit: int) -> Sequence[T]:
    """All of them, or ``limit`` at even distances, the last among them."""
    if len(ordered) <= limit:
        return ordered
    return [ordered[-1 - i * (len(ordered) - 1) // (limit - 1)] for i in range(limit)][::-1]


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


def _lane(task: TaskRecord, start_s: float, *, slow: bool) -> Lane:
    segments = _segments(task, start_s)
    lane = Lane(learner=task.learner, segments=segments)
    text = task.outcome if task.outcome in MISSED else "slow" if slow else ""
    return replace(lane, marks=(Mark(at_s=lane.end_s, text=text),)) if text else lane


def _segments(task: TaskRecord, start_s: float) -> tuple[Segment, ...]:
    return tuple(
        Segment(phase=phase, start_s=start - start_s, duration_s=length)
        for phase, start, length in _phases(task)
        if length > 0
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


def windows(history: History) -> dict[str, Window]:
    """The beginning, the middle and the end of an asynchronous job, each as long as its slowest learners need
    for one task and a half.
    """
    total_s = history.duration_s or 0.0
    times = sorted(history.learners[name].mean_train_s or 0.0 for name in history.learners)
    if not times or total_s <= 0:
        return {}
    length_s = min(total_s, 1.5 * times[-1 - len(times) // 20] or total_s)
    if length_s > total_s / 3:
        return {"whole job": Window(start_s=0.0, duration_s=total_s)}
    return {
        "middle": Window(start_s=(total_s - length_s) / 2, duration_s=length_s),
        "beginning": Window(start_s=0.0, duration_s=length_s),
        "end": Window(start_s=total_s - length_s, duration_s=length_s),
    }


def window_lanes(history: History, window: Window, limit: int) -> list[Lane]:
    """What each learner did in a window, the fastest first; of more than ``limit`` some."""
    start_s = (history.submitted_s or 0.0) + window.start_s
    segments: dict[str, list[Segment]] = {}
    marks: dict[str, list[Mark]] = {}
    for task in _tasks_in(history, start_s, start_s + window.duration_s):
        mine = segments.setdefault(task.learner, [])
        mine += [cut for one in _segments(task, start_s) if (cut := _cut(one, window.duration_s)) is not None]
        end_s = (task.ended_s or task.accepted_s or task.sent_s or start_s) - start_s
        if task.outcome in MISSED and 0 <= end_s <= window.duration_s:
            marks.setdefault(task.learner, []).append(Mark(at_s=end_s, text=task.outcome))
    order = sorted(segments, key=lambda name: (history.learners[name].mean_train_s or math.inf, name))
    return [
        Lane(learner=name, segments=tuple(segments[name]), marks=tuple(marks.get(name, ())))
        for name in some_of(order, limit)
    ]


def commits_in(history: History, window: Window) -> list[float]:
    """When versions were stored, in seconds from the window's start."""
    start_s = (history.submitted_s or 0.0) + window.start_s
    moments = (version.committed_s for version in history.versions.values() if version.version)
    return [at_s - start_s for at_s in moments if at_s and 0 <= at_s - start_s <= window.duration_s]


def _tasks_in(history: History, start_s: float, end_s: float) -> Iterator[TaskRecord]:
    for record in history.rounds.values():
        sent, ended = record.tasks.column("sent_s"), task_seconds(record)
        inside = (sent < end_s) & (np.isnan(ended) | (sent + ended > start_s))
        for row in np.flatnonzero(inside):
            yield record.tasks.record(int(row))
        for task in record.tasks.earlier:
            if start_s <= (task.sent_s or 0.0) < end_s:
                yield task


def _cut(segment: Segment, duration_s: float) -> Segment | None:
    """The part of a segment that is in the window."""
    start_s = max(0.0, segment.start_s)
    length_s = min(segment.start_s + segment.duration_s, duration_s) - start_s
    return replace(segment, start_s=start_s, duration_s=length_s) if length_s > 0 else None


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
