"""The memory transport's message broker on a machine of its own, and what a network does to its messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from broker_fl.topology import Topology
from broker_fl.transports.memory import MemoryBroker
from tests.simulation.kernel import Kernel

if TYPE_CHECKING:
    from tests.simulation.connections import SimTransport

LATENCY_S = 0.005


@dataclass(slots=True, kw_only=True)
class NetworkFaults:
    """How likely each message meets with something; until the faults end."""

    lose: float = 0.0
    double: float = 0.0
    delay: float = 0.0
    """A message that takes up to ``delay_s``, and those behind it too."""
    delay_s: float = 5.0
    reorder: float = 0.0
    """A message that is overtaken."""


class Network:
    """The broker's machine."""

    def __init__(self, kernel: Kernel, topology: Topology, faults: NetworkFaults) -> None:
        self.kernel = kernel
        self.faults = faults
        self.broker = MemoryBroker(clock=lambda: kernel.now)
        self.is_up = True
        self.transports: list[SimTransport] = []
        self.topology = topology

    def restart(self, down_s: float, *, is_wiped: bool = False) -> None:
        """``kill -9`` of the broker, and its start after a while; ``is_wiped``: on an empty disk."""
        if not self.is_up:
            return
        self.kernel.note("broker", "DIED", f"for {down_s:.1f} s")
        self.is_up = False
        for transport in list(self.transports):
            transport.cut(notice_s=0.0, down_s=down_s + self.kernel.draw.random())
        self.kernel.after(0.0, self._wipe if is_wiped else self._forget)
        self.kernel.after(down_s, self._start)

    def _forget(self) -> None:
        for queue in self.broker._queues.values():
            if not queue.settings.quorum and queue.name != self.topology.dead:
                while len(queue):
                    queue.pop()

    def _wipe(self) -> None:
        self.kernel.note("broker", "WIPED")
        self.broker = MemoryBroker(clock=lambda: self.kernel.now)

    def delete_a_mailbox(self) -> None:
        """As an operator may, or the queue's expiry."""
        prefix = self.topology.mailbox("")
        names = sorted(name for name in self.broker._queues if name.startswith(prefix))
        if names and self.is_up:
            name = self.kernel.draw.choice(names)
            self.kernel.note("broker", "DELETES", name)
            for consumer in self.broker.delete_queue(name):
                consumer.owner.lost(consumer)

    def _start(self) -> None:
        self.is_up = True
        self.kernel.note("broker", "STARTED")

    def latency_s(self) -> float:
        return self.kernel.draw.random() * LATENCY_S

    def fullest_bytes(self) -> int:
        """The most that one queue holds."""
        return max((queue.ready_bytes for queue in self.broker._queues.values()), default=0)
