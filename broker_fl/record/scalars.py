"""A job as curves: what experiment trackers are told of each event. The step is the model version.

============================  ==========================================================================
``evaluation/<metric>``       of the version, averaged over learners by their examples
``evaluation_min/<metric>``   of the learner with the least; ``evaluation_max/…`` with the most
``training/<metric>``         of the training that made the version, averaged by weight
``round/seconds``             from the selection of the cohort; without rounds, since the last version
``round/aggregate_seconds``   making the new version of its updates
``round/store_seconds``       storing it
``round/updates``             in the version
``round/missed``              tasks that failed, were late or refused so far, in the whole job
``round/staleness``           mean of the updates; only of asynchronous jobs
``task/seconds``              median over the learners of the round, from sending to folded update
``traffic/sent_bytes``        to learners so far, a copy each
``traffic/received_bytes``    as updates so far
``memory/controller_bytes``   of the controller's process, if that is known
``memory/learners_bytes``     peak of the largest learner's process so far, if that is known
============================  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from broker_fl.record.history import History
from broker_fl.record.tasks import Column
from broker_fl.record.timeline import task_seconds
from broker_fl.wire import events as ev


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalar:
    """One point of a curve."""

    name: str
    step: int
    value: float
    time_s: float


class Curves:
    """Makes points of the events of one job; each event costs the same, however long the job is."""

    def __init__(self) -> None:
        self.history = History()
        self._sent = self._received = 0
        self._peak = 0

    def of(self, event: ev.Event) -> Iterator[Scalar]:
        """The points that this event adds; none if it was there already."""
        if not self.history.add(event):
            return
        step, points = self._points(event)
        for name, value in points:
            yield Scalar(name=name, step=step, value=float(value), time_s=event.time_s)

    def task_seconds(self, event: ev.VersionCommitted) -> Column:
        """How long the learners of the round had their tasks; empty for an asynchronous job."""
        if self.history.asynchronous:
            return np.empty(0)
        times = task_seconds(self.history.rounds[event.round])
        return times[np.isfinite(times)]

    def _points(self, event: ev.Event) -> tuple[int, Iterator[tuple[str, float]]]:
        match event:
            case ev.TaskSent():
                self._sent += event.num_bytes
            case ev.TaskFinished():
                self._peak = max(self._peak, event.peak_memory_bytes)
            case ev.UpdateFolded():
                self._received += event.num_bytes
            case ev.VersionEvaluated():
                return event.version, self._evaluation(event)
            case ev.VersionCommitted():
                return event.version, self._commit(event)
            case _:
                pass
        return 0, iter(())

    def _evaluation(self, event: ev.VersionEvaluated) -> Iterator[tuple[str, float]]:
        version = self.history.versions[event.version]
        for name, value in event.metrics.items():
            yield f"evaluation/{name}", value
            spread = self.history.evaluation_spread(version, name)
            if spread is not None and spread.num_learners > 1:
                yield f"evaluation_min/{name}", spread.min
                yield f"evaluation_max/{name}", spread.max

    def _commit(self, event: ev.VersionCommitted) -> Iterator[tuple[str, float]]:
        yield from ((f"training/{name}", value) for name, value in event.metrics.items())
        yield "round/seconds", event.round_s
        yield "round/aggregate_seconds", event.aggregate_s
        yield "round/store_seconds", event.store_s
        yield "round/updates", event.num_learners
        counts = self.history.counts
        yield "round/missed", counts["failed"] + counts["late"] + counts["refused"]
        stale = self.history.versions[event.version].mean_staleness
        if self.history.asynchronous and stale is not None:
            yield "round/staleness", stale
        if len(times := self.task_seconds(event)):
            yield "task/seconds", float(np.median(times))
        yield "traffic/sent_bytes", self._sent
        yield "traffic/received_bytes", self._received
        if event.memory_bytes:
            yield "memory/controller_bytes", event.memory_bytes
        if self._peak:
            yield "memory/learners_bytes", self._peak


def settings_of(event: ev.JobSubmitted) -> dict[str, str]:
    """The job's settings by dotted names, as texts: ``rule.name``, ``protocol.quorum``."""
    return dict(_flat("", event.spec.model_dump(mode="json")))


def _flat(prefix: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _flat(f"{prefix}.{name}" if prefix else str(name), item)
    else:
        yield prefix, str(value)
