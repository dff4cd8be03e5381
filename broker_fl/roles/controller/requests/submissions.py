"""Jobs that are submitted: their initial model on its way in, and what must be right before they begin."""

from __future__ import annotations

from dataclasses import dataclass

from broker_fl.aggregation.kernels import all_finite
from broker_fl.coordination.selection import make_selector
from broker_fl.coordination.state import JobState
from broker_fl.errors import AppError, FrameRefused, RequestRefused, SettingRefused
from broker_fl.extensions import try_own_code
from broker_fl.interfaces import Combined
from broker_fl.model import Model, ModelError, ModelSpec
from broker_fl.roles.controller.job.versions import VersionRecord
from broker_fl.roles.controller.requests.desk import Desk, refused_by
from broker_fl.roles.controller.speakers import Speaker
from broker_fl.wire import messages as m
from broker_fl.wire.chunks import Assembly
from broker_fl.wire.control import joined_spec
from broker_fl.wire.encodings import encoding
from broker_fl.wire.events import JobSubmitted
from broker_fl.wire.job import JobSpec
from broker_fl.wire.rules import Scaffold, Summable

MAX_PENDING = 16
MAX_PENDING_EACH = 4
"""Of one account, so that it does not keep all others from submitting."""
PENDING_EXPIRES_S = 600.0
_NO_DEADLINE = (
    "'protocol.deadline_s' is not given: a learner that stays connected and delivers nothing can hold this "
    "job for ever. Give one, and a 'protocol.quorum' that does without some"
)


@dataclass(slots=True)
class _Pending:
    """A job that was submitted and whose initial model is on its way."""

    submit: m.Submit
    manifest: m.ModelManifest
    spec: ModelSpec
    assembly: Assembly
    last_at: float
    speaker: Speaker
    """Who submits it."""


class Submissions:
    """Of one controller, on its thread."""

    def __init__(self, desk: Desk, max_model_bytes: int) -> None:
        self._desk = desk
        self._services = desk.services
        self._jobs = desk.jobs
        self._max_model_bytes = max_model_bytes
        self._pending: dict[str, _Pending] = {}

    def submit(self, submit: m.Submit, speaker: Speaker) -> None:
        """Begin a job, or ask for its initial model.

        Raises:
            RequestRefused: it cannot begin, or not as it was submitted.
        """
        if (there := self._jobs.states().get(submit.job)) is not None:
            if speaker.account is not None and not speaker.account.speaks_for(there.driver):
                raise RequestRefused(f"job {submit.job!r} is there already: another driver submitted it")
            self._desk.reply(submit, _stored(submit, speaker))
            return
        if (submit.model is None) == (submit.parent is None):
            raise RequestRefused(
                "a job begins from an initial model or from a stored version: give one of them"
            )
        if submit.parent is not None:
            self._begin_from(submit, submit.parent, speaker)
        elif submit.model is not None:
            self._await_model(submit, submit.model, speaker)

    def _begin_from(self, submit: m.Submit, parent: m.VersionRef, speaker: Speaker) -> None:
        """Begin with a copy of a stored version; a rule of the same settings goes on with its memory."""
        before = self._desk.state(parent.job)
        versions = self._desk.versions(parent.job)
        record, model = versions.read(parent.version)
        memory = versions.read_memory(record.version) if before.spec.rule == submit.spec.rule else None
        origin = m.VersionRef(job=parent.job, version=record.version)
        self._begin(submit, Combined(model=model, memory=memory), speaker, origin)

    def _await_model(self, submit: m.Submit, manifest: m.ModelManifest, speaker: Speaker) -> None:
        pending = self._pending.get(submit.job)
        if pending is None:
            self._check_room(speaker)
            spec = manifest.model_spec(max_bytes=self._max_model_bytes)
            if spec.num_bytes == 0:
                raise RequestRefused("the initial model has no elements: there is nothing to train")
            assembly = Assembly(manifest.num_bytes, manifest.chunk_bytes)
            now = self._services.clock.now()
            self._pending[submit.job] = _Pending(submit, manifest, spec, assembly, now, speaker)
        elif pending.speaker.user != speaker.user:
            raise RequestRefused(f"job {submit.job!r} waits for the initial model of another account")
        elif pending.manifest != manifest:
            raise RequestRefused(f"job {submit.job!r} was submitted before, with another initial model")
        else:
            pending.submit = submit
        there = self._pending[submit.job].assembly
        answer = m.Submitted(
            request=submit.request,
            job=submit.job,
            inbox=self._services.inbox,
            num_chunks=there.count - there.num_missing,
        )
        self._desk.reply(submit, answer)

    def _check_room(self, speaker: Speaker) -> None:
        """Forget what is abandoned, and see that one more may wait."""
        oldest = self._services.clock.now() - PENDING_EXPIRES_S
        self._pending = {job: pending for job, pending in self._pending.items() if pending.last_at > oldest}
        if len(self._pending) >= MAX_PENDING:
            raise RequestRefused(f"{MAX_PENDING} jobs wait for their initial model already; try again later")
        if speaker.account is None:
            return
        if sum(one.speaker.user == speaker.user for one in self._pending.values()) >= MAX_PENDING_EACH:
            raise RequestRefused(
                f"{MAX_PENDING_EACH} jobs of {speaker.account} wait for their initial model already; those "
                f"of which nothing comes are forgotten after {PENDING_EXPIRES_S:g} s"
            )

    def initial_chunk(self, speaker: Speaker, chunk: m.ModelChunk, payload: memoryview) -> None:
        """Take in a part of a submitted job's initial model.

        Raises:
            FrameRefused: nobody waits for it, or it does not fit.
        """
        pending = self._pending.get(chunk.job)
        if pending is None:
            if chunk.job in self._jobs.states():
                return
            raise FrameRefused(f"job {chunk.job!r} does not wait for an initial model")
        speaker.check_name(pending.submit.driver, chunk.KIND)
        pending.last_at = self._services.clock.now()
        if not pending.assembly.add(chunk.index, chunk.count, chunk.checksum, payload):
            return
        del self._pending[chunk.job]
        try:
            self._begin(pending.submit, Combined(model=self._arrived(pending)), pending.speaker)
        except (RequestRefused, FrameRefused) as error:
            self._desk.write_down(pending.submit, pending.speaker, refused=str(error)[:300])
            self._desk.reply(pending.submit, refused_by(pending.submit, error))

    def _arrived(self, pending: _Pending) -> Model:
        """The initial model, whole and usable."""
        manifest = pending.manifest
        model = encoding(manifest.encoding).decode(pending.assembly.buffer, pending.spec)
        announced = manifest.digest if manifest.encoding == "raw" else ""
        if announced and model.digest != announced:
            raise RequestRefused("the initial model arrived with another digest than was announced")
        if not all(all_finite(model.run(run)) for run in model.spec.runs):
            raise RequestRefused("the initial model has values that are NaN or infinite")
        return model

    def _begin(
        self, submit: m.Submit, initial: Combined, speaker: Speaker, parent: m.VersionRef | None = None
    ) -> None:
        model, services, now = initial.model, self._services, self._services.clock.now()
        self._try_own_code(submit.spec, model)
        self._refuse_groups(submit.spec)
        state = JobState(
            job=submit.job,
            spec=submit.spec,
            driver=submit.driver,
            update_bytes=_update_bytes(submit.spec, model),
            submitted_at=now,
        )
        record = VersionRecord(
            version=0,
            spec=model.spec,
            digest=model.digest,
            committed_at=now,
            memory_spec=initial.memory.spec if initial.memory else None,
        )
        keep = submit.spec.keep_versions
        details = {"name": submit.spec.name, "rule": submit.spec.rule.name, "model": model.digest}
        if parent is not None:  # what a job began from is a model that somebody may read by it
            details["parent"] = f"{parent.job}@{parent.version}"
        self._desk.write_down(submit, speaker, **details)
        versions = services.versions(state.job)
        services.persist(lambda: versions.write(record, initial, state.pack(), keep=keep))
        runner = self._jobs.add(state, model)
        submitted = JobSubmitted(
            job=submit.job,
            driver=submit.driver,
            spec=submit.spec,
            num_parameters=model.spec.num_elements,
            model_bytes=model.spec.num_bytes,
            parent=parent,
        )
        runner.emit(submitted)
        self._desk.reply(submit, _stored(submit, speaker))
        runner.start()

    def _try_own_code(self, spec: JobSpec, model: Model) -> None:
        try:
            try_own_code(spec, model, self._jobs.members.members(), self._services.own)
        except AppError as error:
            raise SettingRefused(str(error)) from error

    def _refuse_groups(self, spec: JobSpec) -> None:
        """Members of groups send sums; a rule that needs each update by itself is told so at once."""
        members = self._jobs.members
        if spec.takes_groups or len(alone := members.alone()) == len(members):
            return
        selector = make_selector(spec.selector, self._services.own)
        in_groups = len(selector.matching(members.members())) - len(selector.matching(alone))
        if in_groups:
            cause = f"the rule {spec.rule.name!r} needs"
            if isinstance(spec.rule, Summable):
                cause = f"updates as changes (encoding {spec.transfer.encoding!r}) need"
            raise SettingRefused(
                f"{cause} the update of each learner by itself, and {in_groups} of the learners are in "
                "groups, which send sums: choose 'fedavg' or 'fedprox' with an encoding of values, leave "
                "these learners out by 'selector.where', or start their hosts without a group"
            )


def _update_bytes(spec: JobSpec, model: Model) -> int:
    kept = spec.buffers_of(model.spec)
    return encoding(spec.transfer.encoding, kept).num_bytes(_update_spec(spec, model))


def _update_spec(spec: JobSpec, model: Model) -> ModelSpec:
    """What the job's updates look like."""
    try:
        return joined_spec(model.spec) if isinstance(spec.rule, Scaffold) else model.spec
    except ModelError as error:
        raise SettingRefused(f"the rule {spec.rule.name!r} cannot have this model: {error}") from error


def _stored(submit: m.Submit, speaker: Speaker) -> m.Done:
    """That a job is, with what its driver should know: where accounts are identities, not all are trusted."""
    holds = speaker.account is not None and submit.spec.protocol.deadline_s is None
    return m.Done(request=submit.request, warnings=(_NO_DEADLINE,) if holds else ())
