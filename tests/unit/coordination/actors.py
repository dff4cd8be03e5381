"""The controller in ``world.py``, which checks what must always be true of its job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from broker_fl.coordination import signals as s
from broker_fl.coordination.groups import GroupJob
from broker_fl.coordination.membership import Membership
from broker_fl.coordination.protocols import make_job
from broker_fl.coordination.shares import Share
from broker_fl.coordination.state import JobState, Phase
from broker_fl.interfaces import Member
from broker_fl.roles.controller.groups import Groups
from broker_fl.wire import messages as m
from broker_fl.wire.events import Event, JobFinished
from broker_fl.wire.protocols import Asynchronous
from broker_fl.wire.rules import FedRec
from tests.unit.coordination.group_actors import GroupAsked, SumArrived
from tests.unit.coordination.learner_actors import Arrived, Held

if TYPE_CHECKING:
    from tests.unit.coordination.world import Disk, World


class Crash(Exception):
    """The controller's process ends here."""


@dataclass(slots=True)
class _Upload:
    task: m.TaskRef
    result: m.Result | None = None
    update: Arrived | None = None


class SimController:
    """Performs a job's actions as ``roles/controller/job/runner.py`` does."""

    def __init__(self, world: World, disk: Disk) -> None:
        self.epoch = disk.epoch
        self._world = world
        self._disk = disk
        self._members = Membership(world.heartbeat_s, world.now)
        self._is_new = not disk.state
        if self._is_new:
            state = JobState(
                job="job-1", spec=world.spec, driver="driver", update_bytes=100, submitted_at=world.now
            )
        else:
            state = JobState.unpack(disk.state, world.now)
            assert state.version == disk.version, "the stored state is of another version than the store has"
            for learner in state.cohort:
                self._members.join(Member(learner=learner), session="unknown", software="", now=world.now)
        self._job = make_job(state, self._members)
        self._sum: dict[str, int] = {}
        self._uploads: dict[str, _Upload] = {}
        self._shares: dict[str, Share] = {}
        self._signals: list[s.Signal] = []
        self._events: list[Event] = []

    # ------------------------------------------------------------ life

    @property
    def ended(self) -> bool:
        return self._job.state.phase is Phase.ENDED

    def describe(self) -> str:
        state = self._job.state
        return f"{state.phase} round {state.round}: {state.cohort.summary()}; {len(self._members)} members"

    def begin(self) -> None:
        if self._is_new:
            self._save()
            self._perform(self._job.start(self._world.now))
        elif self.ended:
            self._drop_unneeded()
            if not any(isinstance(event, JobFinished) for event in self._disk.events[-1:]):
                self._events.append(self._job.finished(self._world.now))
        else:
            self._drop_unneeded()
            self._signal(s.ControllerRestarted(self.epoch))
        for learner in self._world.learners:
            self._world.to_learner(learner, m.Rejoin())

    def next_timer(self) -> float | None:
        return None if self.ended else self._job.next_timer()

    def tell_time(self) -> None:
        self._signal(s.TimePassed())
        timer = self.next_timer()
        assert timer is None or timer > self._world.now, (
            "a timer is due, again and again: the loop would spin"
        )

    def tick(self) -> None:
        for lost in self._members.expire(self._world.now):
            if lost.members is None:
                self._signal(s.LearnerDown(lost.learner, "silent"))
            else:
                self._signal(s.GroupDown(lost.learner, lost.members, "silent"))
        self._signal(s.TimePassed())

    # ------------------------------------------------------------ what comes in

    def take(self, message: Any) -> None:  # noqa: C901 - one case for each kind of message
        now = self._world.now
        match message:
            case m.Join():
                member = Member(learner=message.learner)
                self._members.join(member, session=message.session, software="", now=now)
                self._signal(s.LearnerUp(message.learner, message.tasks))
            case m.GroupJoin():
                joining = Groups(self._members).page(message, now)
                assert joining is not None
                self._members.join_group(joining)
                self._signal(s.GroupUp(message.group, message.tasks))
            case m.Leave():
                gone = self._members.leave_group(message.learner, message.session)
                if gone is not None:
                    self._signal(s.GroupDown(message.learner, gone, "left"))
                elif self._members.leave(message.learner, message.session):
                    self._signal(s.LearnerDown(message.learner, "left"))
            case m.Heartbeat():
                if self._members.heard(message.learner, message.session, message.tasks, now):
                    is_group = self._members.is_group(message.learner)
                    reported = s.GroupReported if is_group else s.LearnerReported
                    self._signal(reported(message.learner, message.tasks))
                else:
                    self._world.to_learner(message.learner, m.Rejoin())
            case m.Accepted():
                is_group = self._members.is_group(message.learner)
                accepted = s.GroupHasAccepted if is_group else s.TaskWasAccepted
                self._signal(accepted(message.learner, message.task))
            case m.GroupResult():
                self._on_share(Share.of([message]))
            case SumArrived():
                self._fold_sum(message)
            case m.Failed():
                self._signal(s.TaskHasFailed(message.learner, message.task, message.reason))
            case m.Result():
                self._signal(s.ResultArrived(message))
                if self._wants(message.learner, message.task):
                    self._upload(message.learner, message.task).result = message
                    self._fold(message.learner)
            case Arrived():
                if self._wants(message.learner, message.task):
                    self._upload(message.learner, message.task).update = message
                    self._fold(message.learner)

    def _on_share(self, share: Share) -> None:
        self._signal(s.ShareArrived(share))
        if isinstance(self._job, GroupJob) and self._job.expects_share(share):
            self._shares[share.id] = share

    def _fold_sum(self, total: SumArrived) -> None:
        """A sum that is whole; one that nobody waits for changes nothing."""
        share = self._shares.pop(total.share, None)
        if share is None or not isinstance(self._job, GroupJob) or not self._job.expects_share(share):
            return
        if not total.usable:
            self._signal(s.ShareWasRefused(share, "not usable"))
            return
        assert set(total.trainings) == set(share.learners)
        twice = set(total.trainings) & set(self._sum)
        assert not twice, f"{twice} are counted twice"
        assert total.version == self._job.state.version, "a sum of another version is counted"
        self._sum |= total.trainings
        self._signal(s.ShareWasFolded(share=share, weight=float(len(total.trainings))))

    def _wants(self, learner: str, task: m.TaskRef) -> bool:
        return self._job.state.phase is Phase.TRAINING and self._job.expects(learner, task)

    def _upload(self, learner: str, task: m.TaskRef) -> _Upload:
        upload = self._uploads.get(learner)
        if upload is None or upload.task != task:
            upload = self._uploads[learner] = _Upload(task)
        return upload

    def _fold(self, learner: str) -> None:
        upload = self._uploads[learner]
        if upload.result is None or upload.update is None:
            return
        del self._uploads[learner]
        update = upload.update
        if not update.usable:
            self._signal(s.UpdateWasRefused(learner, upload.task, "not usable"))
            return
        if (reason := self._job.refusal(upload.task)) is not None:
            self._signal(s.UpdateWasRefused(learner, upload.task, reason))
            return
        assert learner not in self._sum, f"{learner} is counted twice"
        state = self._job.state
        if not isinstance(state.spec.protocol, Asynchronous):
            assert update.version == state.version, "an update of another version is counted"
        assert self._job.staleness(upload.task) == state.version - update.version, "its age is another"
        self._sum[learner] = update.training
        self._signal(s.UpdateWasFolded(learner=learner, task=upload.task, weight=1.0))

    # ------------------------------------------------------------ what follows

    def _signal(self, signal: s.Signal) -> None:
        self._signals.append(signal)
        if len(self._signals) > 1:
            return
        while self._signals:
            self._step(self._signals[0])
            self._signals.pop(0)

    def _step(self, signal: s.Signal) -> None:
        state = self._job.state
        before = (state.version, state.round, state.phase is Phase.ENDED)
        self._world.num_signals += 1
        actions = self._job.step(signal, self._world.now)
        after = (state.version, state.round, state.phase is Phase.ENDED)
        assert after >= before, "a version or a round went back"
        assert not (before[2] and actions), "something follows after the job's end"
        self._perform(actions)

    def _perform(self, actions: list[s.Action]) -> None:
        for action in actions:
            if self._world.unlucky(self._world.faults.controller_crash):
                raise Crash
            self._do(action)

    def _do(self, action: s.Action) -> None:  # noqa: C901 - one case for each kind of action
        match action:
            case s.Emit(event):
                self._events.append(event)
            case s.SendTasks():
                self._send_tasks(action)
            case s.RequestUpload(learner, task):
                self._world.to_learner(learner, (task, self.epoch))
            case s.CancelTasks(task, learners, _):
                for learner in learners:
                    self._world.to_learner(learner, m.Cancel(task=task))
            case s.StartSum():
                self._sum, self._uploads, self._shares = {}, {}, {}
            case s.Commit(version):
                self._commit(version)
            case s.Save():
                self._save()
            case s.Finish():
                self._save()
                self._may_die()
                self._drop_unneeded()

    def flush(self) -> None:
        """Write events out; a crash before that loses them."""
        if self._events and self._world.unlucky(self._world.faults.controller_crash):
            raise Crash
        story = [*self._disk.events[-1:], *self._events]
        assert not any(isinstance(event, JobFinished) for event in story[:-1]), "it goes on after its end"
        self._disk.events += self._events
        self._events = []

    def _save(self) -> None:
        self._disk.state = self._job.state.pack()

    def _send_tasks(self, action: s.SendTasks) -> None:
        assert action.version == self._disk.version, "a version is sent that is not the newest"
        for group, members in action.groups.items():
            asked = GroupAsked(
                action.task, action.version, members, action.train, action.upload_on_request, self.epoch
            )
            self._world.to_learner(group, asked)
        for learner in action.learners:
            held = Held(action.task, action.version, action.train, action.upload_on_request, self.epoch)
            self._world.to_learner(learner, held)

    def _commit(self, version: int) -> None:
        assert version == self._disk.version + 1, "versions follow one another"
        assert self._sum, "a version of nothing"
        replaced = self._store_updates()
        total = float(len(self._sum))
        stored = s.VersionWasStored(version=version, digest="", total_weight=total)
        self._disk.state = self._job.state_after_commit(stored, 0, self._world.now)
        self._disk.version = version
        self._disk.contributions[version] = self._sum
        self._may_die()
        for name in replaced:
            del self._disk.updates[name]
        self._sum = {}
        self._uploads = {name: one for name, one in self._uploads.items() if self._job.is_open(name)}
        self._signal(stored)

    # ------------------------------------------------------------ updates, as in ``roles/controller/job``

    def _may_die(self) -> None:
        if self._world.unlucky(self._world.faults.controller_crash):
            raise Crash

    def _store_updates(self) -> list[str]:
        """The names of those that are replaced."""
        state = self._job.state
        if not isinstance(state.spec.rule, FedRec):
            return []
        for learner, round in state.counted.items():
            last = max(v for v, made_of in self._disk.contributions.items() if learner in made_of)
            expected = self._disk.contributions[last][learner]
            assert self._disk.updates.get(f"{learner}:{round}") == expected, "its last update is another"
        replaced = [f"{name}:{state.counted[name]}" for name in self._sum if name in state.counted]
        for learner, training in self._sum.items():
            part = state.cohort.get(learner)
            assert part is not None
            assert f"{learner}:{part.round}" not in replaced, "an update that counts is written over"
            self._disk.updates[f"{learner}:{part.round}"] = training
        self._may_die()
        return replaced

    def _drop_unneeded(self) -> None:
        state = self._job.state
        current = {} if self.ended else state.counted
        names = {f"{learner}:{round}" for learner, round in current.items()}
        self._disk.updates = {name: one for name, one in self._disk.updates.items() if name in names}
