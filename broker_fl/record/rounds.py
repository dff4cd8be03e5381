"""One round of a history, and how events change it. ``History`` writes, others read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from broker_fl.record.tasks import Spread, TaskTable
from broker_fl.wire import events as ev

COUNTS = ("sent", "accepted", "finished", "folded", "failed", "late", "refused", "cancelled", "retried")
RoundState = Literal["running", "committed", "evaluated", "unfinished"]
Missed = Literal["failed", "late", "refused", "cancelled"]


def _counts() -> Counter[str]:
    return Counter(dict.fromkeys(COUNTS, 0))


@dataclass(slots=True, kw_only=True)
class RoundRecord:
    """One round, or the evaluation after the last one (``train`` is False).

    An asynchronous job has no rounds: number ``r`` stands there for the time in which ``r`` versions had
    been made. Its tasks are those that were given then; the version that ended it also holds updates of
    earlier ones.
    """

    round: int
    version: int = 0
    """The version that the learners were given."""
    train: bool = True
    started_s: float | None = None
    committed_s: float | None = None
    """When the new version was stored; of an evaluation, when its result was there."""
    unfinished: bool = False
    """The job ended before it made a version."""
    deadline_s: float | None = None
    num_wanted: int = 0
    """Deliveries with which it closed before the others had delivered; 0: it waited for all."""
    attempt: int = 0
    cohort: tuple[str, ...] = ()
    num_learners: int = 0
    """Of the cohort; events name the first ``MAX_LISTED`` of them."""
    contributors: tuple[str, ...] = ()
    num_contributors: int = 0
    tasks: TaskTable = field(default_factory=TaskTable)
    groups: dict[str, dict[str, None]] = field(default_factory=dict)
    """Group → those of its learners that were named when its task was sent."""
    shares: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    """Share of a group that is not folded yet → learner → weight."""
    counts: Counter[str] = field(default_factory=_counts)
    """Learners by how far they came in the newest attempt, and by what went wrong in all attempts."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Of training, averaged by weight."""
    evaluation: Mapping[str, float] = field(default_factory=dict)
    """Of the version that the cohort was given, averaged by examples."""
    total_weight: float = 0.0
    bytes_down: int = 0
    """Sent to learners, a copy each; over the controller's link one copy goes for up to 100 of them."""
    bytes_up: int = 0
    under_way: dict[Literal["down", "up"], tuple[int, int]] = field(default_factory=dict)
    """Bytes so far, and of how many, of large transfers that go on or were last told of."""
    messages_down: int = 0
    messages_up: int = 0
    send_s: float = 0.0
    fold_s: float = 0.0
    aggregate_s: float = 0.0
    store_s: float = 0.0
    round_s: float | None = None
    memory_bytes: int = 0
    """Of the controller's process when the version was stored; 0 where that is not known."""

    @property
    def state(self) -> RoundState:
        """``committed`` where it made a version."""
        if self.committed_s is not None:
            return "committed" if self.train else "evaluated"
        return "unfinished" if self.unfinished else "running"

    def metric_spread(self, name: str) -> Spread | None:
        """How a training metric lies over the learners; None where none reported it."""
        return Spread.of(self.tasks.named(self.tasks.metrics, name))

    def evaluation_spread(self, name: str) -> Spread | None:
        """How an evaluation metric of the given version lies over learners; None where none reported it."""
        return Spread.of(self.tasks.named(self.tasks.evaluation, name))

    # ------------------------------------------------------------ folding

    def begin(self, event: ev.RoundStarted, cohort: tuple[str, ...]) -> None:
        """A cohort was selected."""
        self.version, self.train, self.deadline_s = event.version, event.train, event.deadline_s
        self.num_wanted = event.num_wanted
        self.started_s = event.time_s if self.started_s is None else self.started_s
        self.cohort = cohort
        self.num_learners = max(event.num_learners, len(cohort))
        self.tasks.extend(cohort)

    def retry(self, event: ev.RoundRetried, replacements: tuple[str, ...]) -> None:
        """The round goes on with replacements."""
        self.attempt = max(self.attempt, event.attempt)
        self.counts["retried"] += 1
        self.cohort = tuple(dict.fromkeys((*self.cohort, *replacements)))
        self.num_learners = max(self.num_learners, len(self.cohort))
        self.tasks.extend(replacements)

    def send(self, event: ev.TaskSent, learners: Iterable[str]) -> list[str]:
        """A task was sent; which of the learners did not have it yet."""
        self.under_way.pop("down", None)
        self.bytes_down += event.num_bytes
        self.messages_down += event.num_messages
        self.send_s += event.send_s
        self.version = max(self.version, event.version)
        share = max(1, event.num_learners, len(event.learners))
        unnamed = max(0, event.num_learners - len(event.learners))
        self.counts["sent"] += min(unnamed, max(0, self.num_learners - self.counts["sent"]))
        names = tuple(learners)
        if event.group is not None:
            self.groups.setdefault(event.group, {}).update(dict.fromkeys(names))
        new = []
        for learner in names:
            row = self.tasks.row(learner)
            if not self._begins_anew(row, event.attempt):
                continue
            new.append(learner)
            self.tasks.set(row, "sent_s", event.time_s - event.send_s)
            self.tasks.set(row, "attempt", event.attempt)
            self.tasks.set(row, "version", event.version)
            self.tasks.set(row, "bytes_down", event.num_bytes // share)
            self.tasks.set(row, "messages_down", event.num_messages // share)
            self.tasks.set_named(self.tasks.workload, row, event.workload)
            self.counts["sent"] += 1
        return new

    def _begins_anew(self, row: int, attempt: int) -> bool:
        """Whether a task that is sent is new; a resumed controller sends open tasks again, as they were."""
        tasks = self.tasks
        if math.isnan(tasks.get(row, "sent_s")):
            return True
        if tasks.outcome(row) == "folded" or attempt <= tasks.get(row, "attempt"):
            return False
        for name in ("sent", "accepted", "finished"):
            self.counts[name] -= not math.isnan(tasks.get(row, f"{name}_s"))
        tasks.begin_anew(row)
        return True

    def accept(self, event: ev.TaskAccepted, learner: str) -> None:
        """A learner has task and model."""
        row = self.tasks.row(learner)
        if self._reach(row, "accepted", event.time_s):
            self.tasks.set(row, "receive_s", event.receive_s)

    def accept_group(self, event: ev.GroupAccepted) -> None:
        """A group has task and model, for those of its learners to whom it was sent."""
        before, named = self.counts["accepted"], self.groups.get(event.group, {})
        for learner in named:
            row = self.tasks.row(learner)
            if self._reach(row, "accepted", event.time_s):
                self.tasks.set(row, "receive_s", event.receive_s)
        unnamed = max(0, event.num_learners - len(named))
        self.counts["accepted"] = min(max(self.num_learners, before), self.counts["accepted"] + unnamed)

    def finish(self, event: ev.TaskFinished, learner: str) -> bool:
        """A result arrived; whether that is news."""
        tasks, row = self.tasks, self.tasks.row(learner)
        if not self._reach(row, "finished", event.time_s):
            return False
        timings = event.timings
        worked_s = timings.evaluate_s + timings.train_s
        tasks.set(row, "started_s", event.time_s - worked_s)
        self._accepted_at_last(row, event.time_s - worked_s - timings.queue_s)
        for name in ("queue_s", "evaluate_s", "train_s"):
            tasks.set(row, name, getattr(timings, name))
        if math.isnan(tasks.get(row, "receive_s")):
            tasks.set(row, "receive_s", timings.receive_s)
        for name in ("num_examples", "num_steps"):
            tasks.set(row, name, getattr(event, name))
        for name in ("num_epochs", "peak_memory_bytes"):
            if value := getattr(event, name):
                tasks.set(row, name, value)
        tasks.set_named(tasks.metrics, row, event.metrics)
        tasks.set_named(tasks.evaluation, row, event.evaluation)
        if tasks.outcome(row) == "open":
            tasks.set_outcome(row, "finished")
        return True

    def fold(self, event: ev.UpdateFolded, learner: str) -> bool:
        """An update was folded; whether that is news."""
        tasks, row = self.tasks, self.tasks.row(learner)
        self.bytes_up += event.num_bytes
        self.messages_up += event.num_messages
        if not self._reach(row, "folded", event.time_s):
            return False
        finished_s = tasks.get(row, "finished_s")
        begun_s = event.time_s - event.fold_s if math.isnan(finished_s) else finished_s + event.upload_s
        tasks.set(row, "received_s", min(begun_s, event.time_s))
        for name in ("weight", "staleness", "upload_s", "fold_s"):
            tasks.set(row, name, getattr(event, name))
        tasks.set(row, "bytes_up", event.num_bytes)
        tasks.set(row, "messages_up", event.num_messages)
        tasks.set_outcome(row, "folded")
        self.fold_s += event.fold_s
        return True

    def fold_share(self, event: ev.GroupFolded) -> None:
        """What a group's sum took, of which its learners have no part of their own."""
        self.bytes_up += event.num_bytes
        self.messages_up += event.num_messages
        self.fold_s += event.fold_s

    def miss(self, learner: str, outcome: Missed, reason: str) -> bool:
        """A task came to nothing; whether that is news."""
        row = self.tasks.row(learner)
        before = self.tasks.outcome(row)
        if outcome in ("late", "cancelled") and before in ("late", "cancelled"):
            return False  # said when the round closed, and again when the update came after all
        self.counts[outcome] += 1
        if before != "folded":
            self.tasks.set_outcome(row, outcome, reason)
        return True

    def commit(self, event: ev.VersionCommitted, contributors: tuple[str, ...]) -> None:
        """The round made a version."""
        self.committed_s, self.round_s = event.time_s, event.round_s
        self.aggregate_s, self.store_s = event.aggregate_s, event.store_s
        self.metrics, self.total_weight = event.metrics, event.total_weight
        self.memory_bytes = event.memory_bytes
        self.contributors = contributors
        self.num_contributors = max(event.num_learners, len(contributors))

    def _accepted_at_last(self, row: int, time_s: float) -> None:
        """A result is there; work that is done soon was never announced."""
        before, sent_s = self.counts["accepted"], self.tasks.get(row, "sent_s")
        if self._reach(row, "accepted", time_s if math.isnan(sent_s) else max(sent_s, time_s)):
            self.counts["accepted"] = min(max(self.num_learners, before), before + 1)

    def _reach(self, row: int, moment: str, time_s: float) -> bool:
        """Note that a task has come so far; False if that was known."""
        news = math.isnan(self.tasks.get(row, f"{moment}_s"))
        if news:
            self.counts[moment] += 1
            self.tasks.set(row, f"{moment}_s", time_s)
        return news
