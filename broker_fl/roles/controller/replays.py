"""Dead letters that an operator has heard again: each counts as sent by who wrote it, not by who sends it on.

Only an account of a controller may do that. It is trusted with more: whoever has it can be the controller.
"""

from __future__ import annotations

from dataclasses import dataclass

from broker_fl.errors import MessageRefused
from broker_fl.identity.accounts import Account
from broker_fl.interfaces import Delivery
from broker_fl.wire import messages as m


@dataclass(frozen=True, slots=True)
class Replayed:
    """A ``Delivery`` as it was when it was refused; settling it settles the letter that it came in."""

    queue: str
    """Where it was read then."""
    body: bytes
    routing_key: str
    user: str | None
    letter: Delivery
    redelivered: bool = True

    def ack(self) -> None:
        """See ``Delivery``."""
        self.letter.ack()

    def reject(self, *, requeue: bool = False) -> None:
        """See ``Delivery``."""
        self.letter.reject(requeue=requeue)


def may_replay(delivery: Delivery, federation: str) -> bool:
    """Whether it comes from a controller's account of this federation."""
    if ".controller." not in (delivery.user or ""):  # the answer for nearly all, who are many
        return False
    account = Account.of(delivery.user)
    return account is not None and account.role == "controller" and account.federation == federation


def replayed(delivery: Delivery, federation: str) -> Replayed | None:
    """The message in a dead letter that a controller of this federation sends; None if this is none."""
    if not may_replay(delivery, federation):
        return None
    try:
        letter, payload = m.decode(delivery.body)
    except MessageRefused:
        return None
    if not isinstance(letter, m.DeadLetter) or payload is None:
        return None
    return Replayed(letter.source, bytes(payload), letter.routing_key, letter.user or None, delivery)
