"""The driver's Python API: submit jobs, watch them, stop them, fetch models. It needs the broker only.

::

    with Driver(transport, federation="default") as driver:
        job = driver.submit(JobSpec(termination={"rounds": 10}), model)
        for event in job.events():
            print(event)
        final = job.model()
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Self, TypeVar

from broker_fl.errors import BrokerUnavailable, MessageRefused, QueueLost, RequestRefused, SettingError
from broker_fl.identity.accounts import Account
from broker_fl.interfaces import Delivery, Transport
from broker_fl.model import Array, Model
from broker_fl.record.history import History
from broker_fl.roles.driver.conversation import Answer, Answers, Download, Watch
from broker_fl.roles.runtime import THREADS, Runtime, Waiting
from broker_fl.roles.sender import handing, publish_model, read
from broker_fl.topology import Topology
from broker_fl.wire import messages as m
from broker_fl.wire.events import Event, JobFinished, decode_event
from broker_fl.wire.job import JobSpec

log = logging.getLogger(__name__)
R = TypeVar("R", bound=m.Reply)
P = TypeVar("P", m.Jobs, m.Learners, m.Versions)
REPLY_PREFETCH = 64
FIRST_PATIENCE_S = 9.0
"""An initial model that has not arrived after so long is sent again, ever less often."""


class Driver:
    """A connection to one federation, for any number of threads."""

    def __init__(
        self,
        transport: Transport,
        federation: str = "default",
        *,
        timeout_s: float = 30.0,
        runtime: Runtime = THREADS,
    ) -> None:
        """Use ``transport``, which is closed with the driver; a request waits ``timeout_s`` for the
        controller's answer.
        """
        self.topology = Topology(federation)
        self.runtime = runtime
        account = driver_account(transport.user, federation)
        self._name = account.name if account is not None else "driver"
        self.id = self._new_id()
        """Names the queue of answers. It changes when that is on a node that goes down."""
        self.timeout_s = timeout_s
        self._transport = transport
        self._lock = threading.Lock()
        self._waiting: dict[str, Waiting[Answer]] = {}
        self._downloads: dict[str, Download] = {}  # by request
        self._watches: set[Watch] = set()
        self._failure: Exception | None = None
        transport.on_reconnect(self._on_reconnect)
        transport.on_queue_lost(self._on_queue_lost)
        if account is None:
            transport.declare(self.topology.for_controller())
        try:
            self._open(self.id)
        except QueueLost:  # its node went down just now
            self._on_queue_lost(self.topology.driver_queue(self.id))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect; jobs go on."""
        self.let_go(self.topology.driver_queue(self.id))
        self._transport.close()

    # ------------------------------------------------------------ jobs

    def submit(self, spec: JobSpec, model: Model | Mapping[str, Array] | m.VersionRef) -> Job:
        """Have a job run from an initial model, or go on from a stored version of another job; returns when
        the controller has stored both. What it warns of is logged.

        Raises:
            RequestRefused: the controller does not take the job; says why.
            BrokerUnavailable: no controller answered within ``timeout_s``.
        """
        job = f"{spec.name[:51]}-{self.unique()[:12]}"
        if isinstance(model, m.VersionRef):
            submit = m.Submit(driver=self.id, request=self.unique(), job=job, spec=spec, parent=model)
            stored = self.ask(submit, m.Done)
        else:
            stored = self._submit(job, spec, model)
        for warning in stored.warnings:
            log.warning("job %s: %s", job, warning)
        return Job(self, job)

    def _submit(self, job: str, spec: JobSpec, model: Model | Mapping[str, Array]) -> m.Done:
        initial = model if isinstance(model, Model) else Model.of(model)
        manifest = m.ModelManifest.of(
            initial.spec,
            version=0,
            digest=initial.digest,
            encoding="raw",
            chunk_bytes=spec.transfer.chunk_bytes,
        )
        submit = m.Submit(driver=self.id, request=self.unique(), job=job, spec=spec, model=manifest)
        # What is handed over is left alone from then on; this is the caller's.
        sent = initial if handing(self._transport) is None else initial.copy()
        inbox, patience_s, again_at, num_chunks = "", 0.0, 0.0, 0
        with Answers(self, submit) as answers:
            while isinstance(answer := answers.next(m.Submitted, m.Done), m.Submitted):
                is_new = (
                    answer.inbox != inbox
                )  # another controller has taken over, and has nothing of the model
                grows, num_chunks = answer.num_chunks > num_chunks, answer.num_chunks
                if not is_new and (grows or self.runtime.steady_s() < again_at):
                    continue
                inbox, key = answer.inbox, f"{self.id}.{answer.inbox}"
                publish_model(self._transport, self.topology.updates, [key], job, manifest, sent.buffer)
                # A broker that was started anew has lost what was on its way; a slow one has it still.
                patience_s = FIRST_PATIENCE_S if is_new else 2 * patience_s
                again_at = self.runtime.steady_s() + patience_s
        assert isinstance(answer, m.Done)  # noqa: S101 - what ``next`` promises, for the type checker
        return answer

    def job(self, job: str) -> Job:
        """A job that was submitted before, by whomever. Nothing is sent."""
        return Job(self, job)

    def jobs(self) -> tuple[m.JobSummary, ...]:
        """All jobs of the federation, oldest first."""
        pages = self.ask_for_pages(m.ListJobs(driver=self.id, request=self.unique()), m.Jobs)
        return tuple({job.job: job for page in pages for job in page.jobs}.values())

    def learners(self) -> tuple[m.LearnerSummary, ...]:
        """The learners that are there."""
        pages = self.ask_for_pages(m.ListLearners(driver=self.id, request=self.unique()), m.Learners)
        return tuple({one.learner: one for page in pages for one in page.learners}.values())

    # ------------------------------------------------------------ asking

    def ask(self, request: m.Request, expected: type[R]) -> R:
        """Send a request and wait for its answer.

        Raises:
            RequestRefused: with the controller's reason.
            BrokerUnavailable: no controller answered within ``timeout_s``.
        """
        with Answers(self, request) as answers:
            reply = answers.next(expected)
            assert isinstance(reply, expected)  # noqa: S101 - what ``next`` promises, for the type checker
            return reply

    def ask_for_pages(self, request: m.Request, expected: type[P]) -> list[P]:
        """Send a request and wait for all pages of its answer; one may be there twice.

        Raises:
            RequestRefused: with the controller's reason.
            BrokerUnavailable: no controller answered within ``timeout_s``.
        """
        pages: list[P] = []
        with Answers(self, request) as answers:
            while not pages or not pages[-1].last:
                reply = answers.next(expected)
                assert isinstance(reply, expected)  # noqa: S101 - what ``next`` promises, for the type checker
                pages.append(reply)
        return pages

    def download(self, job: str, version: int | None) -> tuple[int, Model]:
        """Fetch a model version; None is the newest. Its number comes back with it.

        Raises:
            RequestRefused: there is no such job or version.
            BrokerUnavailable: the model did not arrive; ``timeout_s`` counts from the last chunk.
        """
        while True:
            with suppress(QueueLost):
                return self._download(job, version)

    def _download(self, job: str, version: int | None) -> tuple[int, Model]:
        request = m.ReadModel(driver=self.id, request=self.unique(), job=job, version=version)
        try:
            follows = self.ask(request, m.ModelFollows)
            with self._lock:
                download = self._downloads[request.request]
            return follows.model.version, download.wait(self.timeout_s)
        finally:
            with self._lock:
                self._downloads.pop(request.request, None)

    # ------------------------------------------------------------ what comes in, on a thread of the transport

    def _take(self, delivery: Delivery) -> None:
        try:
            message, payload = read(delivery)
            if isinstance(message, m.ModelChunk) and payload is not None:
                self._on_chunk(message, payload)
            elif isinstance(message, m.Reply):
                self._on_reply(message)
        except MessageRefused:
            pass  # a newer controller's message, or a broken one: the request times out, or is asked again
        finally:
            delivery.ack()

    def _on_reply(self, reply: m.Reply) -> None:
        with self._lock:
            download = self._downloads.get(reply.request)
            if download is not None and isinstance(reply, m.Refused):  # it broke off
                download.fail(RequestRefused(reply.reason))
            waiting = self._waiting.get(reply.request)
            if waiting is None:
                return
            if isinstance(reply, m.ModelFollows) and reply.request not in self._downloads:
                self._downloads[reply.request] = Download(reply, self.runtime)
        waiting.put(reply)

    def _on_chunk(self, chunk: m.ModelChunk, payload: memoryview) -> None:
        with self._lock:
            downloads = [one for one in self._downloads.values() if one.model == (chunk.job, chunk.version)]
        for download in downloads:
            download.add(chunk, payload)

    def _new_id(self) -> str:
        return f"{self._name}-{self.runtime.unique()[:12]}"

    def _open(self, driver: str) -> None:
        self._transport.declare(self.topology.for_driver(driver))
        queue = self.topology.driver_queue(driver)
        self._transport.consume(queue, self._take, prefetch=REPLY_PREFETCH, exclusive=True)

    def _on_queue_lost(self, queue: str) -> None:
        """On a thread of the transport: have another one, and ask again for what was asked for."""
        with self._lock:
            watches, waiting = list(self._watches), list(self._waiting.values())
            downloads = list(self._downloads.values())
        for watch in watches:
            watch.move(queue)
        if queue != self.topology.driver_queue(self.id):
            return
        driver = self._new_id()
        self._open(driver)
        self.id = driver
        self._transport.cancel(queue)
        for answers in waiting:
            answers.put(None)
        for download in downloads:
            download.fail(QueueLost(f"queue {queue!r} is on a node that is down"))

    def _on_reconnect(self) -> None:
        with self._lock:
            watches = list(self._watches)
        for watch in watches:
            watch.check()

    # ------------------------------------------------------------ for answers and events

    def fail(self, error: Exception) -> None:
        """Raise ``error`` wherever an answer is waited for, now or later: who knows that no controller will
        answer need not wait for a timeout.
        """
        with self._lock:
            self._failure = error
            waiting, downloads = list(self._waiting.values()), list(self._downloads.values())
            watches = list(self._watches)
        for answers in waiting:
            answers.put(error)
        for download in downloads:
            download.fail(error)
        for watch in watches:
            watch.check()

    def unique(self) -> str:
        """A name that nobody else has: of a request, or a part of a job's."""
        return self.runtime.unique()

    def expect(self, request: str) -> Waiting[Answer]:
        """Collect the answers to a request, until ``forget``."""
        answers: Waiting[Answer] = self.runtime.queue()
        with self._lock:
            self._waiting[request] = answers
            if self._failure is not None:
                answers.put(self._failure)
        return answers

    def forget(self, request: str) -> None:
        """Answers to the request are no longer wanted."""
        with self._lock:
            self._waiting.pop(request, None)

    def send(self, request: m.Request) -> None:
        """Publish a request; it is answered where this driver reads now."""
        self._transport.publish(
            self.topology.control,
            [self.topology.CONTROL],
            request.model_copy(update={"driver": self.id}).pack(),
            persistent=True,
        )

    def add_watch(self, watch: Watch) -> None:
        """Have the watch check for missed events when the connection was lost, until ``remove_watch``."""
        with self._lock:
            self._watches.add(watch)

    def remove_watch(self, watch: Watch) -> None:
        """The watch has ended."""
        with self._lock:
            self._watches.discard(watch)

    def let_go(self, queue: str) -> None:
        """Delete a queue of this driver; while the broker is away it is left to expire."""
        with suppress(BrokerUnavailable):
            self._transport.delete_queue(queue)

    @property
    def transport(self) -> Transport:
        """The connection to the broker."""
        return self._transport


def driver_account(user: str, federation: str) -> Account | None:
    """The enrolled account that a driver works under; None if it is a shared one.

    Raises:
        SettingError: it is enrolled as something else, or in another federation.
    """
    account = Account.of(user)
    if account is not None and not (account.asks and account.federation == federation):
        raise SettingError(f"the account {user!r} is that of {account}; it is no driver of {federation!r}")
    return account


class Job:
    """One job of a federation, seen from a driver."""

    def __init__(self, driver: Driver, job: str) -> None:
        self._driver = driver
        self.id = job

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    def summary(self) -> m.JobSummary:
        """State, version and reason at this moment.

        Raises:
            RequestRefused: there is no such job.
        """
        found = next((one for one in self._driver.jobs() if one.job == self.id), None)
        if found is None:
            raise RequestRefused(f"there is no job {self.id!r}")
        return found

    def events(self, *, follow: bool = True) -> Iterator[Event]:
        """The job's events from the first on, each once; with ``follow``, until the job has finished.

        Raises:
            RequestRefused: there is no such job.
            BrokerUnavailable: no controller answers.
        """
        if not follow:
            yield from self._stored(after=0)
            return
        with Watch(self._driver, self.id) as watch:
            last = 0
            for event in self._stored(after=0):
                last = event.sequence
                yield event
                if isinstance(event, JobFinished):
                    return
            while True:
                fresh = watch.next(last)
                if not fresh or fresh[0].sequence != last + 1:
                    fresh = list(self._stored(after=last))
                for event in fresh:
                    last = event.sequence
                    yield event
                    if isinstance(event, JobFinished):
                        return

    def wait(self) -> JobFinished:
        """Wait for the job's end.

        Raises:
            RequestRefused: there is no such job.
        """
        finished = None
        for event in self.events():
            finished = event
        if not isinstance(finished, JobFinished):
            raise BrokerUnavailable(f"job {self.id} ended without saying so")
        return finished

    def history(self) -> History:
        """All that has happened so far."""
        return History.of(self.events(follow=False))

    def stop(self, reason: str = "") -> None:
        """End the job; what it has committed is kept."""
        driver = self._driver
        driver.ask(m.StopJob(driver=driver.id, request=driver.unique(), job=self.id, reason=reason), m.Done)

    def pause(self, reason: str = "") -> None:
        """Begin no new round (asynchronous: give no new task); what is under way is finished.

        Raises:
            RequestRefused: the job has ended.
        """
        driver = self._driver
        driver.ask(m.PauseJob(driver=driver.id, request=driver.unique(), job=self.id, reason=reason), m.Done)

    def resume(self, *, versions: int | None = None) -> None:
        """Go on after ``pause``; with ``versions``, pause again after so many new ones.

        Raises:
            RequestRefused: the job has ended.
        """
        driver = self._driver
        request = m.ResumeJob(driver=driver.id, request=driver.unique(), job=self.id, versions=versions)
        driver.ask(request, m.Done)

    def step(self) -> None:
        """Go on for one version; returns at once."""
        self.resume(versions=1)

    def delete(self, reason: str = "") -> None:
        """Delete a job that has ended: its versions, events and all else that is stored of it, for good.

        Raises:
            RequestRefused: it has not ended, or there is no such job.
        """
        driver = self._driver
        request = m.DeleteJob(driver=driver.id, request=driver.unique(), job=self.id, reason=reason)
        driver.ask(request, m.Done)

    def version(self, version: int | None = None) -> m.VersionRef:
        """A version of this job for ``Driver.submit`` to go on from; None is the newest there is then."""
        return m.VersionRef(job=self.id, version=version)

    def versions(self) -> tuple[m.VersionSummary, ...]:
        """The model versions that are kept, oldest first."""
        driver = self._driver
        request = m.ListVersions(driver=driver.id, request=driver.unique(), job=self.id)
        pages = driver.ask_for_pages(request, m.Versions)
        return tuple({one.version: one for page in pages for one in page.versions}.values())

    def model(self, version: int | None = None) -> Model:
        """A model version; None is the newest.

        Raises:
            RequestRefused: there is no such version, or it is no longer kept.
        """
        return self._driver.download(self.id, version)[1]

    def _stored(self, *, after: int) -> Iterator[Event]:
        driver = self._driver
        while True:
            request = m.ReadEvents(driver=driver.id, request=driver.unique(), job=self.id, after=after)
            page = driver.ask(request, m.Events)
            for body in page.events:
                event = decode_event(body)
                after = event.sequence
                yield event
            if page.last:
                return
