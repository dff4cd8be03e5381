"""Queues whose node may go down: the mailboxes of learners, and what the controller knows of them; inboxes.

A classic queue lives on one node of a broker's cluster. While that is down nobody can read it, and nobody can
make another one of its name. So each has generations: ``NAME``, ``NAME.1``, ``NAME.2``, …, each with a
routing key of its own; its reader takes the first that can be read, and says which.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

from broker_fl.errors import AccessDenied, QueueLost, SettingError
from broker_fl.interfaces import Sink, Transport
from broker_fl.roles.runtime import Runtime
from broker_fl.topology import MAX_GENERATIONS, Topology

ASK_EVERY_S, ASK_TIMEOUT_S = 0.5, 20.0
log = logging.getLogger(__name__)


class Mailboxes:
    """Those that one host of learners reads, by the name of the learner or group."""

    def __init__(
        self,
        transport: Transport,
        topology: Topology,
        runtime: Runtime,
        *,
        prefetch: int,
        ask: Callable[[str, int], None],
    ) -> None:
        """``ask`` has the controller make the mailbox of a name and a generation, where we may not."""
        self._transport = transport
        self._topology = topology
        self._runtime = runtime
        self._prefetch = prefetch
        self._ask = ask
        self._sinks: dict[str, Sink] = {}
        self._generations: dict[str, int] = {}

    def open(self, sinks: Mapping[str, Sink]) -> None:
        """Declare and consume from one for each name.

        Raises:
            AccessDenied: no permission, or another process reads one of them.
            SettingError: there is none, we may not make one, and no controller has.
            BrokerUnavailable: the broker does not answer.
        """
        self._sinks.update(sinks)
        try:
            self._transport.declare(entity for name in sinks for entity in self._topology.for_learner(name))
        except (QueueLost, AccessDenied) as error:  # one by one, then
            log.info("%s", error)
        for name in sinks:
            self._open(name, range(MAX_GENERATIONS))

    def generation(self, name: str) -> int:
        """Of the one that is read; 0 is the first."""
        return self._generations[name]

    def move(self, queue: str) -> bool:
        """``queue`` is on a node that is down: read another one instead; False if it is none of ours.

        Raises:
            BrokerUnavailable: no other one can be had.
        """
        name = next((name for name in self._sinks if self._queue(name) == queue), None)
        if name is None:
            return False
        lost = self.generation(name)
        self._open(name, (one for one in range(MAX_GENERATIONS) if one != lost))
        self._transport.cancel(queue)
        log.warning("queue %r is on a node that is down; reading %r instead", queue, self._queue(name))
        return True

    def _open(self, name: str, generations: Iterable[int]) -> None:
        for generation in generations:
            try:
                self._declare_and_consume(name, generation)
            except QueueLost as error:
                log.warning("%s", error)
            else:
                self._generations[name] = generation
                return
        raise QueueLost(f"all {MAX_GENERATIONS} mailboxes of {name!r} are on nodes that are down")

    def _declare_and_consume(self, name: str, generation: int) -> None:
        try:
            self._transport.declare(self._topology.for_learner(name, generation))
        except AccessDenied:  # then somebody else has made it, or is asked to
            self._consume_patiently(name, generation)
        else:
            self._consume(name, generation)

    def _consume_patiently(self, name: str, generation: int) -> None:
        """Consume as soon as the controller has made the queue."""
        give_up_at = self._runtime.steady_s() + ASK_TIMEOUT_S
        while True:
            try:
                self._consume(name, generation)
            except AccessDenied:
                raise
            except SettingError:
                if self._runtime.steady_s() >= give_up_at:
                    raise
                self._ask(name, generation)
                self._runtime.sleep(ASK_EVERY_S)
            else:
                return

    def _consume(self, name: str, generation: int) -> None:
        queue = self._topology.mailbox(name, generation)
        self._transport.consume(queue, self._sinks[name], prefetch=self._prefetch, exclusive=True)

    def _queue(self, name: str) -> str:
        return self._topology.mailbox(name, self._generations.get(name, 0))


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
    """Where results and updates reach one controller: ``controller-EPOCH``, then ``controller-EPOCH-1``."""

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

    def consume(self, sink_of: Callable[[str], Sink], *, prefetch: int) -> None:
        """Read it; ``sink_of`` is told the queue's name."""
        self._transport.consume(self.queue, sink_of(self.queue), prefetch=prefetch)

    def move(self, queue: str, sink_of: Callable[[str], Sink], *, prefetch: int) -> bool:
        """``queue`` is on a node that is down: if it is this one, have and read another instead.

        Raises:
            BrokerUnavailable: no other one can be had.
        """
        if queue != self.queue:
            return False
        self._generation += 1
        name = f"{self._first}-{self._generation}"
        self._transport.declare(self._topology.for_inbox(name))
        self.name = name
        self.consume(sink_of, prefetch=prefetch)
        self._transport.cancel(queue)
        log.warning("queue %r is on a node that is down; reading %r instead", queue, self.queue)
        return True
