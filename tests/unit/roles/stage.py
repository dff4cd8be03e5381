"""Real roles on the memory transport and a SQLite store, with a hand on what goes wrong between them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from broker_fl.errors import AccessDenied, MessageRefused, StoreUnavailable
from broker_fl.extensions import OwnClasses
from broker_fl.interfaces import Delivery, Learner, TaskContext, Update
from broker_fl.model import Array, Arrays, Model
from broker_fl.roles.controller import Controller, ControllerSettings
from broker_fl.roles.controller.auditing import stored_lines
from broker_fl.roles.controller.retention import Retention
from broker_fl.roles.driver import Driver, Job
from broker_fl.roles.learner import LearnerHost, LearnerSettings
from broker_fl.roles.learner.policy import Guard
from broker_fl.roles.runtime import THREADS, Runtime
from broker_fl.stores.sqlite import SQLiteStore
from broker_fl.topology import Topology
from broker_fl.transports.delegating import DelegatingTransport
from broker_fl.transports.memory import MemoryBroker, MemoryTransport
from broker_fl.wire import events as e
from broker_fl.wire.frames import pack_chunk
from broker_fl.wire.messages import DeadLetter, UpdateChunk, decode
from tests.unit.coordination.bench import spec

FEDERATION = "stage"
WAIT_S = 30.0
"""A deadline for what takes milliseconds."""

__all__ = [
    "FEDERATION",
    "WAIT_S",
    "Adds",
    "Faulty",
    "Halts",
    "Stage",
    "eventually",
    "kinds",
    "model_of",
    "spec",
]


def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait for something that other threads do."""
    give_up_at = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up_at, f"{what} did not happen within {WAIT_S:g} s"
        time.sleep(0.005)


def model_of(value: float = 0.0, size: int = 3) -> dict[str, Array]:
    """A model whose sums are exact."""
    return {"w": np.full(size, value, np.float32), "b": np.full((), value, np.float64)}


def kinds(job: Job) -> list[str]:
    """The stored events of a job, by kind."""
    return [event.KIND for event in job.events(follow=False)]


class Adds:
    """Adds a constant to every float: after r rounds of weight w each, the model is known exactly."""

    def __init__(self, amount: float, *, num_examples: int = 1) -> None:
        self.amount = amount
        self.num_examples = num_examples
        self.num_trained = 0
        self.gate = threading.Event()
        self.gate.set()
        self.at_work = threading.Event()

    def train(self, model: Arrays, task: TaskContext) -> Update:
        """Wait at the gate, and add."""
        self.num_trained += 1
        self.at_work.set()
        while not self.gate.wait(0.01):
            task.progress(0.5)
        after = {name: self._added(array) for name, array in model.items()}
        return Update(model=after, num_examples=self.num_examples)

    def _added(self, array: Array) -> Array:
        is_float = array.dtype.kind not in "iub"  # of bfloat16 the kind is "V"
        return np.asarray(array + (self.amount if is_float else 1), array.dtype)

    def evaluate(self, model: Arrays, task: TaskContext) -> Mapping[str, float]:
        """The first value, so that a test sees which version was evaluated."""
        return {"first": float(model["w"].reshape(-1)[0]), "num_examples": 1}


def apart(body: bytes) -> list[bytes]:
    """The same, with a result by itself that came inside of a chunk."""
    try:
        message, payload = decode(body)
    except MessageRefused:
        return [body]
    if not isinstance(message, UpdateChunk) or message.result is None or payload is None:
        return [body]
    header = message.model_copy(update={"result": None})
    return [message.result.pack(), pack_chunk(header.KIND, header.model_dump(), payload)]


class Halts(Adds):
    """Trains so often at once, and from then on waits at its gate, which is closed at first."""

    def __init__(self, amount: float, after: int) -> None:
        super().__init__(amount)
        self._open = self.gate
        self._closed = threading.Event()
        self._after = after

    def train(self, model: Arrays, task: TaskContext) -> Update:
        """Free, or at the gate."""
        self.gate = self._open if self.num_trained < self._after else self._closed
        return super().train(model, task)

    def go_on(self) -> None:
        """Open the gate for good."""
        self._closed.set()


class Faulty(DelegatingTransport):
    """A transport that hands each body to ``tamper`` first: what comes back is published instead."""

    def __init__(self, inner: MemoryTransport, tamper: Callable[[str, bytes], Iterable[bytes]]) -> None:
        super().__init__(inner)
        self.tamper = tamper

    def publish(
        self,
        exchange: str,
        routing_keys: Sequence[str],
        body: bytes,
        *,
        persistent: bool = False,
        mandatory: bool = False,
    ) -> None:
        """Publish what ``tamper`` makes of it; a result is handed to it apart from its update."""
        for changed in (changed for one in apart(body) for changed in self.tamper(exchange, one)):
            self._inner.publish(exchange, routing_keys, changed, persistent=persistent, mandatory=mandatory)


class Cord:
    """A store with a power cord: once it is pulled nothing answers, as if its process were killed."""

    def __init__(self, inner: SQLiteStore) -> None:
        self._inner = inner
        self.pulled = False
        self.failing = 0
        """Writes and reads that fail before the next one works."""
        self.denies_renewals = False
        self.num_renewals = 0
        """Of the lease, that worked."""

    def renew_lease(self, epoch: int, ttl_s: float) -> None:
        """Count it."""
        if self.denies_renewals:
            raise AccessDenied("this user has no permissions")
        self.__getattr__("renew_lease")(epoch, ttl_s)
        self.num_renewals += 1

    def __getattr__(self, name: str) -> Any:
        if self.pulled:
            raise StoreUnavailable("the cord was pulled")
        if self.failing > 0:
            self.failing -= 1
            raise StoreUnavailable("a write that fails now and then")
        return getattr(self._inner, name)


class Stage:
    """A federation under test; a context manager."""

    def __init__(
        self,
        folder: Path,
        *,
        heartbeat_s: float = 5.0,
        lease_ttl_s: float = 15.0,
        runtime: Runtime = THREADS,
    ) -> None:
        self.broker = MemoryBroker()
        self._runtime = runtime
        self.topology = Topology(FEDERATION)
        self._settings = ControllerSettings(
            federation=FEDERATION, heartbeat_s=heartbeat_s, lease_ttl_s=lease_ttl_s
        )
        self.retention = Retention()
        """Of controllers that are started from now on."""
        self.path = folder / "state.sqlite"
        self._closing: list[Callable[[], object]] = []
        self.cords: dict[Controller, tuple[Cord, MemoryTransport]] = {}
        self.hosts: list[LearnerHost] = []
        self.transports: dict[LearnerHost, MemoryTransport] = {}
        self.transport = self.broker.connect("test")
        self.driver: Driver

    def __enter__(self) -> Self:
        self.driver = self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        for close in reversed(self._closing):
            close()
        self.transport.close()

    def connect(self, timeout_s: float = WAIT_S) -> Driver:
        driver = Driver(self.broker.connect("driver"), FEDERATION, timeout_s=timeout_s, runtime=self._runtime)
        self._closing.append(driver.close)
        return driver

    def controller(self, *, wait: bool = True, own: OwnClasses | None = None) -> Controller:
        """Start one, with the user's ``own`` rules and selectors; ``wait`` until it has the lease, and its
        question who is there is on its way.
        """
        store = SQLiteStore(self.path, federation=FEDERATION, clock=self._runtime.wall_s)
        cord, transport = Cord(store), self.broker.connect("controller")
        settings = replace(self._settings, retention=self.retention)
        controller = Controller(transport, cord, settings, own, self._runtime)
        self.cords[controller] = cord, transport
        self._closing += [store.close, transport.close, lambda: controller.wait(10.0), controller.stop]
        controller.start()
        if wait:
            assert controller.wait_active(WAIT_S)
            self._wait_sent(controller)
        return controller

    def _wait_sent(self, controller: Controller) -> None:
        """Until it has asked who is there: a learner that hears that and has joined already joins once more,
        and is sent again what it has not received by then.
        """
        sent = self._runtime.event()
        controller._sender.post(sent.set)
        assert sent.wait(WAIT_S)

    @property
    def num_renewals(self) -> int:
        """How often a lease has been renewed."""
        return sum(cord.num_renewals for cord, _ in self.cords.values())

    def kill(self, controller: Controller) -> None:
        """End it as ``kill -9`` does: nothing is said, nothing is written any more."""
        cord, transport = self.cords[controller]
        cord.pulled = True
        transport.close()

    def host(
        self,
        learners: Mapping[str, Learner],
        *,
        tamper: Callable[[str, bytes], Iterable[bytes]] | None = None,
        num_workers: int = 4,
        group: str | None = None,
        guard: Guard | None = None,
    ) -> LearnerHost:
        """Start learners, each by itself or as a ``group`` that is there when this returns."""
        transport = self.broker.connect("learners")
        used = Faulty(transport, tamper) if tamper else transport
        settings = LearnerSettings(federation=FEDERATION, num_workers=num_workers, group=group, guard=guard)
        host = LearnerHost(used, learners, settings, runtime=self._runtime)
        self._closing += [transport.close, lambda: host.stop(drain_s=0.0)]
        host.start()
        self.hosts.append(host)
        self.transports[host] = transport
        if group is not None:
            assert host.wait_welcomed(WAIT_S)
        return host

    def kill_host(self, host: LearnerHost) -> None:
        """End it as ``kill -9`` does."""
        self.transports[host].close()
        host.abandon()

    def run(
        self, learners: Mapping[str, Learner], model: Mapping[str, Array] | None = None, **settings: Any
    ) -> Job:
        """Start controller, learners and a job, whose first round waits for all of them."""
        self.controller()
        self.host(learners)
        return self.submit(model, min_learners=len(learners), **settings)

    def submit(self, model: Mapping[str, Array] | None = None, **settings: Any) -> Job:
        """Start a job."""
        return self.driver.submit(spec(**settings), model if model is not None else model_of())

    def audit_log(self) -> list[bytes]:
        """Its entries."""
        store = SQLiteStore(self.path, federation=FEDERATION)
        try:
            return list(stored_lines(store))
        finally:
            store.close()

    def dead_letters(self, num: int) -> list[tuple[str, bytes]]:
        """Reasons and bodies of what was refused, once there are so many."""
        found: list[tuple[str, bytes]] = []

        def sink(delivery: Delivery) -> None:
            message, payload = decode(delivery.body)
            assert isinstance(message, DeadLetter)
            found.append((message.reason, bytes(payload or b"")))
            delivery.ack()

        self.transport.consume(self.topology.dead, sink, prefetch=10)
        try:
            eventually(lambda: len(found) >= num, f"{num} dead letters, not {found}")
        finally:
            self.transport.cancel(self.topology.dead)
        return found


def done(job: Job) -> e.JobFinished:
    """Wait for the job's end, which has to be a good one."""
    finished = job.wait()
    assert finished.state == "done", finished.reason
    return finished


def same(found: Model, expected: Mapping[str, Array]) -> None:
    """Exactly equal, tensor by tensor."""
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
