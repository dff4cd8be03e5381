"""What a controller refuses goes to the dead letters with the reason, but no flood of it."""

from __future__ import annotations

import logging

from broker_fl.interfaces import Delivery
from broker_fl.roles.controller.limits import DEAD_LETTER_BYTES, DEAD_LETTERS, RateLimit
from broker_fl.roles.controller.replays import Replayed
from broker_fl.roles.controller.services import Services
from broker_fl.roles.controller.speakers import Speaker
from broker_fl.wire.fields import MAX_REASON_CHARS, text
from broker_fl.wire.frames import MAX_BODY_BYTES, MAX_CHUNK_HEADER_BYTES, pack_chunk
from broker_fl.wire.messages import DeadLetter

log = logging.getLogger(__name__)
NOBODY_SAYS = "whoever does not say which account it is"
"""Under which all messages count together that do not say who sent them."""
BEGINNING_BYTES = 4_096
"""Kept of a refused message, where its sender's take too much."""


class DeadLetters:
    """Of one controller."""

    def __init__(self, services: Services, *, needs_account: bool) -> None:
        """``needs_account``: whether nobody but enrolled accounts is heard."""
        self._services = services
        self._needs_account = needs_account
        self._refusals = RateLimit(DEAD_LETTERS, "messages that are refused")
        self._bytes = RateLimit(DEAD_LETTER_BYTES, "bytes in messages that are refused")

    def are_too_many(self, delivery: Delivery, speaker: Speaker | None) -> bool:
        """Count one more; whether so many messages of this account were refused that no more are kept and
        logged. Where accounts are shared it says nothing of the sender, and all are kept; so is what an
        operator has heard again, which is nowhere else any more.
        """
        if isinstance(delivery, Replayed) or (speaker is not None and speaker.account is None):
            return False
        return not self._refusals.take(delivery.user or NOBODY_SAYS, self._services.clock.now())

    def add(self, queue: str, delivery: Delivery, reason: str) -> None:
        """Keep a message of ``queue``, as long as it fits, and the reason why it was refused."""
        services, topology = self._services, self._services.topology
        log.warning("refused a message from %s with key %s: %s", queue, delivery.routing_key, reason)
        names = {topology.reports: "reports", topology.control: "control"}
        services.observer.refused(names.get(queue, "inbox"))
        body = memoryview(delivery.body)
        payload = body[: MAX_BODY_BYTES - MAX_CHUNK_HEADER_BYTES - 5]
        if self._takes_too_much(delivery, len(payload)):
            payload = payload[:BEGINNING_BYTES]
            reason = f"{text(reason)[:MAX_REASON_CHARS]} (of {len(body)} bytes {len(payload)} are kept)"
        is_cut = len(payload) < len(body)
        header = DeadLetter(
            source=queue,
            routing_key=text(delivery.routing_key),
            reason=text(reason),
            time_s=services.clock.now(),
            user=text(delivery.user or ""),
            needs_account=self._needs_account,
            num_bytes=len(body) if is_cut else 0,
        )
        letter = pack_chunk(header.KIND, header.model_dump(), payload)
        services.sender.post(
            lambda: services.transport.publish(topology.tasks, [topology.DEAD], letter, persistent=True)
        )

    def _takes_too_much(self, delivery: Delivery, num_bytes: int) -> bool:
        """Whether letters of this account push out those of others; what an operator has heard again was kept
        before, and is nowhere else any more.
        """
        if not self._needs_account or isinstance(delivery, Replayed) or num_bytes <= BEGINNING_BYTES:
            return False
        user = delivery.user or NOBODY_SAYS
        return not self._bytes.take(user, self._services.clock.now(), num_bytes)
