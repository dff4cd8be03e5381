"""The asynchronous protocol as a state machine: tasks go to whoever is free, updates count as they arrive.

::

    IDLE ──► TRAINING ⇄ COMMITTING … ──► EVALUATING ──► ENDED
      └► WAITING ┘  (too few learners)

A learner is *idle* (may be given a task), *open* (has one), *buffered* (its update is in the sum of the next
version), or *benched* (failed too often). Each step is O(1) in the number of learners.

Nothing of the cohort is stored. Each learner's rounds grow, and the state says which of them was its last in
a version (``counted``): so a new controller knows of any task that a learner holds whether it still counts.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from broker_fl.coordination import outcomes
from broker_fl.coordination import signals as s
from broker_fl.coordination.cohort import OPEN, Assignment, Cohort, Status
from broker_fl.coordination.job import Job
from broker_fl.coordination.membership import Membership
from broker_fl.coordination.pool import Pool
from broker_fl.coordination.running_evaluation import RunningEvaluation
from broker_fl.coordination.selection import make_selector
from broker_fl.coordination.signals import Actions
from broker_fl.coordination.state import JobState, Phase
from broker_fl.wire import events as e
from broker_fl.wire.messages import Result, TaskRef, TaskStatus
from broker_fl.wire.pacing import Aimd
from broker_fl.wire.protocols import Asynchronous
from broker_fl.wire.rules import PerUpdate

_NEVER = (-1, -1)


class AsynchronousJob(Job):
    """Every learner trains from the newest version that there is when it is free."""

    def __init__(self, state: JobState, members: Membership, protocol: Asynchronous) -> None:
        super().__init__(state, members, protocol.max_failures)
        self._protocol = protocol
        self._selector = make_selector(state.spec.selector)
        self._pool = Pool(state, protocol.max_lead)
        rule = state.spec.rule
        self._updates_per_version = rule.updates_per_version() if isinstance(rule, PerUpdate) else 1
        self._buffer: list[str] = []
        self._last: dict[str, tuple[int, int]] = {}
        """Round and attempt of each learner's newest task."""
        self._due: deque[tuple[float, str, TaskRef]] = deque()
        self._evaluations = RunningEvaluation(state.spec.termination.target)

    # ------------------------------------------------------------ giving tasks

    def _proceed(self, now: float) -> Actions:
        state, num_needed = self.state, self._protocol.min_learners
        if state.is_paused:
            return []
        matching = [member.learner for member in self._selector.matching(self._present())]
        self._pool.let_in(matching)
        if len(matching) < num_needed:
            return self._wait_for(num_needed, len(matching), now)
        state.phase, state.waiting_since = Phase.TRAINING, None
        state.round_started_at = now
        for learner in matching:
            self._pool.enter(learner)
            self._pool.free(learner)
        return [s.StartSum(state.round), s.Save(), *self._fill(now)]

    def _fill(self, now: float) -> Actions:
        """Give tasks to those who have been idle longest, as many as there is room for."""
        state, limit = self.state, self._protocol.max_concurrent
        if state.phase is not Phase.TRAINING or state.is_paused or not self._pool.num_free:
            return []
        room = self._pool.num_free if limit is None else limit - state.cohort.num_open
        if state.pause_after is not None:  # stepped: no more tasks than the versions need that are wanted
            wanted = (state.pause_after - state.version) * self._updates_per_version
            room = min(room, wanted - len(self._buffer) - state.cohort.num_open)
        return self._give(self._pool.first(room), now)

    def _give(self, learners: list[str], now: float) -> Actions:
        if not learners:
            return []
        state = self.state
        for learner in learners:
            self._pool.busy(learner)
        self._dispatch.assign(learners, now, attempt=self._next_attempt)
        for learner in learners:
            part = state.cohort.get(learner)
            if part is not None:
                self._last[learner] = part.round, part.attempt
                if self._protocol.deadline_s is not None:
                    self._due.append((now + self._protocol.deadline_s, learner, self._dispatch.ref(part)))
        state.waiting_since = None
        self._dispatch.uploads.make_room_for(state.cohort.num_open)
        return self._dispatch.send(learners)

    def _next_attempt(self, learner: str) -> int:
        """No two tasks of a learner have the same name."""
        round, attempt = self._last.get(learner, _NEVER)
        return attempt + 1 if round == self.state.round else 0

    # ------------------------------------------------------------ what comes in

    def _result_arrived(self, signal: s.ResultArrived, now: float) -> Actions:
        result = signal.result
        part = self._dispatch.part(result.learner, result.task)
        if part is None or part.status not in OPEN:
            return super()._result_arrived(signal, now)
        self._evaluations.note(result)
        if self.state.phase is Phase.TRAINING and (reason := self.refusal(result.task)) is not None:
            finished = s.Emit(outcomes.task_finished(result))
            return [finished, *self._too_old(result.learner, result.task, reason, now)]
        return super()._result_arrived(signal, now)

    def _update_refused(self, signal: s.UpdateWasRefused, now: float) -> Actions:
        too_old = self.refusal(signal.task)
        if too_old is None or not self.expects(signal.learner, signal.task):
            return super()._update_refused(signal, now)
        return self._too_old(signal.learner, signal.task, too_old, now)

    def refusal(self, task: TaskRef) -> str | None:
        limit, staleness = self._protocol.max_staleness, self.staleness(task)
        if limit is None or staleness <= limit:
            return None
        return f"its version is {staleness} versions old; at most {limit} are allowed"

    def _too_old(self, learner: str, task: TaskRef, reason: str, now: float) -> Actions:
        """No fault of the learner's: it gets another task, whatever else it has failed at."""
        refused = e.UpdateRefused(job=self.state.job, round=task.round, learner=learner, reason=reason)
        self._notes.missed(learner)
        self.state.cohort.remove(learner)
        self._pool.free(learner)
        return [s.Emit(refused), *self._dispatch.release(learner, now), *self._settle(now)]

    def _late(self, result: Result) -> Actions:
        if self.state.counted.get(result.learner, -1) >= result.task.round:
            return []  # it is in a version already
        return super()._late(result)

    def _update_folded(self, signal: s.UpdateWasFolded, now: float) -> Actions:
        if self.expects(signal.learner, signal.task):
            self._buffer.append(signal.learner)
            self._pool.delivered(signal.learner)
        return super()._update_folded(signal, now)

    def _settle(self, now: float) -> Actions:
        state = self.state
        if state.phase in (Phase.IDLE, Phase.WAITING):
            return self._proceed(now)
        if state.phase is Phase.COMMITTING:
            return []
        actions = self._take_back_overdue(now)
        if state.phase is Phase.EVALUATING:
            overdue = state.deadline_at is not None and now >= state.deadline_at
            return actions if state.cohort.num_open and not overdue else actions + self._evaluated(now)
        if len(self._buffer) >= self._updates_per_version:
            state.phase = Phase.COMMITTING
            return [*actions, s.Commit(state.version + 1)]
        actions += self._fill(now)
        if state.cohort.num_open or state.is_paused:
            return actions
        return actions + self._nobody_works(now)

    def _nobody_works(self, now: float) -> Actions:
        bench, num_matching = self._pool.bench, len(self._pool.matching)
        if bench and len(bench) + len(self._buffer) >= num_matching:
            learner, reason = bench.last()
            reason = (
                f"nobody is left to ask: {len(self._buffer)} of {self._updates_per_version} updates of a "
                f"version are there; {len(bench)} learners failed {self._protocol.max_failures} "
                f"times in a row, at last {learner}: {reason}"
            )
            return self._finish("failed", reason, now)
        return self._wait_for(num_matching + 1, num_matching, now)

    def _take_back_overdue(self, now: float) -> Actions:
        actions: Actions = []
        while self._due and self._due[0][0] <= now:
            _, learner, task = self._due.popleft()
            part = self._dispatch.part(learner, task)
            if self.state.phase is Phase.TRAINING and part is not None and part.status in OPEN:
                reason = f"nothing came within {self._protocol.deadline_s:g} s"
                late = e.TaskLate(
                    job=self.state.job,
                    round=task.round,
                    learner=learner,
                    reason=reason,
                    cancelled=self._dispatch.is_held_up(learner),
                )
                actions += [s.Emit(late), s.CancelTasks(task, (learner,), reason)]
                if not late.cancelled:
                    self._notes.late(learner, now)
                    actions += self._notes.exclusion(learner, reason)
                self._let_go(learner, reason)
                actions += self._dispatch.release(learner, now)
        return actions

    def _is_over(self, learner: str, now: float) -> Actions:
        if self.state.phase is not Phase.TRAINING:
            return self._settle(now)
        part = self.state.cohort.get(learner)
        self._let_go(learner, part.reason if part is not None else "")
        return self._settle(now)

    def _let_go(self, learner: str, reason: str) -> None:
        """Its task came to nothing: it may have another, unless that happens too often."""
        self.state.cohort.remove(learner)
        if self._notes.record(learner).num_failures >= self._protocol.max_failures:
            until = self.state.round + self._protocol.exclude_versions
            self._pool.leave_out(learner, reason, until=until)
        self._pool.free(learner)

    def _send_again(self, learner: str, part: Assignment, now: float) -> Actions:
        """It gets the newest version, under a new name."""
        if self.state.phase is Phase.EVALUATING:
            return self._dispatch.send([learner])
        self.state.cohort.remove(learner)
        actions = self._give([learner], now)
        if (anew := self.state.cohort.get(learner)) is not None:
            anew.reminders = part.reminders
        return actions

    # ------------------------------------------------------------ versions

    def _changes_of_commit(self) -> dict[str, Any]:
        rounds = {name: part.round for name, part in self._committing().items()}
        changes = {"phase": Phase.TRAINING, "cohort": Cohort(), "counted": self.state.counted | rounds}
        # Written with each version: what only counts failures is left to be counted anew.
        return changes if isinstance(self.state.spec.pacing, Aimd) else {**changes, "records": {}}

    def _committing(self) -> dict[str, Assignment]:
        return {name: part for name in sorted(self._buffer) if (part := self.state.cohort.get(name))}

    def _version_stored(self, signal: s.VersionWasStored, now: float) -> Actions:
        state = self.state
        if state.phase is not Phase.COMMITTING or signal.version != state.version + 1:
            return []
        parts = self._committing()
        contributors, self._buffer = sorted(self._buffer), []
        for name in contributors:
            state.cohort.remove(name)
        state.counted |= {name: part.round for name, part in parts.items()}
        committed = outcomes.version_committed(state, signal, parts, now)
        state.go_on_to(signal.version, len(parts))
        state.round_started_at = now
        state.phase = Phase.TRAINING
        for learner in contributors:
            self._pool.free(learner)
        self._end_benches()
        actions = [s.Emit(committed), *self._evaluations.note_version(state), *self._life.pause_if_due(now)]
        all_asked = self._pool.waited_for
        over = self._life.enough() or self._evaluations.target_reached(self._life, all_asked)
        if over is not None:
            return actions + self._end_training(over, now)
        if (unknown := self._evaluations.target_unknown(self._life, all_asked)) is not None:
            return actions + self._finish("failed", unknown, now)
        return actions + self._settle(now)

    def _end_benches(self) -> None:
        """Ask again who was left out for long enough; one more failure, and it is left out again."""
        for learner in self._pool.bench.due(self.state.round):
            self._notes.record(learner).num_failures = self._protocol.max_failures - 1
            self._pool.enter(learner)
            self._pool.free(learner)

    # ------------------------------------------------------------ the end

    def _end_training(self, reason: str, now: float) -> Actions:
        """Have the last version evaluated by all that are there."""
        state = self.state
        actions = self._dismiss("the job has enough updates", now, cancelled=True)
        if not state.spec.evaluate or not self._pool.matching:
            return actions + self._finish("done", reason, now)
        state.phase, state.ending, state.cohort = Phase.EVALUATING, reason, Cohort()
        self._buffer, self._due = [], deque()
        self._dispatch.uploads.open(0)
        self._dispatch.assign(sorted(self._pool.matching), now, attempt=self._next_attempt)
        deadline_s = self._protocol.deadline_s
        state.deadline_at = None if deadline_s is None else now + deadline_s
        started = e.RoundStarted(
            job=state.job,
            round=state.round,
            version=state.version,
            cohort=tuple(state.cohort),
            train=False,
            deadline_s=deadline_s,
        )
        return [*actions, s.Save(), s.Emit(started), *self._dispatch.send(state.cohort)]

    def _evaluated(self, now: float) -> Actions:
        actions = self._dismiss("the evaluation closed without it", now)
        noted = outcomes.note_evaluation(self.state)
        missing = "" if noted else f"; the last version is not evaluated: {self.state.cohort.summary()}"
        return [*actions, *noted, *self._finish("done", self.state.ending + missing, now)]

    # ------------------------------------------------------------ who is there

    def _learner_up(self, signal: s.LearnerUp, now: float) -> Actions:
        learner, state = signal.learner, self.state
        self._note_whether_it_matches(learner)
        part = state.cohort.get(learner)
        if state.phase is Phase.EVALUATING:
            if part is not None and part.status is Status.LOST:
                state.cohort.move(learner, Status.SENT, now)
            is_open = part is not None and part.status in OPEN
            return (
                self._came_back(learner, part, signal.tasks, now) if part and is_open else self._settle(now)
            )
        if state.phase not in (Phase.TRAINING, Phase.COMMITTING):
            return self._settle(now)
        if part is not None:
            return self._came_back(learner, part, signal.tasks, now) if part.status in OPEN else []
        if learner not in self._pool.matching:
            self._pool.leave(learner)
            return self._settle(now)
        self._pool.bench.remove(learner)
        self._notes.record(learner).num_failures = 0
        self._pool.enter(learner)
        if (held := self._still_counts(learner, signal.tasks)) is not None:
            return self._adopt(learner, held, now)
        self._pool.free(learner)
        return self._settle(now)

    def _note_whether_it_matches(self, learner: str) -> None:
        """It may have joined again with other attributes."""
        member = self._members.get(learner)
        if member is not None and self._selector.matches(member):
            self._pool.matching.add(learner)
        else:
            self._pool.matching.discard(learner)

    def _still_counts(self, learner: str, tasks: tuple[TaskStatus, ...]) -> TaskStatus | None:
        """The learner's task of this job that is not in a version yet; names of others are not used again."""
        state = self.state
        for held in tasks:
            task = held.task
            if task.job != state.job:
                continue
            self._last[learner] = max(self._last.get(learner, _NEVER), (task.round, task.attempt))
            fresh = state.counted.get(learner, -1) < task.round <= state.round
            limit = self._protocol.max_staleness
            if fresh and held.phase != "receiving" and (limit is None or self.staleness(task) <= limit):
                return held
        return None

    def _adopt(self, learner: str, held: TaskStatus, now: float) -> Actions:
        """Take over a task that another controller gave, or that this one had given up."""
        self._pool.busy(learner)
        part = self.state.cohort.assign(learner, now, round=held.task.round, attempt=held.task.attempt)
        self.state.cohort.move(learner, Status.ACCEPTED, now)
        self._dispatch.uploads.make_room_for(self.state.cohort.num_open)
        return self._remind(learner, part, (held,), now)

    def _learner_down(self, signal: s.LearnerDown, now: float) -> Actions:
        learner, state = signal.learner, self.state
        self._pool.gone(learner)
        self._evaluations.remove(learner)
        part = state.cohort.get(learner)
        if part is None or part.status not in OPEN:
            return self._settle(now)
        if state.phase is Phase.EVALUATING:
            state.cohort.move(learner, Status.LOST, now, signal.reason)
        else:
            state.cohort.remove(learner)
        return [*self._dispatch.release(learner, now), *self._settle(now)]

    def _controller_restarted(self, signal: s.ControllerRestarted, now: float) -> Actions:
        """Sums are lost; learners are about to join, and say what they hold."""
        state = self.state
        resumed = e.JobResumed(job=state.job, round=state.round, version=state.version, epoch=signal.epoch)
        actions: Actions = [s.Emit(resumed), s.StartSum(state.round)]
        state.round_started_at = now
        matching = self._selector.matching(self._present())
        self._pool.let_in(member.learner for member in matching)
        if state.phase is Phase.EVALUATING:
            deadline_s = self._protocol.deadline_s
            state.deadline_at = None if deadline_s is None else now + deadline_s
            return actions
        state.waiting_since, state.cohort = None, Cohort()
        if state.phase in (Phase.TRAINING, Phase.COMMITTING):
            state.phase = Phase.TRAINING
            if (over := self._life.enough()) is not None:
                return actions + self._end_training(over, now)
            return actions
        state.phase = Phase.IDLE
        return actions + self._proceed(now)

    def _next_deadline(self) -> float | None:
        if self.state.phase is Phase.EVALUATING:
            return self.state.deadline_at if self.state.cohort.num_open else None
        return self._due[0][0] if self._due and self.state.phase is Phase.TRAINING else None
