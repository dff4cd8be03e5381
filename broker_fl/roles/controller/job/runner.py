"""One job at work: performs what the job's state machine decides, and tells it what came of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from broker_fl.coordination import signals as s
from broker_fl.coordination.job import Job
from broker_fl.coordination.state import Phase
from broker_fl.errors import AppError, StoreUnavailable
from broker_fl.model import Model, ModelSpec
from broker_fl.roles.about import about
from broker_fl.roles.controller.job.cache import VersionCache
from broker_fl.roles.controller.job.commit import Committer
from broker_fl.roles.controller.job.eventlog import EventLog
from broker_fl.roles.controller.job.open_round import OpenRound
from broker_fl.roles.controller.job.sending import Sending
from broker_fl.roles.controller.job.share_intake import ShareIntake
from broker_fl.roles.controller.job.stored_updates import StoredUpdates, drop_unneeded
from broker_fl.roles.controller.job.update_intake import UpdateIntake
from broker_fl.roles.controller.services import Services
from broker_fl.wire.events import Event
from broker_fl.wire.messages import Cancel, GroupResult, Result, UpdateChunk, UploadRequest


class JobRunner:
    """Runs on the controller's thread; what it publishes goes through the sender."""

    def __init__(
        self,
        job: Job,
        spec: ModelSpec,
        services: Services,
        events: EventLog,
        model: Model | None = None,
    ) -> None:
        """``model``: the newest version, if it is in memory already."""
        state = job.state
        self.job = job
        self._services = services
        self._events = events
        self._signals: deque[s.Signal] = deque()
        self._working = False
        cache = VersionCache(services, state.job, (state.version, model) if model is not None else None)
        updates = StoredUpdates(services, state, spec)
        round = OpenRound(job, spec, services, cache, updates, self.emit)
        self._cache = cache
        self._round = round
        self.updates = UpdateIntake(job, spec, services, round, cache, self.signal)
        self.shares = ShareIntake(job, spec, services, round, self.signal)
        self._sending = Sending(state, spec, services, cache, self.emit, self.signal)
        self._committer = Committer(job, spec, services, round, cache, updates, events)
        self._performers: dict[type, Callable[[Any], None]] = {
            s.Emit: lambda action: self._events.add(action.event),
            s.Save: lambda _: self._save(),
            s.StartSum: self._start_sum,
            s.SendTasks: self._sending.send,
            s.RequestUpload: self._request_upload,
            s.CancelTasks: self._cancel_tasks,
            s.Commit: self._commit,
            s.Finish: self._finish,
        }

    # ------------------------------------------------------------ what comes in

    def start(self) -> None:
        """Begin with the first round."""
        self._decide(lambda: self.job.start(self._now()))

    def signal(self, signal: s.Signal) -> None:
        """Take a signal in, and do all that follows from it."""
        self._signals.append(signal)
        if self._working:
            return
        self._working = True
        try:
            with about(job=self.job.state.job, round=self.job.state.round):
                self._take_signals()
        finally:
            self._working = False

    def _take_signals(self) -> None:
        while self._signals:
            signal = self._signals.popleft()
            self._decide(partial(self.job.step, signal, self._now()))
            if isinstance(signal, s.TimePassed):  # who has no task any more uploads no more
                self.updates.receiver.keep(self.job.state.cohort.__contains__)

    def _decide(self, decision: Callable[[], list[s.Action]]) -> None:
        """Do what the job decides; a job whose own selector fails ends there."""
        try:
            actions = decision()
        except AppError as error:
            actions = self.job.step(s.CannotGoOn(f"round {self.job.state.round + 1}: {error}"), self._now())
        for action in actions:
            self._performers[type(action)](action)

    def take(self, message: Result | GroupResult | UpdateChunk, payload: memoryview | None) -> bool:
        """Take in a part of what a learner or a group sends; False if nobody waits for it, or it is
        here already.

        Raises:
            MessageRefused: it is not usable.
        """
        num_dropped = self._num_dropped
        match message:
            case Result():
                self.updates.result(message)
            case GroupResult():
                self.shares.result(message)
            case UpdateChunk() if payload is not None:
                intake = self.shares if message.share else self.updates
                intake.chunk(message, payload)
        return self._num_dropped == num_dropped

    @property
    def _num_dropped(self) -> int:
        updates, shares = self.updates, self.shares
        num_repeated = updates.receiver.num_repeated + shares.receiver.num_repeated
        return updates.num_dropped + shares.num_dropped + num_repeated

    def settle(self) -> None:
        """Nothing else is to be done: have updates added that wait for others."""
        self._round.settle()

    def heartbeat(self, report: s.LearnerReported) -> None:
        """Take in what a learner says it holds."""
        name = report.learner
        receiving = name in self._sending or self.updates.receiver.active(name, self._lately())
        self.signal(s.LearnerReported(name, report.tasks, receiving))

    def group_heartbeat(self, report: s.GroupReported) -> None:
        """Take in what a group says it holds."""
        name = report.group
        receiving = name in self._sending or self.shares.receiver.active(name, self._lately())
        self.signal(s.GroupReported(name, report.tasks, receiving))

    def _lately(self) -> float:
        return self._now() - 2 * self._services.members.heartbeat_s

    # ------------------------------------------------------------ events

    def emit(self, event: Event) -> None:
        """Add an event to the job's log; none follows after the job has ended."""
        if self.job.state.phase is not Phase.ENDED:
            self._events.add(event)

    @property
    def has_news(self) -> bool:
        """Whether events wait, or the job has ended and can be put away."""
        return self._events.num_pending > 0 or self.job.state.phase is Phase.ENDED

    @property
    def has_urgent_news(self) -> bool:
        """Whether more has happened than tasks going on, or the job has ended."""
        return self._events.is_urgent or self.job.state.phase is Phase.ENDED

    def flush(self) -> StoreUnavailable | None:
        """Store and publish the job's events; the store's error if it is away.

        Not once a request to the store was given up: they would tell of what was never stored, and the next
        controller, which goes on from what was, would tell it again.
        """
        if self._services.has_given_up():
            return StoreUnavailable("what came before was not stored")
        with about(job=self.job.state.job):
            return self._events.flush()

    # ------------------------------------------------------------ what the job decides

    def _start_sum(self, _: s.StartSum) -> None:
        self.updates.receiver.clear()
        self.shares.receiver.clear()
        self._round.begin(self._expected_bytes())

    def _expected_bytes(self) -> int:
        """Of all the updates of the round that begins."""
        cohort, groups = self.job.state.cohort, self.job.state.cohort.groups
        alone = sum(part.group is None for part in cohort.values())
        return alone * self.updates.receiver.update_bytes + len(groups) * self.shares.receiver.sum_bytes

    def _commit(self, action: s.Commit) -> None:
        self.updates.receiver.keep(self.job.is_open)
        self.shares.receiver.clear()
        self.signal(self._committer.commit(action.version))

    def _request_upload(self, action: s.RequestUpload) -> None:
        self.updates.receiver.asked(action.learner)
        self.shares.receiver.asked(action.learner)
        self._tell((action.learner,), UploadRequest(task=action.task, inbox=self._services.inbox))

    def _cancel_tasks(self, action: s.CancelTasks) -> None:
        self._tell(action.learners, Cancel(task=action.task, reason=action.reason))

    def _tell(self, learners: tuple[str, ...], message: Cancel | UploadRequest) -> None:
        topology = self._services.topology
        keys = [self._services.keys.of(learner) for learner in learners]
        self._services.sender.send(topology.tasks, keys, message)

    def _save(self) -> None:
        state, services = self.job.state, self._services
        packed = state.pack()
        services.persist(lambda: services.store.save_job(state.job, packed, epoch=services.epoch))

    def _finish(self, _: s.Finish) -> None:
        self._save()
        self._round.clear()
        self._cache.clear()
        self.updates.receiver.clear()
        self.shares.receiver.clear()
        drop_unneeded(self._services, self.job.state)

    def _now(self) -> float:
        return self._services.clock.now()
