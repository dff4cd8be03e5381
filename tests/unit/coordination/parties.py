"""What a learner and a group in ``world.py`` have in common: they come, beat, and die now and then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from broker_fl.wire import messages as m

if TYPE_CHECKING:
    from tests.unit.coordination.world import World


class SimParty:
    """A process with a mailbox. A subclass says what it holds (``_forget``, ``_tasks``), how it joins, and
    what it does with a message (``_on``).
    """

    def __init__(self, world: World, name: str) -> None:
        self.id = name
        self.train_s = 2.0
        self._world = world
        self._life = 0
        self._up = False

    def start(self) -> None:
        if not self._up:
            self._life += 1
            self._up = True
            self._forget()
            self._join()
            self._world.at(self._world.heartbeat_s, self._beat, self._life)

    def end(self) -> None:
        """Without a word."""
        self._up = False

    def take(self, message: Any) -> None:
        if not self._up:
            return
        if self._world.unlucky(self._world.faults.learner_crash):
            self._crash()
            return
        self._on(message)

    def _forget(self) -> None:
        raise NotImplementedError

    def _tasks(self) -> tuple[m.TaskStatus, ...]:
        raise NotImplementedError

    def _join(self) -> None:
        raise NotImplementedError

    def _on(self, message: Any) -> None:
        raise NotImplementedError

    def _crash(self) -> None:
        self.end()
        self._world.at(self._world.downtime_s(), self.start)

    @property
    def _session(self) -> str:
        return f"{self.id}-{self._life}"

    def _is_alive(self, life: int) -> bool:
        """Whether it has not died since."""
        return self._up and life == self._life

    def _beat(self, life: int) -> None:
        if not self._is_alive(life):
            return
        if self._world.unlucky(self._world.faults.learner_leave):
            self._world.to_controller(m.Leave(learner=self.id, session=self._session))
            self._crash()
            return
        self._world.to_controller(m.Heartbeat(learner=self.id, session=self._session, tasks=self._tasks()))
        self._world.at(self._world.heartbeat_s, self._beat, life)
