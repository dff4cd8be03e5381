"""Rounds whose learners may come in groups: one party that works for many members, and sums their updates.

Members of a group are learners as all others: the selector chooses them one by one, and the cohort knows how
far each is. What comes from a group concerns many of them at once, and is taken in one step.

Exactly once: a share's sum cannot be taken apart. So it counts only if every learner in it is still awaited
for this very task, and then all of them are delivered at once; otherwise none is.
"""

from __future__ import annotations

import math
from typing import Any

from broker_fl.coordination import outcomes
from broker_fl.coordination import signals as s
from broker_fl.coordination.cohort import OPEN, Assignment, GroupPart, Status
from broker_fl.coordination.job import Job
from broker_fl.coordination.membership import Membership
from broker_fl.coordination.shares import Share
from broker_fl.coordination.signals import Actions
from broker_fl.coordination.state import JobState, Phase
from broker_fl.wire import events as e
from broker_fl.wire.fields import text
from broker_fl.wire.messages import GroupColumns, TaskRef, TaskStatus

_AT_WORK = (Phase.TRAINING, Phase.EVALUATING)
_CLOSED = (Status.DELIVERED, Status.REFUSED)


class GroupJob(Job):
    """What follows from signals of groups."""

    def __init__(self, state: JobState, members: Membership) -> None:
        super().__init__(state, members)
        self._handlers |= {
            s.GroupUp: self._group_up,
            s.GroupDown: self._group_down,
            s.GroupReported: self._group_reported,
            s.GroupHasAccepted: self._group_accepted,
            s.GroupHasFailed: self._group_failed,
            s.ShareArrived: self._share_arrived,
            s.ShareWasFolded: self._share_folded,
            s.ShareWasRefused: self._share_refused,
        }

    def expects_share(self, share: Share) -> bool:
        """Whether the share's sum may still be folded."""
        known = self.state.cohort.shares.get(share.id)
        return (
            self.state.phase is Phase.TRAINING
            and known is not None
            and not known.is_folded
            and len(self._awaited(share)) == len(share.learners)
        )

    def awaits(self, group: str, task: TaskRef) -> bool:
        """Whether a result of the group for this task may still count."""
        return self.state.phase in _AT_WORK and any(
            part.group == group
            and (part.round, part.attempt) == (task.round, task.attempt)
            and part.status not in _CLOSED
            for part in self.state.cohort.values()
        )

    # ------------------------------------------------------------ who is there

    def _group_up(self, signal: s.GroupUp, now: float) -> Actions:
        state, cohort = self.state, self.state.cohort
        parts = self._parts_of(signal.group) if state.phase in _AT_WORK else {}
        if not parts:
            return self._settle(now)
        held = cohort.groups.setdefault(signal.group, GroupPart(now))
        lost = []
        for learner, part in parts.items():
            part.group = signal.group
            if part.status is Status.LOST:
                lost.append(learner)
        cohort.move_all(lost, Status.SENT, now)
        if lost and state.waiting_since is not None:
            state.waiting_since = None
            self._deadline_anew(now)
        awaited = self._open_tasks(parts)
        if not awaited:
            return self._settle(now)
        if held.reminders and now - held.changed_at < self._patience_s(held.reminders):
            return []
        return self._remind_group(signal.group, held, awaited, signal.tasks, now)

    def _group_down(self, signal: s.GroupDown, now: float) -> Actions:
        cohort = self.state.cohort
        gone = [
            learner
            for learner in signal.learners
            if (part := cohort.get(learner)) is not None and part.status in OPEN
        ]
        if not gone or self.state.phase not in _AT_WORK:
            return []
        cohort.move_all(gone, Status.LOST, now, signal.reason)
        for learner in gone:
            self._notes.lost(learner)
        return [*self._dispatch.release(signal.group, now), *self._settle(now)]

    def _deadline_anew(self, now: float) -> None:
        """Somebody for whom the round waited is there."""

    # ------------------------------------------------------------ what a group holds

    def _group_reported(self, signal: s.GroupReported, now: float) -> Actions:
        """As ``_learner_reported``."""
        held = self.state.cohort.groups.get(signal.group)
        if held is None or self.state.phase not in _AT_WORK:
            return []
        if self._dispatch.uploads.is_waiting(signal.group):
            return self._dispatch.pass_on_overdue(now)
        if signal.receiving:
            held.changed_at = now
            return []
        is_early = now - held.changed_at < self._patience_s(held.reminders)
        if is_early:
            return []
        if self._dispatch.uploads.is_in_the_way(signal.group):
            held.changed_at, held.reminders = now, held.reminders + 1
            return self._dispatch.pass_on(signal.group, now)
        if self._is_at_work(signal.tasks):
            return []
        awaited = self._open_tasks(self._parts_of(signal.group))
        return self._remind_group(signal.group, held, awaited, signal.tasks, now) if awaited else []

    def _is_at_work(self, tasks: tuple[TaskStatus, ...]) -> bool:
        """Whether a group works on all that it has of the open round: what it lacks is seen when it is
        done.
        """
        phases = [
            status.phase
            for status in tasks
            if (status.task.job, status.task.round) == (self.state.job, self.state.round)
        ]
        return bool(phases) and not {"receiving", "finished"}.intersection(phases)

    def _remind_group(
        self,
        group: str,
        held: GroupPart,
        awaited: dict[TaskRef, list[str]],
        tasks: tuple[TaskStatus, ...],
        now: float,
    ) -> Actions:
        """Send a task again to those who lack it, or ask for what is finished."""
        actions: Actions = []
        for task, learners in awaited.items():
            status = next((one for one in tasks if one.task == task), None)
            if status is not None and status.phase == "receiving" and status.progress > held.received:
                held.changed_at, held.received = now, status.progress
            elif status is not None and status.phase not in ("receiving", "finished"):
                continue
            elif status is None or status.phase == "receiving" or held.reminders % 2:
                # A group that says it is finished, and is asked for it in vain, may lack some of its members.
                held.changed_at, held.reminders = now, held.reminders + 1
                self.state.cohort.move_all(learners, Status.SENT, now)
                actions += [*self._dispatch.release(group, now), *self._dispatch.send(learners)]
            elif self._dispatch.uploads.on_request and self._dispatch.unfolded(group):
                held.changed_at, held.reminders = now, held.reminders + 1
                actions += self._dispatch.pass_on(group, now)
            else:
                held.changed_at, held.reminders = now, held.reminders + 1
                actions.append(s.RequestUpload(group, task))
        return actions

    # ------------------------------------------------------------ what comes in

    def _group_accepted(self, signal: s.GroupHasAccepted, now: float) -> Actions:
        sent = [
            learner
            for learner, part in self._parts_of(signal.group, signal.task).items()
            if part.status is Status.SENT
        ]
        if not sent or self.state.phase not in _AT_WORK:
            return []
        self.state.cohort.move_all(sent, Status.ACCEPTED, now)
        accepted = e.GroupAccepted(
            job=self.state.job,
            round=signal.task.round,
            group=signal.group,
            num_learners=len(sent),
            receive_s=signal.receive_s,
        )
        return [s.Emit(accepted)]

    def _group_failed(self, signal: s.GroupHasFailed, now: float) -> Actions:
        why = {
            learner: signal.reason
            for learner, part in self._parts_of(signal.group, signal.task).items()
            if part.status in OPEN
        }
        if not why or self.state.phase not in _AT_WORK:
            return []
        return [*self._fail(signal.group, signal.task, why, now), *self._dispatch.release(signal.group, now),
                *self._settle(now)]  # fmt: skip

    def _share_arrived(self, signal: s.ShareArrived, now: float) -> Actions:
        share, state = signal.share, self.state
        if share.task.job != state.job or state.phase not in _AT_WORK or share.task.round != state.round:
            return self._late_share(share)
        # One that is sent again may say for the first time whom to count as failed: whoever was lost was not.
        awaited = [] if share.id in state.cohort.shares else self._awaited(share)
        failed = {
            learner: reason
            for learner, reason in share.failed.items()
            if (part := self._member(share, learner)) is not None and part.status in OPEN
        }
        actions = self._fail(share.group, share.task, failed, now) if failed else []
        if not awaited:
            return [*actions, *self._settle(now)] if failed else []
        if (problem := self._problem_of(share, awaited)) is not None:
            return [*actions, *self._refuse(share, awaited, problem, now)]
        return [*actions, *self._take(share, now)]

    def _take(self, share: Share, now: float) -> Actions:
        """All of the share's learners are done."""
        state, cohort = self.state, self.state.cohort
        cohort.shares[share.id] = share
        self._note_times(share, now)
        actions: Actions = [
            s.Emit(e.GroupFinished(job=state.job, round=share.task.round, **_columns(page)))
            for page in share.pages
            if page.learners
        ]
        if state.phase is Phase.EVALUATING:
            cohort.move_all(share.learners, Status.DELIVERED, now)
            return [*actions, *self._settle(now)]
        cohort.move_all(share.learners, Status.FINISHED, now)
        return [*actions, *self._dispatch.ready(share.group, now)]

    def _problem_of(self, share: Share, awaited: list[str]) -> str | None:
        if len(awaited) != len(share.learners):
            return (
                f"its sum cannot be taken apart: of the {len(share.learners)} learners in it "
                f"{len(share.learners) - len(awaited)} were not asked, or are counted already"
            )
        if self.state.phase is not Phase.TRAINING:
            return None
        parts = (self.state.cohort.get(learner) for learner in share.learners)
        paced = [part.workload.get("steps") if part is not None else None for part in parts]
        return share.problem(paced, self.state.spec.parameters.get("steps"))

    def _note_times(self, share: Share, now: float) -> None:
        """For records and pacing, where anybody goes by them."""
        if not self._notes.are_kept:
            return
        names = ("num_examples", "num_steps", "num_epochs", "train_s")
        evaluations = {name: column.tolist() for name, column in share.metrics("evaluation").items()}
        for place, (learner, row) in enumerate(share.rows(names)):
            evaluation = {
                name: values[place] for name, values in evaluations.items() if not math.isnan(values[place])
            }
            self._notes.finished_in_share(learner, now, evaluation=evaluation, **row)

    def _late_share(self, share: Share) -> Actions:
        """Say so, if it is of this job and of a task that was given up."""
        state = self.state
        if share.task.job != state.job or share.task.round >= state.round or not share.learners:
            return []
        if self._is_said_late(share.group, share.task.round):
            return []
        reason = f"delivered while round {state.round + 1} was open"
        why = dict.fromkeys(share.learners, reason)
        return [s.Emit(outcomes.group_missed(share.group, share.task, "late", why))]

    def _share_folded(self, signal: s.ShareWasFolded, now: float) -> Actions:
        share = signal.share
        if not self.expects_share(share):
            return []
        self.state.cohort.shares[share.id].is_folded = True
        self.state.cohort.move_all(share.learners, Status.DELIVERED, now)
        for learner in share.learners:
            self._notes.counted(learner)
        folded = e.GroupFolded(
            job=self.state.job,
            round=share.task.round,
            group=share.group,
            share=share.id,
            num_learners=len(share.learners),
            weight=signal.weight,
            num_bytes=signal.num_bytes,
            num_messages=signal.num_messages,
            upload_s=signal.upload_s,
            fold_s=signal.fold_s,
        )
        actions = [s.Emit(folded), *self._dispatch.delivered(share.group, now)]
        if self._dispatch.unfolded(share.group):  # another share came while this one was on its way
            actions += self._dispatch.ready(share.group, now)
        return [*actions, *self._settle(now)]

    def _share_refused(self, signal: s.ShareWasRefused, now: float) -> Actions:
        share = signal.share
        awaited = self._awaited(share) if self.state.phase is Phase.TRAINING else []
        return self._refuse(share, awaited, signal.reason, now) if awaited else []

    def _refuse(self, share: Share, awaited: list[str], reason: str, now: float) -> Actions:
        self.state.cohort.shares.pop(share.id, None)
        why = dict.fromkeys(awaited, text(reason))
        self.state.cohort.move_all(awaited, Status.REFUSED, now, text(reason))
        refused = s.Emit(outcomes.group_missed(share.group, share.task, "refused", why))
        excluded = self._note_missed(why)
        return [refused, *excluded, *self._dispatch.release(share.group, now), *self._settle(now)]

    def _fail(self, group: str, task: TaskRef, why: dict[str, str], now: float) -> Actions:
        for learner, reason in why.items():
            self.state.cohort.move(learner, Status.FAILED, now, reason)
        return [s.Emit(outcomes.group_missed(group, task, "failed", why)), *self._note_missed(why)]

    def _note_missed(self, why: dict[str, str]) -> Actions:
        return [one for learner, reason in why.items() for one in self._notes.failed(learner, reason)]

    # ------------------------------------------------------------ parts

    def _parts_of(self, group: str, task: TaskRef | None = None) -> dict[str, Assignment]:
        """Parts of the group's members in the cohort; with ``task`` those that are this very task."""
        cohort = self.state.cohort
        if task is not None and task.job != self.state.job:
            return {}
        return {
            learner: part
            for learner in self._members.members_of(group)
            if (part := cohort.get(learner)) is not None
            and (task is None or (part.round, part.attempt) == (task.round, task.attempt))
        }

    def _open_tasks(self, parts: dict[str, Assignment]) -> dict[TaskRef, list[str]]:
        """Tasks of which something may still come, and for whom."""
        found: dict[tuple[int, int], list[str]] = {}
        for learner, part in parts.items():
            if part.status in OPEN:
                found.setdefault((part.round, part.attempt), []).append(learner)
        return {
            TaskRef(job=self.state.job, round=round, attempt=attempt): learners
            for (round, attempt), learners in found.items()
        }

    def _member(self, share: Share, learner: str) -> Assignment | None:
        """The learner's part, if it is this task and was given through this group."""
        part = self.state.cohort.get(learner)
        if part is None or part.group != share.group:
            return None
        return part if (part.round, part.attempt) == (share.task.round, share.task.attempt) else None

    def _awaited(self, share: Share) -> list[str]:
        """Those of the share's learners whose updates may be folded, each once."""
        return [
            learner
            for learner in dict.fromkeys(share.learners)
            if (part := self._member(share, learner)) is not None and part.status not in _CLOSED
        ]


def _columns(page: GroupColumns) -> dict[str, Any]:
    """The fields that the event has, too."""
    return {name: getattr(page, name) for name in GroupColumns.model_fields}
