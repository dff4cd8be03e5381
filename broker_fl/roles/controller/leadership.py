"""What a controller does while it holds the lease: hears learners and drivers, tells jobs the time."""

from __future__ import annotations

import logging

from broker_fl.coordination import signals as s
from broker_fl.errors import FrameRefused, QueueLost
from broker_fl.roles.controller.attendance import Attendance
from broker_fl.roles.controller.intake import Intake, Source
from broker_fl.roles.controller.jobs import Jobs
from broker_fl.roles.controller.limits import Waste
from broker_fl.roles.controller.patience import Patience
from broker_fl.roles.controller.reports import Reports
from broker_fl.roles.controller.requests import Requests
from broker_fl.roles.controller.results import Results
from broker_fl.roles.controller.services import Services
from broker_fl.roles.controller.settings import ControllerSettings
from broker_fl.roles.controller.speakers import DRIVERS, LEARNERS, Identities, Speaker, Speakers
from broker_fl.wire import messages as m

log = logging.getLogger(__name__)
INBOX_PREFETCH = 64
REPORTS_PREFETCH = 1_000
CONTROL_PREFETCH = 16
FLUSH_EVERY_S = 0.01
"""Events of single tasks go to the store together for so long; all others do not wait."""
FLUSH_AGAIN_AFTER_S = 0.5
"""When the store was away."""


class Leadership:
    """Of one controller for one epoch; belongs to its deciding thread."""

    def __init__(
        self,
        services: Services,
        settings: ControllerSettings,
        identities: Identities,
        patience: Patience,
    ) -> None:
        self._services = services
        self._settings = settings
        self._patience = patience
        self.jobs = Jobs(services, services.members)
        self.requests = Requests(services, self.jobs, settings.max_model_bytes)
        self._attendance = Attendance(services, self.jobs)
        self._reports = Reports(services, self.jobs, self._attendance)
        waste = Waste(services.clock)
        self._results = Results(services, self.jobs, self.requests.submissions, waste)
        speakers = Speakers(settings.federation, identities)
        self._intake = Intake(services, speakers, waste, self._results.refused)
        self._ticked_at = self._flush_at = 0.0

    @property
    def inbox(self) -> str:
        """The queue in which results reach it; from any thread."""
        return self._services.place.queue

    # ------------------------------------------------------------ begin and end

    def begin(self) -> None:
        """Go on with the jobs in the store, ask who is there, and have what comes in posted to the thread.

        Raises:
            AccessDenied, BrokerUnavailable: a queue cannot be made, or read.
            Fenced, StoreUnavailable: see ``Services.persist``.
        """
        services, topology, transport = self._services, self._services.topology, self._services.transport
        transport.declare(topology.for_controller())
        transport.delete_exchange(topology.nowhere)
        services.place.declare()
        transport.on_queue_lost(self._move_inbox)
        transport.on_reconnect(lambda: services.post(self._attendance.ask_who_is_there))
        transport.on_unroutable(
            lambda *where: services.post(lambda: self._attendance.is_without_mailbox(*where))
        )
        self.jobs.resume()
        self._attendance.ask_who_is_there()
        try:
            self._consume_inbox()
        except QueueLost:  # its node went down just now
            self._move_inbox(self.inbox)
        for source in self._shared:
            self._intake.consume(source)

    def end(self) -> None:
        """Write out what happened after the thread was last idle."""
        self.jobs.flush()
        self._services.audit.flush()

    def cancel(self) -> None:
        """Read nothing more."""
        topology = self._services.topology
        for queue in (self.inbox, topology.reports, topology.control):
            self._services.transport.cancel(queue)

    # ------------------------------------------------------------ the queues that all controllers share

    @property
    def _shared(self) -> tuple[Source, Source]:
        topology = self._services.topology
        reports = Source(
            queue=topology.reports, handle=self._reports.take, prefetch=REPORTS_PREFETCH, senders=LEARNERS
        )
        control = Source(
            queue=topology.control, handle=self._take_request, prefetch=CONTROL_PREFETCH, senders=DRIVERS
        )
        return reports, control

    def hand_back(self) -> None:
        """Leave them, with what was not handled yet, to the controller that may have the lease by now; from
        any thread.
        """
        self._intake.hand_back([source.queue for source in self._shared])

    def read_again(self) -> None:
        """Read them once more after ``hand_back``; from any thread.

        Raises:
            BrokerUnavailable, QueueLost: see ``Transport.consume``; ``hand_back`` first, then again.
        """
        self._services.transport.declare(self._services.topology.for_controller())
        for source in self._shared:
            self._intake.consume(source)

    # ------------------------------------------------------------ what comes in

    def _take_request(self, message: m.Message, _payload: memoryview | None, speaker: Speaker) -> None:
        if not isinstance(message, m.Request):
            raise FrameRefused(f"a {message.KIND!r} message is not a request")
        self.requests.handle(message, speaker)

    def _consume_inbox(self) -> None:
        source = Source(
            queue=self.inbox,
            handle=self._results.take,
            prefetch=INBOX_PREFETCH,
            senders=LEARNERS | DRIVERS,
            is_counted=False,
        )
        self._intake.consume(source)

    def _move_inbox(self, queue: str) -> None:
        """On a thread of the transport: the node of a queue is down. What was in it is asked for again."""
        if self._services.place.move(queue, self._consume_inbox):
            self._services.post(self._attendance.ask_who_is_there)

    # ------------------------------------------------------------ time

    @property
    def _has_news(self) -> bool:
        """Whether something waits to be stored; of the audit log also while no job runs."""
        return self.jobs.has_news or self._services.audit.has_news

    def timeout_s(self) -> float:
        """How long the thread may sleep."""
        timers = [self._ticked_at + self._settings.heartbeat_s]
        if (timer := self.jobs.next_timer()) is not None:
            timers.append(timer)
        if self._has_news:
            timers.append(self._flush_at)
        return min(timers) - self._services.clock.now()

    def do_what_is_due(self) -> None:
        """Nothing waits: tell jobs the time, find the lost, write events out."""
        now = self._services.clock.now()
        self.jobs.tell_time(now)
        if now >= self._ticked_at + self._settings.heartbeat_s:
            self._ticked_at = now
            if self._services.is_sure():  # else reports are another controller's, and silence says nothing
                self._attendance.expire(now)
            self._attendance.pace()
            self.jobs.signal_all(s.TimePassed())
            self.jobs.tidy(self._settings.retention, self._services.transport.user)
        is_urgent = self.jobs.has_urgent_news and not self._patience.has_unwritten
        if self._has_news and (is_urgent or now >= self._flush_at):
            self._patience.written(self.jobs.flush() or self._services.audit.flush())
            pause_s = FLUSH_AGAIN_AFTER_S if self._patience.has_unwritten else FLUSH_EVERY_S
            self._flush_at = now + pause_s
