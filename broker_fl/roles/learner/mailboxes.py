"""The mailboxes of a host of learners: declared by itself, or by those who enrolled it.

A mailbox is a classic queue, which lives on one node of a broker's cluster. While that is down nobody can
read it, and nobody can make another one of its name. So each has generations: ``NAME``, ``NAME.1``, …, with
routing keys of their own; its reader takes the first that can be read, and says which when it joins.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping

from broker_fl.errors import AccessDenied, BrokerUnavailable, QueueLost, SettingError
from broker_fl.identity.accounts import Account
from broker_fl.interfaces import Sink, Transport
from broker_fl.topology import MAX_GENERATIONS, Topology

log = logging.getLogger(__name__)
PREFETCH = 16


class Mailboxes:
    """Of one host. An enrolled account may declare nothing: it is there, or is asked for by joining."""

    def __init__(
        self, transport: Transport, topology: Topology, readers: Mapping[str, Sink], *, is_group: bool
    ) -> None:
        """``readers`` by the names of the learners, or the group's; nothing is read yet."""
        self._transport = transport
        self._topology = topology
        self._readers = readers
        self._role = "group" if is_group else "learner"
        self._is_enrolled = False
        self._lock = threading.Lock()  # one thread tries those that are missing, another moves lost ones
        self._missing: set[str] = set()
        self._generations = dict.fromkeys(readers, 0)

    def open(self) -> None:
        """Declare what a shared account may declare, and read.

        Raises:
            AccessDenied: no permission, or another process reads one of them.
            BrokerUnavailable: the broker does not answer.
            SettingError: the account is enrolled as somebody else.
        """
        account = Account.of(self._transport.user)
        self._is_enrolled = account is not None
        if account is None:
            self._transport.declare(self._topology.for_controller())
        else:
            self._check(account)
        with self._lock:
            declared = self._declare_first()
            for name in self._readers:
                self._find(name, range(MAX_GENERATIONS), declared=declared)

    def open_missing(self) -> bool:
        """Try again those that were not there; True while some are missing, or have just come."""
        with self._lock:
            if not self._missing:
                return False
            for name in sorted(self._missing):
                try:
                    self._find(name, range(MAX_GENERATIONS))
                except (AccessDenied, BrokerUnavailable) as error:
                    log.warning("the mailbox of %s cannot be read: %s", name, error)
            return True

    def generation(self, name: str) -> int:
        """Of the mailbox that is read, or that is missing; 0 is the first."""
        return self._generations[name]

    def move(self, queue: str) -> bool:
        """``queue`` is on a node that is down: read another one instead; False if it is none of ours.

        Raises:
            BrokerUnavailable: no other one can be had.
        """
        with self._lock:
            name = next((name for name in self._readers if self._queue(name) == queue), None)
            if name is None:
                return False
            lost = self._generations[name]
            self._find(name, [one for one in range(MAX_GENERATIONS) if one != lost])
            self._transport.cancel(queue)
        log.warning("queue %r is on a node that is down; reading %r instead", queue, self._queue(name))
        return True

    def _queue(self, name: str) -> str:
        return self._topology.mailbox(name, self._generations[name])

    def _declare_first(self) -> bool:
        """Declare the first generation of all at once; False if that has to be done one by one."""
        if self._is_enrolled:
            return False
        try:
            self._transport.declare(
                [entity for name in self._readers for entity in self._topology.for_learner(name)]
            )
        except QueueLost as error:
            log.warning("%s", error)
            return False
        return True

    def _find(self, name: str, generations: Iterable[int], *, declared: bool = False) -> None:
        """Read the first of these that is not on a node that is down."""
        before = self._generations[name]
        for generation in generations:
            try:
                if not (self._is_enrolled or (declared and generation == 0)):
                    self._transport.declare(self._topology.for_learner(name, generation))
                self._read(name, generation)
            except QueueLost as error:
                log.warning("%s", error)
            else:
                return
        self._generations[name] = before
        raise QueueLost(f"all {MAX_GENERATIONS} mailboxes of {name!r} are on nodes that are down")

    def _read(self, name: str, generation: int) -> None:
        self._generations[name] = generation
        try:
            self._consume(name)
        except AccessDenied:
            raise
        except SettingError as error:
            if not self._is_enrolled:  # somebody has deleted it since it was declared
                self._transport.declare(self._topology.for_learner(name, generation))
                self._consume(name)
                return
            self._missing.add(name)
            log.warning(
                "the mailbox of %s is not there; a controller declares it when it hears us, or an operator "
                "does (broker-fl enroll %s --repair): %s",
                name,
                name,
                error,
            )
        else:
            self._missing.discard(name)

    def _consume(self, name: str) -> None:
        self._transport.consume(self._queue(name), self._readers[name], prefetch=PREFETCH, exclusive=True)

    def _check(self, account: Account) -> None:
        """Hold the account against who we are."""
        wanted = (
            f"{self._role} {', '.join(sorted(self._readers)[:3])} of federation {self._topology.federation!r}"
        )
        is_own = account.federation == self._topology.federation and [account.name] == list(self._readers)
        if not is_own or account.role != self._role:
            raise SettingError(f"the account is that of {account}, and this is {wanted}")
