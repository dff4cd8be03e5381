"""What all protocols share: one job's life, and what each of its learners holds. Signals in, actions out.

A protocol is a subclass (``rounds.py``, ``asynchronous.py``; ``protocols.py`` makes the one that is named).
It says in ``_proceed`` what follows when something may begin, in ``_settle`` what follows when something may
have become complete, and in ``_is_over`` what becomes of a learner whose task came to nothing.

Signals that are late, foreign or repeated change nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from broker_fl.coordination import signals as s
from broker_fl.coordination.averaging import Means
from broker_fl.coordination.checking import problem_of
from broker_fl.coordination.cohort import OPEN, Assignment, Status, Workload
from broker_fl.coordination.membership import Membership
from broker_fl.coordination.pacing import make_pacer
from broker_fl.coordination.records import SMOOTHING, Records
from broker_fl.coordination.selection import Eligible
from broker_fl.coordination.state import JobState, Phase
from broker_fl.coordination.uploads import Uploads
from broker_fl.interfaces import Member
from broker_fl.wire import events as e
from broker_fl.wire.events import JobEnd
from broker_fl.wire.fields import text
from broker_fl.wire.messages import Result, TaskRef, TaskStatus
from broker_fl.wire.rules import Summable

Actions = list[s.Action]
Addressees = tuple[list[str], dict[str, list[str]]]
"""Learners with mailboxes of their own, and groups with those of their members that are meant."""
MAX_REMINDER_DOUBLINGS = 5


class Job(ABC):
    """One job: its state, and what follows from each signal. ``members`` is read, never changed."""

    _selector: Eligible

    def __init__(self, state: JobState, members: Membership) -> None:
        self.state = state
        self._members = members
        self._uploads = Uploads(state.update_bytes, state.spec.transfer.upload_budget_bytes)
        self._records = Records(state.records, getattr(state.spec.protocol, "smoothing", SMOOTHING))
        self._pacer = make_pacer(state.spec, self._records)
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
            s.PauseWanted: self._pause,
            s.ResumeWanted: self._unpause,
            s.ControllerRestarted: self._controller_restarted,
            s.TimePassed: lambda _, now: self._settle(now),
        }

    def step(self, signal: s.Signal, now: float) -> Actions:
        """Take a signal in; ``now`` in seconds of the controller's clock, never less than before."""
        if self.state.phase is Phase.ENDED:
            return []
        handler = self._handlers.get(type(signal))  # none for groups where they cannot take part
        actions = handler(signal, now) if handler is not None else []
        due = self._wall_clock_due()
        committing = self.state.phase in (Phase.COMMITTING, Phase.ENDED)
        if due is not None and not committing and now >= due:
            wall_clock_s = self.state.spec.termination.wall_clock_s
            actions += self._finish("done", f"{wall_clock_s:g} s have passed", now)
        return actions

    def start(self, now: float) -> Actions:
        """Begin, once the initial model is stored as version 0."""
        return self._proceed(now)

    def next_timer(self) -> float | None:
        """When ``TimePassed`` is due at the latest, if no other signal comes."""
        state = self.state
        due = [self._wall_clock_due(), self._next_deadline()]
        if state.waiting_since is not None and state.spec.protocol.max_wait_s is not None:
            due.append(state.waiting_since + state.spec.protocol.max_wait_s)
        return min((time for time in due if time is not None), default=None)

    def expects(self, learner: str, task: TaskRef) -> bool:
        """Whether an update for this task may still be folded."""
        part = self._part(learner, task)
        return part is not None and part.status not in (Status.DELIVERED, Status.REFUSED)

    def learners(self) -> list[str]:
        """Who is there and may be asked: those that match the selector's ``where``."""
        return [member.learner for member in self._selector.matching(self._present())]

    def is_open(self, learner: str) -> bool:
        """Whether something may still come from the learner."""
        part = self.state.cohort.get(learner)
        return part is not None and part.status in OPEN

    def refusal(self, task: TaskRef) -> str | None:
        """Why an update that is whole and usable does not count all the same; None if it does."""
        return None

    def staleness(self, task: TaskRef) -> int:
        """How many versions were committed since the one that the task gave out."""
        return self.state.round - task.round

    def state_after_commit(self) -> bytes:
        """The state that is to be stored together with the version that ``Commit`` asks for."""
        state = self.state
        return state.pack(
            version=state.version + 1,
            round=state.round + 1,
            retries=0,
            num_updates=state.num_updates + state.cohort.count(Status.DELIVERED),
            **self._changes_of_commit(),
        )

    # ------------------------------------------------------------ what a protocol says

    @abstractmethod
    def _proceed(self, now: float) -> Actions:
        """Begin what may begin: after the start, a version, a pause."""

    @abstractmethod
    def _settle(self, now: float) -> Actions:
        """Complete what may be complete, and begin what may begin then."""

    @abstractmethod
    def _is_over(self, learner: str, now: float) -> Actions:
        """Nothing came of a learner's task; its part says why."""

    @abstractmethod
    def _send_again(self, learner: str, part: Assignment, now: float) -> Actions:
        """A learner has nothing of its task."""

    @abstractmethod
    def _next_deadline(self) -> float | None:
        """When the next task or round is overdue."""

    @abstractmethod
    def _changes_of_commit(self) -> dict[str, Any]:
        """What else is different in the state after a commit."""

    @abstractmethod
    def _learner_up(self, signal: s.LearnerUp, now: float) -> Actions: ...

    @abstractmethod
    def _learner_down(self, signal: s.LearnerDown, now: float) -> Actions: ...

    @abstractmethod
    def _version_stored(self, signal: s.VersionWasStored, now: float) -> Actions: ...

    @abstractmethod
    def _controller_restarted(self, signal: s.ControllerRestarted, now: float) -> Actions: ...

    # ------------------------------------------------------------ life

    def _wait(self, reason: str, num_needed: int, now: float) -> Actions:
        """Wait for learners, ``max_wait_s`` at most."""
        state, max_wait_s = self.state, self.state.spec.protocol.max_wait_s
        if state.waiting_since is None:
            state.waiting_since = now
            if state.phase is Phase.IDLE:
                state.phase = Phase.WAITING
            state.reason = reason
            waiting = e.JobWaiting(
                job=state.job, reason=reason, num_learners=len(self._members), num_needed=num_needed
            )
            return [s.Emit(waiting)]
        if max_wait_s is not None and now - state.waiting_since >= max_wait_s:
            return self._finish("failed", f"for {max_wait_s:g} s: {reason}", now)
        return []

    def _wait_for(self, num_needed: int, num_matching: int, now: float) -> Actions:
        there = f"{num_matching} learners are there"
        if not self.state.spec.takes_groups and len(self._members.alone()) < len(self._members):
            there += (
                f" besides members of groups, whose updates come as sums of values: the rule "
                f"{self.state.spec.rule.name!r} or the encoding needs each by itself"
            )
        elif self.state.spec.selector.where:
            there = f"{num_matching} of {len(self._members)} learners match 'selector.where'"
        return self._wait(f"{there}, {num_needed} are needed", num_needed, now)

    def _enough(self) -> str | None:
        """Why training is over; None if it is not."""
        state, wanted = self.state, self.state.spec.termination
        for name, done in (
            ("rounds", state.round),
            ("versions", state.version),
            ("updates", state.num_updates),
        ):
            limit = getattr(wanted, name)
            if limit is not None and done >= limit:
                return f"{done} {name}"
        return None

    def _target_reached(self) -> str | None:
        """How the newest evaluation reached the target; None if it did not, or there is none."""
        target = self.state.spec.termination.target
        if target is None or (value := self.state.evaluation.get(target.metric)) is None:
            return None
        reached = value >= target.value if target.mode == "max" else value <= target.value
        return f"{target.metric} reached {value:.6g}" if reached else None

    def _target_unknown(self) -> str | None:
        """Why the target can never be reached; None if it can."""
        target = self.state.spec.termination.target
        cohort = self.state.cohort
        results = [part.result for part in cohort.values() if part.result is not None]
        names = {name for result in results for name in result.evaluation}
        names |= {name for share in cohort.shares.values() for name in share.metrics("evaluation")}
        if target is None or target.metric in names:
            return None
        there = ", ".join(sorted(names))
        return f"no learner reports the metric {target.metric!r} of 'termination.target'; there are: {there}"

    def _finish(self, end: JobEnd, reason: str, now: float) -> Actions:
        state = self.state
        is_open = state.phase in (Phase.TRAINING, Phase.EVALUATING)
        actions = self._dismiss("the job has ended", now, cancelled=True) if is_open else []
        actions += self._cancel(state.cohort, "the job has ended")
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

    def _commit_failed(self, signal: s.CommitFailed, now: float) -> Actions:
        return self._finish("failed", signal.reason, now) if self.state.phase is Phase.COMMITTING else []

    def _pause(self, signal: s.PauseWanted, now: float) -> Actions:
        state = self.state
        if state.is_paused:
            return []
        state.paused_at, state.pause_after, state.waiting_since = now, None, None
        state.pause_reason = text(signal.reason)
        return [s.Save(), s.Emit(e.JobPaused(job=state.job, reason=state.pause_reason))]

    def _pause_if_due(self, now: float) -> Actions:
        """After a commit: whether that was the last version for which the job was let go on."""
        after = self.state.pause_after
        if after is None or self.state.version < after:
            return []
        return self._pause(s.PauseWanted(f"version {self.state.version} is there"), now)

    def _unpause(self, signal: s.ResumeWanted, now: float) -> Actions:
        state = self.state
        state.pause_after = None if signal.versions is None else state.version + signal.versions
        if state.paused_at is None:
            return [s.Save()]
        state.paused_s += max(0.0, now - state.paused_at)
        state.paused_at = None
        event = e.JobUnpaused(job=state.job, versions=signal.versions)
        return [s.Save(), s.Emit(event), *self._settle(now)]

    def _wall_clock_due(self) -> float | None:
        """When the job has run for as long as it may; the clock stands while it is paused."""
        state, wall_clock_s = self.state, self.state.spec.termination.wall_clock_s
        if wall_clock_s is None or state.is_paused:
            return None
        return state.submitted_at + wall_clock_s + state.paused_s

    # ------------------------------------------------------------ what learners hold

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
        task = self._ref(part)
        held = next((status for status in tasks if status.task == task), None)
        if held is None or held.phase == "receiving":
            if held is not None and held.progress > part.received:
                part.changed_at, part.received = now, held.progress
                return []
            part.changed_at, part.reminders = now, part.reminders + 1
            return [*self._release_upload(learner), *self._send_again(learner, part, now)]
        if held.phase != "finished":
            return []
        part.changed_at, part.reminders = now, part.reminders + 1
        if self._uploads.on_request:
            return self._grant(self._uploads.release(learner)) + self._grant(self._uploads.add(learner))
        return [s.RequestUpload(learner, task)]

    def _task_accepted(self, signal: s.TaskWasAccepted, now: float) -> Actions:
        part = self._part(signal.learner, signal.task)
        if part is None or part.status is not Status.SENT:
            return []
        self.state.cohort.move(signal.learner, Status.ACCEPTED, now)
        accepted = e.TaskAccepted(
            job=self.state.job,
            round=signal.task.round,
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
            job=self.state.job, round=signal.task.round, learner=signal.learner, reason=signal.reason
        )
        return [s.Emit(failed), *self._came_to_nothing(signal.learner, now)]

    def _result_arrived(self, signal: s.ResultArrived, now: float) -> Actions:
        result, state = signal.result, self.state
        part = self._part(result.learner, result.task)
        if part is None:
            return self._late(result)
        if part.status in (Status.DELIVERED, Status.REFUSED):
            return []
        finished = self._finished(result)
        if (problem := self._problem(part, result)) is not None:
            return [s.Emit(finished), *self._refused(result.learner, result.task, problem, now)]
        part.result = result
        if part.status is Status.FINISHED:  # sent once more, or of a learner that was started anew
            return []
        if self._remembers:
            self._records.finished(result, now - part.sent_at)
        if state.phase is Phase.TRAINING:
            self._pacer.delivered(result.learner, now - part.sent_at)
        if state.phase is Phase.EVALUATING:
            state.cohort.move(result.learner, Status.DELIVERED, now)
            return [s.Emit(finished), *self._settle(now)]
        state.cohort.move(result.learner, Status.FINISHED, now)
        return [s.Emit(finished), *self._grant(self._uploads.add(result.learner))]

    def _finished(self, result: Result) -> e.TaskFinished:
        return e.TaskFinished(
            job=self.state.job,
            round=result.task.round,
            learner=result.learner,
            num_examples=result.num_examples,
            num_steps=result.num_steps,
            num_epochs=result.num_epochs,
            metrics=result.metrics,
            evaluation=result.evaluation,
            timings=result.timings,
            peak_memory_bytes=result.peak_memory_bytes,
        )

    def _problem(self, part: Assignment, result: Result) -> str | None:
        """Why the result cannot be right; None if it can."""
        if self.state.phase is not Phase.TRAINING:
            return None
        return problem_of(result, part.workload.get("steps"), self.state.spec.parameters.get("steps"))

    def _late(self, result: Result) -> Actions:
        """Say so, if it is of this job and of a task that was given up."""
        task, state = result.task, self.state
        part = state.cohort.get(result.learner)
        is_known = part is not None and self._ref(part) == task
        if task.job != state.job or task.round >= state.round or is_known:
            return []
        reason = f"delivered while round {state.round + 1} was open"
        return [s.Emit(e.TaskLate(job=state.job, round=task.round, learner=result.learner, reason=reason))]

    def _update_folded(self, signal: s.UpdateWasFolded, now: float) -> Actions:
        if not self.expects(signal.learner, signal.task):
            return []
        self.state.cohort.move(signal.learner, Status.DELIVERED, now)
        if (part := self.state.cohort.get(signal.learner)) is not None:
            part.weight = signal.weight
        if self._remembers:
            self._records.counted(signal.learner)
        folded = e.UpdateFolded(
            job=self.state.job,
            round=signal.task.round,
            learner=signal.learner,
            weight=signal.weight,
            staleness=self.staleness(signal.task),
            num_bytes=signal.num_bytes,
            num_messages=signal.num_messages,
            upload_s=signal.upload_s,
            fold_s=signal.fold_s,
        )
        return [s.Emit(folded), *self._release_upload(signal.learner), *self._settle(now)]

    def _update_refused(self, signal: s.UpdateWasRefused, now: float) -> Actions:
        if not self.expects(signal.learner, signal.task):
            return []
        return self._refused(signal.learner, signal.task, signal.reason, now)

    def _refused(self, learner: str, task: TaskRef, reason: str, now: float) -> Actions:
        self.state.cohort.move(learner, Status.REFUSED, now, reason)
        refused = e.UpdateRefused(job=self.state.job, round=task.round, learner=learner, reason=text(reason))
        return [s.Emit(refused), *self._came_to_nothing(learner, now)]

    def _came_to_nothing(self, learner: str, now: float) -> Actions:
        if self._remembers:
            self._records.failed(learner)
        if self.state.phase is Phase.TRAINING:
            self._pacer.missed(learner)
        part = self.state.cohort.get(learner)
        excluded = self._exclusion(learner, part.reason if part is not None else "")
        return [*self._release_upload(learner), *excluded, *self._is_over(learner, now)]

    def _exclusion(self, learner: str, reason: str) -> Actions:
        """Say so, if the learner has now failed so often that it is left out for a while."""
        limit = self._failures_allowed
        if limit is None or self._records.of(learner).num_failures != limit:
            return []
        excluded = e.LearnerExcluded(
            job=self.state.job,
            round=self.state.round,
            learner=learner,
            num_failures=limit,
            reason=text(reason),
        )
        return [s.Emit(excluded)]

    # ------------------------------------------------------------ parts

    @property
    def _failures_allowed(self) -> int | None:
        """How often in a row a learner may fail before it is left out."""
        return self.state.spec.selector.exclude_after

    @property
    def _remembers(self) -> bool:
        """Whether anybody goes by the records; 100,000 of them are not kept for nothing."""
        return self.state.spec.uses_records

    def _part(self, learner: str, task: TaskRef) -> Assignment | None:
        """The learner's part, if it is this very task and was not given through a group.

        An earlier attempt no longer is: that one has failed or was refused, and the learner was asked once
        more.
        """
        state = self.state
        if task.job != state.job or state.phase not in (Phase.TRAINING, Phase.EVALUATING):
            return None
        part = state.cohort.get(learner)
        if part is None or part.group is not None:
            return None
        return part if (part.round, part.attempt) == (task.round, task.attempt) else None

    def _ref(self, part: Assignment) -> TaskRef:
        return TaskRef(job=self.state.job, round=part.round, attempt=part.attempt)

    def _assign(
        self,
        learners: Iterable[str],
        now: float,
        *,
        attempt: Callable[[str], int],
        beside: Iterable[str] = (),
    ) -> list[str]:
        """Give the open round's task, or the newest version, to learners; nothing is sent yet.

        Their work is paced as of one cohort with those ``beside`` them.
        """
        state, chosen = self.state, list(learners)
        train = state.phase is Phase.TRAINING
        workloads = self._pacer.workloads([*beside, *chosen]) if train and chosen else {}
        remembers = self._remembers and train
        for learner in chosen:
            state.cohort.assign(
                learner,
                now,
                round=state.round,
                attempt=attempt(learner),
                workload=workloads.get(learner),
                group=self._members.group_of(learner),
            )
            if remembers:
                self._records.given(learner, state.round)
        return chosen

    def _send(self, learners: Iterable[str]) -> Actions:
        """One action for all whose tasks are equal."""
        return [
            s.SendTasks(
                task=task,
                learners=tuple(alone),
                groups={group: tuple(members) for group, members in groups.items()},
                version=self.state.version,
                train=self.state.phase is Phase.TRAINING,
                upload_on_request=self._uploads.on_request,
                deadline_s=self.state.spec.protocol.deadline_s,
                workload=workload,
            )
            for task, workload, (alone, groups) in self._by_task(learners)
        ]

    def _by_task(self, learners: Iterable[str]) -> list[tuple[TaskRef, Workload, Addressees]]:
        """Tasks, the work that pacing has set in each, and the members that have it."""
        tasks: dict[tuple[Any, ...], tuple[TaskRef, Workload, Addressees]] = {}
        for learner in learners:
            if (part := self.state.cohort.get(learner)) is not None:
                key = part.round, part.attempt, *part.workload.items()
                if (found := tasks.get(key)) is None:
                    found = tasks[key] = self._ref(part), part.workload, ([], {})
                alone, groups = found[2]
                if part.group is None:
                    alone.append(learner)
                elif (members := groups.get(part.group)) is not None:
                    members.append(learner)
                else:
                    groups[part.group] = [learner]
        return list(tasks.values())

    def _cancel(self, learners: Iterable[str], reason: str) -> Actions:
        """Have members stop; a group stops with all of them."""
        return [
            s.CancelTasks(task, (*alone, *groups), reason)
            for task, _, (alone, groups) in self._by_task(learners)
        ]

    def _dismiss(self, reason: str, now: float, *, cancelled: bool = False) -> Actions:
        """Close the books on members from whom nothing came, and tell them to stop; ``cancelled``: it is not
        their fault.
        """
        late = self.state.cohort.with_status(*OPEN)
        actions: Actions = []
        for learner in () if cancelled else late:
            self._note_late(learner, now)
            actions += self._exclusion(learner, reason)
        self.state.cohort.move_all(late, Status.LATE, now)
        for task, _, (alone, groups) in self._by_task(late):
            actions += [
                s.Emit(
                    e.TaskLate(
                        job=self.state.job,
                        round=task.round,
                        learner=learner,
                        reason=reason,
                        cancelled=cancelled,
                    )
                )
                for learner in alone
            ]
            outcome: e.Missed = "cancelled" if cancelled else "late"
            actions += [
                s.Emit(self._missed(group, task, outcome, dict.fromkeys(members, reason)))
                for group, members in groups.items()
            ]
        return [*actions, *self._cancel(late, reason)]

    def _missed(self, group: str, task: TaskRef, outcome: e.Missed, why: dict[str, str]) -> e.GroupMissed:
        """The event of members of a group whose tasks came to nothing, each with the reason."""
        reasons = tuple(why.values())
        return e.GroupMissed(
            job=self.state.job,
            round=task.round,
            group=group,
            outcome=outcome,
            learners=tuple(why),
            reasons=tuple(map(text, reasons[:1] if len(set(reasons)) == 1 else reasons)),
        )

    def _note_late(self, learner: str, now: float) -> None:
        """Nothing has come of its training, as long as it had."""
        part = self.state.cohort.get(learner)
        if self.state.phase is not Phase.TRAINING or part is None:
            return
        if part.status is not Status.FINISHED:
            self._pacer.missed(learner)
        if self._remembers:
            self._records.late(learner, now - part.sent_at, part.workload.get("steps", 0))

    def _note_evaluation(self) -> Actions:
        """Average what the cohort found out about the version it was given."""
        cohort, means, num_learners, num_examples = self.state.cohort, Means(), 0, 0
        for part in cohort.values():
            if (result := part.result) is not None and result.evaluation:
                means.add(result.evaluation, result.evaluation_examples or 1)
                num_learners, num_examples = num_learners + 1, num_examples + result.evaluation_examples
        for share in cohort.shares.values():
            learners, examples = share.add_evaluation(means)
            num_learners, num_examples = num_learners + learners, num_examples + examples
        if not num_learners:
            return []
        self.state.note_evaluation(means.means())
        evaluated = e.VersionEvaluated(
            job=self.state.job,
            round=self.state.round,
            version=self.state.version,
            metrics=self.state.evaluation,
            num_learners=num_learners,
            num_examples=num_examples,
        )
        return [s.Emit(evaluated)]

    def _committed(
        self, signal: s.VersionWasStored, parts: dict[str, Assignment], now: float
    ) -> e.VersionCommitted:
        """The event of a new version, made of the updates of these members; the state goes on to it."""
        state, means = self.state, Means()
        for part in parts.values():
            if part.result is not None:
                means.add(part.result.metrics, part.weight)
        rule = state.spec.rule
        for share in state.cohort.shares.values():
            if share.is_folded and isinstance(rule, Summable):
                share.add_metrics(means, rule.weighting)
        committed = e.VersionCommitted(
            job=state.job,
            round=state.round,
            version=signal.version,
            parent=state.version,
            rule=state.spec.rule.name,
            digest=signal.digest,
            contributors=tuple(sorted(parts)),
            total_weight=signal.total_weight,
            used=None if signal.used is None else dict(signal.used),
            metrics=means.means(),
            round_s=max(0.0, now - state.round_started_at),
            aggregate_s=signal.aggregate_s,
            store_s=signal.store_s,
            memory_bytes=signal.memory_bytes,
        )
        state.version, state.round = signal.version, state.round + 1
        state.num_updates += len(parts)
        return committed

    def _release_upload(self, learner: str) -> Actions:
        return self._grant(self._uploads.release(learner))

    def _grant(self, learners: Iterable[str]) -> Actions:
        """Ask these learners for the updates that they hold."""
        parts = ((learner, self.state.cohort.get(learner)) for learner in learners)
        return [s.RequestUpload(learner, self._ref(part)) for learner, part in parts if part is not None]

    def _present(self) -> list[Member]:
        """Who is there and may take part, sorted: members of groups where the rule is a sum of sums alone."""
        if self.state.spec.takes_groups:
            return self._members.members()
        return self._members.alone()
