"""A job as a whole: what it waits for, when it is paused, when it is over. Nothing of its learners' tasks."""

from __future__ import annotations

from broker_fl.coordination import signals as s
from broker_fl.coordination.membership import Membership
from broker_fl.coordination.state import JobState, Phase
from broker_fl.wire import events as e
from broker_fl.wire.events import JobEnd
from broker_fl.wire.fields import text


class Life:
    """Changes the state of one job as a whole. ``members`` is read, never changed."""

    def __init__(self, state: JobState, members: Membership) -> None:
        self._state = state
        self._members = members

    # ------------------------------------------------------------ waiting for learners

    def wait(self, reason: str, num_needed: int, now: float) -> s.Actions:
        """Note that the job waits, and say so once."""
        state = self._state
        if state.waiting_since is not None:
            return []
        state.waiting_since = now
        if state.phase is Phase.IDLE:
            state.phase = Phase.WAITING
        state.reason = reason
        waiting = e.JobWaiting(
            job=state.job, reason=reason, num_learners=len(self._members), num_needed=num_needed
        )
        return [s.Emit(waiting)]

    def waited_in_vain(self, now: float) -> float | None:
        """The seconds that the job may wait, if it has; None if it has not, or may for ever."""
        since, max_wait_s = self._state.waiting_since, self._state.spec.protocol.max_wait_s
        if since is None or max_wait_s is None or now - since < max_wait_s:
            return None
        return max_wait_s

    def lack(self, num_needed: int, num_matching: int) -> str:
        """Why too few are there, in words."""
        spec = self._state.spec
        there = f"{num_matching} learners are there"
        if not spec.takes_groups and len(self._members.alone()) < len(self._members):
            there += (
                f" besides members of groups, whose updates come as sums of values: the rule "
                f"{spec.rule.name!r} or the encoding needs each by itself"
            )
        elif spec.selector.where:
            there = f"{num_matching} of {len(self._members)} learners match 'selector.where'"
        return f"{there}, {num_needed} are needed"

    # ------------------------------------------------------------ pauses

    def pause(self, reason: str, now: float) -> s.Actions:
        """Begin nothing new."""
        state = self._state
        if state.is_paused:
            return []
        state.paused_at, state.pause_after, state.waiting_since = now, None, None
        state.pause_reason = text(reason)
        return [s.Save(), s.Emit(e.JobPaused(job=state.job, reason=state.pause_reason))]

    def pause_if_due(self, now: float) -> s.Actions:
        """After a commit: whether that was the last version for which the job was let go on."""
        after = self._state.pause_after
        if after is None or self._state.version < after:
            return []
        return self.pause(f"version {self._state.version} is there", now)

    def unpause(self, versions: int | None, now: float) -> s.Actions:
        """Go on, for so many versions if that is not None."""
        state = self._state
        state.pause_after = None if versions is None else state.version + versions
        if state.paused_at is None:
            return [s.Save()]
        state.paused_s += max(0.0, now - state.paused_at)
        state.paused_at = None
        return [s.Save(), s.Emit(e.JobUnpaused(job=state.job, versions=versions))]

    # ------------------------------------------------------------ the end

    def enough(self) -> str | None:
        """Why training is over; None if it is not."""
        state, wanted = self._state, self._state.spec.termination
        for name, done in (
            ("rounds", state.round),
            ("versions", state.version),
            ("updates", state.num_updates),
        ):
            limit = getattr(wanted, name)
            if limit is not None and done >= limit:
                return f"{done} {name.removesuffix('s') if done == 1 else name}"
        return None

    def target_reached(self) -> str | None:
        """How the newest evaluation reached the target; None if it did not, or there is none."""
        target = self._state.spec.termination.target
        if target is None or (value := self._state.evaluation.get(target.metric)) is None:
            return None
        reached = value >= target.value if target.mode == "max" else value <= target.value
        return f"{target.metric} reached {value:.6g}" if reached else None

    def target_unknown(self, reported: set[str]) -> str | None:
        """Why the target can never be reached, if these are all metrics that learners report; else None."""
        target = self._state.spec.termination.target
        if target is None or target.metric in reported:
            return None
        there = ", ".join(sorted(reported)) or "none"
        return f"no learner reports the metric {target.metric!r} of 'termination.target'; there are: {there}"

    def time_is_up(self, now: float) -> str | None:
        """Why the job must end now, however far it is; None if it need not, or a commit is under way."""
        due, phase = self._wall_clock_due(), self._state.phase
        if due is None or now < due or phase in (Phase.COMMITTING, Phase.ENDED):
            return None
        return f"{self._state.spec.termination.wall_clock_s:g} s have passed"

    def end(self, end: JobEnd, reason: str, now: float) -> s.Actions:
        """Nothing comes after this."""
        state = self._state
        state.phase, state.end, state.reason, state.ended_at = Phase.ENDED, end, text(reason), now
        return [s.Emit(self.finished(now)), s.Finish()]

    def finished(self, now: float) -> e.JobFinished:
        """The last event of a job that has ended."""
        state = self._state
        return e.JobFinished(
            job=state.job,
            state=state.end or "failed",
            reason=state.reason,
            version=state.version,
            rounds=state.round,
            duration_s=max(0.0, now - state.submitted_at),
            metrics=state.evaluation,
        )

    # ------------------------------------------------------------ timers

    def timers(self) -> list[float]:
        """When this job as a whole has something to do, if nothing happens before."""
        since, max_wait_s = self._state.waiting_since, self._state.spec.protocol.max_wait_s
        waits_until = None if since is None or max_wait_s is None else since + max_wait_s
        return [due for due in (self._wall_clock_due(), waits_until) if due is not None]

    def _wall_clock_due(self) -> float | None:
        """When the job has run for as long as it may; the clock stands while it is paused."""
        state, wall_clock_s = self._state, self._state.spec.termination.wall_clock_s
        if wall_clock_s is None or state.is_paused:
            return None
        return state.submitted_at + wall_clock_s + state.paused_s
