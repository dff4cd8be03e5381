"""What a job notes of how its learners do: for records and pacing, and whom to leave out for a while."""

from __future__ import annotations

from collections.abc import Collection

from broker_fl.coordination import signals as s
from broker_fl.coordination.cohort import Status, Workload
from broker_fl.coordination.pacing import make_pacer
from broker_fl.coordination.records import SMOOTHING, Records
from broker_fl.coordination.state import JobState, Phase
from broker_fl.interfaces import Metrics, Record
from broker_fl.wire import events as e
from broker_fl.wire.fields import text
from broker_fl.wire.messages import Result


class Notes:
    """Notes of one job. A learner that has failed ``failures_allowed`` times in a row is left out."""

    def __init__(self, state: JobState, failures_allowed: int | None) -> None:
        self._state = state
        self._failures_allowed = failures_allowed
        self._records = Records(state.records, getattr(state.spec.protocol, "smoothing", SMOOTHING))
        self._pacer = make_pacer(state.spec, self._records)

    @property
    def are_kept(self) -> bool:
        """Whether anybody goes by the records; 100,000 of them are not kept for nothing."""
        return self._state.spec.uses_records

    def record(self, learner: str) -> Record:
        """The learner's record, made if there is none."""
        return self._records.of(learner)

    def workloads(self, learners: Collection[str]) -> dict[str, Workload]:
        """What pacing gives each to do; nothing where nothing is trained."""
        return self._pacer.workloads(learners) if self._is_training else {}

    def given(self, learner: str) -> None:
        """It gets the open round's task."""
        if self.are_kept and self._is_training:
            self._records.given(learner, self._state.round)

    def finished(self, result: Result, task_s: float) -> None:
        """Its result is there, ``task_s`` after the task was sent."""
        if self.are_kept:
            self._records.finished(result, task_s)
        if self._is_training:
            self._pacer.delivered(result.learner, task_s)

    def finished_in_share(self, learner: str, now: float, *, evaluation: Metrics, **times: float) -> None:
        """A member of a group is done; ``times`` as of ``Records.finished_as``."""
        part = self._state.cohort.get(learner)
        task_s = now - part.sent_at if part is not None else 0.0
        self._records.finished_as(learner, task_s, evaluation=evaluation, **times)
        if self._is_training:
            self._pacer.delivered(learner, task_s)

    def counted(self, learner: str) -> None:
        """Its update is taken."""
        if self.are_kept:
            self._records.counted(learner)

    def lost(self, learner: str) -> None:
        """It is gone, with its task."""
        if self.are_kept:
            self._records.failed(learner)

    def missed(self, learner: str) -> None:
        """Its result did not come in time, or does not count: pacing gives it less."""
        self._pacer.missed(learner)

    def failed(self, learner: str, reason: str) -> s.Actions:
        """Nothing came of its task, or nothing usable."""
        if self.are_kept:
            self._records.failed(learner)
        if self._is_training:
            self._pacer.missed(learner)
        return self.exclusion(learner, reason)

    def late(self, learner: str, now: float) -> None:
        """Nothing has come of its training, as long as it had."""
        part = self._state.cohort.get(learner)
        if not self._is_training or part is None:
            return
        if part.status is not Status.FINISHED:
            self._pacer.missed(learner)
        if self.are_kept:
            self._records.late(learner, now - part.sent_at, part.workload.get("steps", 0))

    def exclusion(self, learner: str, reason: str) -> s.Actions:
        """Say so, if the learner has now failed so often that it is left out for a while."""
        limit = self._failures_allowed
        if limit is None or self._records.of(learner).num_failures != limit:
            return []
        excluded = e.LearnerExcluded(
            job=self._state.job,
            round=self._state.round,
            learner=learner,
            num_failures=limit,
            reason=text(reason),
        )
        return [s.Emit(excluded)]

    @property
    def _is_training(self) -> bool:
        return self._state.phase is Phase.TRAINING
