"""The state machine of one job under the synchronous protocol: signals in, actions out.

::

    IDLE ──► ROUND ──► COMMITTING ──► IDLE … ──► EVALUATING ──► ENDED
      └► WAITING ┘  (too few learners)          (after the last round)

Signals that are late, foreign or repeated change nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

from broker_fl.coordination import signals as s
from broker_fl.coordination.averaging import weighted_mean
from broker_fl.coordination.cohort import OPEN, Assignment, Cohort, Status
from broker_fl.coordination.membership import Membership
from broker_fl.coordination.selection import make_selector
from broker_fl.coordination.state import JobState, Phase
from broker_fl.coordination.uploads import Uploads
from broker_fl.interfaces import Extensions
from broker_fl.wire import events as e
from broker_fl.wire.events import JobEnd
from broker_fl.wire.fields import text
from broker_fl.wire.messages import Result, TaskRef, TaskStatus

Actions = list[s.Action]
MAX_REMINDER_DOUBLINGS = 5


class Job:
    """One job: its state, and what follows from each signal. ``members`` is read, never changed."""

    def __init__(self, state: JobState, members: Membership, extensions: Extensions | None = None) -> None:
        self.state = state
        self._members = members
        self._selector = make_selector(state.spec.selector, extensions)
        self._uploads = Uploads(state.update_bytes, state.spec.transfer.upload_budget_bytes)
        self._handlers: dict[type, Callable[[Any, float], Actions]] = {
            s.LearnerUp: self._learner_up,
            s.LearnerDown: self._learner_down,
            s.LearnerReported: self._learner_reported,
            s.TaskWasAccepted: self._task_accepted,
            s.TaskHasFailed: self._task_failed,
            s.ResultArrived: self._result_arrived,
            s.UpdateWasFolded: self._update_folded,
            s.UpdateWasRefused: self._update_refused,
            s.VersionWasStored: self._version_stored,
            s.CommitFailed: self._commit_failed,
            s.CannotGoOn: lambda signal, now: self._finish("failed", signal.reason, now),
            s.StopWanted: lambda signal, now: self._finish("stopped", signal.reason, now),
            s.ControllerRestarted: self._controller_restarted,
            s.TimePassed: lambda _, now: self._settle(now),
        }

    def step(self, signal: s.Signal, now: float) -> Actions:
        """Take a signal in; ``now`` in seconds of the controller's clock, never less than before."""
        if self.state.phase is Phase.ENDED:
            return []
        actions = self._handlers[type(signal)](signal, now)
        wall_clock_s = self.state.spec.termination.wall_clock_s
        committing = self.state.phase in (Phase.COMMITTING, Phase.ENDED)
        if wall_clock_s is not None and not committing and now - self.state.submitted_at >= wall_clock_s:
            actions += self._finish("done", f"{wall_clock_s:g} s have passed", now)
        return actions

    def start(self, now: float) -> Actions:
        """Begin, once the initial model is stored as version 0."""
        return self._next_round(now)

    def next_timer(self) -> float | None:
        """When ``TimePassed`` is due at the latest, if no other signal comes."""
        state = self.state
        # With nobody open there is nothing that a deadline could end: the round waits for somebody to come.
        is_open = state.phase in (Phase.ROUND, Phase.EVALUATING) and state.cohort.num_open > 0
        due = [state.deadline_at] if is_open else []
        if state.spec.termination.wall_clock_s is not None:
            due.append(state.submitted_at + state.spec.termination.wall_clock_s)
        if state.waiting_since is not None and state.spec.protocol.max_wait_s is not None:
            due.append(state.waiting_since + state.spec.protocol.max_wait_s)
        return min((time for time in due if time is not None), default=None)

    def expects(self, learner: str, task: TaskRef) -> bool:
        """Whether an update for this task may still be folded."""
        part = self._part(learner, task)
        return part is not None and part.status not in (Status.DELIVERED, Status.REFUSED)

    # ------------------------------------------------------------ rounds

    def _next_round(self, now: float) -> Actions:
        state, protocol = self.state, self.state.spec.protocol
        rounds = state.spec.termination.rounds
        finished = rounds is not None and state.round >= rounds
        if finished and not state.spec.evaluate:
            return self._finish("done", f"{rounds} rounds", now)
        quorum = protocol.quorum if isinstance(protocol.quorum, int) else 1
        num_needed = 1 if finished else max(protocol.min_learners, quorum)
        if len(self._members) < num_needed:
            return self._wait(num_needed, now)
        state.phase = Phase.EVALUATING if finished else Phase.ROUND
        state.waiting_since = None
        state.retries = 0
        state.cohort = Cohort()
        for learner in self._selector.select(self._members.members(), state.round, {}):
            state.cohort.assign(learner, now)
        return self._open_round(now)

    def _open_round(self, now: float) -> Actions:
        state = self.state
        state.round_started_at = now
        self._set_deadline(now)
        self._open_uploads()
        started = e.RoundStarted(
            job=state.job,
            round=state.round,
            version=state.version,
            cohort=tuple(state.cohort),
            train=state.phase is Phase.ROUND,
            deadline_s=state.spec.protocol.deadline_s,
        )
        return [s.StartSum(state.round), s.Save(), s.Emit(started), *self._send(state.cohort)]

    def _wait(self, num_needed: int, now: float) -> Actions:
        state, max_wait_s = self.state, self.state.spec.protocol.max_wait_s
        present = len(self._members)
        if state.waiting_since is None:
            state.waiting_since = now
            if state.phase is Phase.IDLE:
                state.phase = Phase.WAITING
            state.reason = f"{present} learners are there, {num_needed} are needed"
            waiting = e.JobWaiting(
                job=state.job, reason=state.reason, num_learners=present, num_needed=num_needed
            )
            return [s.Emit(waiting)]
        if max_wait_s is not None and now - state.waiting_since >= max_wait_s:
            return self._finish(
                "failed",
                f"{present} learners of {num_needed} were there for {max_wait_s:g} s",
                now,
            )
        return []

    def _settle(self, now: float) -> Actions:
        """Close the round if nothing more is to be waited for."""
        state, cohort = self.state, self.state.cohort
        if state.phase in (Phase.IDLE, Phase.WAITING):
            return self._next_round(now)
        if state.phase is Phase.COMMITTING:
            return []
        overdue = state.deadline_at is not None and now >= state.deadline_at
        if cohort.num_open and not overdue:
            return []
        enough = cohort.has_quorum(state.spec.protocol.quorum)
        if state.phase is Phase.EVALUATING:
            enough = enough or cohort.count(Status.DELIVERED) > 0
        return self._close_round(now) if enough else self._retry(now)

    def _close_round(self, now: float) -> Actions:
        state = self.state
        actions = self._dismiss("the round closed without it", now)
        actions += self._note_evaluation()
        state.deadline_at = state.waiting_since = None
        target = state.spec.termination.target
        if target is not None and (value := state.evaluation.get(target.metric)) is not None:
            reached = value >= target.value if target.mode == "max" else value <= target.value
            if reached and any(
                isinstance(a, s.Emit) and isinstance(a.event, e.VersionEvaluated) for a in actions
            ):
                return actions + self._finish("done", f"{target.metric} reached {value:.6g}", now)
        if state.phase is Phase.EVALUATING:
            return actions + self._finish("done", f"{state.round} rounds", now)
        state.phase = Phase.COMMITTING
        return [*actions, s.Commit(state.version + 1)]

    def state_after_commit(self) -> bytes:
        """The state that is to be stored together with the version that ``Commit`` asks for."""
        state = self.state
        after = JobState.unpack(state.pack(), state.round_started_at)
        after.phase, after.cohort, after.retries = Phase.IDLE, Cohort(), 0
        after.version, after.round = state.version + 1, state.round + 1
        return after.pack()

    def _version_stored(self, signal: s.VersionWasStored, now: float) -> Actions:
        state = self.state
        if state.phase is not Phase.COMMITTING or signal.version != state.version + 1:
            return []
        contributors = state.cohort.with_status(Status.DELIVERED)
        results = [result for name in contributors if (result := self._result_of(name)) is not None]
        committed = e.VersionCommitted(
            job=state.job,
            round=state.round,
            version=signal.version,
            digest=signal.digest,
            contributors=tuple(contributors),
            total_weight=signal.total_weight,
            metrics=weighted_mean((result.metrics, result.num_examples) for result in results),
            round_s=max(0.0, now - state.round_started_at),
            aggregate_s=signal.aggregate_s,
            store_s=signal.store_s,
        )
        state.version, state.round = signal.version, state.round + 1
        state.phase = Phase.IDLE
        return [s.Emit(committed), *self._next_round(now)]

    def _commit_failed(self, signal: s.CommitFailed, now: float) -> Actions:
        return self._finish("failed", signal.reason, now) if self.state.phase is Phase.COMMITTING else []

    def _retry(self, now: float) -> Actions:
        state, cohort = self.state, self.state.cohort
        outsiders = [m.learner for m in self._members.members() if m.learner not in cohort]
        failed = [
            learner
            for learner in cohort.with_status(Status.FAILED, Status.REFUSED)
            if learner in self._members
        ]
        if not (outsiders or failed or cohort.num_open):
            return self._wait(len(self._members) + 1, now)
        reason = (
            f"{cohort.count(Status.DELIVERED)} of {cohort.num_required(state.spec.protocol.quorum)} delivered"
        )
        reason = f"{reason}; {cohort.summary()}"
        if state.retries >= state.spec.protocol.max_retries:
            if state.phase is Phase.EVALUATING:
                return self._finish(
                    "done",
                    f"{state.round} rounds; the last version is not evaluated: {reason}",
                    now,
                )
            tries = state.retries + 1
            return self._finish(
                "failed",
                f"round {state.round} missed its quorum {tries} times: {reason}",
                now,
            )
        state.retries += 1
        state.waiting_since = None
        replacements = self._replace(outsiders, now)
        for learner in failed:
            part = cohort.get(learner)
            if part is not None and part.status is not Status.REPLACED:
                cohort.assign(learner, now, attempt=part.attempt + 1)
        again = [learner for learner in failed if cohort.get(learner).status is Status.SENT]  # type: ignore[union-attr]
        self._set_deadline(now)
        retried = e.RoundRetried(
            job=state.job,
            round=state.round,
            attempt=state.retries,
            reason=text(reason),
            replacements=tuple(replacements),
        )
        return [s.Save(), s.Emit(retried), *self._send([*replacements, *again])]

    def _replace(self, outsiders: list[str], now: float) -> list[str]:
        """Ask outsiders in the place of members that did not deliver: the lost first, the silent last.

        More of them are asked where the quorum is a count that the cohort as it is cannot reach.
        """
        state, cohort = self.state, self.state.cohort
        vacant = [
            learner
            for status in (
                Status.LOST,
                Status.FAILED,
                Status.REFUSED,
                Status.SENT,
                Status.ACCEPTED,
                Status.FINISHED,
            )
            for learner in cohort.with_status(status)
        ]
        draw = random.Random(f"{state.job}/{state.round}/{state.retries}")  # noqa: S311 - reproducible, not a secret
        missing = cohort.num_required(state.spec.protocol.quorum) - cohort.count(Status.DELIVERED)
        chosen = sorted(draw.sample(outsiders, min(len(outsiders), max(len(vacant), missing))))
        for learner in vacant[: len(chosen)]:
            cohort.move(learner, Status.REPLACED, now)
            self._release_upload(learner)
        for learner in chosen:
            cohort.assign(learner, now)
        return chosen

    def _finish(self, end: JobEnd, reason: str, now: float) -> Actions:
        state = self.state
        actions = (
            self._dismiss("the job has ended", now) if state.phase in (Phase.ROUND, Phase.EVALUATING) else []
        )
        if len(state.cohort):
            actions.append(s.CancelTasks(self._ref(0), tuple(state.cohort), "the job has ended"))
        state.phase, state.end, state.reason = Phase.ENDED, end, text(reason)
        return [*actions, s.Emit(self.finished(now)), s.Finish()]

    def finished(self, now: float) -> e.JobFinished:
        """The last event of a job that has ended."""
        state = self.state
        return e.JobFinished(
            job=state.job,
            state=state.end or "failed",
            reason=state.reason,
            version=state.version,
            rounds=state.round,
            duration_s=max(0.0, now - state.submitted_at),
            metrics=state.evaluation,
        )

    def _controller_restarted(self, signal: s.ControllerRestarted, now: float) -> Actions:
        state = self.state
        resumed = e.JobResumed(job=state.job, round=state.round, version=state.version, epoch=signal.epoch)
        actions: Actions = [s.Emit(resumed)]
        if state.phase is Phase.COMMITTING:
            state.phase = Phase.ROUND
        if state.phase in (Phase.ROUND, Phase.EVALUATING):
            self._open_uploads()
            self._set_deadline(
                now,
            )  # anew: what was delivered has to come once more, however long nobody was there
            return [*actions, s.StartSum(state.round)]
        state.phase, state.waiting_since = Phase.IDLE, None
        return actions + self._next_round(now)

    # ------------------------------------------------------------ learners

    def _learner_up(self, signal: s.LearnerUp, now: float) -> Actions:
        part = self.state.cohort.get(signal.learner)
        if self.state.phase not in (Phase.ROUND, Phase.EVALUATING) or part is None:
            return self._settle(now)
        if part.status is Status.LOST:
            self.state.cohort.move(signal.learner, Status.SENT, now)
            if self.state.waiting_since is not None:
                self.state.waiting_since = None
                self._set_deadline(now)
        if part.status not in OPEN:
            return self._settle(now)
        return self._remind(signal.learner, part, signal.tasks, now)

    def _learner_down(self, signal: s.LearnerDown, now: float) -> Actions:
        part = self.state.cohort.get(signal.learner)
        if part is None or part.status not in OPEN:
            return []
        self.state.cohort.move(signal.learner, Status.LOST, now, signal.reason)
        return [*self._release_upload(signal.learner), *self._settle(now)]

    def _learner_reported(self, signal: s.LearnerReported, now: float) -> Actions:
        """Compare what a learner holds with what it should hold; remind it, ever less often, of what is
        missing.
        """
        part = self.state.cohort.get(signal.learner)
        if part is None or part.status not in OPEN or self._uploads.is_waiting(signal.learner):
            return []
        if signal.receiving:
            part.changed_at = now
            return []
        patience_s = 2 * self._members.heartbeat_s * 2 ** min(part.reminders, MAX_REMINDER_DOUBLINGS)
        if now - part.changed_at < patience_s:
            return []
        return self._remind(signal.learner, part, signal.tasks, now)

    def _remind(self, learner: str, part: Assignment, tasks: Iterable[TaskStatus], now: float) -> Actions:
        task = self._ref(part.attempt)
        held = next((status for status in tasks if status.task == task), None)
        if held is None or held.phase == "receiving":
            return self._send_again(learner, part, held, now)
        if held.phase != "finished":
            return []
        part.changed_at, part.reminders = now, part.reminders + 1
        if self._uploads.on_request:
            return self._grant(self._uploads.release(learner)) + self._grant(self._uploads.add(learner))
        return [s.RequestUpload(learner, task)]

    def _send_again(self, learner: str, part: Assignment, held: TaskStatus | None, now: float) -> Actions:
        """Send the task to a learner that has nothing of it, or that gets no more of the model."""
        if held is not None and held.progress > part.received:
            part.changed_at, part.received = now, held.progress
            return []
        part.changed_at, part.reminders = now, part.reminders + 1
        if part.status is not Status.SENT:  # it was started anew: what it had is gone
            self.state.cohort.move(learner, Status.SENT, now)
        return [*self._release_upload(learner), *self._send([learner])]

    def _task_accepted(self, signal: s.TaskWasAccepted, now: float) -> Actions:
        part = self._part(signal.learner, signal.task)
        if part is None or part.status is not Status.SENT:
            return []
        self.state.cohort.move(signal.learner, Status.ACCEPTED, now)
        accepted = e.TaskAccepted(
            job=self.state.job,
            round=self.state.round,
            learner=signal.learner,
            receive_s=signal.receive_s,
        )
        return [s.Emit(accepted)]

    def _task_failed(self, signal: s.TaskHasFailed, now: float) -> Actions:
        part = self._part(signal.learner, signal.task)
        if part is None or part.status not in OPEN:
            return []
        self.state.cohort.move(signal.learner, Status.FAILED, now, signal.reason)
        failed = e.TaskFailed(
            job=self.state.job,
            round=self.state.round,
            learner=signal.learner,
            reason=signal.reason,
        )
        return [s.Emit(failed), *self._release_upload(signal.learner), *self._settle(now)]

    def _result_arrived(self, signal: s.ResultArrived, now: float) -> Actions:
        result, state = signal.result, self.state
        part = self._part(result.learner, result.task)
        if part is None and result.task.round < state.round:
            return self._late(result)
        if part is None:
            return []
        if part.status in (Status.DELIVERED, Status.REFUSED, Status.FINISHED):
            return []
        part.result = result
        finished = e.TaskFinished(
            job=state.job,
            round=state.round,
            learner=result.learner,
            num_examples=result.num_examples,
            num_steps=result.num_steps,
            metrics=result.metrics,
            evaluation=result.evaluation,
            timings=result.timings,
        )
        if state.phase is Phase.EVALUATING:
            state.cohort.move(result.learner, Status.DELIVERED, now)
            return [s.Emit(finished), *self._settle(now)]
        state.cohort.move(result.learner, Status.FINISHED, now)
        return [s.Emit(finished), *self._grant(self._uploads.add(result.learner))]

    def _late(self, result: Result) -> Actions:
        if result.task.job != self.state.job:
            return []
        reason = f"delivered while round {self.state.round} was open"
        return [
            s.Emit(
                e.TaskLate(
                    job=self.state.job, round=result.task.round, learner=result.learner, reason=reason
                ),
            ),
        ]

    def _update_folded(self, signal: s.UpdateWasFolded, now: float) -> Actions:
        if not self.expects(signal.learner, signal.task):
            return []
        self.state.cohort.move(signal.learner, Status.DELIVERED, now)
        folded = e.UpdateFolded(
            job=self.state.job,
            round=self.state.round,
            learner=signal.learner,
            weight=signal.weight,
            num_bytes=signal.num_bytes,
            num_messages=signal.num_messages,
            upload_s=signal.upload_s,
            fold_s=signal.fold_s,
        )
        return [s.Emit(folded), *self._release_upload(signal.learner), *self._settle(now)]

    def _update_refused(self, signal: s.UpdateWasRefused, now: float) -> Actions:
        if not self.expects(signal.learner, signal.task):
            return []
        self.state.cohort.move(signal.learner, Status.REFUSED, now, signal.reason)
        refused = e.UpdateRefused(
            job=self.state.job,
            round=self.state.round,
            learner=signal.learner,
            reason=signal.reason,
        )
        return [s.Emit(refused), *self._release_upload(signal.learner), *self._settle(now)]

    # ------------------------------------------------------------ parts

    def _part(self, learner: str, task: TaskRef) -> Assignment | None:
        """The learner's part in the open round, if ``task`` is of it.

        An earlier attempt is no longer of it: that one has failed or was refused, and the learner was asked
        once more.
        """
        state = self.state
        if (
            task.job != state.job
            or task.round != state.round
            or state.phase not in (Phase.ROUND, Phase.EVALUATING)
        ):
            return None
        part = state.cohort.get(learner)
        return part if part is not None and part.attempt == task.attempt else None

    def _result_of(self, learner: str) -> Result | None:
        part = self.state.cohort.get(learner)
        return part.result if part is not None else None

    def _ref(self, attempt: int) -> TaskRef:
        return TaskRef(job=self.state.job, round=self.state.round, attempt=attempt)

    def _set_deadline(self, now: float) -> None:
        deadline_s = self.state.spec.protocol.deadline_s
        self.state.deadline_at = None if deadline_s is None else now + deadline_s

    def _send(self, learners: Iterable[str]) -> Actions:
        """One action for all that get the same attempt."""
        return [
            s.SendTasks(
                task=task,
                learners=tuple(members),
                version=self.state.version,
                train=self.state.phase is Phase.ROUND,
                upload_on_request=self._uploads.on_request,
                deadline_s=self.state.spec.protocol.deadline_s,
            )
            for task, members in self._by_task(learners).items()
        ]

    def _by_task(self, learners: Iterable[str]) -> dict[TaskRef, list[str]]:
        """Members by the task that they have; it differs in the attempt."""
        tasks: dict[TaskRef, list[str]] = {}
        for learner in learners:
            part = self.state.cohort.get(learner)
            tasks.setdefault(self._ref(part.attempt if part else 0), []).append(learner)
        return tasks

    def _dismiss(self, reason: str, now: float) -> Actions:
        """Close the books on members from whom nothing came, and tell them to stop."""
        late = self.state.cohort.with_status(*OPEN)
        actions: Actions = []
        for learner in late:
            self.state.cohort.move(learner, Status.LATE, now)
            event = e.TaskLate(job=self.state.job, round=self.state.round, learner=learner, reason=reason)
            actions.append(s.Emit(event))
        for task, members in self._by_task(late).items():
            actions.append(s.CancelTasks(task, tuple(members), reason))
        return actions

    def _note_evaluation(self) -> Actions:
        """Average what the cohort found out about the version it was given."""
        results = [
            part.result for _, part in self.state.cohort.items() if part.result and part.result.evaluation
        ]
        if not results:
            return []
        self.state.note_evaluation(weighted_mean((r.evaluation, r.evaluation_examples or 1) for r in results))
        evaluated = e.VersionEvaluated(
            job=self.state.job,
            round=self.state.round,
            version=self.state.version,
            metrics=self.state.evaluation,
            num_learners=len(results),
            num_examples=sum(result.evaluation_examples for result in results),
        )
        return [s.Emit(evaluated)]

    def _open_uploads(self) -> None:
        """Nobody waits for a turn; an evaluation brings nothing to upload, so there nobody will."""
        self._uploads.open(len(self.state.cohort) if self.state.phase is Phase.ROUND else 0)

    def _release_upload(self, learner: str) -> Actions:
        return self._grant(self._uploads.release(learner))

    def _grant(self, learners: Iterable[str]) -> Actions:
        """Ask these learners for the updates that they hold."""
        actions: Actions = []
        for learner in learners:
            part = self.state.cohort.get(learner)
            actions.append(s.RequestUpload(learner, self._ref(part.attempt if part else 0)))
        return actions
