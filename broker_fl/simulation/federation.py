"""Controller, learners and a driver on threads of one process."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from broker_fl.errors import BrokerFLError
from broker_fl.extensions import OwnClasses
from broker_fl.interfaces import Learner, Store
from broker_fl.model import Array, Model
from broker_fl.roles.controller import Controller, ControllerSettings
from broker_fl.roles.driver import Driver, Job
from broker_fl.roles.learner import DEFAULT_HEARTBEAT_S, LearnerHost, LearnerSettings
from broker_fl.simulation.fit import check_can_run, members_of
from broker_fl.simulation.grouped import GroupHosts, check_groups
from broker_fl.simulation.machines import Machine, Machines
from broker_fl.simulation.pace import SimulatedLearner
from broker_fl.stores.memory import MemoryStore
from broker_fl.stores.sqlite import SQLiteStore
from broker_fl.topology import Topology
from broker_fl.transports.memory import MemoryBroker, MemoryTransport
from broker_fl.wire.job import JobSpec
from broker_fl.wire.messages import VersionRef
from broker_fl.world import Profile, World

STORE_PATIENCE_S = 3.0
"""A disk that is full for so long ends the federation: nobody stands by to mend it, as with a daemon."""
JOIN_TIMEOUT_S = 60.0
"""How long learners may take to be there."""


class Federation:
    """Controller, learners and a driver on threads of this process; a context manager.

    What ends the controller before its time is raised at once from whatever waits for it, and by the context
    manager: ``StoreUnavailable`` if the disk is full.

    ::

        with Federation({"a": learner_a, "b": learner_b}) as federation:
            job = federation.submit(JobSpec(termination={"rounds": 10}), initial_model)
            job.wait()
            final = job.model()

    In a ``world``, learners are as fast as it says, and fail as it says; all of them are there when the block
    begins::

        world = World(speeds=Spread(low=0.1, high=1.0), faults=[Kill(fraction=0.3, at_round=5)], seed=1)
        with Federation(learners, world=world) as federation: ...

    Thousands of learners are ``LazyLearners``, made when they are worked on, in ``groups``: each is a host
    with a thread, which sends the sum of its learners' updates. That is for rules that are a plain weighted
    sum::

        learners = LazyLearners((f"phone-{i}" for i in range(10_000)), lambda context: Phone(context.index))
        with Federation(learners, groups=2) as federation: ...
    """

    def __init__(  # noqa: PLR0913 - settings by name, each with a default
        self,
        learners: Mapping[str, Learner],
        *,
        world: World | None = None,
        groups: int | None = None,
        folder: str | Path | None = None,
        num_workers: int = 2,
        name: str = "simulation",
        own: Iterable[type] | OwnClasses = (),
    ) -> None:
        """Keep state in ``folder``, where the next federation finds it; if None, in memory alone, and it ends
        with the block. ``num_workers`` learners compute at a time. ``own`` are rules and selectors that jobs
        may name by their classes.

        Raises:
            SettingError: the world names learners that there are not, or hits more than there are; or one of
                ``own`` is neither a rule nor a selector; or learners do not fit into so many ``groups``, or
                a world is given for groups.
        """
        if groups is not None:
            check_groups(len(learners), groups, world)
        classes = own if isinstance(own, OwnClasses) else OwnClasses.of(own)
        self.profiles: Mapping[str, Profile] = world.profiles(list(learners)) if world else {}
        """What was drawn for each learner; empty without a world."""
        self._temporary = tempfile.TemporaryDirectory() if folder is None else None
        self.folder = Path(self._temporary.name if self._temporary else folder or ".")
        self.broker = MemoryBroker()
        self._name = name
        self._num_learners = len(learners)
        self._members = members_of(learners)
        self._store: Store = (
            MemoryStore() if folder is None else SQLiteStore(self.folder / "state.sqlite", federation=name)
        )
        # A link takes its time for each message, by its bytes; and a learner that is killed loses some.
        self._hands_over = not any(one.has_link or one.kills for one in self.profiles.values())
        self._transports = [self._connect(role) for role in ("controller", "learners")]
        controller_settings = ControllerSettings(
            federation=name,
            heartbeat_s=world.heartbeat_s if world else DEFAULT_HEARTBEAT_S,
            store_patience_s=STORE_PATIENCE_S,
        )
        self.controller = Controller(self._transports[0], self._store, controller_settings, classes)
        self._groups = GroupHosts(self._connect, name, learners, groups) if groups is not None else None
        alone = learners if groups is None else {}
        self._machines, self.learners = self._hosts_of(alone, world, num_workers)
        self._closing = ExitStack()
        self._guard = threading.Thread(target=self._watch_controller, name="simulation-guard", daemon=True)
        self.driver: Driver

    def _connect(self, name: str) -> MemoryTransport:
        return self.broker.connect(name, hands_over=self._hands_over)

    def _hosts_of(
        self, learners: Mapping[str, Learner], world: World | None, num_workers: int
    ) -> tuple[Machines, LearnerHost]:
        machines, others = self._machines_of(learners, world, num_workers)
        # Those that only pause do not wait for one another: only computing takes a worker's time.
        num_threads = max(1, len(others)) if world and world.paces else num_workers
        settings = LearnerSettings(federation=self._name, num_workers=num_threads)
        host = LearnerHost(self._transports[1], others, settings)
        return Machines(machines, self.profiles, Topology(self._name)), host

    def _machines_of(
        self, learners: Mapping[str, Learner], world: World | None, num_workers: int
    ) -> tuple[dict[str, Machine], Mapping[str, Learner]]:
        """Those that have a link or an end of their own, and the others, whom one host can carry."""
        if world is None:
            return {}, learners
        slots = threading.Semaphore(num_workers)
        machines: dict[str, Machine] = {}
        others: dict[str, Learner] = {}
        settings = LearnerSettings(federation=self._name, num_workers=1)
        for name, learner in learners.items():
            profile = self.profiles[name]
            simulated = others[name] = SimulatedLearner(learner, profile, world, slots)
            if profile.has_link or profile.kills:
                machines[name] = Machine(self.broker, others.pop(name), profile, settings)
                simulated.is_killed = partial(self._task_begins, name)
        return machines, others

    def _task_begins(self, learner: str, round: int) -> bool:
        return self._machines.task_begins(learner, round)

    def __enter__(self) -> Self:
        with ExitStack() as closing:
            closing.callback(self._close_files)
            self.controller.start()
            closing.callback(self._stop_controller)
            if not self.controller.wait_active():
                raise self.controller.error or BrokerFLError("the controller ended before it was active")
            self.learners.start()
            closing.callback(self.learners.stop, drain_s=0.0, reason="the simulation is over")
            closing.callback(self._machines.stop)
            self._machines.start()
            if self._groups is not None:
                closing.callback(self._groups.stop)
                self._groups.start()
            self.driver = Driver(self._connect("driver"), self._name)
            closing.callback(self.driver.close)
            self._guard.start()
            if self.profiles:
                self._wait_for_learners()
                self._machines.begin_faults(self.broker)
            self._closing = closing.pop_all()
        return self

    def _wait_for_learners(self) -> None:
        give_up_at = time.monotonic() + JOIN_TIMEOUT_S
        while (num := len(self.driver.learners())) < self._num_learners:
            if time.monotonic() >= give_up_at:
                raise BrokerFLError(
                    f"{num} of {self._num_learners} learners joined within {JOIN_TIMEOUT_S:g} s: are their "
                    f"links too slow?"
                )
            time.sleep(0.01)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        cause = self.controller.error  # before the end: what happens meanwhile is of no interest
        self._closing.close()
        self._guard.join()
        if cause is not None and cause is not error and isinstance(error, BrokerFLError | None):
            raise cause from error

    def _watch_controller(self) -> None:
        self.controller.wait()
        if isinstance(error := self.controller.error, Exception):
            self.driver.fail(error)

    def _stop_controller(self) -> None:
        self.controller.stop()
        self.controller.wait(10.0)

    def _close_files(self) -> None:
        for transport in self._transports:
            transport.close()
        self._store.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def submit(self, spec: JobSpec, model: Model | Mapping[str, Array] | VersionRef) -> Job:
        """Start a job.

        Raises:
            SettingError: it needs more learners than there are in this process, and would wait for ever.
        """
        check_can_run(spec, self._members, self.profiles)
        return self.driver.submit(spec, model)
