"""A federation of the real roles in one world of faults: who lives in it, and what befalls them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from broker_fl.errors import (
    BrokerUnavailable,
    Fenced,
    QueueInUse,
    RequestRefused,
    StoreUnavailable,
    VersionsLost,
)
from broker_fl.interfaces import Store
from broker_fl.model import Model
from broker_fl.roles.controller import Controller, ControllerSettings
from broker_fl.roles.driver import Driver, Job
from broker_fl.roles.learner import LearnerHost, LearnerSettings
from broker_fl.roles.learner.group import Group
from broker_fl.stores.sqlite import SQLiteStore
from broker_fl.topology import Topology
from broker_fl.wire import events as e
from broker_fl.wire.messages import VersionRef
from tests.simulation.audit import Audit
from tests.simulation.connections import SimTransport
from tests.simulation.kernel import Kernel, Violation
from tests.simulation.learning import CountingLearner
from tests.simulation.network import Network, NetworkFaults
from tests.simulation.processes import EPOCH_S, Process
from tests.simulation.readings import check
from tests.simulation.references import NUM_VALUES
from tests.simulation.scenario import Scenario, scenario
from tests.simulation.storage import MemoryStore, StoreFaults, StoreLine, StoreServer

FEDERATION = "sim"
QUIET_S = 3_000.0
"""Within which jobs end once nothing goes wrong any more."""
PATIENCE_S = 1e6
DOWNLOAD_S = 30.0
LOOK_EVERY_S = 5.0
FOR_EVER_S = 1e6
MAX_STEPS = 400_000
MAX_QUEUE_BYTES = 4 << 20
MAX_SHARES = 40


class World:
    """One run; ``run`` raises what it finds."""

    def __init__(self, seed: int, *, keep_history: bool = False) -> None:
        self.seed = seed
        self.scenario: Scenario = scenario(seed)
        self.kernel = Kernel(seed, keep_history=keep_history)
        self.are_faults_on = True
        self.topology = Topology(FEDERATION)
        self.network = Network(self.kernel, self.topology, self.scenario.network)
        self._store: Store = (
            SQLiteStore(":memory:", federation=FEDERATION, clock=self._wall_s, steady=self._wall_s)
            if self.scenario.is_sqlite
            else MemoryStore(self._wall_s, forgets_versions=self.scenario.forgets_versions)
        )
        self.server = StoreServer(self.kernel, self._store, self.scenario.store)
        self.audit = Audit(self.kernel, self._store, self.scenario)
        self.server.on_loss = self.audit.forget
        self._controllers: dict[int, tuple[Process, SimTransport, Controller]] = {}
        self._hosts: dict[int, tuple[Process, SimTransport, LearnerHost]] = {}
        self._drivers: dict[int, tuple[Process, SimTransport]] = {}
        self._num_processes = 0
        self._num_done = 0
        self.outcomes: list[str] = []

    def _wall_s(self) -> float:
        return EPOCH_S + self.kernel.now

    # ------------------------------------------------------------ all of it

    def run(self) -> list[str]:
        """How the jobs ended.

        Raises:
            Violation: something happened that must not.
        """
        for slot in range(self.scenario.num_controllers):
            self._start_controller(slot)
        for slot in range(len(self.scenario.hosts)):
            self._start_host(slot)
        for number in range(len(self.scenario.jobs)):
            self._start_driver(number)
        self.kernel.after(self.scenario.until_s, self._end_faults)
        self._next_befall()
        self._look()
        try:
            self.kernel.run(
                lambda: self._num_done == len(self.scenario.jobs),
                until_s=self.scenario.until_s + QUIET_S,
                max_steps=MAX_STEPS,
            )
        except Violation as violation:
            raise Violation(f"seed {self.seed}: {violation}") from violation
        finally:
            self.kernel.end()
            self._store.close()
        return self.outcomes

    def _look(self) -> None:
        """What is kept in memory has bounds, whatever happens."""
        for process, _, controller in self._controllers.values():
            if process.alive and not process.frozen:
                self.audit.bounded(controller)
        fullest = self.network.fullest_bytes()
        check(fullest <= MAX_QUEUE_BYTES, f"a queue holds {fullest} bytes")
        self.kernel.after(LOOK_EVERY_S, self._look)

    def _end_faults(self) -> None:
        self.kernel.note("world", "FAULTS END")
        self.are_faults_on = False
        self.network.faults = NetworkFaults()
        self.server.faults = StoreFaults()

    # ------------------------------------------------------------ processes

    def _process(self, name: str) -> Process:
        self._num_processes += 1
        skew_s = self.kernel.draw.uniform(-self.scenario.skew_s, self.scenario.skew_s)
        return Process(self.kernel, f"{name}#{self._num_processes}", skew_s=skew_s)

    def _connected(self, process: Process) -> SimTransport:
        """On a thread of the process: a connection, once there is a broker."""
        while not self.network.is_up:
            process.sleep(1.0)
        return SimTransport(self.network, process)

    def _again_s(self) -> float:
        """How long whoever died stays away."""
        return self.kernel.draw.random() * (20.0 if self.are_faults_on else 2.0)

    def _start_controller(self, slot: int) -> None:
        process = self._process(f"c{slot}")
        process.on_death.append(
            lambda: self.kernel.after(self._again_s(), partial(self._start_controller, slot))
        )
        self._controllers.pop(slot, None)

        def main() -> None:
            transport = self._connected(process)
            store = StoreLine(self.server, process, self.audit)
            settings = ControllerSettings(
                federation=FEDERATION, store_patience_s=self.scenario.store_patience_s
            )
            controller = Controller(transport, store, settings, runtime=process)
            self._controllers[slot] = process, transport, controller
            controller.start()
            controller.wait()
            self.kernel.note(process.name, "ENDS", repr(controller.error))
            allowed = controller.error is None or isinstance(
                controller.error, Fenced | BrokerUnavailable | StoreUnavailable | VersionsLost
            )
            if not allowed:
                raise Violation(f"a controller ended with {controller.error!r}") from controller.error
            transport.close()
            process.kill()

        process.thread(main, "main").start()

    def _start_host(self, slot: int) -> None:
        numbers = self.scenario.hosts[slot]
        process = self._process("+".join(f"l{number}" for number in numbers))
        process.on_death.append(lambda: self.kernel.after(self._again_s(), partial(self._start_host, slot)))
        self._hosts.pop(slot, None)

        def main() -> None:
            transport = self._connected(process)
            learners = {f"l{number}": CountingLearner(self, process, number) for number in numbers}
            group = f"g{slot}" if self.scenario.groups[slot] else None
            settings = LearnerSettings(federation=FEDERATION, num_workers=len(numbers), group=group)
            host = LearnerHost(transport, learners, settings, runtime=process)
            try:
                host.start()
            except (BrokerUnavailable, QueueInUse) as error:
                self.kernel.note(process.name, "ENDS", repr(error))
                process.kill()
            self._hosts[slot] = process, transport, host
            while not host.wait(5.0):
                self._is_bounded(host)
                if host.error is not None:
                    raise Violation(f"a learner ended with {host.error!r}") from host.error
            transport.close()
            process.kill()

        process.thread(main, "main").start()

    def _is_bounded(self, host: LearnerHost) -> None:
        """Jobs that have ended may be held until the next heartbeat."""
        for party in host._learners.parties:
            jobs = {status.task.job for status in party.statuses()}
            check(len(jobs) <= self.scenario.num_jobs, f"a learner holds tasks of {jobs}")
            if isinstance(party, Group):
                shares = [len(whole.shares) for tasks in party._tasks.values() for whole in tasks.values()]
                check(sum(shares) <= MAX_SHARES, f"a group keeps {shares} shares")

    # ------------------------------------------------------------ drivers

    def _start_driver(self, number: int) -> None:
        process = self._process(f"d{number}")

        def main() -> None:
            transport = self._connected(process)
            self._drivers[number] = process, transport
            while (driver := self._driver(transport, process)) is None:
                process.sleep(1.0)
            self._drive(process, driver, number)

        process.thread(main, "main").start()

    def _driver(self, transport: SimTransport, process: Process) -> Driver | None:
        try:
            return Driver(transport, FEDERATION, timeout_s=PATIENCE_S, runtime=process)
        except BrokerUnavailable:
            return None

    def _drive(self, process: Process, driver: Driver, number: int) -> None:
        spec = self.scenario.jobs[number]
        process.sleep(self.kernel.draw.random() * 10.0)
        self.audit.expect(spec)
        job = driver.submit(spec, {"w": np.zeros(NUM_VALUES)})
        self._watch(process, driver, job, number)
        if self.scenario.continues[number] and not self.audit.has_lost:
            self._go_on_from(process, driver, job, number)
        self._num_done += 1

    def _go_on_from(self, process: Process, driver: Driver, before: Job, number: int) -> None:
        """Submit the job's settings again, from a version that is stored: its newest, or the oldest."""
        driver._connection.timeout_s = PATIENCE_S
        spec = self.scenario.jobs[number].model_copy(update={"name": f"on-{before.id}"})
        newest = len(self.audit.lineage(before.id).models) - 1
        try:
            version = self.kernel.draw.choice([None, before.versions()[0].version])
            self.audit.expect(spec, (before.id, newest if version is None else version))
            job = driver.submit(spec, VersionRef(job=before.id, version=version))
        except RequestRefused as refused:
            check(self.audit.has_lost, f"a request was refused: {refused}")
        else:
            self._watch(process, driver, job, number)

    def _watch(self, process: Process, driver: Driver, job: Job, number: int) -> None:
        self.kernel.note(process.name, "submitted", job.id)
        self.audit.lineage(job.id)
        if self.scenario.pauses[number]:
            process.thread(partial(self._pause, process, job), "pausing").start()
        if self.scenario.is_observed:
            process.thread(partial(self._observe, process, driver, job), "observing").start()
        if self.scenario.stops[number]:
            process.thread(partial(self._stop, process, job), "stopping").start()
        try:
            self.outcomes.append(self._seen_to_its_end(process, driver, job))
        except RequestRefused as refused:
            lineage = self.audit.lineage(job.id)
            check(lineage.has_lost and not lineage.models, f"a request was refused: {refused}")
            self.outcomes.append("lost: the store forgot the job itself")

    def _seen_to_its_end(self, process: Process, driver: Driver, job: Job) -> str:
        heard = list(job.events())
        driver.timeout_s = DOWNLOAD_S
        final = self._fetched(process, job)
        lineage = self.audit.lineage(job.id)
        if lineage.has_lost:  # perhaps just when it was read: then it was a version, if not the newest
            lineage.base_of(final["w"])
        else:
            check(np.array_equal(final["w"], lineage.models[-1]), f"{job.id}: another model was fetched")
        self.audit.finished(job.id, heard)
        end = heard[-1]
        assert isinstance(end, e.JobFinished)
        return f"{end.state}: {end.reason}"

    def _fetched(self, process: Process, job: Job) -> Model:
        """What is lost of a download is asked for once more by whoever wants it."""
        while True:
            try:
                return job.model()
            except BrokerUnavailable as error:
                self.kernel.note(process.name, "no model", error)
            except RequestRefused as refused:
                if "store" not in str(refused):
                    raise

    def _pause(self, process: Process, job: Job) -> None:
        draw = self.kernel.draw
        try:
            process.sleep(draw.random() * 30.0)
            job.pause("for a while")
            process.sleep(draw.random() * 60.0)
            if draw.random() < 0.5:
                job.resume(versions=1)
                process.sleep(draw.random() * 60.0)
        except RequestRefused as refused:
            check("has ended" in str(refused) or self.audit.has_lost, f"refused: {refused}")
        except BrokerUnavailable as error:
            self.kernel.note(process.name, "not paused", error)
        self._resume(process, job)

    def _resume(self, process: Process, job: Job) -> None:
        while True:
            try:
                return job.resume()
            except RequestRefused as refused:
                return check("has ended" in str(refused) or self.audit.has_lost, f"refused: {refused}")
            except BrokerUnavailable as error:
                self.kernel.note(process.name, "not resumed", error)

    def _observe(self, process: Process, driver: Driver, job: Job) -> None:
        while self.are_faults_on:
            try:
                is_listed = job.id in {one.job for one in driver.jobs()}
                check(is_listed or self.audit.has_lost, f"{job.id} is not listed")
                kept = [one.version for one in job.versions()]
                is_row = kept and kept == list(range(kept[0], kept[-1] + 1))
                check(is_row or self.audit.has_lost, f"{job.id}: kept are {kept}")
                check(len(driver.learners()) <= self.scenario.num_learners, "too many learners")
            except RequestRefused as refused:
                check("store" in str(refused) or self.audit.has_lost, f"a request was refused: {refused}")
            except BrokerUnavailable as error:
                self.kernel.note(process.name, "sees nothing", error)
            process.sleep(self.kernel.draw.random() * 10.0)

    def _stop(self, process: Process, job: Job) -> None:
        process.sleep(self.kernel.draw.random() * 60.0)
        try:
            job.stop("stopped by its driver")
        except RequestRefused as refused:
            check(self.audit.has_lost, f"a request was refused: {refused}")
        except BrokerUnavailable as error:
            self.kernel.note(process.name, "not stopped", error)

    # ------------------------------------------------------------ what befalls them

    def _next_befall(self) -> None:
        wait_s = self.kernel.draw.expovariate(1.0 / self.scenario.pause_s)
        self.kernel.after(wait_s, self._befall)

    def _befall(self) -> None:
        if not self.are_faults_on:
            return
        what, _, whom = self.kernel.draw.choice(self.scenario.befalls).partition(" ")
        self._next_befall()
        if whom == "broker":
            self.network.restart(self.kernel.draw.random() * 20.0, is_wiped=what == "wipe")
        elif whom == "mailbox":
            self.network.delete_a_mailbox()
        elif what == "store":
            self.server.outage(self.kernel.draw.random() * 30.0)
        else:
            all_of_them: dict[str, Mapping[int, tuple[Any, ...]]] = {
                "controller": self._controllers,
                "learner": self._hosts,
                "driver": self._drivers,
            }
            there = [one for _, one in sorted(all_of_them[whom].items()) if one[0].alive]
            if there:
                self._befalls(what, *self.kernel.draw.choice(there))

    def _befalls(self, what: str, process: Process, transport: SimTransport, role: Any = None) -> None:
        draw = self.kernel.draw
        if what == "kill":
            process.kill()
        elif what == "freeze" and not process.frozen:
            frozen_s = draw.random() * draw.choice([2.0, 20.0, 90.0])
            process.freeze()
            self.kernel.after(frozen_s, process.thaw)
            if frozen_s > 60.0:
                self.kernel.after(60.0, partial(transport.cut, notice_s=0.0, down_s=frozen_s - 60.0))
        elif what == "cut":
            transport.cut(
                notice_s=draw.random() * 10.0, down_s=draw.random() * draw.choice([1.0, 10.0, 60.0])
            )
        elif what == "part":
            role._store.cut(self._parted_s(role))
        elif what == "stop":
            self.kernel.note(process.name, "STOPS")
            stop = (
                partial(role.stop, drain_s=draw.random() * 10.0)
                if isinstance(role, LearnerHost)
                else role.stop
            )
            process.thread(stop, "stopping").start()

    def _parted_s(self, controller: Controller) -> float:
        """How long a controller is without the store; of two, the first one perhaps for good."""
        draw, first = self.kernel.draw, self._controllers.get(0)
        is_first = first is not None and first[2] is controller
        if self.scenario.num_controllers > 1 and is_first and draw.random() < 0.3:
            return FOR_EVER_S
        return draw.random() * draw.choice([2.0, 20.0, 90.0])
