"""The jobs of one controller: those that run, and those that have ended."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from functools import partial

from broker_fl.coordination import signals as s
from broker_fl.coordination.membership import UNKNOWN_SESSION, Membership
from broker_fl.coordination.protocols import make_job
from broker_fl.coordination.state import JobState, Phase
from broker_fl.errors import FrameRefused, StoreUnavailable
from broker_fl.interfaces import Member
from broker_fl.model import Model, ModelSpec
from broker_fl.roles.controller.job.eventlog import EventLog
from broker_fl.roles.controller.job.runner import JobRunner
from broker_fl.roles.controller.job.stored_updates import drop_unneeded
from broker_fl.roles.controller.retention import Retention
from broker_fl.roles.controller.services import Services
from broker_fl.security.audit import Deed
from broker_fl.wire.events import Event, JobDeleted, JobFinished, decode_event
from broker_fl.wire.messages import EventBatch

log = logging.getLogger(__name__)


class Jobs:
    """Lives on the controller's thread."""

    def __init__(self, services: Services, members: Membership) -> None:
        self._services = services
        self._runners: dict[str, JobRunner] = {}
        self._ended: dict[str, JobState] = {}
        self.members = members
        self.given_up: dict[str, str] = {}
        """Jobs in the store that nobody can go on with here, and why."""
        self.found_ended: set[str] = set()
        """Jobs that had ended before this controller began: no other one could make up for what they lack."""

    def resume(self) -> None:
        """Read every job from the store, and go on with those that have not ended."""
        services, now = self._services, self._services.clock.now()
        for job, data in services.persist(services.store.jobs).items():
            try:
                state = JobState.unpack(data, now)
            except FrameRefused as error:
                self._give_up(job, f"it was stored by other software than this controller's: {error}")
                continue
            drop_unneeded(services, state)
            if state.phase is Phase.ENDED:
                self._ended[job] = state
                self.found_ended.add(job)
                services.persist(partial(self._say_finished, state))
            else:
                self._resume(state, now)

    def say_finished(self, job: str) -> None:
        """See to it that the record of a job that has ended says so."""
        if (state := self._ended.get(job)) is not None:
            self._services.persist(partial(self._say_finished, state))

    def _say_finished(self, state: JobState) -> None:
        """Add the last events of a job that has ended, if the controller died before it had written them, or
        the store has lost them.
        """
        store = self._services.store
        number = store.num_events(state.job)
        last = store.read_events(state.job, after=number - 1, limit=1)
        end = decode_event(last[0]) if last else None
        now = self._services.clock.now()
        if isinstance(end, JobFinished):
            state.ended_at = state.ended_at or end.time_s
        else:
            state.ended_at = state.ended_at or now
            events = self._events(state.job, is_continued=True)
            _say_version(state, events, number)
            job = make_job(state, self.members, self._services.own)
            events.add(job.finished(now))
            events.flush_all()

    def delete(self, job: str, reason: str) -> None:
        """Delete a job that has ended, with all that is stored of it, and tell who watches.

        Raises:
            Fenced: another controller has taken over.
            StoreUnavailable: the controller was stopped while the store was away.
        """
        services, store = self._services, self._services.store
        last = services.persist(lambda: store.num_events(job))
        services.persist(lambda: store.delete_job(job, epoch=services.epoch))
        del self._ended[job]
        log.info("job %s is deleted: %s", job, reason)
        event = JobDeleted(job=job, reason=reason).stamped(last + 1, services.clock.now())
        services.observer.event(event)
        batch = EventBatch(job=job, events=(event.pack(),))
        services.sender.send(services.topology.events, [job], batch)

    def tidy(self, retention: Retention, user: str) -> None:
        """Delete the jobs that ``retention`` does not keep; ``user``: the controller's own account.

        Raises:
            Fenced, StoreUnavailable: as ``delete``.
        """
        if not self._services.is_sure():
            return
        for job, reason in retention.surplus(self._ended, self._services.clock.now()).items():
            self._services.audit.add(
                Deed(actor=user, action="delete_job", subject=f"job {job}", details={"reason": reason})
            )
            self._services.persist(self._services.audit.write)
            self.delete(job, reason)

    def _resume(self, state: JobState, now: float) -> None:
        """Learners of its cohort count as there until they turn out to be silent."""
        records = self._services.persist(self._services.versions(state.job).records)
        if not records:
            self._give_up(state.job, "the store has lost its versions")
            return
        state.go_back_to(records[-1].version)
        for learner in state.cohort:
            if learner not in self.members:
                self.members.join(Member(learner=learner), session=UNKNOWN_SESSION, software="", now=now)
        log.info("job %s goes on in round %d from version %d", state.job, state.round, state.version)
        number = self._services.persist(lambda: self._services.store.num_events(state.job))
        events = self._services.persist(lambda: self._events(state.job, is_continued=True))
        _say_version(state, events, number)
        self._add(state, records[-1].spec, events).signal(s.ControllerRestarted(self._services.epoch))

    def _give_up(self, job: str, reason: str) -> None:
        log.error("job %s cannot be resumed: %s", job, reason)
        self.given_up[job] = reason

    def add(self, state: JobState, model: Model) -> JobRunner:
        """Take a job whose initial model is stored."""
        events = self._services.persist(lambda: self._events(state.job))
        return self._add(state, model.spec, events, model)

    def _add(
        self, state: JobState, spec: ModelSpec, events: EventLog, model: Model | None = None
    ) -> JobRunner:
        job = make_job(state, self.members, self._services.own)
        runner = JobRunner(job, spec, self._services, events, model)
        self._runners[state.job] = runner
        return runner

    def _events(self, job: str, *, is_continued: bool = False) -> EventLog:
        services = self._services
        events = EventLog(
            job,
            store=services.store,
            epoch=services.epoch,
            sender=services.sender,
            topology=services.topology,
            clock=services.clock,
            is_continued=is_continued,
        )
        events.observer = services.observer
        return events

    def states(self) -> dict[str, JobState]:
        """State of every job that is known."""
        return self._ended | {job: runner.job.state for job, runner in self._runners.items()}

    def num_by_phase(self) -> dict[str, int]:
        """How many jobs there are in each phase; from any thread."""
        running = [runner.job.state.phase.value for runner in self.running()]
        return {**dict.fromkeys(Phase, 0), **Counter(running), Phase.ENDED.value: len(self._ended)}

    def runner(self, job: str) -> JobRunner | None:
        """The job's runner, until the job has ended."""
        return self._runners.get(job)

    def running(self) -> list[JobRunner]:
        """All jobs that have not ended."""
        return list(self._runners.values())

    def signal(self, job: str, signal: s.Signal) -> None:
        """Tell one job, if it is running."""
        if (runner := self._runners.get(job)) is not None:
            runner.signal(signal)

    def signal_all(self, signal: s.Signal) -> None:
        """Tell every running job."""
        for runner in self.running():
            runner.signal(signal)

    def emit(self, make: Callable[[str], Event]) -> None:
        """Add an event that concerns all running jobs to the log of each."""
        for job, runner in self._runners.items():
            runner.emit(make(job))

    def next_timer(self) -> float | None:
        """When the first job wants to be told the time."""
        timers = (runner.job.next_timer() for runner in self._runners.values())
        return min((timer for timer in timers if timer is not None), default=None)

    def tell_time(self, now: float) -> None:
        """Tell the time to the jobs whose timer is due."""
        for runner in self.running():
            timer = runner.job.next_timer()
            if timer is not None and timer <= now:
                runner.signal(s.TimePassed())

    def settle(self) -> None:
        """Nothing else is to be done: have the updates of all jobs added that wait for others."""
        for runner in self.running():
            runner.settle()

    @property
    def has_news(self) -> bool:
        """Whether ``flush`` has something to do."""
        return any(runner.has_news for runner in self._runners.values())

    @property
    def has_urgent_news(self) -> bool:
        """Whether that should not wait for more."""
        return any(runner.has_urgent_news for runner in self._runners.values())

    def flush(self) -> StoreUnavailable | None:
        """Write events out, and put away the jobs that have ended; the store's error if it is away."""
        away = None
        for job, runner in list(self._runners.items()):
            if (error := runner.flush()) is not None:
                away = error
            elif runner.job.state.phase is Phase.ENDED:
                self._ended[job] = self._runners.pop(job).job.state
        return away


def _say_version(state: JobState, events: EventLog, number: int) -> None:
    """Add the event of the job's newest version, if the ``number`` of the store's last is too low for it."""
    if state.unsaid is not None and number <= state.unsaid[0]:
        events.add(decode_event(state.unsaid[1]))
