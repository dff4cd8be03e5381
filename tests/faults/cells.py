"""One fault at one phase of a round, done to a running federation; and what came of it."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np

from broker_fl.model import Model
from broker_fl.roles.driver import Driver, Job
from broker_fl.wire import events as e
from broker_fl.wire.job import JobSpec, Termination, Transfer
from broker_fl.wire.protocols import Synchronous
from broker_fl.workers.servers import RabbitMQNode, RedisNode
from tests.faults.federation import LEARNERS, SIZE, WAIT_S, Federation

Phase = Literal["task sent", "training", "uploading", "folding", "committing"]
Fault = Literal["kill -9, restart", "freeze, thaw", "cut silently", "reset"]
Target = Literal["controller", "learner", "broker", "Redis"]
PHASES: tuple[Phase, ...] = ("task sent", "training", "uploading", "folding", "committing")
FAULTS: tuple[Fault, ...] = ("kill -9, restart", "freeze, thaw", "cut silently", "reset")
TARGETS: tuple[Target, ...] = ("controller", "learner", "broker", "Redis")

ROUNDS = 3
ROUND = 1
"""The disturbed one: there is a version before it, and a round after."""
VICTIM = "site-2"
FREEZE_S = 8.0
"""More than pika waits for a heartbeat (5 s more than agreed on), than a lease, and than a call of Redis."""
SILENT_S, RESET_S = 5.0, 1.0
MID_MODEL_BYTES = 30_000


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is recorded of a cell."""

    target: str
    fault: str
    phase: str
    state: str
    """How the job ended; or what went wrong."""
    lost: int
    """Updates of learners that no version has, of ``ROUNDS`` × learners."""
    twice: int
    """Updates that a version has more than once."""
    equal: bool
    """The final model, bit for bit, to that of the undisturbed run."""
    recovery_s: float
    """From the end of the fault to the disturbed round's version."""
    trained_again: int
    """Trainings that were done more than once."""

    @property
    def is_good(self) -> bool:
        return (self.state, self.lost, self.twice, self.equal) == ("done", 0, 0, True)

    def as_json(self) -> dict[str, object]:
        return asdict(self)


class Watched:
    """A job, and its events as they come."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.id = job.id
        self.events: list[e.Event] = []
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        try:
            for event in self.job.events():
                self.events.append(event)
        except Exception as error:  # noqa: BLE001 - told to who waits
            self.error = error

    def has(self, kind: type[e.Event], **fields: object) -> int:
        """How many events of this kind have these values."""
        return sum(
            isinstance(event, kind) and all(getattr(event, name) == value for name, value in fields.items())
            for event in list(self.events)
        )

    @property
    def has_ended(self) -> bool:
        return not self._thread.is_alive()


@dataclass
class Bench:
    """A federation that is running, its servers, and a driver."""

    federation: Federation
    driver: Driver
    rabbitmq: RabbitMQNode | None = None
    redis: RedisNode | None = None
    undisturbed: Model | None = None
    names: tuple[str, ...] = field(default=("controller", *LEARNERS))

    def submit(self) -> Watched:
        """A job whose every version tells who is in it."""
        spec = JobSpec(
            protocol=Synchronous(min_learners=len(LEARNERS), quorum=len(LEARNERS), max_retries=100),
            termination=Termination(rounds=ROUNDS),
            transfer=Transfer(chunk_bytes=4096),
            evaluate=False,
            keep_versions=ROUNDS + 1,
        )
        return Watched(self.driver.submit(spec, {"w": np.zeros(SIZE, np.float32)}))

    def run_undisturbed(self) -> Model:
        """What all others must be equal to."""
        watched = self.submit()
        self.federation.open_gates(watched.id)
        self.federation.wait(lambda: watched.has_ended, "the end of the job")
        self.undisturbed = watched.job.model()
        return self.undisturbed


# ---------------------------------------------------------------- phases


def bring_to(phase: Phase, bench: Bench) -> Watched:
    """Start a job, and have it at this phase of round ``ROUND`` for as long as nobody calls ``go_on``."""
    federation, watched = bench.federation, bench.submit()
    federation.wait_training(watched.id, 0)
    if phase == "task sent":
        # The victim's line is slow: the broker has the task, the learner does not.
        federation.open_gates(watched.id, *(name for name in LEARNERS if name != VICTIM), round=0)
        federation.wait(lambda: watched.has(e.UpdateFolded, round=0) == 2, "two updates of round 1")
        held = federation.to_broker[VICTIM].hold("down", after_bytes=MID_MODEL_BYTES)
        federation.open_gates(watched.id, VICTIM, round=0)
        federation.wait(lambda: watched.has(e.TaskSent, round=ROUND), "the tasks of round 2")
        federation.wait(held.is_set, "the model half way to the learner")
        return watched
    federation.open_gates(watched.id, round=0)
    federation.wait_training(watched.id, ROUND)
    if phase == "uploading":
        held = federation.to_broker[VICTIM].hold("up", after_bytes=MID_MODEL_BYTES)
        federation.open_gates(watched.id, VICTIM, round=ROUND)
        federation.wait(held.is_set, "half of an upload")
    elif phase == "folding":
        federation.open_gates(watched.id, "site-1", VICTIM, round=ROUND)
        federation.wait(lambda: watched.has(e.UpdateFolded, round=ROUND) == 2, "two updates in the sum")
    elif phase == "committing":
        federation.open_gates(watched.id, "site-1", VICTIM, round=ROUND)
        federation.wait(lambda: watched.has(e.UpdateFolded, round=ROUND) == 2, "two updates in the sum")
        held = federation.to_store["controller"].hold("up", after_bytes=MID_MODEL_BYTES)
        federation.open_gates(watched.id, round=ROUND)
        federation.wait(held.is_set, "half of a version in Redis")
    return watched


def go_on(bench: Bench, watched: Watched) -> None:
    """Nothing holds the job back any more, but the fault."""
    for proxy in (*bench.federation.to_broker.values(), *bench.federation.to_store.values()):
        proxy.release()
    bench.federation.open_gates(watched.id)


# ---------------------------------------------------------------- faults


def disturb(target: Target, fault: Fault, bench: Bench, meanwhile: Callable[[], None]) -> None:
    """Do it, call ``meanwhile``, and take it back."""
    if fault == "kill -9, restart":
        _kill(target, bench, meanwhile)
    elif fault == "freeze, thaw":
        _freeze(target, bench, meanwhile)
    else:
        _cut(target, fault, bench, meanwhile)


def _kill(target: Target, bench: Bench, meanwhile: Callable[[], None]) -> None:
    if target in ("controller", "learner"):
        name = "controller" if target == "controller" else VICTIM
        bench.federation.kill(name)
        meanwhile()
        bench.federation.start(name)
        return
    server = bench.rabbitmq if target == "broker" else bench.redis
    assert server is not None
    server.kill()
    meanwhile()
    server.start()


def _freeze(target: Target, bench: Bench, meanwhile: Callable[[], None]) -> None:
    if target in ("controller", "learner"):
        process = bench.federation.processes["controller" if target == "controller" else VICTIM]
        process.freeze()
        meanwhile()
        time.sleep(FREEZE_S)  # what passes here is what is tested
        process.send(signal.SIGCONT)
        return
    server = bench.rabbitmq if target == "broker" else bench.redis
    assert server is not None
    server.freeze()
    meanwhile()
    time.sleep(FREEZE_S)
    server.thaw()


def _cut(target: Target, fault: Fault, bench: Bench, meanwhile: Callable[[], None]) -> None:
    federation = bench.federation
    lines = {
        "controller": [federation.to_broker["controller"], federation.to_store["controller"]],
        "learner": [federation.to_broker[VICTIM]],
        "broker": list(federation.to_broker.values()),
        "Redis": list(federation.to_store.values()),
    }[target]
    for line in lines:
        line.cut("silent" if fault == "cut silently" else "reset")
    meanwhile()
    time.sleep(SILENT_S if fault == "cut silently" else RESET_S)
    for line in lines:
        line.heal()


# ---------------------------------------------------------------- what came of it


def play(target: Target, fault: Fault, phase: Phase, bench: Bench) -> Outcome:
    """One cell of the table."""
    watched = bring_to(phase, bench)
    disturb(target, fault, bench, meanwhile=lambda: go_on(bench, watched))
    return outcome(target, fault, phase, bench, watched, over_at=time.time())


def outcome(
    target: str, fault: str, phase: str, bench: Bench, watched: Watched, *, over_at: float
) -> Outcome:
    """Wait for the job's end, and look at all of its versions."""
    federation = bench.federation
    federation.wait(lambda: watched.has_ended, f"the end of the job ({target}, {fault}, {phase})", WAIT_S)
    if watched.error is not None:
        raise watched.error
    ended = watched.events[-1]
    assert isinstance(ended, e.JobFinished)
    committed = [event for event in watched.events if isinstance(event, e.VersionCommitted)]
    lost, twice = _counts(watched.job, committed)
    times = {event.round: event.time_s for event in committed}
    assert bench.undisturbed is not None
    final = watched.job.model()
    trainings = [(name, round) for name in LEARNERS for round in federation.trained(watched.id, name)]
    return Outcome(
        target=target,
        fault=fault,
        phase=phase,
        state=ended.state if ended.state == "done" else f"{ended.state}: {ended.reason}",
        lost=lost,
        twice=twice,
        equal=final.digest == bench.undisturbed.digest
        and bytes(final.buffer) == bytes(bench.undisturbed.buffer),
        recovery_s=round(max(0.0, times.get(ROUND, ended.time_s) - over_at), 2),
        trained_again=len(trainings) - len(set(trainings)),
    )


def _counts(job: Job, committed: list[e.VersionCommitted]) -> tuple[int, int]:
    """Updates lost and counted twice, in all versions: by what the models say, and by the records.

    Each learner adds another amount with another weight, so the step from one version to the next is
    ``Σ cᵢ wᵢ aᵢ / Σ cᵢ wᵢ`` for one set of counts only (up to a common factor, which the total weight of the
    version's record tells).
    """
    lost = twice = 0
    records = {event.version: event for event in committed}
    models = {version: job.model(version)["w"] for version in range(ROUNDS + 1)}
    for version in range(1, ROUNDS + 1):
        steps = np.unique(models[version] - models[version - 1])
        counts = _counts_of(float(steps[0])) if steps.size == 1 else None
        record = records.get(version)
        if counts is None or record is None or sorted(record.contributors) != sorted(LEARNERS):
            lost += len(LEARNERS)  # nothing that can be told apart
            continue
        if record.total_weight != sum(weight for _, weight in LEARNERS.values()):
            twice += 1
        lost += sum(count == 0 for count in counts)
        twice += sum(max(0, count - 1) for count in counts)
    return lost, twice


def _counts_of(step: float) -> tuple[int, ...] | None:
    for counts in itertools.product(range(3), repeat=len(LEARNERS)):
        weights = [count * weight for count, (_, weight) in zip(counts, LEARNERS.values(), strict=True)]
        if not sum(weights):
            continue
        total = sum(w * amount for w, (amount, _) in zip(weights, LEARNERS.values(), strict=True))
        if np.float32(total / sum(weights)) == np.float32(step) and counts != (2, 2, 2):
            return counts
    return None
