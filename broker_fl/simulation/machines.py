"""Learners that each have a machine of their own, which can lose its power and get it back."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial

from broker_fl.errors import MessageRefused
from broker_fl.interfaces import Delivery, Learner
from broker_fl.roles.learner import LearnerHost, LearnerSettings
from broker_fl.roles.loop import Loop
from broker_fl.simulation.link import LinkedTransport
from broker_fl.topology import Topology
from broker_fl.transports.memory import MemoryBroker, MemoryTransport
from broker_fl.wire.events import Event, RoundStarted, VersionCommitted, decode_event
from broker_fl.wire.messages import EventBatch, decode
from broker_fl.world import Kill, Profile

log = logging.getLogger(__name__)
EVENTS_PREFETCH = 64
WATCHER = "simulation"
_LONG_S = 60.0


class Machine:
    """One learner with its own host and its own link; each time it is switched on, it is a new session."""

    def __init__(
        self, broker: MemoryBroker, learner: Learner, profile: Profile, settings: LearnerSettings
    ) -> None:
        self._broker = broker
        self._learner = learner
        self._profile = profile
        self._settings = settings
        self._transport: LinkedTransport | None = None
        self._host: LearnerHost | None = None

    @property
    def is_on(self) -> bool:
        """Whether it was switched on, and not off since."""
        return self._host is not None

    def switch_on(self) -> None:
        """Start the learner. It keeps its object, as a process that starts again finds its disk."""
        profile = self._profile
        self._transport = LinkedTransport(
            self._broker.connect(profile.learner),
            down_bytes_s=profile.down_bytes_s,
            up_bytes_s=profile.up_bytes_s,
            latency_s=profile.latency_s,
            name=f"link of {profile.learner}",
        )
        self._host = LearnerHost(self._transport, {profile.learner: self._learner}, self._settings)
        self._host.start()

    def cut(self) -> None:
        """From here on it sends nothing and takes nothing; from any thread."""
        if (transport := self._transport) is not None:
            transport.cut()

    def switch_off(self) -> None:
        """End the learner as a process that is killed: nothing is said, and what it did is lost."""
        self.cut()
        if self._host is not None:
            self._host.abandon()
        self._transport = self._host = None


class Machines:
    """All machines of a simulation, and who switches them off and on as their profiles say.

    One thread does it. It hears of rounds as everybody may: from the events.
    """

    def __init__(
        self, machines: Mapping[str, Machine], profiles: Mapping[str, Profile], topology: Topology
    ) -> None:
        self._machines = machines
        self._topology = topology
        self._lock = threading.Lock()
        self._kills = [(name, kill) for name in profiles for kill in profiles[name].kills]
        """Those that are still to come."""
        self._returns: list[tuple[int, str]] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._watcher: MemoryTransport | None = None
        self._loop = Loop("simulation-machines")

    def start(self) -> None:
        """Switch all on."""
        for machine in self._machines.values():
            machine.switch_on()

    def begin_faults(self, broker: MemoryBroker) -> None:
        """Begin to count time and rounds; call it when all learners are there."""
        if not self._kills:
            return
        began = time.monotonic()
        for name, kill in [(name, kill) for name, kill in self._kills if kill.at_s is not None]:
            self._at(began + (kill.at_s or 0.0), partial(self._kill, name, kill))
        self._watcher = broker.connect("simulation-watcher")
        self._watcher.declare([*self._topology.exchanges(), *self._topology.for_watcher(WATCHER)])
        self._watcher.consume(self._topology.event_queue(WATCHER), self._take, prefetch=EVENTS_PREFETCH)
        self._loop.start(on_idle=self._do_what_is_due, timeout_s=self._timeout_s)

    def stop(self) -> None:
        """Switch all off, at once."""
        self._loop.stop()
        self._loop.join()
        if self._watcher is not None:
            self._watcher.close()
        for machine in self._machines.values():
            machine.cut()
        for machine in self._machines.values():
            machine.switch_off()

    def task_begins(self, learner: str, round: int) -> bool:
        """On the learner's thread: whether it is to die in this round or one before; it is cut off then."""
        due = [kill for name, kill in self._due(round) if name == learner]
        if due:
            self._machines[learner].cut()
            for kill in due:
                self._loop.post(partial(self._kill, learner, kill))
        return bool(due)

    # ------------------------------------------------------------ on the thread of the loop

    def _round_begins(self, round: int) -> None:
        for name in [name for back, name in self._returns if back <= round]:
            self._revive(name)
        self._returns = [(back, name) for back, name in self._returns if back > round]
        for name, kill in self._due(round):
            self._kill(name, kill)

    def _due(self, round: int) -> list[tuple[str, Kill]]:
        with self._lock:
            return [
                (name, kill)
                for name, kill in self._kills
                if kill.at_round is not None and kill.at_round <= round
            ]

    def _kill(self, name: str, kill: Kill) -> None:
        with self._lock:
            if (name, kill) not in self._kills:
                return
            self._kills.remove((name, kill))
        machine = self._machines[name]
        if machine.is_on:
            log.info("learner %s is killed", name)
            machine.switch_off()
        if kill.back_at_round is not None:
            self._returns.append((kill.back_at_round, name))
        if kill.back_after_s is not None:
            self._at(time.monotonic() + kill.back_after_s, partial(self._revive, name))

    def _revive(self, name: str) -> None:
        machine = self._machines[name]
        if not machine.is_on:
            log.info("learner %s is back", name)
            machine.switch_on()

    def _at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (when, next(self._numbers), action))

    def _timeout_s(self) -> float:
        return self._timers[0][0] - time.monotonic() if self._timers else _LONG_S

    def _do_what_is_due(self) -> None:
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()

    def _take(self, delivery: Delivery) -> None:
        """On the watcher's thread."""
        try:
            message, _ = decode(delivery.body)
            events = message.events if isinstance(message, EventBatch) else ()
            rounds = [round for event in map(decode_event, events) if (round := _begun(event)) is not None]
        except MessageRefused as error:
            log.warning("the simulation cannot read an event: %s", error)
            rounds = []
        if rounds:
            self._loop.post(partial(self._round_begins, max(rounds)))
        delivery.ack()


def _begun(event: Event) -> int | None:
    """The round that is known to have begun; with version v, round v has."""
    match event:
        case RoundStarted(round=round):
            return round
        case VersionCommitted(version=version):
            return version
    return None
