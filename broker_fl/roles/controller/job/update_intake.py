"""Learners' updates, from the first message to the sum of the open round."""

from __future__ import annotations

from collections.abc import Callable

from broker_fl.coordination import signals as s
from broker_fl.coordination.cohort import Status
from broker_fl.coordination.job import Job
from broker_fl.coordination.state import Phase
from broker_fl.errors import AggregationError, AppError, FrameRefused, MessageRefused, UpdateRefused
from broker_fl.interfaces import Contribution
from broker_fl.model import Model, ModelSpec
from broker_fl.observer import RefusalReason
from broker_fl.roles.controller.job.cache import VersionCache
from broker_fl.roles.controller.job.open_round import OpenRound
from broker_fl.roles.controller.job.receiving import UpdateReceiver, Upload, added_back
from broker_fl.roles.controller.services import Services
from broker_fl.wire.control import joined_spec, parted
from broker_fl.wire.fields import MAX_REASON_CHARS
from broker_fl.wire.messages import Result, TaskRef, UpdateChunk
from broker_fl.wire.rules import Scaffold


class UpdateIntake:
    """Of one job. ``signal`` tells the job what came of them."""

    def __init__(
        self,
        job: Job,
        spec: ModelSpec,
        services: Services,
        round: OpenRound,
        cache: VersionCache,
        signal: Callable[[s.Signal], None],
    ) -> None:
        self._job = job
        self._services = services
        self._round = round
        self._cache = cache
        self._signal = signal
        settings = job.state.spec
        self._adds_back = settings.form == "changes" and not settings.rule_takes_changes
        self._has_control = isinstance(settings.rule, Scaffold)
        self._buffers = settings.buffers_of(spec)
        self.receiver = UpdateReceiver(
            joined_spec(spec) if self._has_control else spec,
            settings.transfer,
            settings.form,
            has_control=self._has_control,
            buffers=self._buffers,
            adds_back=self._adds_back,
        )
        self.num_dropped = 0
        """Results and chunks that nobody waits for (late, doubled, of another round)."""

    def result(self, result: Result) -> None:
        """Take in a learner's result.

        Raises:
            UpdateRefused: the update that it announces cannot be folded.
        """
        if not self._job.expects(result.learner, result.task):
            self.num_dropped += 1
        self._note_unwanted(result)
        was_wanted = self._wants(result.learner, result.task)
        self._signal(s.ResultArrived(result))
        if not self._wants(result.learner, result.task):
            if was_wanted:
                self._services.observer.update("refused", "result")
            return
        try:
            upload = self.receiver.expect(result, self._services.clock.now())
        except UpdateRefused as error:
            self._refuse(result.learner, result.task, error)
            raise
        self._fold_if_complete(result.learner, upload)

    def _note_unwanted(self, result: Result) -> None:
        """Tell the observer of an update that was counted already, or whose time is over."""
        task, learner, state = result.task, result.learner, self._job.state
        if result.update is None or task.job != state.job or self._job.expects(learner, task):
            return
        part, counted = state.cohort.get(learner), state.counted.get(learner, -1)
        is_in = part is not None and part.round == task.round and part.status is Status.DELIVERED
        self._services.observer.update("duplicate" if is_in or counted >= task.round else "late")

    def chunk(self, chunk: UpdateChunk, payload: memoryview) -> None:
        """Take in a part of an update, and before it the result that came with it.

        Raises:
            MessageRefused: the part, or the update that it completes, is not usable.
        """
        if chunk.result is not None:
            self.result(_brought(chunk, chunk.result))
        if not self._wants(chunk.learner, chunk.task):
            self.num_dropped += 1
            return
        now = self._services.clock.now()
        if not self.receiver.admits(chunk, len(payload), now, self._job.has_turn):
            return
        try:
            upload = self.receiver.add(chunk, payload, now)
        except FrameRefused as error:
            self._refuse(chunk.learner, chunk.task, error)
            raise
        self._round.arrived(len(payload))
        self._fold_if_complete(chunk.learner, upload)

    def _wants(self, learner: str, task: TaskRef) -> bool:
        return self._job.state.phase is Phase.TRAINING and self._job.expects(learner, task)

    def _fold_if_complete(self, learner: str, upload: Upload) -> None:
        if not upload.complete or upload.result is None:
            return
        clock = self._services.clock
        result, began = upload.result, clock.steady_s()
        self.receiver.drop(learner)
        if (reason := self._job.refusal(upload.task)) is not None:
            self._services.observer.update("refused", "stale")
            self._signal(s.UpdateWasRefused(learner, upload.task, reason))
            return
        try:
            weight = self._round.sum().fold(self._contribution(upload, result))
        except MessageRefused as error:
            self._refuse(learner, upload.task, error)
            raise
        except (AggregationError, AppError) as error:
            self._signal(s.CannotGoOn(f"round {self._job.state.round + 1}: {error}"))
            return
        folded = s.UpdateWasFolded(
            learner=learner,
            task=upload.task,
            weight=weight,
            num_bytes=self.receiver.update_bytes,
            num_messages=upload.num_messages,
            upload_s=max(0.0, clock.now() - upload.first_at),
            fold_s=clock.steady_s() - began,
        )
        self._signal(folded)

    def _contribution(self, upload: Upload, result: Result) -> Contribution:
        """A whole update as the rule wants it; read-only, whether it came in frames or was handed over."""
        model, control = self.receiver.model(upload), None
        handed = not (model.buffer.flags.writeable or self._adds_back)
        if self._has_control and result.update is not None:
            _, change = parted(model.frozen())
            model, _ = parted(model)
            control = change if result.update.control == "change" else None
        if self._adds_back:
            model = added_back(model, self._base(upload.task), self._buffers)
        return Contribution(
            learner=result.learner,
            model=model.frozen(),
            num_examples=result.num_examples,
            num_steps=result.num_steps,
            staleness=self._job.staleness(upload.task),
            metrics=result.metrics,
            evaluation=result.evaluation,
            control=control,
            magnitudes=upload.look.magnitudes() if upload.look is not None else None,
            handed=handed,
        )

    def _base(self, task: TaskRef) -> Model:
        """The version that the task gave out; asynchronous jobs may have to read an older one."""
        newest = self._job.state.version
        version = newest - self._job.staleness(task)
        return self._cache.model(version) if version == newest else self._cache.older(version)

    def _refuse(self, learner: str, task: TaskRef, error: MessageRefused) -> None:
        self.receiver.drop(learner)
        self._services.observer.update("refused", reason_of(error))
        self._signal(s.UpdateWasRefused(learner, task, str(error)[:MAX_REASON_CHARS]))


def reason_of(error: MessageRefused) -> RefusalReason:
    """Whether it is the message that was refused, or the update in it."""
    return "frame" if isinstance(error, FrameRefused) else "update"


def _brought(chunk: UpdateChunk, result: Result) -> Result:
    """The result inside of a chunk, if it is the chunk's."""
    if (result.learner, result.task) != (chunk.learner, chunk.task):
        raise FrameRefused(
            f"a chunk of learner {chunk.learner!r} for task {chunk.task} brought a result of learner "
            f"{result.learner!r} for task {result.task}"
        )
    return result
