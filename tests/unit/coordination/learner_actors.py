"""A learner in ``world.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from broker_fl.wire import messages as m
from tests.unit.coordination.parties import SimParty

if TYPE_CHECKING:
    from tests.unit.coordination.world import World


@dataclass(frozen=True, slots=True)
class Arrived:
    """A whole update; ``training`` says which one it came from, ``version`` what that started from."""

    learner: str
    task: m.TaskRef
    training: int
    version: int
    usable: bool


@dataclass(slots=True)
class Held:
    """A learner's task."""

    task: m.TaskRef
    version: int
    train: bool
    on_request: bool
    inbox: int
    phase: Literal["training", "finished"] = "training"
    failed: bool = False
    usable: bool = True
    training: int = -1


class SimLearner(SimParty):
    """Behaves as ``roles/learner/host.py`` does, and dies now and then."""

    def __init__(self, world: World, learner: str) -> None:
        super().__init__(world, learner)
        self._held: Held | None = None

    def _forget(self) -> None:
        self._held = None

    def _tasks(self) -> tuple[m.TaskStatus, ...]:
        held = self._held
        return (m.TaskStatus.model_construct(task=held.task, phase=held.phase, progress=0.0),) if held else ()

    def _join(self) -> None:
        self._world.to_controller(m.Join(learner=self.id, session=self._session, tasks=self._tasks()))

    def _on(self, message: Any) -> None:
        held = self._held
        match message:
            case m.Rejoin():
                self._join()
            case Held():
                self._on_task(message)
            case m.Cancel(task=task):
                if held is not None and held.task.round <= task.round:
                    self._held = None
            case (m.TaskRef() as task, int(inbox)):
                if held is not None and held.task == task and held.phase == "finished":
                    held.inbox, held.on_request = inbox, False
                    self._send()

    def _on_task(self, asked: Held) -> None:
        held = self._held
        if held is not None and held.task == asked.task:
            held.inbox, held.on_request = asked.inbox, asked.on_request
            if held.phase == "finished":
                self._send()
            return
        # A message may be delivered twice; what a learner is given is its own.
        self._held = mine = Held(asked.task, asked.version, asked.train, asked.on_request, asked.inbox)
        self._world.to_controller(m.Accepted(learner=self.id, task=mine.task))
        self._world.at(self._world.draw.uniform(0.5, 1.5) * self.train_s, self._done, self._life, mine)

    def _done(self, life: int, held: Held) -> None:
        if not self._is_alive(life) or self._held is not held:
            return
        held.phase, held.training = "finished", next(self._world.trainings)
        held.failed = self._world.unlucky(self._world.faults.fail)
        held.usable = not self._world.unlucky(self._world.faults.refuse)
        self._send()

    def _send(self) -> None:
        held = self._held
        assert held is not None
        if held.failed:
            self._world.to_controller(m.Failed(learner=self.id, task=held.task, reason="bad luck"))
            return
        result = m.Result(learner=self.id, task=held.task, num_examples=1)
        self._world.to_controller(result, held.inbox)
        if held.train and not held.on_request:
            update = Arrived(self.id, held.task, held.training, held.version, held.usable)
            self._world.to_controller(update, held.inbox)
