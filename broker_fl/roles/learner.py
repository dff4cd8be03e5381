"""The learner's side: takes tasks from its mailbox, works on them, sends results back.

One host carries one learner or many (virtual learners in one process): each with a mailbox of its own, or
all of them as one group (``group.py``). Threads: one decides (``Loop``), ``num_workers`` run the users' code,
one publishes (``Sender``); the transport has its own.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import broker_fl
from broker_fl.errors import FrameRefused, MessageRefused, TaskCancelled, TaskDeclined
from broker_fl.interfaces import Delivery, Learner, Parameters, Sink, Transport
from broker_fl.model import Array
from broker_fl.observer import NOBODY, Observer, WorkOutcome
from broker_fl.roles.about import about
from broker_fl.roles.attributes import attributes_of
from broker_fl.roles.group import Group
from broker_fl.roles.loop import Loop
from broker_fl.roles.mailboxes import Mailboxes
from broker_fl.roles.policy import Guard
from broker_fl.roles.residuals import Residuals
from broker_fl.roles.runtime import THREADS, Clock, Runtime
from broker_fl.roles.sender import Sender, handing, publish_outcome, publish_together, read
from broker_fl.roles.sharing import FinishedShare, GroupTask, publish_sum
from broker_fl.roles.status import LearnerStatus
from broker_fl.roles.tasks import HeldTask
from broker_fl.roles.turns import Turns
from broker_fl.roles.variates import Variates
from broker_fl.topology import Topology
from broker_fl.wire import messages as m

log = logging.getLogger(__name__)
DEFAULT_HEARTBEAT_S = 5.0
ACCEPTED_AFTER_S = 2.0
"""Work that is done sooner is not announced: its result tells all of it, and is a message less."""
SOFTWARE = f"broker_fl {broker_fl.__version__}"
"""What learners of this library say that they run."""
MAX_STATUSES = 100
"""Tasks that one heartbeat may name; the controller cancels those of ended jobs, so that others get their
turn.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSettings:
    """How a host of learners behaves."""

    federation: str = "default"
    attributes: Parameters = field(default_factory=dict)
    """Told to the controller at joining, besides those that a learner tells itself; selectors may go by them.
    """
    num_workers: int = 1
    """Tasks of this host's learners that are worked on at the same time."""
    max_model_bytes: int = 8 << 30
    """A task with a larger model is refused."""
    group: str | None = None
    """Name of the group that the learners are: they have one mailbox, and send one sum of their updates,
    which serves jobs whose rule is a weighted sum. None: each is by itself.
    """
    guard: Guard | None = None
    """The site's policy, which each task is held against. None: all are taken."""


@dataclass(slots=True)
class _Seat:
    """One learner of the host, and the newest task of each job."""

    id: str
    learner: Learner
    attributes: Parameters
    session: str
    held: dict[str, HeldTask] = field(default_factory=dict)
    variates: Variates = field(default_factory=Variates)
    residuals: Residuals = field(default_factory=Residuals)

    def statuses(self) -> tuple[m.TaskStatus, ...]:
        return tuple(held.status() for held in list(self.held.values())[-MAX_STATUSES:])


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
        self._observer = NOBODY
        self._clock = Clock(runtime)
        self._group = self._group_of(learners, runtime)
        alone = learners.items() if self._group is None else ()
        self._seats = {
            learner_id: _Seat(
                learner_id,
                learner,
                attributes_of(learner_id, learner, self.settings.attributes),
                session=runtime.unique()[:16],
            )
            for learner_id, learner in alone
        }
        self._heartbeat_s = DEFAULT_HEARTBEAT_S
        self._beat_at = 0.0
        self._beat_waits = False
        self._draining = False
        self._turns = Turns()
        self._unsaid: deque[tuple[float, HeldTask]] = deque()
        """Tasks that are whole, and when that is said to the controller."""
        self._num_waiting = 0
        self._num_working = 0
        self._drain_began = runtime.event()
        self._idle_workers = runtime.event()
        self._welcomed = runtime.event()
        self._stopped = runtime.event()
        self._loop = Loop("learner", on_idle=self._do_what_is_due, timeout_s=self._timeout_s, runtime=runtime)
        self._reports = Sender(transport, "learner-reports", runtime)
        self._updates = Sender(transport, "learner-updates", runtime)
        self._workers = runtime.workers(self.settings.num_workers, "learner-worker")
        self._mailboxes = Mailboxes(
            transport, self.topology, self._readers(), is_group=self._group is not None
        )

    def _group_of(self, learners: Mapping[str, Learner], runtime: Runtime) -> Group | None:
        settings = self.settings
        if settings.group is None:
            return None
        group = Group(
            settings.group,
            learners,
            attributes=settings.attributes,
            num_workers=settings.num_workers,
            max_model_bytes=settings.max_model_bytes,
            runtime=runtime,
        )
        group.report = lambda report: self._report(group.id, report)
        group.send = lambda task, share, is_asked_for: self._loop.post(
            lambda: self._send_share(group, task, share, is_asked_for=is_asked_for)
        )
        if (guard := settings.guard) is not None:
            group.admit = lambda task: guard.admit(task, self._clock.now())
            group.guarded = guard.guarded
        group.on_idle = lambda: self._loop.post(self._see_whether_idle)
        return group

    # ------------------------------------------------------------ life

    def observe(self, observer: Observer) -> None:
        """Tell it from now on; before ``start``."""
        self._observer = observer
        if self._group is not None:
            self._group.observer = observer

    def status(self) -> LearnerStatus:
        """How it is doing; from any thread."""
        group = self._group
        name = group.id if group is not None else next(iter(self._seats))
        mailbox = self.topology.mailbox(name, self._mailboxes.generation(name))
        return LearnerStatus(
            num_learners=len(self._seats) if group is None else len(group),
            num_calls=self._loop.num_calls,
            stalled_s=self._loop.stalled_s,
            has_ended=self.error is not None or self._stopped.is_set(),
            queues={"mailbox": mailbox},
            is_welcomed=self._welcomed.is_set(),
            num_working=self._num_working if group is None else group.num_working,
            num_waiting=self._num_waiting if group is None else group.num_waiting,
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
        self._loop.start()

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
        if not self._idle_workers.wait(drain_s):
            log.warning("a task was not finished within %g s; it is handed back", drain_s)
        self._loop.post(self._cancel_all)
        self._workers.shutdown(wait=False, cancel_futures=True)
        if self._group is not None:
            self._group.stop()
        self._updates.stop(max(5.0, drain_s))
        self._loop.post(lambda: self._leave_all(reason))
        self._loop.stop()
        self._loop.join(10.0)
        self._reports.stop(5.0)
        self._transport.flush(5.0)
        self._stopped.set()

    def abandon(self) -> None:
        """End as a process that was killed: its transport is closed already, so nothing is said or handed
        back.
        """
        self._loop.post(self._drain)
        self._loop.post(self._cancel_all)
        self._loop.stop()
        self._loop.join(10.0)
        self._workers.shutdown(wait=False, cancel_futures=True)
        if self._group is not None:
            self._group.stop()
        for sender in (self._updates, self._reports):
            sender.stop(5.0)
        self._stopped.set()

    def _drain(self) -> None:
        self._draining = True
        self._see_whether_idle()
        self._drain_began.set()

    def _cancel_all(self) -> None:
        for seat in self._seats.values():
            for held in seat.held.values():
                held.cancelled = True
        if self._group is not None:
            self._group.cancel_all()

    def _leave_all(self, reason: str) -> None:
        for party in self._parties():
            self._report(party.id, m.Leave(learner=party.id, session=party.session, reason=reason))

    def _parties(self) -> Sequence[_Seat | Group]:
        """Who has a mailbox and a session."""
        return list(self._seats.values()) if self._group is None else [self._group]

    # ------------------------------------------------------------ what comes in

    def _readers(self) -> dict[str, Sink]:
        """Who takes what comes in, by mailbox."""
        if self._group is not None:
            return {self._group.id: self._reader(self._group.id, partial(self._handle_for, self._group))}
        return {seat.id: self._reader(seat.id, partial(self._handle, seat)) for seat in self._seats.values()}

    def _reader(self, name: str, handle: Callable[[m.Message, memoryview | None], None]) -> Sink:
        def sink(delivery: Delivery) -> None:
            self._loop.post(lambda: self._take(name, delivery, handle))

        return sink

    def _move_mailbox(self, queue: str) -> None:
        """On a thread of the transport: the node of a queue is down."""
        if self._mailboxes.move(queue):
            self._loop.post(self._join_all)

    def _take(
        self, name: str, delivery: Delivery, handle: Callable[[m.Message, memoryview | None], None]
    ) -> None:
        with about(learner=name) as subject:
            try:
                message, payload = read(delivery)
                subject.message(message)
                handle(message, payload)
            except MessageRefused as error:
                log.warning("learner %s refuses a message: %s", name, error)
                self._observer.refused("mailbox")
        delivery.ack()

    def _handle_for(self, group: Group, message: m.Message, payload: memoryview | None) -> None:
        match message:
            case m.ModelChunk() if payload is not None:
                if not self._draining:
                    group.on_chunk(message, payload)
            case m.Task():
                if not self._draining:
                    group.on_task(message)
            case m.UploadRequest():
                group.on_upload_request(message)
            case m.Cancel():
                group.cancel(message)
            case m.Rejoin():
                self._join(group)
            case _:
                self._on_welcome(message)

    def _handle(self, seat: _Seat, message: m.Message, payload: memoryview | None) -> None:
        match message:
            case m.ModelChunk() if payload is not None:
                if message.task is not None:
                    self._on_task(seat, message.task)
                self._on_chunk(seat, message, payload)
            case m.Task():
                self._on_task(seat, message)
            case m.UploadRequest():
                self._on_upload_request(seat, message)
            case m.Cancel(task=task, reason=reason):
                held = seat.held.get(task.job)
                if held is not None and held.task.task.round <= task.round:
                    held.cancelled = True
                    del seat.held[task.job]
                    log.info("task %s is over for learner %s: %s", task, seat.id, reason)
            case m.Rejoin():
                self._join(seat)
            case _:
                self._on_welcome(message)

    def _on_welcome(self, message: m.Message) -> None:
        if not isinstance(message, m.Welcome):
            raise FrameRefused(f"a {message.KIND!r} message is not for learners")
        self._heartbeat_s = message.heartbeat_s
        self._welcomed.set()

    def _on_task(self, seat: _Seat, task: m.Task) -> None:
        if self._draining:
            return
        held = seat.held.get(task.task.job)
        if held is not None and held.task.task == task.task:
            if held.phase in ("finished", "failed"):
                held.task = task
                self._send_outcome(seat, held)
            return
        if held is not None:
            held.cancelled = True
        try:
            if self.settings.guard is not None:
                self.settings.guard.admit(task, self._clock.now())
            seat.held[task.task.job] = HeldTask.of(
                task, seat.id, self.settings.max_model_bytes, seat.variates, seat.residuals, self._clock
            )
        except (FrameRefused, TaskDeclined) as error:
            log.warning("learner %s does not take task %s: %s", seat.id, task.task, error)
            seat.held.pop(task.task.job, None)
            self._report(seat.id, m.Failed(learner=seat.id, task=task.task, reason=str(error)[:1000]))

    def _on_chunk(self, seat: _Seat, chunk: m.ModelChunk, payload: memoryview) -> None:
        held = seat.held.get(chunk.job)
        if (
            held is None
            or held.phase != "receiving"
            or held.task.model.version != chunk.version
            or self._draining
        ):
            return
        if held.receive(chunk, payload):
            self._unsaid.append((self._clock.now() + ACCEPTED_AFTER_S, held))
            self._observer.received(held.receive_s)
            self._turns.add(held)
            self._num_waiting += 1
            self._work_on_next()

    def _on_upload_request(self, seat: _Seat, request: m.UploadRequest) -> None:
        held = seat.held.get(request.task.job)
        if held is None or held.task.task != request.task or held.phase not in ("finished", "failed"):
            log.info("learner %s has no result of task %s to send", seat.id, request.task)
            return
        held.task = held.task.model_copy(update={"inbox": request.inbox, "upload": "at_once"})
        self._send_outcome(seat, held)

    # ------------------------------------------------------------ work

    def _work_on_next(self) -> None:
        """Give the workers that are free something to do."""
        while self._num_working < self.settings.num_workers and (held := self._turns.next()) is not None:
            self._num_waiting -= 1
            self._num_working += 1
            self._workers.submit(self._work, self._seats[held.learner], held)

    def _work(self, seat: _Seat, held: HeldTask) -> None:
        """On a worker's thread."""
        began, task = self._clock.steady_s(), held.task.task
        outcome: WorkOutcome = "cancelled"
        try:
            with about(job=task.job, round=task.round, learner=seat.id):
                held.work(self._guarded(seat.learner))
                outcome = "failed" if held.result is None else "finished"
        except TaskCancelled:
            log.info("learner %s stopped working on task %s", seat.id, task)
        finally:
            seconds = self._clock.steady_s() - began
            self._observer.worked(outcome, seconds)
            self._loop.post(lambda: self._worked(seat, held, seconds))

    def _guarded(self, learner: Learner) -> Learner:
        guard = self.settings.guard
        return learner if guard is None else guard.guarded(learner)

    def _worked(self, seat: _Seat, held: HeldTask, seconds: float) -> None:
        self._num_working -= 1
        self._turns.done(held, seconds)
        self._forget_settled()
        if not held.cancelled:
            self._send_outcome(seat, held)
        self._work_on_next()
        self._see_whether_idle()

    def _see_whether_idle(self) -> None:
        group_is_idle = self._group is None or self._group.is_idle
        if self._draining and group_is_idle and not self._num_working and not self._num_waiting:
            self._idle_workers.set()

    def _send_outcome(self, seat: _Seat, held: HeldTask) -> None:
        """Report the failure; or send the result, and its update unless that is to be asked for."""
        task, result = held.task, held.result
        if result is None:
            with about(job=task.task.job, round=task.task.round, learner=seat.id):
                log.warning("learner %s could not do task %s: %s", seat.id, task.task, held.failure)
            self._report(seat.id, m.Failed(learner=seat.id, task=task.task, reason=held.failure))
            return
        if held.is_handed_over:
            log.info("learner %s has handed over what came of task %s already", seat.id, task.task)
            return
        result = result.model_copy(update={"session": seat.session})
        exchange, key = self.topology.updates, f"{seat.id}.{task.inbox}"
        if (update := held.update) is None or task.upload != "at_once":
            self._updates.send(exchange, [key], result)
            return
        held.is_sent = self._count_again(update, is_sent=held.is_sent)
        if handing(self._transport) is not None:
            held.update = None  # its memory is free again as soon as it is in the sum
        publish = publish_together if task.compact else publish_outcome
        self._updates.post(lambda: publish(self._transport, exchange, key, result, update))

    def _count_again(self, update: Array, *, is_sent: bool) -> bool:
        """Count an update of a task that has sent one, whoever asked for it; the first one was counted when
        the task was taken. Comes back true.
        """
        if is_sent and self.settings.guard is not None:
            self.settings.guard.again(update.nbytes, self._clock.now())
        return True

    def _send_share(self, group: Group, task: GroupTask, share: FinishedShare, *, is_asked_for: bool) -> None:
        """Send the pages of a group's result, and its sum unless that is to be asked for."""
        if task.cancelled:
            return
        exchange, key, newest = self.topology.updates, f"{group.id}.{task.newest.inbox}", task.newest
        for page in share.pages:
            self._updates.send(exchange, [key], page)
        if share.total is not None and (is_asked_for or newest.upload == "at_once"):
            task.is_sent = self._count_again(share.total, is_sent=task.is_sent)
            self._updates.post(lambda: publish_sum(self._transport, exchange, key, share))

    # ------------------------------------------------------------ reports

    def _join_all(self) -> None:
        for party in self._parties():
            self._join(party)

    def _join(self, party: _Seat | Group) -> None:
        if not self._draining:
            mailbox = {"mailbox": self._mailboxes.generation(party.id)}
            for join in self._joins(party):
                self._report(party.id, join.model_copy(update=mailbox))

    def _joins(self, party: _Seat | Group) -> Iterable[m.Join | m.GroupJoin]:
        if isinstance(party, Group):
            return party.joins(SOFTWARE)
        join = m.Join(
            learner=party.id,
            session=party.session,
            attributes=dict(party.attributes),
            software=SOFTWARE,
            tasks=party.statuses(),
            compact=True,
        )
        return (join,)

    def _report(self, name: str, report: m.Message) -> None:
        self._reports.send(self.topology.reports, [f"{name}.{report.KIND}"], report, persistent=True)

    def _timeout_s(self) -> float:
        now = self._clock.now()
        due_s = [self._beat_at + self._heartbeat_s - now]
        if self._unsaid:
            due_s.append(self._unsaid[0][0] - now)
        if self._group is not None and (group_s := self._group.due_s()) is not None:
            due_s.append(group_s)
        return min(due_s)

    def _say_accepted(self, now: float) -> None:
        """Of tasks that take their time; the results of others say it soon enough."""
        self._forget_settled()
        while self._unsaid and self._unsaid[0][0] <= now:
            held = self._unsaid.popleft()[1]
            if not _is_settled(held):
                accepted = m.Accepted(learner=held.learner, task=held.task.task, receive_s=held.receive_s)
                self._report(held.learner, accepted)

    def _forget_settled(self) -> None:
        """Each holds an update: a host of many learners with short rounds would hold those of two seconds."""
        while self._unsaid and _is_settled(self._unsaid[0][1]):
            self._unsaid.popleft()

    def _do_what_is_due(self) -> None:
        now = self._clock.now()
        self._say_accepted(now)
        if self._group is not None:
            self._group.send_due()
        self._beat_if_due(now)

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
        for party in self._parties():
            beat = m.Heartbeat(
                learner=party.id,
                session=party.session,
                tasks=party.statuses(),
                mailbox=self._mailboxes.generation(party.id),
            )
            self._report(party.id, beat)
        self._reports.post(self._beat_sent)

    def _beat_sent(self) -> None:
        self._beat_waits = False


def _is_settled(held: HeldTask) -> bool:
    return held.phase in ("finished", "failed") or held.cancelled
