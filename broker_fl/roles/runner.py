"""One job at work: performs what the job's state machine decides, and tells it what came of it."""

from __future__ import annotations

import logging
import weakref
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from broker_fl.aggregation import make_rule
from broker_fl.aggregation.scaffold import Variates
from broker_fl.coordination import signals as s
from broker_fl.coordination.cohort import Status
from broker_fl.coordination.groups import GroupJob
from broker_fl.coordination.job import Job
from broker_fl.coordination.shares import Share
from broker_fl.coordination.state import Phase
from broker_fl.errors import (
    AggregationError,
    AppError,
    FrameRefused,
    MessageRefused,
    RequestRefused,
    StoreUnavailable,
    UpdateRefused,
    VersionsLost,
)
from broker_fl.interfaces import Accumulator, Combined, Contribution, Given, LazyAccumulator, SumAccumulator
from broker_fl.model import Model, ModelSpec
from broker_fl.observer import RefusalReason
from broker_fl.roles.about import about
from broker_fl.roles.eventlog import EventLog
from broker_fl.roles.models import VersionRecord
from broker_fl.roles.outgoing import OutgoingTasks
from broker_fl.roles.progress import Progress
from broker_fl.roles.receiving import UpdateReceiver, Upload, add_back
from broker_fl.roles.services import Services
from broker_fl.roles.shares import ShareReceiver, SumUpload
from broker_fl.roles.updates import StoredUpdates, drop_unneeded
from broker_fl.roles.usage import resident_bytes
from broker_fl.wire.control import joined_spec, parted
from broker_fl.wire.events import Event, TransferProgress
from broker_fl.wire.fields import Form
from broker_fl.wire.job import JobSpec
from broker_fl.wire.messages import (
    Cancel,
    GroupResult,
    Result,
    TaskRef,
    UpdateChunk,
    UploadRequest,
)
from broker_fl.wire.rules import PerUpdate, Scaffold, Summable

log = logging.getLogger(__name__)
T = TypeVar("T")


def lets_go(job: JobSpec, spec: ModelSpec) -> bool:
    """Whether a version is let go of once it is on its way: it is large, and nothing needs it to take updates
    in. Whom it must be sent to again gets it from the store.
    """
    return job.takes_groups and spec.num_bytes > job.transfer.upload_budget_bytes


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
        self.job = job
        self._spec = spec
        self._services = services
        self._events = events
        rule = job.state.spec.rule
        self._rule = make_rule(rule, services.own)
        self._form: Form = job.state.spec.form
        self._adds_back = self._form == "changes" and not job.state.spec.rule_takes_changes
        self._base: tuple[int, Model] | None = None
        self._has_control = isinstance(rule, Scaffold)
        self._buffers = job.state.spec.buffers_of(spec)
        update_spec = joined_spec(spec) if self._has_control else spec
        self._receiver = UpdateReceiver(
            update_spec,
            job.state.spec.transfer,
            self._form,
            has_control=self._has_control,
            buffers=self._buffers,
            adds_back=self._adds_back,
        )
        self._shares = ShareReceiver(spec, job.state.spec.transfer)
        self._accumulator: Accumulator | None = None
        self._model = (job.state.version, model) if model is not None else None
        self._on_its_way: tuple[int, weakref.ref[Model]] | None = None
        """A version that is held no more, for as long as a sender has it."""
        self._lets_go = lets_go(job.state.spec, spec)
        self._memory: tuple[int, Model | None] | None = None
        self._carried: tuple[int, object] = -1, None
        self._updates = StoredUpdates(services, job.state, spec)
        self._stores_updates = isinstance(rule, PerUpdate) and rule.stores_updates
        self._signals: deque[s.Signal] = deque()
        self._working = False
        self._arrived: Progress | None = None
        """Updates of the open round."""
        self._sending: Counter[str] = Counter()
        """Learners and groups to whom a task is on its way out, and how many are."""
        self._performers: dict[type, Callable[[Any], None]] = {
            s.Emit: lambda action: self._events.add(action.event),
            s.Save: lambda _: self._save(),
            s.StartSum: self._start_sum,
            s.SendTasks: self._send_tasks,
            s.RequestUpload: self._request_upload,
            s.CancelTasks: self._cancel_tasks,
            s.Commit: self._commit,
            s.Finish: self._finish,
        }
        self.num_dropped = 0
        """Results and chunks of updates that nobody waits for (late, doubled, of another round)."""

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
                self._receiver.keep(self.job.state.cohort.__contains__)

    def _decide(self, decision: Callable[[], list[s.Action]]) -> None:
        """Do what the job decides; a job whose own selector fails ends there."""
        try:
            actions = decision()
        except AppError as error:
            actions = self.job.step(s.CannotGoOn(f"round {self.job.state.round + 1}: {error}"), self._now())
        self._perform_all(actions)

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
        """Store and publish the job's events; the store's error if it is away."""
        with about(job=self.job.state.job):
            return self._events.flush()

    def heartbeat(self, report: s.LearnerReported) -> None:
        """Take in what a learner says it holds."""
        recent = self._now() - 2 * self._services.members.heartbeat_s
        receiving = report.learner in self._sending or self._receiver.active(report.learner, recent)
        self.signal(s.LearnerReported(report.learner, report.tasks, receiving))

    def group_heartbeat(self, report: s.GroupReported) -> None:
        """Take in what a group says it holds."""
        recent = self._now() - 2 * self._services.members.heartbeat_s
        receiving = report.group in self._sending or self._shares.active(report.group, recent)
        self.signal(s.GroupReported(report.group, report.tasks, receiving))

    def result(self, result: Result) -> None:
        """Take in a learner's result.

        Raises:
            UpdateRefused: the update that it announces cannot be folded.
        """
        if not self.job.expects(result.learner, result.task):
            self.num_dropped += 1
        self._note_unwanted(result)
        was_wanted = self._wants_update(result.learner, result.task)
        self.signal(s.ResultArrived(result))
        if not self._wants_update(result.learner, result.task):
            if was_wanted:
                self._services.observer.update("refused", "result")
            return
        try:
            upload = self._receiver.expect(result, self._now())
        except UpdateRefused as error:
            self._refuse(result.learner, result.task, error)
            raise
        self._fold_if_complete(result.learner, upload)

    def _note_unwanted(self, result: Result) -> None:
        """Tell the observer of an update that was counted already, or whose time is over."""
        task, learner = result.task, result.learner
        if result.update is None or task.job != self.job.state.job or self.job.expects(learner, task):
            return
        part, counted = self.job.state.cohort.get(learner), self.job.state.counted.get(learner, -1)
        is_in = part is not None and part.round == task.round and part.status is Status.DELIVERED
        self._services.observer.update("duplicate" if is_in or counted >= task.round else "late")

    def chunk(self, chunk: UpdateChunk, payload: memoryview) -> None:
        """Take in a part of an update.

        Raises:
            MessageRefused: the part, or the update that it completes, is not usable.
        """
        if not self._wants_update(chunk.learner, chunk.task):
            self.num_dropped += 1
            return
        try:
            upload = self._receiver.add(chunk, payload, self._now())
        except FrameRefused as error:
            self._refuse(chunk.learner, chunk.task, error)
            raise
        if self._arrived is not None:
            self._arrived.add(len(payload))
        self._fold_if_complete(chunk.learner, upload)

    # ------------------------------------------------------------ sums of groups

    def group_result(self, page: GroupResult) -> None:
        """Take in a page of a group's result.

        Raises:
            MessageRefused: it contradicts an earlier one, or the sum that it announces cannot be folded.
        """
        known = page.group in self.job.state.cohort.groups or self._services.members.is_group(page.group)
        if not known or not isinstance(self.job, GroupJob):
            log.info("a result of %s for job %s is of no group", page.group, page.task.job)
            self.num_dropped += 1
            return
        if (share := self._shares.page(page)) is None:
            return
        self.signal(s.ShareArrived(share))
        if not self.job.expects_share(share):
            if self.job.state.phase is Phase.TRAINING:
                self.num_dropped += 1
            self._services.observer.update("late", count=len(share.learners))
            return
        try:
            upload = self._shares.expect(share, self._now())
        except UpdateRefused as error:
            self._refuse_share(share, error)
            raise
        self._fold_sum_if_complete(upload)

    def group_chunk(self, chunk: UpdateChunk, payload: memoryview) -> None:
        """Take in a part of a group's sum.

        Raises:
            MessageRefused: the part, or the sum that it completes, is not usable.
        """
        share = self._shares.of(chunk)
        try:
            upload = self._shares.add(chunk, payload, self._now())
        except FrameRefused as error:
            if share is not None:
                self._refuse_share(share, error)
            raise
        if upload is None:
            self.num_dropped += 1
        else:
            if self._arrived is not None:
                self._arrived.add(len(payload))
            self._fold_sum_if_complete(upload)

    def _fold_sum_if_complete(self, upload: SumUpload) -> None:
        if not upload.assembly.complete:
            return
        share, began = upload.share, self._services.clock.steady_s()
        self._shares.drop(share)
        if not isinstance(self.job, GroupJob) or not self.job.expects_share(share):
            return
        rule = self.job.state.spec.rule
        weight = float(share.weights(rule.weighting if isinstance(rule, Summable) else "examples").sum())
        accumulator = self._sum()
        try:
            if not isinstance(accumulator, SumAccumulator):
                raise UpdateRefused(f"the rule {self.job.state.spec.rule.name!r} takes no sums of groups")
            accumulator.fold_sum(self._shares.model(upload), weight)
        except MessageRefused as error:
            self._refuse_share(share, error)
            raise
        folded = s.ShareWasFolded(
            share=share,
            weight=weight,
            num_bytes=self._shares.sum_bytes,
            num_messages=upload.num_messages,
            upload_s=max(0.0, self._now() - upload.first_at),
            fold_s=self._services.clock.steady_s() - began,
        )
        self.signal(folded)

    def _refuse_share(self, share: Share, error: MessageRefused) -> None:
        self._shares.drop(share)
        self._services.observer.update("refused", _reason(error), len(share.learners))
        self.signal(s.ShareWasRefused(share, str(error)[:1000]))

    # ------------------------------------------------------------ updates

    def _wants_update(self, learner: str, task: TaskRef) -> bool:
        return self.job.state.phase is Phase.TRAINING and self.job.expects(learner, task)

    def _fold_if_complete(self, learner: str, upload: Upload) -> None:
        if not upload.complete or upload.result is None:
            return
        result, began = upload.result, self._services.clock.steady_s()
        self._receiver.drop(learner)
        if (reason := self.job.refusal(upload.task)) is not None:
            self._services.observer.update("refused", "stale")
            self.signal(s.UpdateWasRefused(learner, upload.task, reason))
            return
        try:
            weight = self._sum().fold(self._contribution(upload, result))
        except MessageRefused as error:
            self._refuse(learner, upload.task, error)
            raise
        except AppError as error:
            self.signal(s.CannotGoOn(f"round {self.job.state.round + 1}: {error}"))
            return
        folded = s.UpdateWasFolded(
            learner=learner,
            task=upload.task,
            weight=weight,
            num_bytes=self._receiver.update_bytes,
            num_messages=upload.num_messages,
            upload_s=max(0.0, self._now() - upload.first_at),
            fold_s=self._services.clock.steady_s() - began,
        )
        self.signal(folded)

    def _contribution(self, upload: Upload, result: Result) -> Contribution:
        """A whole update as the rule wants it; its memory is the rule's."""
        model, control = self._receiver.model(upload), None
        if self._has_control and result.update is not None:
            model, change = parted(model)
            control = change if result.update.control == "change" else None
        if self._adds_back:
            add_back(model, self._base_of(upload.task), self._buffers)
        return Contribution(
            learner=result.learner,
            model=model,
            num_examples=result.num_examples,
            num_steps=result.num_steps,
            staleness=self.job.staleness(upload.task),
            metrics=result.metrics,
            evaluation=result.evaluation,
            control=control,
            magnitudes=upload.look.magnitudes() if upload.look is not None else None,
        )

    def settle(self) -> None:
        """Nothing else is to be done: add the updates that wait to be added together."""
        if isinstance(self._accumulator, LazyAccumulator):
            self._accumulator.settle()

    def _refuse(self, learner: str, task: TaskRef, error: MessageRefused) -> None:
        self._receiver.drop(learner)
        self._services.observer.update("refused", _reason(error))
        self.signal(s.UpdateWasRefused(learner, task, str(error)[:1000]))

    # ------------------------------------------------------------ what goes out

    def _perform_all(self, actions: list[s.Action]) -> None:
        for action in actions:
            self._performers[type(action)](action)

    def _start_sum(self, _: s.StartSum) -> None:
        self._accumulator = None
        self._receiver.clear()
        self._shares.clear()
        self._arrived = Progress(self._expected_bytes(), self._services.clock.steady_s, self._tell_arrived)

    def _expected_bytes(self) -> int:
        """Of all the updates of the round that begins."""
        cohort, groups = self.job.state.cohort, self.job.state.cohort.groups
        alone = sum(part.group is None for part in cohort.values())
        return alone * self._receiver.update_bytes + len(groups) * self._shares.sum_bytes

    def _tell_arrived(self, num_bytes: int, total_bytes: int) -> None:
        state = self.job.state
        event = TransferProgress(
            job=state.job, round=state.round, direction="up", num_bytes=num_bytes, total_bytes=total_bytes
        )
        self.emit(event)

    def _finish(self, _: s.Finish) -> None:
        self._save()
        self._accumulator, self._model, self._memory, self._base = None, None, None, None
        self._carried = -1, None
        self._receiver.clear()
        self._shares.clear()
        drop_unneeded(self._services, self.job.state)

    def _request_upload(self, action: s.RequestUpload) -> None:
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

    def _commit(self, action: s.Commit) -> None:
        state, steady_s = self.job.state, self._services.clock.steady_s
        began = steady_s()
        try:
            accumulator = self._sum()
            self._accumulator = None
            self._receiver.keep(self.job.is_open)
            self._shares.clear()
            self._carried = -1, None  # the rule may change it now
            combined = accumulator.result()
        except (AggregationError, AppError) as error:
            self.signal(s.CommitFailed(f"round {state.round + 1}: {error}"))
            return
        record = VersionRecord(
            version=action.version,
            spec=self._spec,
            digest=combined.model.digest,
            committed_at=self._now(),
            memory_spec=combined.memory.spec if combined.memory else None,
        )
        aggregated = steady_s()
        stored = s.VersionWasStored(
            version=action.version,
            digest=record.digest,
            total_weight=accumulator.total_weight,
            used=combined.used,
            aggregate_s=aggregated - began,
            store_s=0.0,
            memory_bytes=resident_bytes(),
        )
        self._store(record, combined, stored)
        self._model = (action.version, combined.model)
        self._memory = (action.version, combined.memory)
        self._carried = (action.version, combined.carried)
        self.signal(replace(stored, store_s=steady_s() - aggregated))

    def _store(self, record: VersionRecord, combined: Combined, stored: s.VersionWasStored) -> None:
        """Store the version after the events of all that is in it: its record is whole, whoever dies."""
        services, state = self._services, self.job.state
        services.persist(self._events.flush_all)
        after = self.job.state_after_commit(stored, self._events.last, self._now())
        versions = services.versions(state.job)
        keep = state.spec.keep_versions

        def commit() -> None:
            services.persist(lambda: versions.write(record, combined, after, keep=keep))

        self._updates.replace(combined.updates, commit)

    def _send_tasks(self, action: s.SendTasks) -> None:
        """Hand task and model to the sender; how long that took comes back as an event."""
        model = self._model_of(action.version)
        variates = None
        if self._has_control and action.train:
            variates = Variates.of(self._memory_of(action.version), self._spec)
        counted = None
        if self.job.state.spec.has_residuals and action.train:
            counted = {one: self.job.state.counted.get(one, -1) for one in action.learners}
        compact = self._services.members.compact(action.learners)
        state = self.job.state
        outgoing = OutgoingTasks(
            self._services, state.spec, state.driver, self._form, compact, self.emit, variates, counted
        )
        addressees = (*action.learners, *action.groups)
        self._sending.update(addressees)

        def publish() -> None:
            try:
                for event in outgoing.publish(action, model):
                    self._services.post(partial(self.emit, event))
            finally:
                self._services.post(lambda: self._sent(addressees))

        self._services.bulk_sender.post(publish)
        if self._lets_go:
            self._model, self._on_its_way = None, (action.version, weakref.ref(model))

    def _sent(self, addressees: tuple[str, ...]) -> None:
        self._sending.subtract(addressees)
        for name in addressees:
            if self._sending[name] <= 0:
                del self._sending[name]

    def _sum(self) -> Accumulator:
        """The open round's."""
        if self._accumulator is None:
            version = self.job.state.version
            carried_by, carried = self._carried
            given = Given(
                spec=self._spec,
                model=lambda: self._model_of(version),
                memory=self._memory_of(version),
                buffers=self._buffers,
                round=self.job.state.round,
                learners=self.job.learners,
                updates=self._updates if self._stores_updates else {},
                carried=carried if carried_by == version else None,
            )
            self._accumulator = self._rule.begin(given)
        return self._accumulator

    def _base_of(self, task: TaskRef) -> Model:
        """The version that the task gave out; asynchronous jobs may have to read an older one."""
        state = self.job.state
        version = state.version - self.job.staleness(task)
        if version == state.version:
            return self._model_of(version)
        if self._base is None or self._base[0] != version:
            versions = self._services.versions(state.job)
            self._base = (version, self._services.persist(lambda: versions.read(version))[1])
        return self._base[1]

    def _memory_of(self, version: int) -> Model | None:
        """What the rule kept when it made this version."""
        if self._memory is None or self._memory[0] != version:
            versions = self._services.versions(self.job.state.job)
            self._memory = (version, self._read(lambda: versions.read_memory(version)))
        return self._memory[1]

    def _model_of(self, version: int) -> Model:
        if self._model is None and self._on_its_way is not None and self._on_its_way[0] == version:
            model = self._on_its_way[1]()
            self._model = None if model is None else (version, model)
        if self._model is None or self._model[0] != version:
            versions = self._services.versions(self.job.state.job)
            self._model = (version, self._read(lambda: versions.read(version))[1])
        return self._model[1]

    def _read(self, read: Callable[[], T]) -> T:
        """Read the newest version, which the store can only have lost if it has not got it."""
        try:
            return self._services.persist(read)
        except RequestRefused as error:
            raise VersionsLost(f"the store has lost a version: {error}") from error

    def _now(self) -> float:
        return self._services.clock.now()


def _reason(error: MessageRefused) -> RefusalReason:
    return "frame" if isinstance(error, FrameRefused) else "update"
