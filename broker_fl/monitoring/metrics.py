"""Metrics of a daemon in Prometheus's terms.

Names, types and labels are listed in ``docs/operations.md``. No label's value is the name of a learner, a job
or a driver: those have no bound, and each new value is one more time series for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import broker_fl
from broker_fl.errors import SettingError
from broker_fl.monitoring.present import Present
from broker_fl.observer import REFUSAL_REASONS, RefusalReason, UpdateOutcome, WorkOutcome
from broker_fl.wire import events as e

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Histogram

SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
"""Bounds of histograms: a fold takes milliseconds, a round may take an hour."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def new_registry(role: str, federation: str) -> CollectorRegistry:
    """With the process's own metrics: CPU seconds, memory, open files, start time; and what it is.

    Raises:
        SettingError: the extra is not installed.
    """
    try:
        from prometheus_client import (
            CollectorRegistry,
            GCCollector,
            Info,
            PlatformCollector,
            ProcessCollector,
        )
    except ImportError as error:
        raise SettingError(
            "metrics need the package prometheus_client: pip install 'broker-fl[metrics]'"
        ) from error
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    build = Info("broker_fl_build", "What runs.", registry=registry)
    build.info({"role": role, "federation": federation, "version": broker_fl.__version__})
    return registry


class _Made:
    """Makes metrics of one registry, all with the same beginning of their names.

    Labels are given with values that are known beforehand: their series are there, at zero, from the start.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def counter(self, name: str, what: str, **labels: Sequence[str]) -> Counter:
        from prometheus_client import Counter

        made = Counter(f"broker_fl_{name}", what, tuple(labels), registry=self._registry)
        _begin(made, labels)
        return made

    def histogram(self, name: str, what: str, **labels: Sequence[str]) -> Histogram:
        from prometheus_client import Histogram

        made = Histogram(f"broker_fl_{name}", what, tuple(labels), registry=self._registry, buckets=SECONDS)
        _begin(made, labels)
        return made


def _begin(made: Counter | Histogram, labels: Mapping[str, Sequence[str]]) -> None:
    if labels:
        for values in product(*labels.values()):
            made.labels(*values)


class ControllerMetrics:
    """An ``Observer`` of a controller."""

    def __init__(self, registry: CollectorRegistry) -> None:
        made = _Made(registry)
        self._updates = made.counter(
            "updates",
            "Updates that arrived; reason: why it was refused.",
            outcome=("accepted", "late", "duplicate"),
            reason=("",),
        )
        for reason in REFUSAL_REASONS:
            self._updates.labels("refused", reason)
        self._update_bytes = made.counter("update_bytes", "Encoded size of the updates that were accepted.")
        self._fold = made.histogram(
            "fold_seconds", "Adding one update, or the sum of a group, to the round's sum."
        )
        self._upload = made.histogram("upload_seconds", "From a result's arrival to its update being whole.")
        self._rounds = made.counter("rounds", "Rounds that began; asynchronous jobs have one.")
        self._retries = made.counter("round_retries", "Rounds that missed their quorum and went on.")
        self._round = made.histogram("round_seconds", "From a round's beginning to its version being stored.")
        self._commit = made.histogram("commit_seconds", "Parts of a commit.", part=("aggregate", "store"))
        self._versions = made.counter("versions_committed", "Model versions that were stored.")
        self._sent = made.counter("tasks_sent", "Tasks that were handed to the broker, one for each learner.")
        self._missed = made.counter(
            "tasks_missed",
            "Tasks that came to nothing; late: given up, or delivered after that.",
            outcome=("failed", "late", "cancelled"),
        )
        self._lost = made.counter("learners_lost", "Learners that were not heard of for too long.")
        self._ended = made.counter("jobs_finished", "Jobs that ended.", state=("done", "stopped", "failed"))
        self._refused = made.counter(
            "messages_refused",
            "Messages that were not taken, for the most part dead-lettered; over_limit: too many came; "
            "bounced: a controller's own, which somebody had sent back to it.",
            source=("inbox", "reports", "control", "over_limit", "bounced"),
        )
        self._handlers = self._by_kind()

    def _by_kind(self) -> dict[type[e.Event], Callable[[Any], None]]:
        return {
            e.RoundStarted: lambda event: self._rounds.inc() if event.train else None,
            e.RoundRetried: lambda _: self._retries.inc(),
            e.TaskSent: lambda event: self._sent.inc(event.num_learners),
            e.UpdateFolded: lambda event: self._folded(event, 1),
            e.GroupFolded: lambda event: self._folded(event, event.num_learners),
            e.TaskFailed: lambda _: self._missed.labels("failed").inc(),
            e.TaskLate: lambda event: self._missed.labels("cancelled" if event.cancelled else "late").inc(),
            e.GroupMissed: self._group_missed,
            e.VersionCommitted: self._committed,
            e.LearnerLost: lambda _: self._lost.inc(),
            e.GroupLost: lambda event: self._lost.inc(event.num_learners),
            e.JobFinished: lambda event: self._ended.labels(event.state).inc(),
        }

    def event(self, event: e.Event) -> None:
        if (handle := self._handlers.get(type(event))) is not None:
            handle(event)

    def update(self, outcome: UpdateOutcome, reason: RefusalReason = "", count: int = 1) -> None:
        self._updates.labels(outcome, reason).inc(count)

    def refused(self, source: str) -> None:
        self._refused.labels(source).inc()

    def received(self, seconds: float) -> None: ...

    def worked(self, outcome: WorkOutcome, seconds: float) -> None: ...

    def _folded(self, event: e.UpdateFolded | e.GroupFolded, count: int) -> None:
        self._updates.labels("accepted", "").inc(count)
        self._update_bytes.inc(event.num_bytes)
        self._fold.observe(event.fold_s)
        self._upload.observe(event.upload_s)

    def _group_missed(self, event: e.GroupMissed) -> None:
        if event.outcome != "refused":
            self._missed.labels(event.outcome).inc(event.num_learners)

    def _committed(self, event: e.VersionCommitted) -> None:
        self._versions.inc()
        self._round.observe(event.round_s)
        self._commit.labels("aggregate").observe(event.aggregate_s)
        self._commit.labels("store").observe(event.store_s)


class LearnerMetrics:
    """An ``Observer`` of a host of learners."""

    def __init__(self, registry: CollectorRegistry) -> None:
        made = _Made(registry)
        self._receive = made.histogram("receive_seconds", "From a task's arrival to its model being whole.")
        self._work = made.histogram(
            "work_seconds",
            "Evaluating and training, for one task.",
            outcome=("finished", "failed", "cancelled"),
        )
        self._refused = made.counter("messages_refused", "Messages that were not taken.", source=("mailbox",))

    def event(self, event: e.Event) -> None: ...

    def update(self, outcome: UpdateOutcome, reason: RefusalReason = "", count: int = 1) -> None: ...

    def refused(self, source: str) -> None:
        self._refused.labels(source).inc()

    def received(self, seconds: float) -> None:
        self._receive.observe(seconds)

    def worked(self, outcome: WorkOutcome, seconds: float) -> None:
        self._work.labels(outcome).observe(seconds)


class PresentCollector:
    """What is asked for when somebody scrapes."""

    def __init__(self, look: Callable[[], Present | None]) -> None:
        """``look`` gives None as long as there is nothing to be seen."""
        self._look = look

    def collect(self) -> Iterator[Any]:
        """See ``prometheus_client.registry.Collector``."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        present = self._look()
        for fact in present.facts() if present is not None else ():
            family = CounterMetricFamily if fact.is_counter else GaugeMetricFamily
            metric = family(f"broker_fl_{fact.name}", fact.what, labels=[fact.label] if fact.label else None)
            for value in fact.values:
                metric.add_metric([value.label] if fact.label else [], value.number)
            yield metric


def exposition(registry: CollectorRegistry) -> bytes:
    """All metrics in Prometheus's text format."""
    from prometheus_client import generate_latest

    return generate_latest(registry)
