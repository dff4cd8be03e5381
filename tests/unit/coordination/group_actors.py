"""A group of learners in ``world.py``: behaves as ``roles/learner/group.py`` does, and dies now and then."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from broker_fl.wire import messages as m
from tests.unit.coordination.parties import SimParty

if TYPE_CHECKING:
    from tests.unit.coordination.world import World


@dataclass(frozen=True, slots=True)
class GroupAsked:
    """A group's task."""

    task: m.TaskRef
    version: int
    learners: tuple[str, ...]
    train: bool
    on_request: bool
    inbox: int


@dataclass(frozen=True, slots=True)
class SumArrived:
    """A whole sum: of each of its learners, the number of the training that its update came from."""

    share: str
    trainings: dict[str, int]
    version: int
    usable: bool


@dataclass(frozen=True, slots=True)
class SimShare:
    """Learners of a task that are done."""

    result: m.GroupResult
    total: SumArrived


@dataclass(slots=True)
class HeldByGroup:
    """What a group has of one task."""

    newest: GroupAsked
    learners: set[str] = field(default_factory=set)
    num_working: int = 0
    shares: list[SimShare] = field(default_factory=list)


class SimGroup(SimParty):
    """A few learners in one process."""

    def __init__(self, world: World, group: str, num_learners: int) -> None:
        super().__init__(world, group)
        self.members = tuple(f"{group}-{index}" for index in range(num_learners))
        self._held: dict[m.TaskRef, HeldByGroup] = {}

    def _forget(self) -> None:
        self._held = {}

    def _tasks(self) -> tuple[m.TaskStatus, ...]:
        return tuple(
            m.TaskStatus(
                task=task,
                phase="training" if held.num_working else "finished",
                num_learners=len(held.learners),
            )
            for task, held in self._held.items()
        )

    def _join(self) -> None:
        join = m.GroupJoin(group=self.id, session=self._session, members=self.members, tasks=self._tasks())
        self._world.to_controller(join)

    def _on(self, message: Any) -> None:
        match message:
            case m.Rejoin():
                self._join()
            case GroupAsked():
                self._on_task(message)
            case m.Cancel(task=task):
                self._held = {ref: held for ref, held in self._held.items() if ref.round > task.round}
            case (m.TaskRef() as task, int(inbox)):
                self._on_request(task, inbox)

    def _on_request(self, task: m.TaskRef, inbox: int) -> None:
        if (held := self._held.get(task)) is not None and held.shares:
            asked = held.newest
            held.newest = GroupAsked(task, asked.version, asked.learners, asked.train, False, inbox)
            for share in held.shares:
                self._send(held, share)

    def _on_task(self, asked: GroupAsked) -> None:
        self._held = {ref: held for ref, held in self._held.items() if ref.round == asked.task.round}
        held = self._held.setdefault(asked.task, HeldByGroup(asked))
        held.newest = asked
        new = [learner for learner in asked.learners if learner not in held.learners]
        held.learners.update(new)
        for share in held.shares:
            if {*share.result.learners, *share.result.failed} & set(asked.learners):
                self._send(held, share)
        if new:
            held.num_working += 1
            self._world.to_controller(m.Accepted(learner=self.id, task=asked.task))
            delay_s = self._world.draw.uniform(0.5, 1.5) * self.train_s
            self._world.at(delay_s, self._done, self._life, held, asked, new)

    def _done(self, life: int, held: HeldByGroup, asked: GroupAsked, learners: list[str]) -> None:
        if not self._is_alive(life) or self._held.get(asked.task) is not held:
            return
        held.num_working -= 1
        world = self._world
        failed = tuple(learner for learner in learners if world.unlucky(world.faults.fail))
        trainings = {learner: next(world.trainings) for learner in learners if learner not in failed}
        share = f"{self.id}-{next(world.trainings)}"
        result = m.GroupResult(
            group=self.id,
            task=asked.task,
            share=share,
            learners=tuple(trainings),
            num_examples=(1,),
            failed=failed,
            reasons=("bad luck",) * len(failed),
        )
        total = SumArrived(share, trainings, asked.version, not world.unlucky(world.faults.refuse))
        held.shares.append(SimShare(result, total))
        self._send(held, held.shares[-1])

    def _send(self, held: HeldByGroup, share: SimShare) -> None:
        self._world.to_controller(share.result, held.newest.inbox)
        if held.newest.train and share.total.trainings and not held.newest.on_request:
            self._world.to_controller(share.total, held.newest.inbox)
