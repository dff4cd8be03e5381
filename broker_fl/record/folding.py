"""What each kind of event changes in what is known of a job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from broker_fl.record import groups
from broker_fl.record.ledger import Ledger
from broker_fl.record.lineage import note_contributions, spreads_of
from broker_fl.wire import events as ev


class Folding(Ledger):
    """A ledger into which events are folded, each in constant time per learner that it names."""

    def _fold(self, event: ev.Event) -> None:
        if (fold := self._FOLDS.get(type(event))) is not None:
            fold(self, event)

    def _job_submitted(self, event: ev.JobSubmitted) -> None:
        self.state = "submitted" if self.state == "unknown" else self.state
        self.spec, self.driver, self.parent = event.spec, event.driver, event.parent
        self.num_parameters, self.model_bytes = event.num_parameters, event.model_bytes
        self.submitted_s = event.time_s
        self._version(0).committed_s = event.time_s

    def _job_waiting(self, event: ev.JobWaiting) -> None:
        # Said again at each learner that comes.
        if self.state == "waiting" and self.incidents and self.incidents[-1].kind == "waiting":
            self.incidents.pop()
        self.state, self.reason = "waiting", event.reason
        self._note(event, "waiting", event.reason)

    def _job_paused(self, event: ev.JobPaused) -> None:
        self.state, self.reason = "paused", event.reason
        self._note(event, "paused", event.reason)

    def _job_unpaused(self, event: ev.JobUnpaused) -> None:
        self.state, self.reason = "running", ""
        limit = "" if event.versions is None else f"for {event.versions} more version(s)"
        self._note(event, "unpaused", limit)

    def _job_resumed(self, event: ev.JobResumed) -> None:
        self.num_resumed += 1
        self._note(event, "resumed", f"controller epoch {event.epoch} goes on at version {event.version}")

    def _job_finished(self, event: ev.JobFinished) -> None:
        self.state, self.reason, self.finished_s = event.state, event.reason, event.time_s
        self._metrics = event.metrics or self._metrics
        self.open.clear()
        for record in self.rounds.values():
            record.unfinished = record.committed_s is None

    def _round_started(self, event: ev.RoundStarted) -> None:
        self.state, self.reason = "running", ""
        self._round(event.round).begin(event, self._names(event.cohort))
        self.open.clear()

    def _round_retried(self, event: ev.RoundRetried) -> None:
        self._round(event.round).retry(event, self._names(event.replacements))
        self._note(event, "retried", event.reason)

    def _task_sent(self, event: ev.TaskSent) -> None:
        if self.state in ("unknown", "submitted", "waiting"):
            self.state, self.reason = "running", ""
        record = self._round(event.round)
        self.num_asked += record.train * max(0, event.num_learners - len(event.learners))
        for name in record.send(event, self._names(event.learners)):
            learner = self._learner(name)
            learner.tasks += 1
            self.num_asked += record.train
            learner.bytes_down += event.num_bytes // max(1, event.num_learners, len(event.learners))
            self.open[name] = event.round

    def _transfer_progress(self, event: ev.TransferProgress) -> None:
        self._round(event.round).under_way[event.direction] = event.num_bytes, event.total_bytes

    def _task_accepted(self, event: ev.TaskAccepted) -> None:
        learner = self._learner(event.learner)
        learner.seen()
        self._round(event.round).accept(event, learner.learner)

    def _task_finished(self, event: ev.TaskFinished) -> None:
        record, learner = self._round(event.round), self._learner(event.learner)
        if not record.finish(event, learner.learner):
            return
        learner.seen()
        learner.num_steps += event.num_steps
        learner.num_epochs += event.num_epochs
        learner.num_examples = event.num_examples or learner.num_examples
        learner.peak_memory_bytes = max(learner.peak_memory_bytes, event.peak_memory_bytes)
        if event.timings.train_s > 0:
            learner.trained += 1
            learner.train_s += event.timings.train_s
        if event.evaluation:
            self._evaluations[learner.learner] = event.evaluation
        if not record.train:
            self.open.pop(event.learner, None)

    def _update_folded(self, event: ev.UpdateFolded) -> None:
        record, learner = self._round(event.round), self._learner(event.learner)
        if not record.fold(event, learner.learner):
            return
        self.counts["folded"] += 1
        learner.folded += 1
        learner.weight += event.weight
        learner.staleness += event.staleness
        learner.bytes_up += event.num_bytes
        self.open.pop(learner.learner, None)
        self._uncommitted[learner.learner] = record

    # ------------------------------------------------------------ groups

    def _group_accepted(self, event: ev.GroupAccepted) -> None:
        self._round(event.round).accept_group(event)

    def _group_finished(self, event: ev.GroupFinished) -> None:
        weighting = getattr(self.spec.rule, "weighting", "examples") if self.spec is not None else "examples"
        share = self._round(event.round).shares.setdefault((event.group, event.share), {})
        share.update(groups.weights(event, weighting))
        for one in groups.finished(event):
            self._task_finished(one)

    def _group_folded(self, event: ev.GroupFolded) -> None:
        record = self._round(event.round)
        for one in groups.folded(event, record.shares.pop((event.group, event.share), {})):
            self._update_folded(one)
        record.fold_share(event)

    def _group_missed(self, event: ev.GroupMissed) -> None:
        record, outcome = self._round(event.round), event.outcome
        reasons = event.reasons if len(event.reasons) == len(event.learners) else event.reasons[:1] or ("",)
        num = event.num_learners - len(event.learners)
        for place, name in enumerate(event.learners):
            learner = self._learner(name)
            if self.open.get(learner.learner) == event.round:
                del self.open[learner.learner]
            if record.miss(learner.learner, outcome, reasons[place % len(reasons)]):
                setattr(learner, outcome, getattr(learner, outcome) + 1)
                num += 1
        self.counts[outcome] += num
        if num and outcome != "cancelled":
            self._note(event, outcome, f"{num} learner(s) of group {event.group}: {reasons[0]}")

    def _group_joined(self, event: ev.GroupJoined) -> None:
        for name in event.learners:
            learner = self._learner(name)
            learner.presence, learner.attributes = "present", event.attributes

    def _group_left(self, event: ev.GroupLeft) -> None:
        for name in event.learners:
            self._gone(name, "left")
        self._note(event, "left", f"{event.num_learners} learner(s) of group {event.group}: {event.reason}")

    def _group_lost(self, event: ev.GroupLost) -> None:
        for name in event.learners:
            self._gone(name, "lost").lost += 1
        what = f"{event.num_learners} learner(s) of group {event.group}"
        self._note(event, "lost", f"{what}: silent for {event.silent_s:.3g} s")

    # ------------------------------------------------------------ what came to nothing

    def _task_failed(self, event: ev.TaskFailed) -> None:
        self._learner(event.learner).failed += self._missed(event, "failed")

    def _update_refused(self, event: ev.UpdateRefused) -> None:
        self._learner(event.learner).refused += self._missed(event, "refused")

    def _task_late(self, event: ev.TaskLate) -> None:
        if event.cancelled:
            self._learner(event.learner).cancelled += self._missed(event, "cancelled")
        else:
            self._learner(event.learner).late += self._missed(event, "late")

    def _version_evaluated(self, event: ev.VersionEvaluated) -> None:
        record = self._round(event.round)
        record.evaluation = event.metrics
        if not record.train and record.committed_s is None:
            record.committed_s = event.time_s
            record.round_s = None if record.started_s is None else max(0.0, event.time_s - record.started_s)
        version = self._version(event.version)
        version.evaluation, version.evaluated_in = event.metrics, event.round
        version.num_evaluators, version.num_examples = event.num_learners, event.num_examples
        if self.asynchronous and record.train and len(self._evaluations) == event.num_learners:
            version.evaluation_spreads = spreads_of(self._evaluations.values())
        if event.version >= self._newest_evaluated:
            self._newest_evaluated, self._metrics = event.version, event.metrics

    def _version_committed(self, event: ev.VersionCommitted) -> None:
        contributors = self._names(event.contributors)
        self._round(event.round).commit(event, contributors)
        version = self._version(event.version)
        version.parent, version.rule, version.round = event.parent, event.rule, event.round
        version.committed_s, version.digest = event.time_s, event.digest
        version.metrics, version.total_weight = event.metrics, event.total_weight
        version.contributors = contributors
        version.used = event.used or {}
        version.num_contributors = max(event.num_learners, len(contributors))
        # Where the list of contributors was cut, whoever was folded since the last version is in this one.
        inside = contributors if version.num_contributors == len(contributors) else tuple(self._uncommitted)
        contributions = [(name, self._uncommitted.pop(name, None)) for name in inside]
        note_contributions(version, contributions, with_spreads=self.asynchronous)

    def _learner_joined(self, event: ev.LearnerJoined) -> None:
        learner = self._learner(event.learner)
        learner.presence, learner.attributes = "present", event.attributes

    def _learner_left(self, event: ev.LearnerLeft) -> None:
        self._gone(event.learner, "left")
        self._note(event, "left", event.reason)

    def _learner_lost(self, event: ev.LearnerLost) -> None:
        self._gone(event.learner, "lost").lost += 1
        self._note(event, "lost", f"silent for {event.silent_s:.3g} s")

    _FOLDS: ClassVar[dict[type[ev.Event], Callable[[Folding, Any], None]]] = {
        ev.JobSubmitted: _job_submitted,
        ev.JobWaiting: _job_waiting,
        ev.JobPaused: _job_paused,
        ev.JobUnpaused: _job_unpaused,
        ev.JobResumed: _job_resumed,
        ev.JobFinished: _job_finished,
        ev.RoundStarted: _round_started,
        ev.RoundRetried: _round_retried,
        ev.TaskSent: _task_sent,
        ev.TransferProgress: _transfer_progress,
        ev.TaskAccepted: _task_accepted,
        ev.TaskFinished: _task_finished,
        ev.UpdateFolded: _update_folded,
        ev.TaskFailed: _task_failed,
        ev.TaskLate: _task_late,
        ev.UpdateRefused: _update_refused,
        ev.GroupAccepted: _group_accepted,
        ev.GroupFinished: _group_finished,
        ev.GroupFolded: _group_folded,
        ev.GroupMissed: _group_missed,
        ev.GroupJoined: _group_joined,
        ev.GroupLeft: _group_left,
        ev.GroupLost: _group_lost,
        ev.VersionEvaluated: _version_evaluated,
        ev.VersionCommitted: _version_committed,
        ev.LearnerJoined: _learner_joined,
        ev.LearnerLeft: _learner_left,
        ev.LearnerLost: _learner_lost,
    }
