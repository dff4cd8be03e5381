"""A host of learners: its life, what comes into the mailboxes, heartbeats.

One host carries one learner or many (virtual learners in one process): each with a mailbox of its own
(``seats.py``), or all of them as one group (``group.py``). Threads: one decides (``Loop``), ``num_workers``
run the users' code, two publish (``Outbox``); the transport has its own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from broker_fl.errors import FrameRefused, MessageRefused
from broker_fl.interfaces import Delivery, Learner, Sink, Transport
from broker_fl.observer import Observer
from broker_fl.roles.about import about
from broker_fl.roles.learner.group import Group
from broker_fl.roles.learner.mailboxes import Mailboxes
from broker_fl.roles.learner.outbox import Outbox
from broker_fl.roles.learner.policy import NoGuard
from broker_fl.roles.learner.seats import Seats
from broker_fl.roles.learner.services import HostServices, Parties, Party
from broker_fl.roles.learner.settings import LearnerSettings
from broker_fl.roles.loop import Loop
from broker_fl.roles.runtime import THREADS, Clock, Runtime
from broker_fl.roles.sender import read
from broker_fl.roles.status import LearnerStatus
from broker_fl.topology import Topology
from broker_fl.wire import messages as m

log = logging.getLogger(__name__)
DEFAULT_HEARTBEAT_S = 5.0


class LearnerHost:
    """Connects learners to their federation, until it is stopped."""

    def __init__(
        self,
        transport: Transport,
        learners: Mapping[str, Learner],
        settings: LearnerSettings | None = None,
        runtime: Runtime = THREADS,
    ) -> None:
        """Nothing is connected yet.

        Raises:
            AppError: a learner has ``attributes`` that are none.
            SettingError: a group of none, or of too many.
        """
        self.settings = settings or LearnerSettings()
        self.topology = Topology(self.settings.federation)
        self._transport = transport
        self._clock = Clock(runtime)
        self._loop = Loop("learner", runtime)
        guard, group = self.settings.guard or NoGuard(), self.settings.group
        self._outbox = Outbox(transport, self.topology, guard, self._clock, runtime)
        self._services = HostServices(
            settings=self.settings,
            guard=guard,
            clock=self._clock,
            runtime=runtime,
            outbox=self._outbox,
            post=self._loop.post,
            on_idle=lambda: self._loop.post(self._see_whether_idle),
        )
        self._learners: Parties = (
            Seats(learners, self._services) if group is None else Group(group, learners, self._services)
        )
        readers = {party.id: self._reader(party) for party in self._learners.parties}
        self._mailboxes = Mailboxes(transport, self.topology, readers, is_group=group is not None)
        self._heartbeat_s = DEFAULT_HEARTBEAT_S
        self._beat_at = 0.0
        self._beat_waits = False
        self._draining = False
        self._drain_began = runtime.event()
        self._is_idle = runtime.event()
        self._welcomed = runtime.event()
        self._stopped = runtime.event()

    # ------------------------------------------------------------ life

    def observe(self, observer: Observer) -> None:
        """Tell it from now on; before ``start``."""
        self._services.observer = observer

    def status(self) -> LearnerStatus:
        """How it is doing; from any thread."""
        learners = self._learners
        name = learners.parties[0].id
        mailbox = self.topology.mailbox(name, self._mailboxes.generation(name))
        return LearnerStatus(
            num_learners=len(learners),
            num_calls=self._loop.num_calls,
            stalled_s=self._loop.stalled_s,
            has_ended=self.error is not None or self._stopped.is_set(),
            queues={"mailbox": mailbox},
            is_welcomed=self._welcomed.is_set(),
            num_working=learners.num_working,
            num_waiting=learners.num_waiting,
        )

    def start(self) -> None:
        """Declare mailboxes, join, and take tasks.

        Raises:
            AccessDenied: no permission, or another process reads the mailbox of one of these learners.
            SettingError: the account is enrolled as somebody else.
            BrokerUnavailable: the broker does not answer.
        """
        self._mailboxes.open()
        self._transport.on_queue_lost(self._move_mailbox)
        self._transport.on_reconnect(lambda: self._loop.post(self._join_all))
        self._loop.post(self._join_all)
        self._loop.start(on_idle=self._do_what_is_due, timeout_s=self._timeout_s)

    def wait_welcomed(self, timeout_s: float | None = None) -> bool:
        """Wait until a controller has answered."""
        return self._welcomed.wait(timeout_s)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the host's end; False if that takes longer."""
        return self._stopped.wait(timeout_s)

    @property
    def error(self) -> BaseException | None:
        """What ended the host, if it was not ``stop``."""
        return self._loop.error

    def stop(self, *, drain_s: float = 30.0, reason: str = "stopped") -> None:
        """Finish what is being worked on, for ``drain_s`` at most; send it, say ``leave``, and end."""
        self._loop.post(self._drain)
        self._drain_began.wait(5.0)
        if not self._is_idle.wait(drain_s):
            log.warning("a task was not finished within %g s; it is handed back", drain_s)
        self._loop.post(self._learners.cancel_all)
        self._learners.stop()
        self._outbox.stop_updates(max(5.0, drain_s))
        self._loop.post(lambda: self._leave_all(reason))
        self._loop.stop()
        self._loop.join(10.0)
        self._outbox.stop_reports(5.0)
        self._transport.flush(5.0)
        self._stopped.set()

    def abandon(self) -> None:
        """End as a process that was killed: its transport is closed already, so nothing is said or handed
        back.
        """
        self._loop.post(self._drain)
        self._loop.post(self._learners.cancel_all)
        self._loop.stop()
        self._loop.join(10.0)
        self._learners.stop()
        self._outbox.stop_updates(5.0)
        self._outbox.stop_reports(5.0)
        self._stopped.set()

    def _drain(self) -> None:
        self._draining = True
        self._see_whether_idle()
        self._drain_began.set()

    def _see_whether_idle(self) -> None:
        if self._draining and self._learners.is_idle:
            self._is_idle.set()

    def _leave_all(self, reason: str) -> None:
        for party in self._learners.parties:
            leave = m.Leave(learner=party.id, session=party.session, reason=reason)
            self._outbox.report(party.id, leave)

    # ------------------------------------------------------------ what comes in

    def _reader(self, party: Party) -> Sink:
        def sink(delivery: Delivery) -> None:
            self._loop.post(lambda: self._take(party, delivery))

        return sink

    def _move_mailbox(self, queue: str) -> None:
        """On a thread of the transport: the node of a queue is down."""
        if self._mailboxes.move(queue):
            self._loop.post(self._join_all)

    def _take(self, party: Party, delivery: Delivery) -> None:
        with about(learner=party.id) as subject:
            try:
                message, payload = read(delivery)
                subject.message(message)
                self._handle(party, message, payload)
            except MessageRefused as error:
                log.warning("learner %s refuses a message: %s", party.id, error)
                self._services.observer.refused("mailbox")
        delivery.ack()

    def _handle(self, party: Party, message: m.Message, payload: memoryview | None) -> None:
        match message:
            case m.Task() | m.ModelChunk() if self._draining:
                pass
            case m.ModelChunk() if payload is not None:
                party.on_chunk(message, payload)
            case m.Task():
                party.on_task(message)
            case m.UploadRequest():
                party.on_upload_request(message)
            case m.Cancel():
                party.cancel(message)
            case m.Rejoin():
                self._join(party)
            case m.Welcome():
                self._heartbeat_s = message.heartbeat_s
                self._welcomed.set()
            case _:
                raise FrameRefused(f"a {message.KIND!r} message is not for learners")

    # ------------------------------------------------------------ time

    def _timeout_s(self) -> float:
        beat_s = self._beat_at + self._heartbeat_s - self._clock.now()
        due_s = self._learners.due_s()
        return beat_s if due_s is None else min(beat_s, due_s)

    def _do_what_is_due(self) -> None:
        self._learners.do_what_is_due()
        self._beat_if_due(self._clock.now())

    def _join_all(self) -> None:
        for party in self._learners.parties:
            self._join(party)

    def _join(self, party: Party) -> None:
        if not self._draining:
            for join in party.joins(self._mailboxes.generation(party.id)):
                self._outbox.report(party.id, join)

    def _beat_if_due(self, now: float) -> None:
        """Send heartbeats, unless the last ones are still waiting for the broker."""
        if now < self._beat_at + self._heartbeat_s:
            return
        self._beat_at = now
        if self._mailboxes.open_missing():
            self._join_all()
        if self._beat_waits:
            return
        self._beat_waits = True
        for party in self._learners.parties:
            beat = m.Heartbeat(
                learner=party.id,
                session=party.session,
                tasks=party.statuses(),
                mailbox=self._mailboxes.generation(party.id),
            )
            self._outbox.report(party.id, beat)
        self._outbox.after_reports(self._beat_sent)

    def _beat_sent(self) -> None:
        self._beat_waits = False
