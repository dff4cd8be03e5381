"""What happened to a job, folded from its events: rounds, tasks, versions, learners, incidents.

Each event is folded once, in constant time per learner that it names; asking costs what the answer is long.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

from broker_fl.record import export
from broker_fl.record.export import Table
from broker_fl.record.records import (
    Incident,
    IncidentKind,
    JobState,
    LearnerRecord,
    RoundRecord,
    VersionRecord,
)
from broker_fl.wire import events as ev
from broker_fl.wire.job import JobSpec

MAX_GAP = 100_000
"""Event numbers that may be awaited after a gap; those of a greater gap are taken for lost."""


class History:
    """One job's history; not thread-safe.

    Events of other jobs, and events that were folded already, change nothing.
    """

    def __init__(self) -> None:
        self.job: str | None = None
        self.state: JobState = "unknown"
        self.reason = ""
        self.spec: JobSpec | None = None
        self.driver: str | None = None
        self.num_parameters = 0
        self.model_bytes = 0
        self.num_resumed = 0
        self.submitted_s: float | None = None
        self.finished_s: float | None = None
        self.last_event_s: float | None = None
        self.rounds: dict[int, RoundRecord] = {}
        self.versions: dict[int, VersionRecord] = {}
        self.learners: dict[str, LearnerRecord] = {}
        self.incidents: list[Incident] = []
        self.counts: Counter[str] = Counter(folded=0, failed=0, late=0, refused=0)
        """Updates ``folded`` and tasks ``failed``, ``late``, ``refused`` in all rounds."""
        self._last_sequence = 0
        self._missing: set[int] = set()
        self._newest_round = self._newest_evaluated = -1
        self._metrics: Mapping[str, float] = {}

    @classmethod
    def of(cls, events: Iterable[ev.Event]) -> History:
        """Fold these events."""
        history = cls()
        for event in events:
            history.add(event)
        return history

    def add(self, event: ev.Event) -> bool:
        """Fold one event; False if it was there already or is another job's."""
        if self.job is not None and event.job != self.job:
            return False
        if not self._is_new(event.sequence):
            return False
        self.job = event.job
        self.last_event_s = max(event.time_s, self.last_event_s or 0.0)
        if (fold := self._FOLDS.get(type(event))) is not None:
            fold(self, event)
        return True

    def _is_new(self, sequence: int) -> bool:
        if sequence == 0:  # never numbered
            return True
        if sequence > self._last_sequence:
            if sequence - self._last_sequence <= MAX_GAP:
                self._missing.update(range(self._last_sequence + 1, sequence))
            self._last_sequence = sequence
            return True
        if sequence in self._missing:
            self._missing.remove(sequence)
            return True
        return False

    # ------------------------------------------------------------ asking

    @property
    def last_sequence(self) -> int:
        """Greatest event number that was folded; 0 before the first."""
        return self._last_sequence

    @property
    def current(self) -> RoundRecord | None:
        """The newest round."""
        return self.rounds.get(self._newest_round)

    @property
    def committed(self) -> list[RoundRecord]:
        """The rounds that made a version, in order."""
        return [
            self.rounds[number] for number in sorted(self.rounds) if self.rounds[number].state == "committed"
        ]

    @property
    def metrics(self) -> Mapping[str, float]:
        """The newest evaluation of the model over a cohort; empty if there was none."""
        return self._metrics

    @property
    def duration_s(self) -> float | None:
        """From submission to the end, or to the newest event."""
        end = self.finished_s if self.finished_s is not None else self.last_event_s
        return None if self.submitted_s is None or end is None else max(0.0, end - self.submitted_s)

    @property
    def bytes_down(self) -> int:
        """Published for learners in all rounds."""
        return sum(record.bytes_down for record in self.rounds.values())

    @property
    def bytes_up(self) -> int:
        """Received as updates in all rounds."""
        return sum(record.bytes_up for record in self.rounds.values())

    def to_rows(self, table: Table = "rounds") -> Iterator[dict[str, Any]]:
        """A table's rows as flat dicts, in order; metrics are keys like ``evaluation.accuracy``.

        Raises:
            SettingError: there is no such table.
        """
        return export.rows(self, table)

    def to_pandas(self, table: Table = "rounds") -> Any:
        """A table as a pandas data frame.

        Raises:
            SettingError: pandas is not installed, or there is no such table.
        """
        return export.frame(self, table)

    def to_json(self, *, tasks: bool = True) -> str:
        """The whole history as one JSON object, NaN and infinity as null; small without ``tasks``."""
        return export.as_json(self, tasks=tasks)

    # ------------------------------------------------------------ folding

    def _round(self, number: int) -> RoundRecord:
        if (record := self.rounds.get(number)) is None:
            record = self.rounds[number] = RoundRecord(round=number)
            self._newest_round = max(self._newest_round, number)
        return record

    def _version(self, number: int) -> VersionRecord:
        if (record := self.versions.get(number)) is None:
            record = self.versions[number] = VersionRecord(version=number)
        return record

    def _learner(self, name: str) -> LearnerRecord:
        if (record := self.learners.get(name)) is None:
            record = self.learners[name] = LearnerRecord(learner=name)
        return record

    def _names(self, names: Iterable[str]) -> tuple[str, ...]:
        # Every event is parsed into strings of its own: one string per learner saves most of a long history's
        # memory.
        return tuple(self._learner(name).learner for name in names)

    def _note(self, event: Any, kind: IncidentKind, reason: str) -> None:
        number, learner = getattr(event, "round", None), getattr(event, "learner", None)
        name = None if learner is None else self._learner(learner).learner
        self.incidents.append(
            Incident(time_s=event.time_s, kind=kind, reason=reason, learner=name, round=number),
        )

    def _job_submitted(self, event: ev.JobSubmitted) -> None:
        self.state = "submitted" if self.state == "unknown" else self.state
        self.spec, self.driver = event.spec, event.driver
        self.num_parameters, self.model_bytes = event.num_parameters, event.model_bytes
        self.submitted_s = event.time_s
        self._version(0).committed_s = event.time_s

    def _job_waiting(self, event: ev.JobWaiting) -> None:
        self.state, self.reason = "waiting", event.reason
        if self.incidents and self.incidents[-1].kind == "waiting":  # said again at each learner that comes
            self.incidents.pop()
        self._note(event, "waiting", event.reason)

    def _job_resumed(self, event: ev.JobResumed) -> None:
        self.num_resumed += 1
        self._note(event, "resumed", f"controller epoch {event.epoch} goes on at version {event.version}")

    def _job_finished(self, event: ev.JobFinished) -> None:
        self.state, self.reason, self.finished_s = event.state, event.reason, event.time_s
        self._metrics = event.metrics or self._metrics

    def _round_started(self, event: ev.RoundStarted) -> None:
        self.state, self.reason = "running", ""
        record = self._round(event.round)
        record.version, record.train, record.deadline_s = event.version, event.train, event.deadline_s
        record.started_s = event.time_s if record.started_s is None else record.started_s
        record.cohort = self._names(event.cohort)
        record.num_learners = max(event.num_learners, len(record.cohort))
        record.tasks.extend(record.cohort)

    def _round_retried(self, event: ev.RoundRetried) -> None:
        record = self._round(event.round)
        record.attempt = max(record.attempt, event.attempt)
        record.counts["retried"] += 1
        replacements = self._names(event.replacements)
        record.cohort = tuple(dict.fromkeys((*record.cohort, *replacements)))
        record.num_learners = max(record.num_learners, len(record.cohort))
        record.tasks.extend(replacements)
        self._note(event, "retried", event.reason)

    def _task_sent(self, event: ev.TaskSent) -> None:
        record = self._round(event.round)
        record.bytes_down += event.num_bytes
        record.messages_down += event.num_messages
        record.send_s += event.send_s
        began_s = event.time_s - event.send_s
        for name in event.learners:
            learner = self._learner(name)
            row = record.tasks.row(learner.learner)
            if self._begins_anew(record, row, event.attempt):
                record.tasks.set(row, "sent_s", began_s)
                record.tasks.set(row, "attempt", event.attempt)
                record.counts["sent"] += 1
                learner.tasks += 1

    @staticmethod
    def _begins_anew(record: RoundRecord, row: int, attempt: int) -> bool:
        """Whether a task that is sent is new; a resumed controller sends open tasks again, as they were."""
        tasks = record.tasks
        if math.isnan(tasks.get(row, "sent_s")):
            return True
        if tasks.outcome(row) == "folded" or attempt <= tasks.get(row, "attempt"):
            return False
        for name in ("sent", "accepted", "finished"):
            record.counts[name] -= not math.isnan(tasks.get(row, f"{name}_s"))
        tasks.clear(row)
        return True

    def _task_row(self, event: Any, reached: str) -> tuple[RoundRecord, int, bool]:
        """Round and row of a task that has come to ``reached``, and whether that is news."""
        record = self._round(event.round)
        row = record.tasks.row(self._learner(event.learner).learner)
        news = math.isnan(record.tasks.get(row, f"{reached}_s"))
        if news:
            record.counts[reached] += 1
            record.tasks.set(row, f"{reached}_s", event.time_s)
        return record, row, news

    def _task_accepted(self, event: ev.TaskAccepted) -> None:
        record, row, news = self._task_row(event, "accepted")
        if news:
            record.tasks.set(row, "receive_s", event.receive_s)

    def _task_finished(self, event: ev.TaskFinished) -> None:
        record, row, news = self._task_row(event, "finished")
        if not news:
            return
        tasks = record.tasks
        for name in ("queue_s", "evaluate_s", "train_s"):
            tasks.set(row, name, getattr(event.timings, name))
        if math.isnan(tasks.get(row, "receive_s")):
            tasks.set(row, "receive_s", event.timings.receive_s)
        tasks.set(row, "num_examples", event.num_examples)
        tasks.set(row, "num_steps", event.num_steps)
        tasks.set_metrics(tasks.metrics, row, event.metrics)
        tasks.set_metrics(tasks.evaluation, row, event.evaluation)
        if tasks.outcome(row) == "open":
            tasks.set_outcome(row, "finished")
        learner = self._learner(event.learner)
        learner.num_steps += event.num_steps
        if event.num_examples:
            learner.num_examples = event.num_examples
        if event.timings.train_s > 0:
            learner.trained += 1
            learner.train_s += event.timings.train_s

    def _update_folded(self, event: ev.UpdateFolded) -> None:
        record, row, news = self._task_row(event, "folded")
        record.bytes_up += event.num_bytes
        record.messages_up += event.num_messages
        if not news:
            return
        for name in ("weight", "num_bytes", "num_messages", "upload_s", "fold_s"):
            record.tasks.set(row, name, getattr(event, name))
        record.tasks.set_outcome(row, "folded")
        record.fold_s += event.fold_s
        self.counts["folded"] += 1
        learner = self._learner(event.learner)
        learner.folded += 1
        learner.weight += event.weight
        learner.bytes_up += event.num_bytes

    def _task_failed(self, event: ev.TaskFailed) -> None:
        self._missed(event, "failed")
        self._learner(event.learner).failed += 1

    def _update_refused(self, event: ev.UpdateRefused) -> None:
        self._missed(event, "refused")
        self._learner(event.learner).refused += 1

    def _task_late(self, event: ev.TaskLate) -> None:
        tasks = self._round(event.round).tasks
        if tasks.outcome(tasks.row(self._learner(event.learner).learner)) == "late":
            return  # said when the round closed, and again when the update came after all
        self._missed(event, "late")
        self._learner(event.learner).late += 1

    def _missed(self, event: Any, outcome: Literal["failed", "late", "refused"]) -> None:
        record = self._round(event.round)
        row = record.tasks.row(self._learner(event.learner).learner)
        record.counts[outcome] += 1
        self.counts[outcome] += 1
        if record.tasks.outcome(row) != "folded":
            record.tasks.set_outcome(row, outcome, event.reason)
        self._note(event, outcome, event.reason)

    def _version_evaluated(self, event: ev.VersionEvaluated) -> None:
        record = self._round(event.round)
        record.evaluation = event.metrics
        if not record.train and record.committed_s is None:
            record.committed_s = event.time_s
            record.round_s = None if record.started_s is None else max(0.0, event.time_s - record.started_s)
        version = self._version(event.version)
        version.evaluation, version.evaluated_in = event.metrics, event.round
        version.num_evaluators, version.num_examples = event.num_learners, event.num_examples
        if event.version >= self._newest_evaluated:
            self._newest_evaluated, self._metrics = event.version, event.metrics

    def _version_committed(self, event: ev.VersionCommitted) -> None:
        record = self._round(event.round)
        record.committed_s, record.round_s = event.time_s, event.round_s
        record.aggregate_s, record.store_s = event.aggregate_s, event.store_s
        record.metrics, record.total_weight = event.metrics, event.total_weight
        record.contributors = self._names(event.contributors)
        record.num_contributors = max(event.num_learners, len(record.contributors))
        version = self._version(event.version)
        version.round, version.committed_s, version.digest = event.round, event.time_s, event.digest
        version.metrics, version.total_weight = event.metrics, event.total_weight
        version.contributors = record.contributors

    def _learner_joined(self, event: ev.LearnerJoined) -> None:
        learner = self._learner(event.learner)
        learner.presence, learner.attributes = "present", event.attributes

    def _learner_left(self, event: ev.LearnerLeft) -> None:
        self._learner(event.learner).presence = "left"
        self._note(event, "left", event.reason)

    def _learner_lost(self, event: ev.LearnerLost) -> None:
        learner = self._learner(event.learner)
        learner.presence = "lost"
        learner.lost += 1
        self._note(event, "lost", f"silent for {event.silent_s:.3g} s")

    _FOLDS: ClassVar[dict[type[ev.Event], Callable[[History, Any], None]]] = {
        ev.JobSubmitted: _job_submitted,
        ev.JobWaiting: _job_waiting,
        ev.JobResumed: _job_resumed,
        ev.JobFinished: _job_finished,
        ev.RoundStarted: _round_started,
        ev.RoundRetried: _round_retried,
        ev.TaskSent: _task_sent,
        ev.TaskAccepted: _task_accepted,
        ev.TaskFinished: _task_finished,
        ev.UpdateFolded: _update_folded,
        ev.TaskFailed: _task_failed,
        ev.TaskLate: _task_late,
        ev.UpdateRefused: _update_refused,
        ev.VersionEvaluated: _version_evaluated,
        ev.VersionCommitted: _version_committed,
        ev.LearnerJoined: _learner_joined,
        ev.LearnerLeft: _learner_left,
        ev.LearnerLost: _learner_lost,
    }
