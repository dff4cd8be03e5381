"""Giving out tasks, taking them back, and turns for uploading: what learners are told."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from broker_fl.coordination import signals as s
from broker_fl.coordination.cohort import Assignment, Workload
from broker_fl.coordination.membership import Membership
from broker_fl.coordination.notes import Notes
from broker_fl.coordination.state import JobState, Phase
from broker_fl.coordination.uploads import Uploads
from broker_fl.wire.messages import TaskRef
from broker_fl.wire.protocols import Rounds
from broker_fl.wire.rules import PerUpdate, Robust

Addressees = tuple[list[str], dict[str, list[str]]]
"""Learners with mailboxes of their own, and groups with those of their members that are meant."""


class Dispatch:
    """The tasks of one job. ``members`` is read, never changed."""

    def __init__(self, state: JobState, members: Membership, notes: Notes) -> None:
        self._state = state
        self._members = members
        self._notes = notes
        self.uploads = Uploads(state.update_bytes, state.spec.transfer.upload_budget_bytes)

    def ref(self, part: Assignment) -> TaskRef:
        """The name of the task that the part is."""
        return TaskRef(job=self._state.job, round=part.round, attempt=part.attempt)

    def part(self, learner: str, task: TaskRef) -> Assignment | None:
        """The learner's part, if it is this very task and was not given through a group.

        An earlier attempt no longer is: that one has failed or was refused, and the learner was asked once
        more.
        """
        state = self._state
        if task.job != state.job or state.phase not in (Phase.TRAINING, Phase.EVALUATING):
            return None
        part = state.cohort.get(learner)
        if part is None or part.group is not None:
            return None
        return part if (part.round, part.attempt) == (task.round, task.attempt) else None

    def assign(
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
        state, chosen = self._state, list(learners)
        workloads = self._notes.workloads([*beside, *chosen]) if chosen else {}
        for learner in chosen:
            state.cohort.assign(
                learner,
                now,
                round=state.round,
                attempt=attempt(learner),
                workload=workloads.get(learner),
                group=self._members.group_of(learner),
            )
            self._notes.given(learner)
        return chosen

    def send(self, learners: Iterable[str]) -> s.Actions:
        """One action for all whose tasks are equal."""
        return [
            s.SendTasks(
                task=task,
                learners=tuple(alone),
                groups={group: tuple(members) for group, members in groups.items()},
                version=self._state.version,
                train=self._state.phase is Phase.TRAINING,
                upload_on_request=self.uploads.on_request,
                deadline_s=self._state.spec.protocol.deadline_s,
                cohort=self._num_together(),
                min_cohort=self._fewest_together(),
                workload=workload,
            )
            for task, workload, (alone, groups) in self.by_task(learners)
        ]

    def _num_together(self) -> int:
        """How many updates make a version."""
        rule, cohort = self._state.spec.rule, self._state.cohort
        return rule.updates_per_version() if isinstance(rule, PerUpdate) else cohort.num_taking_part

    def _fewest_together(self) -> int:
        """With how few learners' updates a version may be made, whoever is lost or fails.

        A quorum that is a share is of those that live: of one, where all others are lost. No two updates of a
        version are of one learner.
        """
        spec, num_wanted = self._state.spec, self._state.num_wanted
        rule, protocol = spec.rule, spec.protocol
        if isinstance(rule, PerUpdate):
            return rule.updates_per_version()
        quorum = protocol.quorum if isinstance(protocol, Rounds) else 1
        fewest = quorum if isinstance(quorum, int) else 1
        if not isinstance(rule, Robust):
            return min(fewest, num_wanted or fewest)
        fewest = max(fewest, rule.updates_needed())
        return rule.num_combined(min(fewest, num_wanted or fewest))

    def by_task(self, learners: Iterable[str]) -> list[tuple[TaskRef, Workload, Addressees]]:
        """Tasks, the work that pacing has set in each, and the members that have it."""
        tasks: dict[tuple[Any, ...], tuple[TaskRef, Workload, Addressees]] = {}
        for learner in learners:
            if (part := self._state.cohort.get(learner)) is not None:
                key = part.round, part.attempt, *part.workload.items()
                if (found := tasks.get(key)) is None:
                    found = tasks[key] = self.ref(part), part.workload, ([], {})
                alone, groups = found[2]
                if part.group is None:
                    alone.append(learner)
                elif (members := groups.get(part.group)) is not None:
                    members.append(learner)
                else:
                    groups[part.group] = [learner]
        return list(tasks.values())

    def cancel(self, learners: Iterable[str], reason: str) -> s.Actions:
        """Have members stop; a group stops with all of them."""
        return [
            s.CancelTasks(task, (*alone, *groups), reason)
            for task, _, (alone, groups) in self.by_task(learners)
        ]

    # ------------------------------------------------------------ turns for uploading

    def release(self, name: str, now: float) -> s.Actions:
        """A learner or a group will never upload: others may begin."""
        return self._grant(self.uploads.release(name, now, self._until(now)), now)

    def delivered(self, name: str, now: float) -> s.Actions:
        """A learner or a group has uploaded: others may begin."""
        return self._grant(self.uploads.delivered(name, now, self._until(now)), now)

    def ready(self, name: str, now: float) -> s.Actions:
        """A learner or a group has something to upload."""
        return self._grant(self.uploads.add(name, now, self._until(now)), now)

    def pass_on(self, name: str, now: float) -> s.Actions:
        """A learner or a group does not use its turn: it is asked again after all others."""
        return self._grant(self.uploads.pass_on(name, now, self._until(now)), now)

    def pass_on_overdue(self, now: float) -> s.Actions:
        """Somebody waits: whose time for uploading is over goes on after it."""
        return self._grant(self.uploads.pass_on_overdue(now, self._until(now)), now)

    def is_held_up(self, learner: str) -> bool:
        """Whether a member, or its group, has to wait for others with what it has to upload."""
        part = self._state.cohort.get(learner)
        return part is not None and self.uploads.is_held_up(part.group or learner)

    def _until(self, now: float) -> float | None:
        """When an update that comes is late; without rounds each task has a deadline of its own."""
        state = self._state
        deadline_s = state.spec.protocol.deadline_s
        if isinstance(state.spec.protocol, Rounds) or deadline_s is None:
            return state.deadline_at
        return now + deadline_s

    def _grant(self, names: Iterable[str], now: float) -> s.Actions:
        """Ask these learners and groups for the updates that they hold; how long they have waited is not held
        against them.
        """
        cohort = self._state.cohort
        actions: s.Actions = []
        for name in names:
            if (held := cohort.groups.get(name)) is not None:
                held.changed_at = now
                actions += [s.RequestUpload(name, task) for task in self.unfolded(name)]
            elif (part := cohort.get(name)) is not None:
                part.changed_at = now
                actions.append(s.RequestUpload(name, self.ref(part)))
        return actions

    def unfolded(self, group: str) -> list[TaskRef]:
        """Tasks of a group of which there are results, and sums that are not here."""
        shares = self._state.cohort.shares.values()
        return list(dict.fromkeys(one.task for one in shares if one.group == group and not one.is_folded))
