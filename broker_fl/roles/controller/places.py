"""Where a controller reaches learners, and where it is reached: queues whose node may go down."""

from __future__ import annotations

import logging
from collections.abc import Callable

from broker_fl.interfaces import Transport
from broker_fl.topology import Topology

log = logging.getLogger(__name__)


class Keys:
    """Routing keys of learners and groups, of the mailboxes that they said they read; for any thread."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._generations: dict[str, int] = {}

    def of(self, name: str) -> str:
        """Where a learner or a group is reached."""
        return self._topology.learner_key(name, self._generations.get(name, 0))

    def note(self, name: str, generation: int) -> None:
        """It reads this one now."""
        if generation:
            self._generations[name] = generation
        else:
            self._generations.pop(name, None)


class Inbox:
    """Where results and updates reach one controller: ``controller-EPOCH``, then ``controller-EPOCH-1``.

    Each epoch has one of its own: what was meant for another does not arrive here.
    """

    def __init__(self, transport: Transport, topology: Topology, epoch: int) -> None:
        self._transport = transport
        self._topology = topology
        self._first = self.name = f"controller-{epoch}"
        self._generation = 0

    @property
    def queue(self) -> str:
        """Its queue's name."""
        return self._topology.inbox(self.name)

    def declare(self) -> None:
        """Make it, so that it keeps what comes before it is read.

        Raises:
            AccessDenied, BrokerUnavailable: see ``Transport.declare``.
        """
        self._transport.declare(self._topology.for_inbox(self.name))

    def move(self, queue: str, consume: Callable[[], None]) -> bool:
        """``queue`` is on a node that is down: if it is this one, have another instead, and ``consume``.

        Raises:
            BrokerUnavailable: no other one can be had.
        """
        if queue != self.queue:
            return False
        self._generation += 1
        name = f"{self._first}-{self._generation}"
        self._transport.declare(self._topology.for_inbox(name))
        self.name = name
        consume()
        self._transport.cancel(queue)
        log.warning("queue %r is on a node that is down; reading %r instead", queue, self.queue)
        return True
