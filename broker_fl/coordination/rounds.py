"""The protocols with rounds, synchronous and semi-synchronous, as a state machine.

::

    IDLE ──► TRAINING ──► COMMITTING ──► IDLE … ──► EVALUATING ──► ENDED
      └► WAITING ┘  (too few learners)          (after the last round)

Semi-synchronous rounds differ only in the work that learners are given: ``pacing.py``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from broker_fl.coordination import outcomes
from broker_fl.coordination import signals as s
from broker_fl.coordination.cohort import OPEN, Assignment, Cohort, Status
from broker_fl.coordination.groups import GroupJob
from broker_fl.coordination.membership import Membership
from broker_fl.coordination.selection import make_selector
from broker_fl.coordination.signals import Actions
from broker_fl.coordination.state import JobState, Phase
from broker_fl.coordination.target import is_reached_without_any_one, reports_of
from broker_fl.errors import AppError
from broker_fl.interfaces import Extensions, Member
from broker_fl.wire import events as e
from broker_fl.wire.fields import text
from broker_fl.wire.protocols import Rounds
from broker_fl.wire.rules import Robust

ENOUGH = "enough others have delivered"


class RoundsJob(GroupJob):
    """A cohort trains from one version, and its updates make the next."""

    def __init__(
        self, state: JobState, members: Membership, protocol: Rounds, extensions: Extensions | None = None
    ) -> None:
        super().__init__(state, members)
        self._protocol = protocol
        at_least = protocol.quorum if isinstance(protocol.quorum, int) else 1
        self._selector = make_selector(state.spec.selector, extensions, at_least=at_least)

    # ------------------------------------------------------------ rounds

    def _proceed(self, now: float) -> Actions:
        """Open the next round, or evaluate the last version, or end."""
        state, protocol = self.state, self._protocol
        if state.is_paused:
            return []
        over = self._life.enough()
        if over is not None and not state.spec.evaluate:
            return self._finish("done", over, now)
        quorum = protocol.quorum if isinstance(protocol.quorum, int) else 1
        num_needed = 1 if over is not None else max(protocol.min_learners, quorum)
        num_matching = len(self._selector.matching(self._present()))
        if num_matching < num_needed:
            return self._wait_for(num_needed, num_matching, now)
        chosen, spare = self._select()
        if not chosen:
            return self._wait(f"the selector chose none of {num_matching} learners", num_needed, now)
        state.phase = Phase.TRAINING if over is None else Phase.EVALUATING
        state.ending = over or ""
        state.waiting_since = None
        state.retries = 0
        state.cohort = Cohort()
        cohort = chosen
        if over is None and spare:
            cohort, state.num_wanted = sorted([*chosen, *spare]), len(chosen)
        else:
            state.num_wanted = 0
        self._dispatch.assign(cohort, now, attempt=lambda _: 0)
        return self._open_round(now)

    def _select(self) -> tuple[list[str], list[str]]:
        """Whom the selector chooses, and who is asked besides."""
        members, number = self._present(), self.state.round
        chosen = self._selector.select(members, number, self.state.records)
        if not self._protocol.over_selection:
            return chosen, []
        others = self._others(members, set(chosen))
        draw = random.Random(f"{self.state.job}/{number}/spare")  # noqa: S311 - reproducible, not a secret
        return chosen, draw.sample(others, min(len(others), self._protocol.over_selection))

    def _others(self, members: Sequence[Member], chosen: set[str]) -> list[str]:
        """Whom the selector would choose if those that it chose were not there: it may not want everybody."""
        found: list[str] = []
        eligible = self._selector.eligible(members, self.state.round, self.state.records)
        rest = [member for member in eligible if member.learner not in chosen]
        while rest and len(found) < self._protocol.over_selection:
            try:
                more = self._selector.select(rest, self.state.round, self.state.records)
            except AppError:  # a user's own selector wants none of them: there are no spares
                break
            if not more:
                break
            found += more
            rest = [member for member in rest if member.learner not in more]
        return found

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
            train=state.phase is Phase.TRAINING,
            num_wanted=state.num_wanted,
            deadline_s=self._protocol.deadline_s,
        )
        return [s.StartSum(state.round), s.Save(), s.Emit(started), *self._dispatch.send(state.cohort)]

    def _settle(self, now: float) -> Actions:
        """Close the round if nothing more is to be waited for."""
        state, cohort = self.state, self.state.cohort
        if state.phase in (Phase.IDLE, Phase.WAITING):
            return self._proceed(now)
        if state.phase is Phase.COMMITTING:
            return []
        if state.num_wanted and cohort.count(Status.DELIVERED) >= state.num_wanted:
            return self._close_round(ENOUGH, now)
        overdue = state.deadline_at is not None and now >= state.deadline_at
        if cohort.num_open and not overdue:
            return []
        enough = cohort.count(Status.DELIVERED) >= self._num_required()
        if state.phase is Phase.EVALUATING:
            enough = enough or cohort.count(Status.DELIVERED) > 0
        return self._close_round("the round closed without it", now) if enough else self._retry(now)

    def _close_round(self, reason: str, now: float) -> Actions:
        state = self.state
        if state.phase is Phase.TRAINING:
            for learner in state.cohort.with_status(Status.LOST):
                self._notes.missed(learner)
        actions = self._dismiss(reason, now, cancelled=reason == ENOUGH)
        evaluated = outcomes.note_evaluation(self.state)
        actions += evaluated
        state.deadline_at = state.waiting_since = None
        if evaluated and (reached := self._target_reached()) is not None:
            return actions + self._finish("done", reached, now)
        if evaluated and state.version == 0 and (unknown := self._target_unknown()) is not None:
            return actions + self._finish("failed", unknown, now)
        if state.phase is Phase.EVALUATING:
            return actions + self._finish("done", state.ending, now)
        state.phase = Phase.COMMITTING
        return [*actions, s.Commit(state.version + 1)]

    def _target_reached(self) -> str | None:
        """How the target was reached, and not by one party alone; None if it was not.

        A round closes with its quorum, so as many have reported, but for those that evaluate nothing.
        """
        reached, target = self._life.target_reached(), self.state.spec.termination.target
        if reached is None or target is None:
            return None
        reports = reports_of(self.state.cohort, target.metric)
        return reached if is_reached_without_any_one(target, reports) else None

    def _target_unknown(self) -> str | None:
        """Why the target can never be reached; None if it can."""
        return self._life.target_unknown(outcomes.reported_metrics(self.state.cohort))

    def _changes_of_commit(self) -> dict[str, Any]:
        changes: dict[str, Any] = {"phase": Phase.IDLE, "cohort": Cohort()}
        return {**changes, "counted": self._counted()} if self.state.spec.has_residuals else changes

    def _counted(self) -> dict[str, int]:
        """With the open round's deliveries."""
        delivered = self.state.cohort.with_status(Status.DELIVERED)
        return self.state.counted | dict.fromkeys(delivered, self.state.round)

    def _committing(self) -> dict[str, Assignment]:
        return {name: part for name, part in self.state.cohort.items() if part.status is Status.DELIVERED}

    def _version_stored(self, signal: s.VersionWasStored, now: float) -> Actions:
        state = self.state
        if state.phase is not Phase.COMMITTING or signal.version != state.version + 1:
            return []
        parts = self._committing()
        if state.spec.has_residuals:
            state.counted = self._counted()
        committed = outcomes.version_committed(state, signal, parts, now)
        state.go_on_to(signal.version, len(parts))
        state.phase = Phase.IDLE
        return [s.Emit(committed), *self._life.pause_if_due(now), *self._proceed(now)]

    # ------------------------------------------------------------ once more

    def _retry(self, now: float) -> Actions:
        state, cohort = self.state, self.state.cohort
        matching = self._selector.matching(self._present())
        outsiders = self._outsiders(matching)
        failed = [
            learner
            for learner in cohort.with_status(Status.FAILED, Status.REFUSED)
            if learner in self._members
        ]
        gone = [
            learner
            for learner in cohort.with_status(Status.FAILED, Status.REFUSED)
            if learner not in self._members
        ]
        if gone:  # they are dead like those that said nothing first: a quorum of the live is without them
            cohort.move_all(gone, Status.LOST, now)
            return self._settle(now)
        if not (outsiders or failed or cohort.num_open):
            return self._wait_for(len(matching) + 1, len(matching), now)
        required = self._num_required()
        reason = f"{cohort.count(Status.DELIVERED)} delivered, {required} were needed; {cohort.summary()}"
        if state.retries >= self._protocol.max_retries:
            return self._give_up(reason, now)
        state.retries += 1
        state.waiting_since = None
        replacements = self._replace(outsiders, now)
        again = [learner for learner in failed if self._status(learner) is not Status.REPLACED]
        attempts = {learner: part.attempt + 1 for learner in again if (part := cohort.get(learner))}
        self._dispatch.assign(again, now, attempt=lambda learner: attempts[learner], beside=cohort)
        self._set_deadline(now)
        retried = e.RoundRetried(
            job=state.job,
            round=state.round,
            attempt=state.retries,
            reason=text(reason),
            replacements=tuple(replacements),
        )
        return [s.Save(), s.Emit(retried), *self._dispatch.send([*replacements, *again])]

    def _outsiders(self, matching: Sequence[Member]) -> list[str]:
        """Who may be asked in another's place; those that keep failing only if there is nobody else."""
        outside = [member for member in matching if member.learner not in self.state.cohort]
        eligible = self._selector.eligible(outside, self.state.round, self.state.records)
        return [member.learner for member in eligible or outside]

    def _give_up(self, reason: str, now: float) -> Actions:
        state = self.state
        if state.phase is Phase.EVALUATING:
            return self._finish("done", f"{state.ending}; the last version is not evaluated: {reason}", now)
        tries = state.retries + 1
        return self._finish(
            "failed", f"round {state.round + 1} missed its quorum {tries} times: {reason}", now
        )

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
        missing = self._num_required() - cohort.count(Status.DELIVERED)
        chosen = sorted(draw.sample(outsiders, min(len(outsiders), max(len(vacant), missing))))
        for learner in vacant[: len(chosen)]:
            if self._status(learner) in OPEN and not self._dispatch.is_held_up(learner):
                self._notes.late(learner, now)
            cohort.move(learner, Status.REPLACED, now)
            self._dispatch.release(learner, now)
        return self._dispatch.assign(chosen, now, attempt=lambda _: 0, beside=cohort)

    def _num_required(self) -> int:
        """Deliveries with which the open round may close: never too few for its rule to combine."""
        rule, state = self.state.spec.rule, self.state
        required = state.cohort.num_required(self._protocol.quorum, state.num_wanted)
        if isinstance(rule, Robust) and state.phase is Phase.TRAINING:
            return max(required, rule.updates_needed())
        return required

    def _status(self, learner: str) -> Status | None:
        part = self.state.cohort.get(learner)
        return part.status if part is not None else None

    # ------------------------------------------------------------ what happens

    def _controller_restarted(self, signal: s.ControllerRestarted, now: float) -> Actions:
        state = self.state
        resumed = e.JobResumed(job=state.job, round=state.round, version=state.version, epoch=signal.epoch)
        actions: Actions = [s.Emit(resumed)]
        if state.phase is Phase.COMMITTING:
            state.phase = Phase.TRAINING
        if state.phase in (Phase.TRAINING, Phase.EVALUATING):
            self._open_uploads()
            # The deadline anew: what was delivered has to come once more, however long nobody was there.
            self._set_deadline(now)
            return [*actions, s.StartSum(state.round)]
        state.phase, state.waiting_since = Phase.IDLE, None
        return actions + self._proceed(now)

    def _learner_up(self, signal: s.LearnerUp, now: float) -> Actions:
        part = self.state.cohort.get(signal.learner)
        if self.state.phase not in (Phase.TRAINING, Phase.EVALUATING) or part is None:
            return self._settle(now)
        part.group = None  # it may have been in one before
        if part.status is Status.LOST:
            self.state.cohort.move(signal.learner, Status.SENT, now)
            if self.state.waiting_since is not None:
                self.state.waiting_since = None
                self._set_deadline(now)
        if part.status not in OPEN:
            return self._settle(now)
        return self._came_back(signal.learner, part, signal.tasks, now)

    def _learner_down(self, signal: s.LearnerDown, now: float) -> Actions:
        part = self.state.cohort.get(signal.learner)
        if part is None or part.status not in OPEN:
            return []
        self.state.cohort.move(signal.learner, Status.LOST, now, signal.reason)
        self._notes.lost(signal.learner)
        return [*self._dispatch.release(signal.learner, now), *self._settle(now)]

    def _is_over(self, learner: str, now: float) -> Actions:
        return self._settle(now)

    def _send_again(self, learner: str, part: Assignment, now: float) -> Actions:
        if part.status is not Status.SENT:  # it was started anew: what it had is gone
            self.state.cohort.move(learner, Status.SENT, now)
        return self._dispatch.send([learner])

    # ------------------------------------------------------------ parts

    def _next_deadline(self) -> float | None:
        # With nobody open there is nothing that a deadline could end: the round waits for somebody to come.
        is_open = self.state.phase in (Phase.TRAINING, Phase.EVALUATING) and self.state.cohort.num_open > 0
        return self.state.deadline_at if is_open else None

    def _deadline_anew(self, now: float) -> None:
        self._set_deadline(now)

    def _set_deadline(self, now: float) -> None:
        deadline_s = self._protocol.deadline_s
        self.state.deadline_at = None if deadline_s is None else now + deadline_s

    def _open_uploads(self) -> None:
        """Nobody waits for a turn; an evaluation brings nothing to upload, so there nobody will."""
        alone = sum(part.group is None for part in self.state.cohort.values())
        num_uploads = alone + len(self.state.cohort.groups)
        self._dispatch.uploads.open(num_uploads if self.state.phase is Phase.TRAINING else 0)
