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

from broker_fl.coordination import outcomes
from broker_fl.coordination import signals as s
from broker_fl.coordination.checking import problem_of
from broker_fl.coordination.cohort import OPEN, Assignment, Status
from broker_fl.coordination.dispatch import Dispatch
from broker_fl.coordination.life import Life
from broker_fl.coordination.membership import Membership
from broker_fl.coordination.notes import Notes
from broker_fl.coordination.selection import Eligible
from broker_fl.coordination.signals import Actions
from broker_fl.coordination.state import JobState, Phase
from broker_fl.interfaces import Member
from broker_fl.wire import events as e
from broker_fl.wire.events import JobEnd
from broker_fl.wire.fields import text
from broker_fl.wire.messages import Result, TaskRef, TaskStatus

MAX_REMINDER_DOUBLINGS = 5


class Job(ABC):
    """One job: its state, and what follows from each signal. ``members`` is read, never changed; a learner
    that has failed ``failures_allowed`` times in a row is left out for a while.
    """

    _selector: Eligible

    def __init__(self, state: JobState, members: Membership, failures_allowed: int | None = None) -> None:
        self.state = state
        self._members = members
        self._life = Life(state, members)
        self._notes = Notes(state, failures_allowed or state.spec.selector.exclude_after)
        self._dispatch = Dispatch(state, members, self._notes)
        self._said_late: dict[str, int] = {}
        """Learner or group → the last round of which it was said that it was late."""
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
            s.PauseWanted: lambda signal, now: self._life.pause(signal.reason, now),
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
        if (reason := self._life.time_is_up(now)) is not None:
            actions += self._finish("done", reason, now)
        return actions

    def start(self, now: float) -> Actions:
        """Begin, once the initial model is stored as version 0."""
        return self._proceed(now)

    def next_timer(self) -> float | None:
        """When ``TimePassed`` is due at the latest, if no other signal comes."""
        if self.state.phase is Phase.ENDED:  # it may have to wait until the store takes its last events
            return None
        return min(
            (due for due in (*self._life.timers(), self._next_deadline()) if due is not None), default=None
        )

    def expects(self, learner: str, task: TaskRef) -> bool:
        """Whether an update for this task may still be folded."""
        part = self._dispatch.part(learner, task)
        return part is not None and part.status not in (Status.DELIVERED, Status.REFUSED)

    def has_turn(self, name: str) -> bool:
        """Whether a learner or a group may upload now."""
        return self._dispatch.uploads.has_turn(name)

    def finished(self, now: float) -> e.JobFinished:
        """The last event of a job that has ended."""
        return self._life.finished(now)

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

    def state_after_commit(self, signal: s.VersionWasStored, last_event: int, now: float) -> bytes:
        """The state that is to be stored together with the version that ``Commit`` asks for, of which
        ``signal`` tells all but how long storing took. ``last_event``: number of the last that was written.
        """
        state = self.state
        event = outcomes.version_committed(state, signal, self._committing(), now)
        state.unsaid = last_event, event.stamped(last_event + 1, now).pack()
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
    def _committing(self) -> dict[str, Assignment]:
        """Parts of those whose updates are in the version that is being stored."""

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
        if (waited_s := self._life.waited_in_vain(now)) is not None:
            return self._finish("failed", f"for {waited_s:g} s: {reason}", now)
        return self._life.wait(reason, num_needed, now)

    def _wait_for(self, num_needed: int, num_matching: int, now: float) -> Actions:
        return self._wait(self._life.lack(num_needed, num_matching), num_needed, now)

    def _finish(self, end: JobEnd, reason: str, now: float) -> Actions:
        is_open = self.state.phase in (Phase.TRAINING, Phase.EVALUATING)
        actions = self._dismiss("the job has ended", now, cancelled=True) if is_open else []
        actions += self._dispatch.cancel(self.state.cohort, "the job has ended")
        return [*actions, *self._life.end(end, reason, now)]

    def _commit_failed(self, signal: s.CommitFailed, now: float) -> Actions:
        return self._finish("failed", signal.reason, now) if self.state.phase is Phase.COMMITTING else []

    def _unpause(self, signal: s.ResumeWanted, now: float) -> Actions:
        was_paused = self.state.is_paused
        actions = self._life.unpause(signal.versions, now)
        return [*actions, *self._settle(now)] if was_paused else actions

    # ------------------------------------------------------------ what learners hold

    def _learner_reported(self, signal: s.LearnerReported, now: float) -> Actions:
        """Compare what a learner holds with what it should hold; remind it, ever less often, of what is
        missing.
        """
        part = self.state.cohort.get(signal.learner)
        if part is None or part.status not in OPEN:
            return []
        if self._dispatch.uploads.is_waiting(signal.learner):
            return self._dispatch.pass_on_overdue(now)
        if signal.receiving:
            part.changed_at = now
            return []
        if now - part.changed_at < self._patience_s(part.reminders):
            return []
        return self._remind(signal.learner, part, signal.tasks, now)

    def _patience_s(self, num_reminders: int) -> float:
        """How long nothing is done about what a party lacks."""
        return 2 * self._members.heartbeat_s * 2.0 ** min(num_reminders, MAX_REMINDER_DOUBLINGS)

    def _came_back(
        self, learner: str, part: Assignment, tasks: tuple[TaskStatus, ...], now: float
    ) -> Actions:
        """A member that has joined once more: what it lacks is sent at once, the first time. From then on it
        is as after a heartbeat, or joining would have the model sent as often as somebody likes.
        """
        has_it = any(held.task == self._dispatch.ref(part) and held.phase != "receiving" for held in tasks)
        if part.reminders and not has_it and now - part.changed_at < self._patience_s(part.reminders):
            return []
        return self._remind(learner, part, tasks, now)

    def _remind(self, learner: str, part: Assignment, tasks: Iterable[TaskStatus], now: float) -> Actions:
        task = self._dispatch.ref(part)
        held = next((status for status in tasks if status.task == task), None)
        if held is None or held.phase == "receiving":
            if held is not None and held.progress > part.received:
                part.changed_at, part.received = now, held.progress
                return []
            part.changed_at, part.reminders = now, part.reminders + 1
            return [*self._dispatch.release(learner, now), *self._send_again(learner, part, now)]
        if held.phase != "finished" and not self._dispatch.uploads.is_in_the_way(learner):
            return []
        part.changed_at, part.reminders = now, part.reminders + 1
        if self._dispatch.uploads.on_request:
            return self._dispatch.pass_on(learner, now)
        return [s.RequestUpload(learner, task)]

    def _task_accepted(self, signal: s.TaskWasAccepted, now: float) -> Actions:
        part = self._dispatch.part(signal.learner, signal.task)
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
        part = self._dispatch.part(signal.learner, signal.task)
        if part is None or part.status not in OPEN:
            return []
        self.state.cohort.move(signal.learner, Status.FAILED, now, signal.reason)
        failed = e.TaskFailed(
            job=self.state.job, round=signal.task.round, learner=signal.learner, reason=signal.reason
        )
        return [s.Emit(failed), *self._came_to_nothing(signal.learner, now)]

    def _result_arrived(self, signal: s.ResultArrived, now: float) -> Actions:
        result, state = signal.result, self.state
        part = self._dispatch.part(result.learner, result.task)
        if part is None:
            return self._late(result)
        if part.status in (Status.DELIVERED, Status.REFUSED):
            return []
        finished = outcomes.task_finished(result)
        if (problem := self._problem(part, result)) is not None:
            return [s.Emit(finished), *self._refused(result.learner, result.task, problem, now)]
        part.result = result
        if part.status is Status.FINISHED:  # sent once more, or of a learner that was started anew
            return []
        self._notes.finished(result, now - part.sent_at)
        if state.phase is Phase.EVALUATING:
            state.cohort.move(result.learner, Status.DELIVERED, now)
            return [s.Emit(finished), *self._settle(now)]
        state.cohort.move(result.learner, Status.FINISHED, now)
        return [s.Emit(finished), *self._dispatch.ready(result.learner, now)]

    def _problem(self, part: Assignment, result: Result) -> str | None:
        """Why the result cannot be right; None if it can."""
        if self.state.phase is not Phase.TRAINING:
            return None
        return problem_of(result, part.workload.get("steps"), self.state.spec.parameters.get("steps"))

    def _late(self, result: Result) -> Actions:
        """Say so, if it is of this job and of a task that was given up."""
        task, state = result.task, self.state
        part = state.cohort.get(result.learner)
        is_known = part is not None and self._dispatch.ref(part) == task
        if task.job != state.job or task.round >= state.round or is_known:
            return []
        if self._is_said_late(result.learner, task.round):
            return []
        reason = f"delivered while round {state.round + 1} was open"
        return [s.Emit(e.TaskLate(job=state.job, round=task.round, learner=result.learner, reason=reason))]

    def _is_said_late(self, who: str, round: int) -> bool:
        """Whether that was said already; else it is from now on. Once for each round, and not for an earlier
        one later: whoever sends results again and again fills no store with it.
        """
        if self._said_late.get(who, -1) >= round:
            return True
        self._said_late[who] = round
        return False

    def _update_folded(self, signal: s.UpdateWasFolded, now: float) -> Actions:
        if not self.expects(signal.learner, signal.task):
            return []
        self.state.cohort.move(signal.learner, Status.DELIVERED, now)
        if (part := self.state.cohort.get(signal.learner)) is not None:
            part.weight = signal.weight
        self._notes.counted(signal.learner)
        folded = s.Emit(outcomes.update_folded(signal, self.staleness(signal.task)))
        return [folded, *self._dispatch.delivered(signal.learner, now), *self._settle(now)]

    def _update_refused(self, signal: s.UpdateWasRefused, now: float) -> Actions:
        if not self.expects(signal.learner, signal.task):
            return []
        return self._refused(signal.learner, signal.task, signal.reason, now)

    def _refused(self, learner: str, task: TaskRef, reason: str, now: float) -> Actions:
        self.state.cohort.move(learner, Status.REFUSED, now, reason)
        refused = e.UpdateRefused(job=self.state.job, round=task.round, learner=learner, reason=text(reason))
        return [s.Emit(refused), *self._came_to_nothing(learner, now)]

    def _came_to_nothing(self, learner: str, now: float) -> Actions:
        part = self.state.cohort.get(learner)
        excluded = self._notes.failed(learner, part.reason if part is not None else "")
        return [*self._dispatch.release(learner, now), *excluded, *self._is_over(learner, now)]

    # ------------------------------------------------------------ parts

    def _dismiss(self, reason: str, now: float, *, cancelled: bool = False) -> Actions:
        """Close the books on members from whom nothing came, and tell them to stop; ``cancelled``: it is not
        their fault. Nor is it of those whom others have held up.
        """
        late = self.state.cohort.with_status(*OPEN)
        held_up = [] if cancelled else [one for one in late if self._dispatch.is_held_up(one)]
        if held_up:
            late = sorted(set(late).difference(held_up))
        actions: Actions = []
        for learner in () if cancelled else late:
            self._notes.late(learner, now)
            actions += self._notes.exclusion(learner, reason)
        self.state.cohort.move_all([*late, *held_up], Status.LATE, now)
        actions += self._say_late(late, reason, cancelled=cancelled)
        actions += self._say_late(held_up, reason, cancelled=True)
        return [*actions, *self._dispatch.cancel([*late, *held_up], reason)]

    def _say_late(self, late: list[str], reason: str, *, cancelled: bool) -> Actions:
        actions: Actions = []
        for task, _, (alone, groups) in self._dispatch.by_task(late):
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
                s.Emit(outcomes.group_missed(group, task, outcome, dict.fromkeys(members, reason)))
                for group, members in groups.items()
            ]
        return actions

    def _present(self) -> list[Member]:
        """Who is there and may take part, sorted: members of groups where the rule is a sum of sums alone."""
        if self.state.spec.takes_groups:
            return self._members.members()
        return self._members.alone()
