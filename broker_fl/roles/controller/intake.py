"""Every message that reaches a controller, before anybody handles it: who sent it, whether that account sends
too much, what it says. What is refused goes to the dead letters.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Set
from dataclasses import dataclass

from broker_fl.errors import (
    BrokerFLError,
    Fenced,
    MessageRefused,
    StoreUnavailable,
    TransportClosed,
    VersionsLost,
)
from broker_fl.identity.accounts import Role
from broker_fl.interfaces import Delivery
from broker_fl.roles.about import about
from broker_fl.roles.controller.bounced import Bounced
from broker_fl.roles.controller.dead_letters import NOBODY_SAYS, DeadLetters
from broker_fl.roles.controller.limits import MESSAGES, Backlog, RateLimit, Waste
from broker_fl.roles.controller.replays import may_replay, replayed
from broker_fl.roles.controller.services import Services
from broker_fl.roles.controller.speakers import LEARNERS, Speaker, Speakers
from broker_fl.roles.sender import read
from broker_fl.wire.messages import Message

log = logging.getLogger(__name__)
Handler = Callable[[Message, memoryview | None, Speaker], None]
"""Takes a message, its payload, and who sent it."""
Refused = Callable[[Delivery, Speaker, str], None]
"""Is told of a message that was refused, who sent it, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A queue that the controller reads."""

    queue: str
    handle: Handler
    prefetch: int
    senders: Set[Role]
    is_counted: bool = True
    """Whether each of its messages counts against what an account may send; if not, only those that are of no
    use do.
    """


@dataclass(slots=True, eq=False)
class _Reading:
    """A queue from ``Intake.consume`` to ``Intake.hand_back``."""

    source: Source
    is_over: bool = False


class Intake:
    """Of one controller; messages are handled on its thread."""

    def __init__(self, services: Services, speakers: Speakers, waste: Waste, refused: Refused) -> None:
        self._services = services
        self._speakers = speakers
        self._waste = waste
        self._refused = refused
        self._messages = RateLimit(MESSAGES, "messages")
        self._dead_letters = DeadLetters(services, needs_account=speakers.required)
        self._backlog = Backlog()
        self._bounced = Bounced(services)
        self._sources: dict[str, Source] = {}
        self._readings: dict[str, _Reading] = {}

    def consume(self, source: Source) -> None:
        """Read a queue from now on; from any thread.

        Raises:
            QueueLost, BrokerUnavailable: see ``Transport.consume``.
        """
        reading = self._readings[source.queue] = _Reading(source)

        def sink(delivery: Delivery) -> None:
            if not self._bounced.drop(delivery):
                self._services.post(lambda: self._take(reading, delivery))

        def bounded_sink(delivery: Delivery) -> None:
            user = delivery.user or NOBODY_SAYS
            if may_replay(delivery, federation):  # at an operator's pace; a letter that is dropped is lost
                sink(delivery)
            elif self._backlog.enter(user, len(delivery.body)):
                self._services.post(lambda: self._take_waiting(reading, delivery, user))
            else:
                delivery.ack()
                self._services.post(lambda: self._services.observer.refused("over_limit"))

        self._sources[source.queue] = source
        federation = self._services.topology.federation
        is_bounded = self._speakers.required and source.is_counted  # an inbox fetches few at a time
        self._services.transport.consume(
            source.queue, bounded_sink if is_bounded else sink, prefetch=source.prefetch
        )

    def hand_back(self, queues: Collection[str]) -> None:
        """Read them no more. What was not handled yet goes back to them, for whoever else reads them; at the
        latest when the connection ends, if the broker does not answer. From any thread.
        """
        for queue in queues:  # all of them, before the broker is asked, which may take its time
            if (reading := self._readings.pop(queue, None)) is not None:
                reading.is_over = True
        for queue in queues:
            try:
                self._services.transport.cancel(queue, hand_back=True)
            except BrokerFLError as error:
                log.info("queue %r is left when the connection ends: %s", queue, error)

    def _take_waiting(self, reading: _Reading, delivery: Delivery, user: str) -> None:
        try:
            self._take(reading, delivery)
        finally:
            self._backlog.leave(user, len(delivery.body))

    def _heard_in(self, queue: str) -> Source | None:
        """How messages of a queue are heard; those of an earlier inbox as those of this one. None: not."""
        if queue.startswith(self._services.topology.inbox("")):
            return next((source for source in self._sources.values() if not source.is_counted), None)
        return self._sources.get(queue)

    def _take(self, reading: _Reading, delivery: Delivery) -> None:
        """Handle one delivery. Whatever it holds, it is acked: what is refused goes to the dead letters with
        the reason.
        """
        if reading.is_over:  # the delivery has gone back, and comes again, here or elsewhere
            return
        source = reading.source
        if (again := replayed(delivery, self._services.topology.federation)) is not None:
            log.info("%s has a dead letter of %s heard again", delivery.user, again.user or "nobody")
            if (heard_in := self._heard_in(again.queue)) is None:
                self._dead_letters.add(again.queue, again, f"no controller reads a queue {again.queue!r}")
                again.ack()
                return
            source, delivery = heard_in, again
        with about() as subject:
            self._handle(subject, source, delivery)
        delivery.ack()

    def _handle(self, subject: about, source: Source, delivery: Delivery) -> None:
        speaker: Speaker | None = None
        try:
            speaker = self._speakers.of(delivery, source.senders)
            if source.senders & LEARNERS and (speaker.account is None or speaker.account.role in LEARNERS):
                subject.learner(speaker.name)
            if self._is_over_limit(source, speaker):
                self._services.observer.refused("over_limit")
                return
            message, payload = read(delivery)
            subject.message(message)
            source.handle(message, payload, speaker)
        except MessageRefused as error:
            self._refuse(source.queue, delivery, speaker, str(error))
        except (Fenced, TransportClosed, StoreUnavailable, VersionsLost):
            raise  # not acked: it comes again, to whoever goes on
        except Exception as error:
            if not self._dead_letters.are_too_many(delivery, speaker):
                log.exception(
                    "a message from %s with key %s could not be handled", source.queue, delivery.routing_key
                )
                self._dead_letters.add(source.queue, delivery, f"{type(error).__name__}: {error}")

    def _is_over_limit(self, source: Source, speaker: Speaker) -> bool:
        """Whether an account sends too much; names that are no accounts are whatever a sender says."""
        if speaker.account is None or speaker.replayed_by:
            return False
        if not source.is_counted:
            return self._waste.is_over_limit(speaker)
        return not self._messages.take(speaker.account.user, self._services.clock.now())

    def _refuse(self, queue: str, delivery: Delivery, speaker: Speaker | None, reason: str) -> None:
        if self._dead_letters.are_too_many(delivery, speaker):
            self._services.observer.refused("over_limit")
        else:
            self._dead_letters.add(queue, delivery, reason)
        if speaker is not None:
            if not speaker.replayed_by:
                self._waste.add(speaker)
            self._refused(delivery, speaker, reason)
