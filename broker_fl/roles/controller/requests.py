"""What drivers ask of the controller, and the answers."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from broker_fl.aggregation.kernels import all_finite
from broker_fl.coordination import signals as s
from broker_fl.coordination.membership import Presence
from broker_fl.coordination.selection import make_selector
from broker_fl.coordination.state import JobState, Phase
from broker_fl.errors import (
    AppError,
    FrameRefused,
    RequestRefused,
    SettingRefused,
    StoreUnavailable,
    VersionsLost,
)
from broker_fl.extensions import try_own_code
from broker_fl.identity.accounts import Account
from broker_fl.interfaces import Combined, Store
from broker_fl.model import Model, ModelError, ModelSpec
from broker_fl.roles.controller.job.runner import JobRunner
from broker_fl.roles.controller.job.versions import VersionRecord, Versions
from broker_fl.roles.controller.jobs import Jobs
from broker_fl.roles.controller.limits import WRITTEN_DOWN, RateLimit
from broker_fl.roles.controller.reading import find_version, publish_version
from broker_fl.roles.controller.services import Services
from broker_fl.roles.controller.speakers import Speaker
from broker_fl.security.audit import Deed
from broker_fl.wire import messages as m
from broker_fl.wire.chunks import Assembly
from broker_fl.wire.control import joined_spec
from broker_fl.wire.encodings import encoding
from broker_fl.wire.events import JobSubmitted
from broker_fl.wire.job import JobSpec
from broker_fl.wire.pages import pages
from broker_fl.wire.rules import Scaffold, Summable

log = logging.getLogger(__name__)
EVENTS_PER_PAGE = 2_000
PAGE_BYTES = 2_000_000
MAX_PENDING = 16
PENDING_EXPIRES_S = 600.0
MAX_REMEMBERED = 256
_NO_DEADLINE = (
    "'protocol.deadline_s' is not given: a learner that stays connected and delivers nothing can hold this "
    "job for ever. Give one, and a 'protocol.quorum' that does without some"
)
_AUDITED = frozenset({m.Submit, m.StopJob, m.PauseJob, m.ResumeJob, m.DeleteJob, m.ReadModel})


@dataclass(slots=True)
class _Pending:
    """A job that was submitted and whose initial model is on its way."""

    submit: m.Submit
    manifest: m.ModelManifest
    spec: ModelSpec
    assembly: Assembly
    last_at: float
    user: str
    """The broker's account that submits it."""


class Requests:
    """Answers drivers, on the controller's thread."""

    def __init__(self, services: Services, jobs: Jobs, max_model_bytes: int) -> None:
        self._services = services
        self._max_model_bytes = max_model_bytes
        self._jobs = jobs
        self._pending: dict[str, _Pending] = {}
        self._reading: set[str] = set()
        """Requests for models that are being answered."""
        self._deleted: deque[str] = deque(maxlen=MAX_REMEMBERED)
        """The latest requests by which a job was deleted: they may come again."""
        self._written_down = RateLimit(WRITTEN_DOWN, "requests that are written down")
        self._user = ""
        """Whose request is being answered."""
        self._answers: dict[type, Callable[[Any], None]] = {
            m.Submit: self._submit,
            m.StopJob: self._stop_job,
            m.PauseJob: self._pause_job,
            m.ResumeJob: self._resume_job,
            m.DeleteJob: self._delete_job,
            m.ListJobs: self._list_jobs,
            m.ListLearners: self._list_learners,
            m.ListVersions: self._list_versions,
            m.ReadEvents: self._read_events,
            m.ReadModel: self._read_model,
        }

    def handle(self, request: m.Request, speaker: Speaker) -> None:
        """Carry a request out, and answer it.

        Raises:
            FrameRefused: it is in the name of somebody else, who is not bothered with an answer.
            VersionsLost: the store has forgotten versions that are asked for. The driver is told, too.
        """
        if speaker.account is not None:  # else the key is the same for all
            speaker.check_name(request.driver, request.KIND)
        try:
            self._check_rate(request, speaker)
        except RequestRefused as error:
            self._reply(request, m.Refused(request=request.request, reason=str(error), again=True))
            return
        try:
            speaker.check_request(request)
            self._answer(request, speaker.user)
        except (RequestRefused, FrameRefused, StoreUnavailable) as error:
            log.info("request %s of driver %s: %s", request.KIND, request.driver, error)
            again = isinstance(error, StoreUnavailable)
            refused = m.Refused(request=request.request, reason=str(error)[:2000], again=again)
            if not again and type(request) in _AUDITED:
                self._write_down(request, speaker.user, refused=str(error)[:300])
            self._reply(request, refused)
        except VersionsLost as error:
            self._reply(request, _refused(request, error))
            raise

    def _check_rate(self, request: m.Request, speaker: Speaker) -> None:
        """Hold an account against how often it may ask for what is written down, refused or not.

        Raises:
            RequestRefused: it is over that.
        """
        if speaker.account is None or type(request) not in _AUDITED:
            return
        if not self._written_down.take(speaker.account.user, self._services.clock.now()):
            raise RequestRefused(
                f"{speaker.account} asks too often: {WRITTEN_DOWN.per_s:g} requests a second are written down"
            )

    def _answer(self, request: m.Request, user: str) -> None:
        if (answer := self._answers.get(type(request))) is None:
            raise RequestRefused(f"requests of kind {request.KIND!r} are not known here")
        self._user = user
        if request.request in self._deleted:
            self._reply(request, m.Done(request=request.request))
            return
        if isinstance(request, m.StopJob | m.PauseJob | m.ResumeJob | m.DeleteJob | m.ReadModel):
            self._state(request.job)
            self._write_down(request, user)  # before it is done: nothing is that was not written down
        answer(request)

    def _write_down(self, request: Any, user: str, **details: str) -> None:
        """Into the audit log, and not go on before the store has it."""
        more = {name: value for name in ("version", "reason") if (value := getattr(request, name, None))}
        deed = Deed(
            actor=user,
            action=request.KIND,
            subject=f"job {request.job}",
            details={"driver": request.driver, **more, **details},
        )
        self._services.audit.add(deed)
        self._services.persist(self._services.audit.write)

    # ------------------------------------------------------------ submitting

    def _submit(self, submit: m.Submit) -> None:
        if submit.job in self._jobs.states():
            self._reply(submit, _stored(submit, self._user))
            return
        if (submit.model is None) == (submit.parent is None):
            raise RequestRefused(
                "a job begins from an initial model or from a stored version: give one of them"
            )
        if submit.parent is not None:
            self._begin_from(submit, submit.parent)
        elif submit.model is not None:
            self._await_model(submit, submit.model)

    def _begin_from(self, submit: m.Submit, parent: m.VersionRef) -> None:
        """Begin with a copy of a stored version; a rule of the same settings goes on with its memory."""
        before = self._state(parent.job)
        versions = self._versions(parent.job)
        record, model = versions.read(parent.version)
        memory = versions.read_memory(record.version) if before.spec.rule == submit.spec.rule else None
        origin = m.VersionRef(job=parent.job, version=record.version)
        self._begin(submit, Combined(model=model, memory=memory), self._user, origin)

    def _await_model(self, submit: m.Submit, manifest: m.ModelManifest) -> None:
        pending = self._pending.get(submit.job)
        if pending is None:
            self._forget_abandoned()
            if len(self._pending) >= MAX_PENDING:
                raise RequestRefused(
                    f"{MAX_PENDING} jobs wait for their initial model already; try again later",
                )
            spec = manifest.model_spec(max_bytes=self._max_model_bytes)
            if spec.num_bytes == 0:
                raise RequestRefused("the initial model has no elements: there is nothing to train")
            assembly = Assembly(manifest.num_bytes, manifest.chunk_bytes)
            now = self._services.clock.now()
            self._pending[submit.job] = _Pending(submit, manifest, spec, assembly, now, self._user)
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
        self._reply(submit, answer)

    def _forget_abandoned(self) -> None:
        oldest = self._services.clock.now() - PENDING_EXPIRES_S
        self._pending = {job: pending for job, pending in self._pending.items() if pending.last_at > oldest}

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
            self._begin(pending.submit, Combined(model=self._arrived(pending)), pending.user)
        except (RequestRefused, FrameRefused) as error:
            self._write_down(pending.submit, pending.user, refused=str(error)[:300])
            self._reply(pending.submit, _refused(pending.submit, error))

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
        self, submit: m.Submit, initial: Combined, user: str, parent: m.VersionRef | None = None
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
        self._write_down(submit, user, **details)
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
        self._reply(submit, _stored(submit, user))
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

    # ------------------------------------------------------------ stopping and reading

    def _stop_job(self, request: m.StopJob) -> None:
        self._state(request.job)
        if (runner := self._jobs.runner(request.job)) is not None:
            runner.signal(s.StopWanted(request.reason or f"stopped by {request.driver}"))
        self._reply(request, m.Done(request=request.request))

    def _pause_job(self, request: m.PauseJob) -> None:
        self._running(request.job).signal(s.PauseWanted(request.reason or f"paused by {request.driver}"))
        self._reply(request, m.Done(request=request.request))

    def _resume_job(self, request: m.ResumeJob) -> None:
        self._running(request.job).signal(s.ResumeWanted(request.versions))
        self._reply(request, m.Done(request=request.request))

    def _delete_job(self, request: m.DeleteJob) -> None:
        if (away := self._jobs.flush()) is not None:  # what has just ended is put away by it
            raise away
        if (runner := self._jobs.runner(request.job)) is not None:
            state = runner.job.state.summary().state
            raise RequestRefused(f"job {request.job!r} has not ended, it is {state}: stop it first")
        self._jobs.delete(request.job, request.reason or f"deleted by {request.driver}")
        self._deleted.append(request.request)
        self._reply(request, m.Done(request=request.request))

    def _running(self, job: str) -> JobRunner:
        state = self._state(job)
        if (runner := self._jobs.runner(job)) is None:
            raise RequestRefused(f"job {job!r} has ended: {state.end}, {state.reason}")
        return runner

    def _list_jobs(self, request: m.ListJobs) -> None:
        states = sorted(self._jobs.states().values(), key=lambda state: state.submitted_at)
        for jobs, last in pages([state.summary() for state in states], _num_bytes):
            self._reply(request, m.Jobs(request=request.request, jobs=jobs, last=last))

    def _list_versions(self, request: m.ListVersions) -> None:
        evaluations = self._state(request.job).evaluations
        records = self._versions(request.job).records()
        summaries = [record.summary(evaluations.get(record.version, {})) for record in records]
        for versions, last in pages(summaries, _num_bytes):
            self._reply(request, m.Versions(request=request.request, versions=versions, last=last))

    def _list_learners(self, request: m.ListLearners) -> None:
        now = self._services.clock.now()
        presences = sorted(self._jobs.members, key=lambda presence: presence.member.learner)
        for learners, last in pages([_summary(presence, now) for presence in presences], _num_bytes):
            self._reply(request, m.Learners(request=request.request, learners=learners, last=last))

    def _read_events(self, request: m.ReadEvents) -> None:
        """One page; the driver asks for the next with the number of the last event it has."""
        self._state(request.job)
        if (runner := self._jobs.runner(request.job)) is not None:
            runner.flush()
        read = partial(self._store.read_events, request.job, after=request.after, limit=EVENTS_PER_PAGE)
        found = read()
        if not found:  # where it has ended, whoever asks lacks its end: a store may have lost it
            self._jobs.say_finished(request.job)
            found = read()
        page: list[bytes] = []
        size = 0
        for event in found:
            size += len(event)
            if page and size > PAGE_BYTES:
                break
            page.append(event)
        last = len(page) == len(found) and len(found) < EVENTS_PER_PAGE
        self._reply(request, m.Events(request=request.request, events=tuple(page), last=last))

    def _read_model(self, request: m.ReadModel) -> None:
        state, services = self._state(request.job), self._services
        if request.request in self._reading:  # asked again because a large one takes its time
            return
        has_ended = state.phase is Phase.ENDED
        record, pieces = find_version(self._versions(request.job), request.version, may_change=not has_ended)
        self._reading.add(request.request)

        def publish() -> None:
            try:
                publish_version(services, request, record, pieces)
            finally:
                services.post(lambda: self._reading.discard(request.request))

        services.bulk_sender.post(publish)

    def _versions(self, job: str) -> Versions:
        """What is stored of a job: all that its state says, or an older version would pass for the newest.

        Raises:
            VersionsLost: it is not; whoever starts as controller now makes up for it.
            RequestRefused: it is not, and nobody can.
        """
        versions = self._services.versions(job)
        try:
            versions.check_not_lost(self._state(job).version)
        except VersionsLost as error:
            if job in self._jobs.found_ended:
                raise RequestRefused(str(error)) from error
            raise
        return versions

    def _state(self, job: str) -> JobState:
        states = self._jobs.states()
        if job not in states and not self._services.is_sure():
            raise StoreUnavailable(
                f"job {job!r} is not known here, and another controller may have taken over: the store has "
                "not confirmed the lease for a while"
            )
        if (reason := self._jobs.given_up.get(job)) is not None:
            raise RequestRefused(f"job {job!r} cannot be resumed: {reason}")
        if job not in states:
            if self._store.num_events(job):  # raises if the store is away: then nobody knows who is in charge
                raise StoreUnavailable(f"job {job!r} is another controller's, which has taken over")
            known = ", ".join(sorted(states)[-5:]) or "none"
            raise RequestRefused(f"there is no job {job!r}; the latest are: {known}")
        return states[job]

    @property
    def _store(self) -> Store:
        return self._services.store

    def _reply(self, request: m.Request, reply: m.Reply) -> None:
        topology = self._services.topology
        self._services.sender.send(topology.answers, [topology.driver_key(request.driver)], reply)


def _stored(submit: m.Submit, user: str) -> m.Done:
    """That a job is, with what its driver should know: where accounts are identities, not all are trusted."""
    holds = Account.of(user) is not None and submit.spec.protocol.deadline_s is None
    return m.Done(request=submit.request, warnings=(_NO_DEADLINE,) if holds else ())


def _refused(request: m.Request, error: Exception, *, again: bool = False) -> m.Refused:
    setting = isinstance(error, SettingRefused)
    return m.Refused(request=request.request, reason=str(error)[:2000], again=again, setting=setting)


def _update_bytes(spec: JobSpec, model: Model) -> int:
    kept = spec.buffers_of(model.spec)
    return encoding(spec.transfer.encoding, kept).num_bytes(_update_spec(spec, model))


def _update_spec(spec: JobSpec, model: Model) -> ModelSpec:
    """What the job's updates look like."""
    try:
        return joined_spec(model.spec) if isinstance(spec.rule, Scaffold) else model.spec
    except ModelError as error:
        raise SettingRefused(f"the rule {spec.rule.name!r} cannot have this model: {error}") from error


def _num_bytes(part: m.Part) -> int:
    """About what a part of an answer takes in it; never less."""
    return len(part.model_dump_json())


def _summary(presence: Presence, now: float) -> m.LearnerSummary:
    return m.LearnerSummary(
        learner=presence.member.learner,
        attributes=dict(presence.member.attributes),
        software=presence.software,
        last_seen_s=max(0.0, now - presence.last_seen),
        tasks=presence.tasks,
    )
