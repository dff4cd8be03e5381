"""The mailboxes of a host of learners: declared by itself, or by those who enrolled it."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from broker_fl.errors import AccessDenied, BrokerUnavailable, SettingError
from broker_fl.identity.accounts import Account
from broker_fl.interfaces import Sink, Transport
from broker_fl.topology import Topology

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
        self._missing: set[str] = set()

    def open(self) -> None:
        """Declare what a shared account may declare, and read.

        Raises:
            AccessDenied: no permission, or another process reads one of them.
            BrokerUnavailable: the broker does not answer.
            SettingError: the account is enrolled as somebody else.
        """
        account = Account.of(self._transport.user)
        if account is None:
            mailboxes = [entity for name in self._readers for entity in self._topology.for_learner(name)]
            self._transport.declare([*self._topology.for_controller(), *mailboxes])
        else:
            self._check(account)
        for name in self._readers:
            self._read(name, is_enrolled=account is not None)

    def open_missing(self) -> bool:
        """Try again those that were not there; True while some are missing, or have just come."""
        if not self._missing:
            return False
        for name in sorted(self._missing):
            try:
                self._read(name, is_enrolled=True)
            except (AccessDenied, BrokerUnavailable) as error:
                log.warning("the mailbox of %s cannot be read: %s", name, error)
        return True

    def _read(self, name: str, *, is_enrolled: bool) -> None:
        try:
            self._consume(name)
        except AccessDenied:
            raise
        except SettingError as error:
            if not is_enrolled:  # somebody has deleted it since it was declared
                self._transport.declare(self._topology.for_learner(name))
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
        mailbox = self._topology.mailbox(name)
        self._transport.consume(mailbox, self._readers[name], prefetch=PREFETCH, exclusive=True)

    def _check(self, account: Account) -> None:
        """Hold the account against who we are."""
        wanted = (
            f"{self._role} {', '.join(sorted(self._readers)[:3])} of federation {self._topology.federation!r}"
        )
        is_own = account.federation == self._topology.federation and [account.name] == list(self._readers)
        if not is_own or account.role != self._role:
            raise SettingError(f"the account is that of {account}, and this is {wanted}")
