"""Every exchange, queue, routing key and Redis key of a federation. Normative text: ``schemas/README.md``.

All declarations are accepted by RabbitMQ 3.10 to 4.x. Models never go through quorum queues, each of which
keeps a full copy of its own; what is small and precious (reports, control) does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MAILBOX_EXPIRES_S = 7 * 24 * 3600.0
"""A mailbox that no learner has consumed from for so long is deleted by the broker."""
MAILBOX_MAX_BYTES = 8 << 30
INBOX_MAX_BYTES = 16 << 30
DRIVER_EXPIRES_S = 120.0
DEAD_MAX_BYTES = 256 << 20
ENROLMENT_MAX_BYTES = 4 << 20
INBOX_EXPIRES_S = 3600.0
MAX_GENERATIONS = 16
"""Mailboxes that one learner may have: one for each node of a cluster that went down, at most."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange."""

    name: str
    type: Literal["direct", "topic", "fanout"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A durable queue and its limits; None means no limit."""

    name: str
    quorum: bool = False
    single_active_consumer: bool = False
    """Of several consumers only one is served; on quorum queues only (classic ones crash at a switch on
    3.10.8).
    """
    expires_s: float | None = None
    """Delete the queue when it had no consumer for so long."""
    message_ttl_s: float | None = None
    max_length_bytes: int | None = None
    overflow: Literal["drop-head", "reject-publish"] = "drop-head"
    dead_letter_exchange: str | None = None
    """Where rejected messages go; those that the queue drops or that expire go there too. If there is no such
    exchange, they are gone (https://www.rabbitmq.com/docs/dlx).
    """
    spare: bool = False
    """A federation works without it, so nobody waits for the node of a cluster that has it."""


@dataclass(frozen=True, slots=True)
class Binding:
    """Messages published to ``exchange`` with a matching key go to ``queue``."""

    exchange: str
    queue: str
    routing_key: str = ""


Entity = Exchange | Queue | Binding


@dataclass(frozen=True, slots=True)
class Topology:
    """The names of one federation ``F``."""

    federation: str

    @property
    def tasks(self) -> str:
        """Exchange: controller → learners; with key ``dead``, what it refused → operator."""
        return f"bfl.{self.federation}.tasks"

    @property
    def answers(self) -> str:
        """Exchange: controller → drivers; key ``<driver>``. By itself, because who may bind to ``tasks`` can
        have a copy of every learner's mail.
        """
        return f"bfl.{self.federation}.answers"

    @property
    def updates(self) -> str:
        """Exchange: learners (and drivers, with an initial model) → inboxes; key ``<sender>.<inbox>``."""
        return f"bfl.{self.federation}.updates"

    @property
    def reports(self) -> str:
        """Exchange and queue: learners → controller; key ``<learner>.<kind>``."""
        return f"bfl.{self.federation}.reports"

    @property
    def control(self) -> str:
        """Exchange and queue: drivers → controller; key ``control``."""
        return f"bfl.{self.federation}.control"

    @property
    def events(self) -> str:
        """Exchange: controller → whoever watches; key ``<job>``."""
        return f"bfl.{self.federation}.events"

    @property
    def dead(self) -> str:
        """Queue: what was refused."""
        return f"bfl.{self.federation}.dead"

    @property
    def nowhere(self) -> str:
        """Exchange that must not be there. ``reports`` and ``control`` name it for what the broker would hand
        on as dead letters, and RabbitMQ 3.10.8 does not survive some of that (docs/security.md). What a queue
        names cannot be changed; whoever finds the exchange, which former software made, deletes it.
        """
        return f"bfl.{self.federation}.dead"

    @property
    def enrolment(self) -> str:
        """Exchange and queue: sites that hold a token → operator."""
        return f"bfl.{self.federation}.enrolment"

    def mailbox(self, learner: str, generation: int = 0) -> str:
        """Queue that only this learner reads. It lives on one node of a cluster; while that is down, the
        learner reads one of another ``generation``.
        """
        return f"bfl.{self.federation}.{self.learner_key(learner, generation)}"

    def inbox(self, name: str) -> str:
        """Queue of results and updates."""
        return f"bfl.{self.federation}.inbox.{name}"

    def driver_queue(self, driver: str) -> str:
        """Queue of answers to one driver."""
        return f"bfl.{self.federation}.driver.{driver}"

    def event_queue(self, watcher: str) -> str:
        """Queue of events for one watcher."""
        return f"bfl.{self.federation}.events.{watcher}"

    @staticmethod
    def learner_key(learner: str, generation: int = 0) -> str:
        """Routing key on ``tasks`` of one learner's mailbox."""
        return f"learner.{learner}.{generation}" if generation else f"learner.{learner}"

    @staticmethod
    def driver_key(driver: str) -> str:
        """Routing key on ``answers`` of one driver's queue."""
        return driver

    ALL_LEARNERS = "learners"
    """Routing key on ``tasks`` that reaches every mailbox."""
    DEAD = "dead"
    """Routing key on ``tasks`` that reaches the queue of what was refused, and no learner."""
    CONTROL = "control"
    """Routing key on ``control``."""

    def exchanges(self) -> tuple[Entity, ...]:
        """What everybody declares first, and the queue of what was refused."""
        return (
            Exchange(self.tasks, "direct"),
            Exchange(self.answers, "topic"),
            Exchange(self.updates, "topic"),
            Exchange(self.reports, "topic"),
            Exchange(self.control, "direct"),
            Exchange(self.events, "topic"),
            Queue(name=self.dead, max_length_bytes=DEAD_MAX_BYTES, spare=True),
            Binding(self.tasks, self.dead, self.DEAD),
        )

    def for_controller(self) -> tuple[Entity, ...]:
        """What learners and drivers write to. They declare it too, so that no message of theirs finds no
        queue.
        """
        return (
            *self.exchanges(),
            Queue(name=self.reports, quorum=True, dead_letter_exchange=self.nowhere),
            Binding(self.reports, self.reports, "#"),
            Queue(
                name=self.control,
                quorum=True,
                single_active_consumer=True,
                dead_letter_exchange=self.nowhere,
            ),
            Binding(self.control, self.control, self.CONTROL),
        )

    def for_inbox(self, name: str) -> tuple[Entity, ...]:
        """One inbox; a full one makes its senders wait.

        A controller has one of its own for each epoch, so that one that was thought dead takes nothing from
        its successor.
        """
        inbox = self.inbox(name)
        return (
            Queue(
                name=inbox,
                expires_s=INBOX_EXPIRES_S,
                max_length_bytes=INBOX_MAX_BYTES,
                overflow="reject-publish",  # and no dead letters of the broker's: see docs/security.md
            ),
            Binding(self.updates, inbox, f"*.{name}"),
        )

    def for_learner(self, learner: str, generation: int = 0) -> tuple[Entity, ...]:
        """One learner's mailbox."""
        mailbox = self.mailbox(learner, generation)
        return (
            Queue(name=mailbox, expires_s=MAILBOX_EXPIRES_S, max_length_bytes=MAILBOX_MAX_BYTES),
            Binding(self.tasks, mailbox, self.learner_key(learner, generation)),
            Binding(self.tasks, mailbox, self.ALL_LEARNERS),
        )

    def for_enrolment(self) -> tuple[Entity, ...]:
        """Where requests to be enrolled wait; a few hundred bytes each."""
        return (
            Exchange(self.enrolment, "fanout"),
            Queue(name=self.enrolment, max_length_bytes=ENROLMENT_MAX_BYTES, overflow="reject-publish"),
            Binding(self.enrolment, self.enrolment),
        )

    def for_driver(self, driver: str) -> tuple[Entity, ...]:
        """One driver's queue of answers; it goes when the driver has been away for ``DRIVER_EXPIRES_S``."""
        queue = self.driver_queue(driver)
        return (
            Queue(name=queue, expires_s=DRIVER_EXPIRES_S, max_length_bytes=MAILBOX_MAX_BYTES),
            Binding(self.answers, queue, self.driver_key(driver)),
        )

    def for_watcher(self, watcher: str, pattern: str = "#") -> tuple[Entity, ...]:
        """One watcher's queue of events, of those whose key, a job's id, matches ``pattern``."""
        queue = self.event_queue(watcher)
        return (
            Queue(name=queue, expires_s=DRIVER_EXPIRES_S, max_length_bytes=DEAD_MAX_BYTES),
            Binding(self.events, queue, pattern),
        )


@dataclass(frozen=True, slots=True)
class RedisKeys:
    """The Redis keys of one federation ``F``, all in one hash slot (``{F}``): a script may use them together.

    =============================================  ========  ================================================
    key                                            type      holds
    =============================================  ========  ================================================
    ``bfl:{F}:controller``                         hash      ``epoch``: the newest; ``owner``: whose it is;
                                                             ``lease_ms``, ``lease_until_ms``: given for so
                                                             long, until then
    ``bfl:{F}:lease``                              string    the epoch; expires; not there: the lease is free
    ``bfl:{F}:jobs``                               hash      job → its state
    ``bfl:{F}:versions:<job>``                     hash      ``newest`` → number of the newest version;
                                                             number → ``<chunks> <stage> <manifest>``
    ``bfl:{F}:chunk:<job>:<version>:<stage>:<i>``  string    chunk ``i`` as written by one attempt, ``stage``,
                                                             at the version; expires if that is not committed
    ``bfl:{F}:updates:<job>``                      hash      name of a stored update → nothing
    ``bfl:{F}:updates:<job>:<name>``               hash      index → piece of that update
    ``bfl:{F}:events:<job>``                       stream    id ``<number>-0``, field ``e``: the packed event
    =============================================  ========  ================================================
    """

    federation: str

    @property
    def pattern(self) -> str:
        """What all of them match, and no other federation's: for the account of a controller (Redis ACL).

        Braces are nothing special there, and no name of a federation has a character that is.
        """
        return f"bfl:{{{self.federation}}}:*"

    @property
    def controller(self) -> str:
        """Newest epoch and its owner."""
        return f"bfl:{{{self.federation}}}:controller"

    @property
    def lease(self) -> str:
        """The lease, while somebody holds it."""
        return f"bfl:{{{self.federation}}}:lease"

    @property
    def jobs(self) -> str:
        """State of every job."""
        return f"bfl:{{{self.federation}}}:jobs"

    def versions(self, job: str) -> str:
        """A job's committed versions."""
        return f"bfl:{{{self.federation}}}:versions:{job}"

    def chunks(self, job: str) -> str:
        """What the keys of a job's chunks begin with; ``:<version>:<stage>:<index>`` follows."""
        return f"bfl:{{{self.federation}}}:chunk:{job}"

    def chunk(self, job: str, version: int, stage: str, index: int) -> str:
        """One chunk."""
        return f"{self.chunks(job)}:{version}:{stage}:{index}"

    def updates(self, job: str) -> str:
        """Names of a job's stored updates."""
        return f"bfl:{{{self.federation}}}:updates:{job}"

    def update(self, job: str, name: str) -> str:
        """Pieces of one stored update."""
        return f"{self.updates(job)}:{name}"

    def events(self, job: str) -> str:
        """A job's events."""
        return f"bfl:{{{self.federation}}}:events:{job}"
