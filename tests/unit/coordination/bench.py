"""One job on a workbench: signals by hand, and what came of them."""

from __future__ import annotations

from typing import TypeVar

from broker_fl.coordination import signals as s
from broker_fl.coordination.membership import Membership
from broker_fl.coordination.protocols import make_job
from broker_fl.coordination.state import JobState, Phase
from broker_fl.interfaces import Member
from broker_fl.wire.events import Event
from broker_fl.wire.job import JobSpec, Termination
from broker_fl.wire.messages import Result, TaskRef, TaskStatus, UpdateManifest
from broker_fl.wire.protocols import Asynchronous, Synchronous
from broker_fl.wire.rules import FedAsync

E = TypeVar("E", bound=Event)
A = TypeVar("A")


def spec(*, rounds: int | None = 3, **fields: object) -> JobSpec:
    """Job settings; what ``Synchronous`` takes may be given as it is."""
    protocol = {name: fields.pop(name) for name in list(fields) if name in Synchronous.model_fields}
    settings = {"protocol": Synchronous(**protocol), "termination": Termination(rounds=rounds), **fields}  # type: ignore[arg-type]
    return JobSpec(**settings)  # type: ignore[arg-type]


def asynchronous(*, versions: int | None = 20, **fields: object) -> JobSpec:
    """Settings of an asynchronous job; what ``Asynchronous`` takes may be given as it is."""
    protocol = {name: fields.pop(name) for name in list(fields) if name in Asynchronous.model_fields}
    settings = {
        "protocol": Asynchronous(**protocol),  # type: ignore[arg-type]
        "rule": FedAsync(),
        "termination": Termination(versions=versions),
        **fields,
    }
    return JobSpec(**settings)  # type: ignore[arg-type]


class Bench:
    """A job and its learners; time stands still unless it is moved."""

    def __init__(self, settings: JobSpec, *learners: str, heartbeat_s: float = 5.0) -> None:
        self.now = 1_000.0
        self.members = Membership(heartbeat_s, self.now)
        for learner in learners:
            self._join(learner)
        state = JobState(job="job", spec=settings, driver="d", update_bytes=100, submitted_at=self.now)
        self.job = make_job(state, self.members)
        self.events: list[Event] = []
        self.actions: list[s.Action] = []
        self._note(self.job.start(self.now))

    def _join(self, learner: str) -> None:
        self.members.join(Member(learner=learner), session="1", software="", now=self.now)

    def _note(self, actions: list[s.Action]) -> list[s.Action]:
        self.actions = actions
        self.events += [action.event for action in actions if isinstance(action, s.Emit)]
        return actions

    def step(self, signal: s.Signal) -> list[s.Action]:
        return self._note(self.job.step(signal, self.now))

    def wait(self, seconds: float) -> list[s.Action]:
        self.now += seconds
        return self.step(s.TimePassed())

    # ------------------------------------------------------------ learners

    def ref(self, learner: str | None = None, *, round: int | None = None) -> TaskRef:
        part = self.job.state.cohort.get(learner or "")
        given = part.round if part else self.job.state.round
        number = given if round is None else round
        return TaskRef(job="job", round=number, attempt=part.attempt if part else 0)

    def up(self, learner: str, *tasks: TaskStatus) -> list[s.Action]:
        self._join(learner)
        return self.step(s.LearnerUp(learner, tasks))

    def down(self, learner: str, reason: str = "silent") -> list[s.Action]:
        self.members.leave(learner, "1")
        return self.step(s.LearnerDown(learner, reason))

    def result(self, learner: str, task: TaskRef | None = None, **fields: object) -> list[s.Action]:
        manifest = UpdateManifest(num_bytes=100, chunk_bytes=4096)
        given = {"num_examples": 1, "update": manifest, **fields}
        return self.step(s.ResultArrived(Result(learner=learner, task=task or self.ref(learner), **given)))  # type: ignore[arg-type]

    def fold(self, learner: str, task: TaskRef | None = None) -> list[s.Action]:
        return self.step(s.UpdateWasFolded(learner=learner, task=task or self.ref(learner), weight=1.0))

    def deliver(self, *learners: str, **fields: object) -> list[s.Action]:
        for learner in learners:
            task = self.ref(learner)
            self.result(learner, task, **fields)
            if self.job.expects(learner, task) and self.job.state.phase is Phase.TRAINING:
                self.fold(learner, task)
        return self.actions

    def fail(self, learner: str, reason: str = "it broke") -> list[s.Action]:
        return self.step(s.TaskHasFailed(learner, self.ref(learner), reason))

    def refuse(self, learner: str, reason: str = "NaN") -> list[s.Action]:
        return self.step(s.UpdateWasRefused(learner, self.ref(learner), reason))

    def stored(self) -> list[s.Action]:
        return self.step(self._stored())

    def after_commit(self) -> bytes:
        """The state that goes with the version that is being stored."""
        return self.job.state_after_commit(self._stored(), 0, self.now)

    def _stored(self) -> s.VersionWasStored:
        return s.VersionWasStored(version=self.job.state.version + 1, digest="", total_weight=1.0)

    def play(self, *learners: str, **fields: object) -> list[s.Action]:
        """A whole round."""
        self.deliver(*learners, **fields)
        return self.stored()

    # ------------------------------------------------------------ what came of it

    @property
    def phase(self) -> str:
        return str(self.job.state.phase)  # a plain string, so that a type checker does not narrow it

    def of(self, kind: type[A]) -> list[A]:
        """Actions of the last step."""
        return [action for action in self.actions if isinstance(action, kind)]

    def all(self, kind: type[E]) -> list[E]:
        """Events so far."""
        return [event for event in self.events if isinstance(event, kind)]

    def asked(self) -> set[str]:
        """Who was sent a task in the last step."""
        return {learner for action in self.of(s.SendTasks) for learner in action.learners}

    def restarted(self) -> Bench:
        """The same job in the hands of another controller."""
        packed, twin = self.job.state.pack(), object.__new__(Bench)
        twin.now, twin.events = self.now, []
        twin.members = Membership(self.members.heartbeat_s, self.now)
        twin.job = make_job(JobState.unpack(packed, self.now), twin.members)
        for learner in twin.job.state.cohort:
            twin._join(learner)
        twin.step(s.ControllerRestarted(2))
        return twin


def holds(bench: Bench, learner: str, phase: str, progress: float = 0.0) -> TaskStatus:
    """What a learner says of its task."""
    return TaskStatus(task=bench.ref(learner), phase=phase, progress=progress)  # type: ignore[arg-type]
