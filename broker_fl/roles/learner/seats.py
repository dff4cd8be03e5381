"""Learners of a host that are each by themselves: every one has a mailbox, and sends its own updates."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from broker_fl.errors import FrameRefused, TaskCancelled, TaskDeclined
from broker_fl.interfaces import Learner, Parameters
from broker_fl.observer import WorkOutcome
from broker_fl.roles.about import about
from broker_fl.roles.attributes import attributes_of
from broker_fl.roles.learner.residuals import Residuals
from broker_fl.roles.learner.services import HostServices
from broker_fl.roles.learner.settings import SOFTWARE
from broker_fl.roles.learner.tasks import HeldTask
from broker_fl.roles.learner.turns import Turns
from broker_fl.roles.learner.variates import Variates
from broker_fl.wire import messages as m
from broker_fl.wire.fields import MAX_REASON_CHARS

log = logging.getLogger(__name__)
ACCEPTED_AFTER_S = 2.0
"""Work that is done sooner is not announced: its result tells all of it, and is a message less."""
MAX_STATUSES = 100
"""Tasks that one heartbeat may name; the controller cancels those of ended jobs, so that others get their
turn.
"""


class Seat:
    """One learner, and the newest task of each job."""

    def __init__(
        self,
        name: str,
        learner: Learner,
        attributes: Parameters,
        services: HostServices,
        on_whole: Callable[[HeldTask], None],
    ) -> None:
        """``on_whole`` is told of a task whose model is there: it can be worked on."""
        self.id = name
        self.learner = learner
        self.session = services.runtime.unique()[:16]
        self.held: dict[str, HeldTask] = {}
        self._attributes = attributes
        self._services = services
        self._on_whole = on_whole
        self._variates = Variates()
        self._residuals = Residuals()

    def joins(self, mailbox: int) -> Iterable[m.Join]:
        """What it says when it joins."""
        join = m.Join(
            learner=self.id,
            session=self.session,
            attributes=dict(self._attributes),
            software=SOFTWARE,
            tasks=self.statuses(),
            compact=True,
            mailbox=mailbox,
        )
        return (join,)

    def statuses(self) -> tuple[m.TaskStatus, ...]:
        """Of the tasks that it holds, for heartbeats."""
        return tuple(held.status() for held in list(self.held.values())[-MAX_STATUSES:])

    def on_task(self, task: m.Task) -> None:
        """Take a task, instead of an older one of the same job; one that is done already is sent again."""
        services, job = self._services, task.task.job
        held = self.held.get(job)
        if held is not None and held.task.task == task.task:
            if held.phase in ("finished", "failed"):
                held.task = task
                self.send_outcome(held)
            return
        if held is not None:
            held.cancelled = True
        try:
            now = services.clock.now()
            num_bytes = services.guard.admit(task, now)
            self.held[job] = HeldTask.of(
                task,
                self.id,
                services.settings.max_model_bytes,
                self._variates,
                self._residuals,
                services.clock,
            )
            services.guard.count(num_bytes, now)
        except (FrameRefused, TaskDeclined) as error:
            log.warning("learner %s does not take task %s: %s", self.id, task.task, error)
            self.held.pop(job, None)
            self._failed(task, str(error)[:MAX_REASON_CHARS])

    def on_chunk(self, chunk: m.ModelChunk, payload: memoryview) -> None:
        """Take a part of a model in, and before it the task that came with it."""
        if chunk.task is not None:
            self.on_task(chunk.task)
        held = self.held.get(chunk.job)
        if held is None or held.phase != "receiving" or held.task.model.version != chunk.version:
            return
        if held.receive(chunk, payload):
            self._services.observer.received(held.receive_s)
            self._on_whole(held)

    def on_upload_request(self, request: m.UploadRequest) -> None:
        """Send what is finished of a task, again or for the first time."""
        held = self.held.get(request.task.job)
        if held is None or held.task.task != request.task or held.phase not in ("finished", "failed"):
            log.info("learner %s has no result of task %s to send", self.id, request.task)
            return
        held.task = held.task.model_copy(update={"inbox": request.inbox, "upload": "at_once"})
        self.send_outcome(held)

    def cancel(self, cancel: m.Cancel) -> None:
        """Stop working on a job's task, and forget it."""
        task, held = cancel.task, self.held.get(cancel.task.job)
        if held is not None and held.task.task.round <= task.round:
            held.cancelled = True
            del self.held[task.job]
            log.info("task %s is over for learner %s: %s", task, self.id, cancel.reason)

    def send_outcome(self, held: HeldTask) -> None:
        """Report the failure; or send the result, and its update unless that is to be asked for."""
        task, result = held.task, held.result
        if result is None:
            with about(job=task.task.job, round=task.task.round, learner=self.id):
                log.warning("learner %s could not do task %s: %s", self.id, task.task, held.failure)
            self._failed(task, held.failure)
            return
        if held.is_handed_over:
            log.info("learner %s has handed over what came of task %s already", self.id, task.task)
            return
        self._services.outbox.send_result(held, result.model_copy(update={"session": self.session}))

    def _failed(self, task: m.Task, reason: str) -> None:
        self._services.outbox.report(self.id, m.Failed(learner=self.id, task=task.task, reason=reason))


class Seats:
    """All of a host, and ``num_workers`` threads that work on their tasks; lives on the loop's thread."""

    def __init__(self, learners: Mapping[str, Learner], services: HostServices) -> None:
        """Nothing is connected yet.

        Raises:
            AppError: a learner has ``attributes`` that are none.
        """
        settings = services.settings
        self._services = services
        self._seats = {
            learner_id: Seat(
                learner_id,
                learner,
                attributes_of(learner_id, learner, settings.attributes),
                services,
                self._add,
            )
            for learner_id, learner in learners.items()
        }
        self._turns = Turns()
        self._unsaid: deque[tuple[float, HeldTask]] = deque()
        """Tasks that are whole, and when that is said to the controller."""
        self._num_workers = settings.num_workers
        self._workers = services.runtime.workers(settings.num_workers, "learner-worker")
        self.num_working = 0
        self.num_waiting = 0

    def __len__(self) -> int:
        return len(self._seats)

    @property
    def parties(self) -> Sequence[Seat]:
        """Each has a mailbox."""
        return list(self._seats.values())

    @property
    def is_idle(self) -> bool:
        """Whether nobody works or waits."""
        return not self.num_working and not self.num_waiting

    def cancel_all(self) -> None:
        """Stop working."""
        for seat in self._seats.values():
            for held in seat.held.values():
                held.cancelled = True

    def stop(self) -> None:
        """Let the workers end."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------ work

    def _add(self, held: HeldTask) -> None:
        self._unsaid.append((self._services.clock.now() + ACCEPTED_AFTER_S, held))
        self._turns.add(held)
        self.num_waiting += 1
        self._work_on_next()

    def _work_on_next(self) -> None:
        """Give the workers that are free something to do."""
        while self.num_working < self._num_workers and (held := self._turns.next()) is not None:
            self.num_waiting -= 1
            self.num_working += 1
            self._workers.submit(self._work, self._seats[held.learner], held)

    def _work(self, seat: Seat, held: HeldTask) -> None:
        """On a worker's thread."""
        services = self._services
        began, task = services.clock.steady_s(), held.task.task
        outcome: WorkOutcome = "cancelled"
        try:
            with about(job=task.job, round=task.round, learner=seat.id):
                held.work(services.guard.guarded(seat.learner))
                outcome = "failed" if held.result is None else "finished"
        except TaskCancelled:
            log.info("learner %s stopped working on task %s", seat.id, task)
        finally:
            seconds = services.clock.steady_s() - began
            services.observer.worked(outcome, seconds)
            services.post(lambda: self._worked(seat, held, seconds))

    def _worked(self, seat: Seat, held: HeldTask, seconds: float) -> None:
        self.num_working -= 1
        self._turns.done(held, seconds)
        self._forget_settled()
        if not held.cancelled:
            seat.send_outcome(held)
        self._work_on_next()
        if self.is_idle:
            self._services.on_idle()

    # ------------------------------------------------------------ what is said of tasks that take their time

    def due_s(self) -> float | None:
        """In how many seconds ``do_what_is_due`` may have something to do."""
        return self._unsaid[0][0] - self._services.clock.now() if self._unsaid else None

    def do_what_is_due(self) -> None:
        """Say that tasks were accepted; the results of others say it soon enough."""
        now = self._services.clock.now()
        self._forget_settled()
        while self._unsaid and self._unsaid[0][0] <= now:
            held = self._unsaid.popleft()[1]
            if not _is_settled(held):
                accepted = m.Accepted(learner=held.learner, task=held.task.task, receive_s=held.receive_s)
                self._services.outbox.report(held.learner, accepted)

    def _forget_settled(self) -> None:
        """Each holds an update: a host of many learners with short rounds would hold those of two seconds."""
        while self._unsaid and _is_settled(self._unsaid[0][1]):
            self._unsaid.popleft()


def _is_settled(held: HeldTask) -> bool:
    return held.phase in ("finished", "failed") or held.cancelled
