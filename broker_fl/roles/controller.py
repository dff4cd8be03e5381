"""The controller: hears learners and drivers, runs jobs, and keeps their state in the store.

Threads: one decides (``Loop``), one publishes (``Sender``), one holds the lease; the transport has its own.
All state belongs to the deciding thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from broker_fl.coordination import signals as s
from broker_fl.coordination.membership import Lost, Membership
from broker_fl.errors import (
    Fenced,
    FrameRefused,
    MessageRefused,
    QueueLost,
    StoreUnavailable,
    TransportClosed,
    VersionsLost,
)
from broker_fl.extensions import OwnClasses
from broker_fl.identity.accounts import Account, Role
from broker_fl.interfaces import Delivery, Member, Store, Transport
from broker_fl.observer import NOBODY, Observer
from broker_fl.roles.about import about
from broker_fl.roles.attributes import check_size
from broker_fl.roles.auditing import AuditLog
from broker_fl.roles.groups import Groups
from broker_fl.roles.jobs import Jobs
from broker_fl.roles.lease import Lease
from broker_fl.roles.limits import DEAD_LETTERS, JOINS, MESSAGES, WASTE, RateLimit
from broker_fl.roles.loop import Loop
from broker_fl.roles.places import Inbox, Keys
from broker_fl.roles.requests import Requests
from broker_fl.roles.retention import Retention
from broker_fl.roles.runner import JobRunner
from broker_fl.roles.runtime import THREADS, Clock, Runtime
from broker_fl.roles.sender import Sender
from broker_fl.roles.services import Services
from broker_fl.roles.speakers import DRIVERS, LEARNERS, Identities, Speaker, Speakers
from broker_fl.roles.status import ControllerStatus
from broker_fl.security.audit import Deed
from broker_fl.topology import Topology
from broker_fl.wire import messages as m
from broker_fl.wire.events import GroupJoined, GroupLeft, GroupLost, LearnerJoined, LearnerLeft, LearnerLost
from broker_fl.wire.fields import text
from broker_fl.wire.frames import MAX_BODY_BYTES, MAX_CHUNK_HEADER_BYTES, pack_chunk

log = logging.getLogger(__name__)
INBOX_PREFETCH = 64
REPORTS_PREFETCH = 1_000
CONTROL_PREFETCH = 16
FLUSH_EVERY_S = 0.01
"""Events of single tasks go to the store together for so long; all others do not wait."""
FLUSH_AGAIN_AFTER_S = 0.5
"""When the store was away."""
MAX_RETRY_PAUSE_S = 5.0
NOBODY_SAYS = "whoever does not say which account it is"
"""Under which all messages count together that do not say who sent them."""

T = TypeVar("T")
Handler = Callable[[m.Message, memoryview | None, Speaker], None]
"""Takes a message, its payload, and who sent it."""


@dataclass(frozen=True, slots=True)
class _Source:
    """A queue that the controller reads."""

    queue: str
    handle: Handler
    prefetch: int
    senders: Set[Role]
    limit: RateLimit | None = None
    """For all of its messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerSettings:
    """How a controller behaves."""

    federation: str = "default"
    heartbeat_s: float = 5.0
    """How often learners are asked to be heard of; four missed in a row, and one is lost."""
    lease_ttl_s: float = 15.0
    """How long a standby waits after the last sign of life of a controller that died."""
    max_model_bytes: int = 8 << 30
    """A job with a larger model is refused."""
    store_patience_s: float | None = None
    """How long a store that fails is asked again before that ends the controller; None is for ever."""
    identities: Identities = "shared"
    """``required``: every message has to come from an enrolled account, in its own name. A controller whose
    own account is an enrolled one always requires that.
    """
    retention: Retention = field(default_factory=Retention)
    """Which jobs that have ended are kept."""


class Controller:
    """One controller of one federation. Of several, one works; the others stand by for its lease."""

    def __init__(
        self,
        transport: Transport,
        store: Store,
        settings: ControllerSettings | None = None,
        own: OwnClasses | None = None,
        runtime: Runtime = THREADS,
    ) -> None:
        """``own``: the rules and selectors that jobs may name besides those of the library."""
        self._own = own or OwnClasses()
        self._observer = NOBODY
        is_enrolled = Account.of(transport.user) is not None
        self.settings = settings or ControllerSettings()
        self.topology = Topology(self.settings.federation)
        self._transport = transport
        self._store = store
        self._clock = Clock(runtime)
        self._stop = runtime.event()
        identities: Identities = "required" if is_enrolled else self.settings.identities
        self._speakers = Speakers(self.settings.federation, identities)
        self._messages = RateLimit(MESSAGES, "messages")
        self._waste = RateLimit(WASTE, "messages that nobody asked for")
        self._refusals = RateLimit(DEAD_LETTERS, "messages that are refused")
        self._joins = RateLimit(JOINS, "joins")
        self._settled = runtime.event()  # it is active, or has ended before it was
        self._is_active = False
        self._members = Membership(self.settings.heartbeat_s, self._clock.now())
        self._groups = Groups(self._members)
        self._keys = Keys(self.topology)
        self._inbox: Inbox | None = None
        self._ticked_at = self._flush_at = 0.0
        self._unflushed_since: float | None = None
        self._unheard: StoreUnavailable | None = None
        self._owner = f"controller-{runtime.unique()[:12]}"
        self._lease = Lease(
            store, self._owner, ttl_s=self.settings.lease_ttl_s, on_fenced=self._fenced, runtime=runtime
        )
        self._loop = Loop("controller", on_idle=self._idle, timeout_s=self._timeout_s, runtime=runtime)
        self._sender = Sender(transport, "controller-sender", runtime)
        self._bulk_sender = Sender(transport, "controller-bulk-sender", runtime)
        self._main = runtime.thread(self._run, "controller-main")
        self.error: BaseException | None = None
        """What ended the controller, if it was not ``stop``."""

    # ------------------------------------------------------------ life

    def observe(self, observer: Observer) -> None:
        """Tell it from now on; before ``start``."""
        self._observer = observer

    def start(self) -> None:
        """Begin: stand by for the lease, then work, on threads of its own."""
        self._main.start()

    def wait_active(self, timeout_s: float | None = None) -> bool:
        """Wait until it holds the lease and hears learners and drivers; False if it ended before that, or if
        that takes longer.
        """
        self._settled.wait(timeout_s)
        return self._is_active

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the controller's end; False if that takes longer."""
        self._main.join(timeout_s)
        return not self._main.is_alive()

    def stop(self) -> None:
        """End: jobs stay as they are in the store, and the next controller goes on with them."""
        self._stop.set()
        self._loop.stop()

    @property
    def epoch(self) -> int:
        """Of the lease that it holds; 0 before."""
        return self._lease.epoch

    def status(self) -> ControllerStatus:
        """How it is doing; from any thread."""
        epoch, topology = self._lease.epoch, self.topology
        queues = {"reports": topology.reports, "control": topology.control}
        if self._inbox is not None:
            queues["inbox"] = self._inbox.queue
        has_ended = self._stop.is_set() or self.error is not None
        return ControllerStatus(
            num_learners=len(self._members),
            num_calls=self._loop.num_calls,
            stalled_s=self._loop.stalled_s if self._is_active else 0.0,
            has_ended=has_ended,
            queues=queues,
            epoch=epoch,
            is_active=self._is_active and not has_ended,
            is_standby=self._lease.is_waiting,
            is_without_store=self._unheard is not None or self._unflushed_since is not None,
            num_jobs=self._jobs.num_by_phase() if self._is_active else {},
        )

    def _run(self) -> None:
        try:
            if self._lease.acquire(self._stop, self.settings.store_patience_s):
                self._work()
        except BaseException as error:  # noqa: BLE001 - kept for the owner, who decides
            self.error = error
            log.error("the controller ends: %s", error)
        finally:
            self._settled.set()
            self._lease.release()
            self._bulk_sender.stop(5.0)
            self._sender.stop(5.0)

    def _work(self) -> None:
        """Hear everybody until the loop ends; with the lease in hand."""
        epoch = self._lease.epoch
        self._audit = self._persist(
            lambda: AuditLog(self._store, self.settings.federation, epoch, self._clock)
        )
        self._audit.add(Deed(actor=self._transport.user, action="took_over", subject=f"epoch {epoch}"))
        inbox = self._inbox = Inbox(self._transport, self.topology, epoch)
        services = self._new_services(epoch, inbox)
        self._jobs = Jobs(services, self._members)
        self._requests = Requests(services, self._jobs, self.settings.max_model_bytes)
        self._transport.declare(self.topology.for_controller())
        inbox.declare()
        self._transport.on_queue_lost(partial(self._move_inbox, inbox))
        self._transport.on_reconnect(lambda: self._loop.post(self._ask_who_is_there))
        self._transport.on_unroutable(
            lambda *where: self._loop.post(lambda: self._is_without_mailbox(*where))
        )
        self._jobs.resume()
        self._ask_who_is_there()
        sources = (
            _Source(self.topology.reports, self._on_report, REPORTS_PREFETCH, LEARNERS, self._messages),
            _Source(self.topology.control, self._on_control, CONTROL_PREFETCH, DRIVERS, self._messages),
        )
        try:
            self._consume_inbox(inbox)
        except QueueLost:  # its node went down just now
            self._move_inbox(inbox, inbox.queue)
        for source in sources:
            self._consume(source)
        self._loop.start()
        log.info("controller of federation %s is active, epoch %d", self.settings.federation, epoch)
        self._is_active = True
        self._settled.set()
        self._loop.join()
        self.error = self.error or self._loop.error
        if self.error is None:
            self._jobs.flush()  # what happened after the loop was last idle
            self._audit.flush()
        for queue in (inbox.queue, *(source.queue for source in sources)):
            self._transport.cancel(queue)

    def _new_services(self, epoch: int, inbox: Inbox) -> Services:
        return Services(
            topology=self.topology,
            transport=self._transport,
            store=self._store,
            sender=self._sender,
            bulk_sender=self._bulk_sender,
            clock=self._clock,
            place=inbox,
            keys=self._keys,
            epoch=epoch,
            post=self._loop.post,
            persist=self._persist,
            is_sure=lambda: self._lease.is_sure,
            members=self._members,
            own=self._own,
            observer=self._observer,
            audit=self._audit,
        )

    def _fenced(self, error: Fenced) -> None:
        self.error = error
        log.error("%s: this controller stops", error)
        self.stop()

    def _persist(self, operation: Callable[[], T]) -> T:
        """Ask the store until it answers; the lease is kept meanwhile, and nothing else goes on.

        Raises:
            Fenced: another controller has taken over.
            StoreUnavailable: the controller was stopped while the store was away, or its patience is over.
        """
        if self._unheard is not None:  # what was asked may have been done: what follows must not undo it
            raise self._unheard
        began, pause_s = self._clock.steady_s(), 0.05
        while True:
            try:
                done = operation()
                self._unheard = None
                return done
            except StoreUnavailable as error:
                self._unheard = error
                if self._is_too_long(began):
                    self._give_up(error)
                    raise
                log.warning("the store is away, trying again: %s", error)
                if self._stop.wait(pause_s):
                    raise
                pause_s = min(2 * pause_s, MAX_RETRY_PAUSE_S)

    def _is_too_long(self, began: float) -> bool:
        patience_s = self.settings.store_patience_s
        return patience_s is not None and self._clock.steady_s() - began >= patience_s

    def _give_up(self, error: StoreUnavailable) -> None:
        self.error = self.error or error
        self.stop()

    def _flush(self) -> None:
        """Write events out; those that the store does not take wait, as long as its patience lasts."""
        error = self._jobs.flush() or self._audit.flush()
        if error is None:
            self._unflushed_since = None
        elif self._unflushed_since is None:
            self._unflushed_since = self._clock.steady_s()
        elif self._is_too_long(self._unflushed_since):
            self._give_up(error)

    # ------------------------------------------------------------ what comes in

    def _consume_inbox(self, inbox: Inbox) -> None:
        self._consume(_Source(inbox.queue, self._on_inbox, INBOX_PREFETCH, LEARNERS | DRIVERS))

    def _move_inbox(self, inbox: Inbox, queue: str) -> None:
        """On a thread of the transport: the node of a queue is down. What was in it is asked for again."""
        if inbox.move(queue, lambda: self._consume_inbox(inbox)):
            self._loop.post(self._ask_who_is_there)

    def _consume(self, source: _Source) -> None:
        def sink(delivery: Delivery) -> None:
            self._loop.post(lambda: self._take(source, delivery))

        self._transport.consume(source.queue, sink, prefetch=source.prefetch)

    def _take(self, source: _Source, delivery: Delivery) -> None:
        """Handle one delivery. Whatever it holds, it is acked: what is refused goes to the dead letters with
        the reason.
        """
        with about() as subject:
            self._handle(subject, source, delivery)
        delivery.ack()

    def _handle(self, subject: about, source: _Source, delivery: Delivery) -> None:
        speaker: Speaker | None = None
        try:
            speaker = self._speakers.of(delivery, source.senders)
            if source.senders & LEARNERS and (speaker.account is None or speaker.account.role in LEARNERS):
                subject.learner(speaker.name)
            if self._is_over_limit(source, speaker):
                self._observer.refused("over_limit")
                return
            message, payload = m.decode(delivery.body)
            subject.message(message)
            source.handle(message, payload, speaker)
        except MessageRefused as error:
            self._refuse(source.queue, delivery, speaker, str(error))
        except (Fenced, TransportClosed, StoreUnavailable, VersionsLost):
            raise  # not acked: it comes again, to whoever goes on
        except Exception as error:
            if not self._is_refused_too_often(delivery, speaker):
                log.exception(
                    "a message from %s with key %s could not be handled", source.queue, delivery.routing_key
                )
                self._dead_letter(source.queue, delivery, f"{type(error).__name__}: {error}")

    def _is_over_limit(self, source: _Source, speaker: Speaker) -> bool:
        """Whether an account sends too much; names that are no accounts are whatever a sender says."""
        if speaker.account is None:
            return False
        user, now = speaker.account.user, self._clock.now()
        if source.limit is None:
            return not self._waste.has_left(user, now)
        return not source.limit.take(user, now)

    def _wasted(self, speaker: Speaker) -> None:
        """Count a message of an inbox that was of no use."""
        if speaker.account is not None:
            self._waste.take(speaker.account.user, self._clock.now())

    def _refuse(self, queue: str, delivery: Delivery, speaker: Speaker | None, reason: str) -> None:
        if self._is_refused_too_often(delivery, speaker):
            self._observer.refused("over_limit")
        else:
            self._dead_letter(queue, delivery, reason)
        if speaker is not None:
            self._wasted(speaker)
            self._refuse_broken_result(delivery, speaker, reason)

    def _is_refused_too_often(self, delivery: Delivery, speaker: Speaker | None) -> bool:
        """Whether so many messages of this account were refused that no more are kept and logged. Where
        accounts are shared it says nothing of the sender, and all are kept.
        """
        if speaker is not None and speaker.account is None:
            return False
        return not self._refusals.take(delivery.user or NOBODY_SAYS, self._clock.now())

    def _refuse_broken_result(self, delivery: Delivery, speaker: Speaker, reason: str) -> None:
        """A learner whose result cannot be read has nothing better to send: its round goes on without it."""
        broken = m.broken_result(delivery.body)
        if broken is not None and broken[0] == speaker.name:
            learner, task = broken
            if not _is_readable(delivery.body):  # others were counted by the job, with what is wrong
                self._observer.update("refused", "unreadable")
            if self._members.is_group(learner):
                self._jobs.signal(task.job, s.GroupHasFailed(learner, task, reason[:1000]))
                return
            self._jobs.signal(task.job, s.UpdateWasRefused(learner, task, reason[:1000]))

    def _dead_letter(self, queue: str, delivery: Delivery, reason: str) -> None:
        log.warning("refused a message from %s with key %s: %s", queue, delivery.routing_key, reason)
        names = {self.topology.reports: "reports", self.topology.control: "control"}
        self._observer.refused(names.get(queue, "inbox"))
        header = m.DeadLetter(
            source=queue,
            routing_key=text(delivery.routing_key),
            reason=text(reason),
            time_s=self._clock.now(),
        )
        payload = memoryview(delivery.body)[: MAX_BODY_BYTES - MAX_CHUNK_HEADER_BYTES - 5]
        body = pack_chunk(header.KIND, header.model_dump(), payload)
        self._sender.post(lambda: self._transport.publish(self.topology.dead, [""], body, persistent=True))

    def _on_report(self, message: m.Message, _payload: memoryview | None, speaker: Speaker) -> None:
        speaker.check_report(message)
        match message:
            case m.Join():
                self._on_join(message, speaker)
            case m.GroupJoin():
                self._on_group_join(message, speaker)
            case m.Leave():
                self._on_leave(message)
            case m.Heartbeat():
                self._on_heartbeat(message)
            case m.Accepted(learner=learner, task=task, receive_s=receive_s):
                accepted = s.GroupHasAccepted if self._members.is_group(learner) else s.TaskWasAccepted
                self._jobs.signal(task.job, accepted(learner, task, receive_s))
            case m.Failed(learner=learner, task=task, reason=reason):
                failed = s.GroupHasFailed if self._members.is_group(learner) else s.TaskHasFailed
                self._jobs.signal(task.job, failed(learner, task, reason))
            case _:
                raise FrameRefused(f"a {message.KIND!r} message is not a report")

    def _joins_too_often(self, speaker: Speaker) -> bool:
        """Each join may be written down for good, and answered with a task and its model."""
        account = speaker.account
        return account is not None and not self._joins.take(account.user, self._clock.now())

    def _on_join(self, join: m.Join, speaker: Speaker) -> None:
        check_size(join.learner, join.attributes)
        if self._joins_too_often(speaker):
            return
        member = Member(learner=join.learner, attributes=join.attributes, software=join.software)
        new = self._members.join(
            member,
            session=join.session,
            software=join.software,
            now=self._clock.now(),
            compact=join.compact,
        )
        self._members.heard(join.learner, join.session, join.tasks, self._clock.now())
        self._keys.note(join.learner, join.mailbox)
        self._welcome(self._keys.of(join.learner))
        if new:
            log.info("learner %s joined; %d are there", join.learner, len(self._members))
            details = {"session": join.session, "software": join.software}
            self._audit.add(
                Deed(actor=speaker.user, action="joined", subject=f"learner {join.learner}", details=details)
            )
            self._jobs.emit(
                lambda job: LearnerJoined(job=job, learner=join.learner, attributes=dict(join.attributes))
            )
        self._jobs.signal_all(s.LearnerUp(join.learner, join.tasks))

    def _on_group_join(self, page: m.GroupJoin, speaker: Speaker) -> None:
        check_size(page.group, page.attributes)
        joining = self._groups.page(page, self._clock.now())
        if joining is None or self._joins_too_often(speaker):
            return
        change = self._members.join_group(joining)
        self._keys.note(page.group, page.mailbox)
        self._welcome(self._keys.of(page.group))
        if change.gone:
            self._say_gone(page.group, change.gone, "its group goes on without it")
        if change.is_new:
            num = len(joining.members)
            log.info("group %s joined with %d learners; %d are there", page.group, num, len(self._members))
            details: dict[str, str | int | float | bool] = {
                "session": page.session,
                "software": page.software,
                "num_learners": num,
            }
            self._audit.add(
                Deed(actor=speaker.user, action="joined", subject=f"group {page.group}", details=details)
            )
            self._jobs.emit(
                lambda job: GroupJoined(
                    job=job, group=page.group, learners=tuple(joining.members), attributes=page.attributes
                )
            )
        self._jobs.signal_all(s.GroupUp(page.group, joining.tasks))

    def _welcome(self, key: str) -> None:
        welcome = m.Welcome(federation=self.settings.federation, heartbeat_s=self._members.heartbeat_s)
        self._sender.send(self.topology.tasks, [key], welcome, mandatory=True)

    def _is_without_mailbox(self, exchange: str, key: str) -> None:
        """What was sent to one learner has reached no queue: its mailbox is lost, and made anew.

        Enrolled learners may not declare it themselves. What was in it is sent again when it is missed.
        """
        prefix = self.topology.learner_key("")
        name, _, generation = key.removeprefix(prefix).partition(".")
        if exchange != self.topology.tasks or not key.startswith(prefix):
            return
        log.warning("the mailbox of learner %s is not there: declaring it again", name)
        mailbox = self.topology.for_learner(name, int(generation or 0))
        self._sender.post(lambda: self._transport.declare(mailbox))

    def _on_leave(self, leave: m.Leave) -> None:
        learner, reason = leave.learner, leave.reason or "it left"
        if (members := self._members.leave_group(learner, leave.session)) is not None:
            log.info("group %s left with %d learners: %s", learner, len(members), leave.reason)
            self._say_gone(learner, members, reason)
        elif self._members.leave(learner, leave.session):
            log.info("learner %s left: %s", learner, leave.reason)
            self._jobs.emit(lambda job: LearnerLeft(job=job, learner=learner, reason=leave.reason))
            self._jobs.signal_all(s.LearnerDown(learner, reason))

    def _say_gone(self, group: str, members: tuple[str, ...], reason: str) -> None:
        self._jobs.emit(lambda job: GroupLeft(job=job, group=group, learners=members, reason=reason))
        self._jobs.signal_all(s.GroupDown(group, members, reason))

    def _on_heartbeat(self, beat: m.Heartbeat) -> None:
        self._keys.note(beat.learner, beat.mailbox)
        if not self._members.heard(beat.learner, beat.session, beat.tasks, self._clock.now()):
            self._sender.send(self.topology.tasks, [self._keys.of(beat.learner)], m.Rejoin(), mandatory=True)
            return
        is_group = self._members.is_group(beat.learner)
        for runner in self._jobs.running():
            if is_group:
                runner.group_heartbeat(s.GroupReported(beat.learner, beat.tasks))
            else:
                runner.heartbeat(s.LearnerReported(beat.learner, beat.tasks))
        self._forget_ended(beat.learner, beat.tasks)

    def _forget_ended(self, learner: str, tasks: tuple[m.TaskStatus, ...]) -> None:
        """Have a learner let go of tasks whose jobs have ended without it: each holds a whole update."""
        if not self._lease.is_sure:  # another controller may have begun them
            return
        for status in tasks:
            if self._jobs.runner(status.task.job) is None:
                cancel = m.Cancel(task=status.task, reason="the job has ended")
                self._sender.send(self.topology.tasks, [self._keys.of(learner)], cancel)

    def _on_inbox(self, message: m.Message, payload: memoryview | None, speaker: Speaker) -> None:
        if isinstance(message, m.ModelChunk) and payload is not None:
            self._requests.initial_chunk(speaker, message, payload)
            return
        if not isinstance(message, m.Result | m.GroupResult | m.UpdateChunk):
            raise FrameRefused(f"a {message.KIND!r} message does not belong into an inbox")
        speaker.check_report(message)
        runner = self._jobs.runner(message.task.job)
        if runner is None:
            log.info(
                "a %s of learner %s for job %s came too late", message.KIND, speaker.name, message.task.job
            )
            self._wasted(speaker)
        else:
            num_dropped = runner.num_dropped
            _take_in(runner, message, payload)
            if runner.num_dropped > num_dropped:
                self._wasted(speaker)

    def _on_control(self, message: m.Message, _payload: memoryview | None, speaker: Speaker) -> None:
        if not isinstance(message, m.Request):
            raise FrameRefused(f"a {message.KIND!r} message is not a request")
        self._requests.handle(message, speaker)

    # ------------------------------------------------------------ time

    def _timeout_s(self) -> float:
        """How long the loop may sleep."""
        timers = [self._ticked_at + self.settings.heartbeat_s]
        if (timer := self._jobs.next_timer()) is not None:
            timers.append(timer)
        if self._jobs.has_news:
            timers.append(self._flush_at)
        return min(timers) - self._clock.now()

    def _idle(self) -> None:
        """Nothing waits: tell jobs the time, find the lost, write events out."""
        if not self._loop.num_calls:
            self._jobs.settle()
        now = self._clock.now()
        self._jobs.tell_time(now)
        if now >= self._ticked_at + self.settings.heartbeat_s:
            self._ticked_at = now
            for lost in self._members.expire(now):
                self._lost(lost)
            if (heartbeat_s := self._members.pace()) is not None:
                log.info("%d are there; heartbeats are %.1f s apart now", len(self._members), heartbeat_s)
                self._welcome(self.topology.ALL_LEARNERS)
            self._jobs.signal_all(s.TimePassed())
            self._jobs.tidy(self.settings.retention, self._transport.user)
        is_urgent = self._jobs.has_urgent_news and self._unflushed_since is None
        if self._jobs.has_news and (is_urgent or now >= self._flush_at):
            self._flush()
            self._flush_at = now + (FLUSH_EVERY_S if self._unflushed_since is None else FLUSH_AGAIN_AFTER_S)

    def _lost(self, lost: Lost) -> None:
        if lost.members is not None:
            self._lost_group(lost.learner, lost.members, lost.silent_s)
            return
        log.info("learner %s has not been heard of for %.0f s", lost.learner, lost.silent_s)
        self._jobs.emit(lambda job: LearnerLost(job=job, learner=lost.learner, silent_s=lost.silent_s))
        self._jobs.signal_all(s.LearnerDown(lost.learner, f"not heard of for {lost.silent_s:.0f} s"))

    def _lost_group(self, group: str, members: tuple[str, ...], silent_s: float) -> None:
        log.info("group %s of %d learners has not been heard of for %.0f s", group, len(members), silent_s)
        self._jobs.emit(lambda job: GroupLost(job=job, group=group, learners=members, silent_s=silent_s))
        self._jobs.signal_all(s.GroupDown(group, members, f"not heard of for {silent_s:.0f} s"))

    def _ask_who_is_there(self) -> None:
        self._sender.send(self.topology.tasks, [self.topology.ALL_LEARNERS], m.Rejoin())


def _take_in(
    runner: JobRunner, message: m.Result | m.GroupResult | m.UpdateChunk, payload: memoryview | None
) -> None:
    if isinstance(message, m.Result):
        runner.result(message)
    elif isinstance(message, m.GroupResult):
        runner.group_result(message)
    elif payload is not None:
        _take_chunk(runner, message, payload)


def _is_readable(body: bytes) -> bool:
    try:
        m.decode(body)
    except MessageRefused:
        return False
    return True


def _take_chunk(runner: JobRunner, chunk: m.UpdateChunk, payload: memoryview) -> None:
    """Hand in a part of an update, or of a group's sum; and before it the result that came with it."""
    if chunk.share:
        runner.group_chunk(chunk, payload)
        return
    if (result := chunk.result) is not None:
        if (result.learner, result.task) != (chunk.learner, chunk.task):
            raise FrameRefused(
                f"a chunk of learner {chunk.learner!r} for task {chunk.task} brought a result of learner "
                f"{result.learner!r} for task {result.task}"
            )
        runner.result(result)
    runner.chunk(chunk, payload)
