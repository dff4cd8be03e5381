"""Mailboxes that are not there any more: made anew for who is still there, and for nobody else."""

from __future__ import annotations

import logging

from broker_fl.roles.controller.services import Services

log = logging.getLogger(__name__)
WAIT_HEARTBEATS = 10
"""For ``reports`` to be empty, at most: a flood of others must not keep a learner without its mailbox."""
FORGET_AFTER_HEARTBEATS = 30


class LostMailboxes:
    """Of one federation, on the controller's thread.

    A mailbox that was deleted because its account was revoked stays deleted: it would hold models, to be read
    by whoever is enrolled under that name next. So one is made anew only for who is heard of by a message
    that was sent after its loss was noticed; the revoked can send none. What waited at the broker before is
    no such message: nothing counts until ``reports`` was seen empty.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._since: dict[str, float] = {}
        """Routing key → when the loss was noticed, the oldest first."""
        self._counts: set[str] = set()
        """Of these, those for which it counts by now if their learners are heard of."""
        self._is_looking = False

    def lost(self, name: str, generation: int) -> None:
        """What was sent to this mailbox of a learner or a group has reached no queue."""
        key = self._services.topology.learner_key(name, generation)
        if key not in self._since:
            log.warning("the mailbox of %s is not there: it is made anew when %s is heard of", name, name)
            self._since[key] = self._services.clock.now()
            self._look()

    def heard(self, name: str, generation: int) -> None:
        """A learner or a group was heard of, which reads this mailbox."""
        key = self._services.topology.learner_key(name, generation)
        since = self._since.get(key)
        if since is None:
            return
        waits_until = since + WAIT_HEARTBEATS * self._services.members.heartbeat_s
        if key not in self._counts and self._services.clock.now() < waits_until:
            self._look()
            return
        self._forget(key)
        log.warning("declaring the mailbox of %s again", name)
        mailbox = self._services.topology.for_learner(name, generation)
        self._services.sender.post(lambda: self._services.transport.declare(mailbox))

    def forget(self, now: float) -> None:
        """Nobody waits any more for those that were not heard of for long; what is sent to them next is
        noticed again.
        """
        kept_s = FORGET_AFTER_HEARTBEATS * self._services.members.heartbeat_s
        for key, since in list(self._since.items()):
            if now < since + kept_s:
                return
            self._forget(key)

    def _forget(self, key: str) -> None:
        del self._since[key]
        self._counts.discard(key)

    def _look(self) -> None:
        """See, for all at once, whether everything that was sent before now was fetched."""
        waiting = self._since.keys() - self._counts
        if self._is_looking or not waiting:
            return
        self._is_looking = True

        def look() -> None:  # it waits for the broker, so not on the controller's thread
            is_empty = False
            try:
                is_empty = self._nothing_waits()
            finally:
                self._services.post(lambda: self._looked(waiting, is_empty=is_empty))

        self._services.sender.post(look)

    def _nothing_waits(self) -> bool:
        depth = getattr(self._services.transport, "depth", None)
        # None: the broker does not say
        return depth is None or bool(depth(self._services.topology.reports) == 0)

    def _looked(self, waiting: set[str], *, is_empty: bool) -> None:
        self._is_looking = False
        if is_empty:
            self._counts |= waiting & self._since.keys()
            self._look()  # at those that were lost meanwhile
