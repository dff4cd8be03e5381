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
from collections.abc import Callable, Mapping
from typing import Self, TypeVar

from broker_fl.interfaces import Transport
from broker_fl.model import Array, Model
from broker_fl.roles.driver.answers import Answers, ask, ask_for_pages, download
from broker_fl.roles.driver.connection import Connection
from broker_fl.roles.driver.job import Job, list_jobs
from broker_fl.roles.runtime import THREADS, Runtime
from broker_fl.roles.sender import handing, publish_model
from broker_fl.topology import Topology
from broker_fl.wire import messages as m
from broker_fl.wire.job import JobSpec

log = logging.getLogger(__name__)
R = TypeVar("R", bound=m.Reply)
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
        on_waiting: Callable[[float], None] | None = None,
    ) -> None:
        """Use ``transport``, which is closed with the driver; a request waits ``timeout_s`` for the
        controller's answer. When none has come for 2 s, ``on_waiting`` is called with the seconds that are
        left; once only.
        """
        self._connection = Connection(transport, federation, timeout_s, runtime, on_waiting)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect; jobs go on."""
        self._connection.close()

    @property
    def id(self) -> str:
        """Names the queue of answers. It changes when that is on a node that goes down."""
        return self._connection.id

    @property
    def topology(self) -> Topology:
        """Names of the federation's queues."""
        return self._connection.topology

    @property
    def transport(self) -> Transport:
        """The connection to the broker."""
        return self._connection.transport

    @property
    def timeout_s(self) -> float:
        """How long a request waits for the controller's answer; may be set."""
        return self._connection.timeout_s

    @timeout_s.setter
    def timeout_s(self, timeout_s: float) -> None:
        self._connection.timeout_s = timeout_s

    # ------------------------------------------------------------ jobs

    def submit(self, spec: JobSpec, model: Model | Mapping[str, Array] | m.VersionRef) -> Job:
        """Have a job run from an initial model, or go on from a stored version of another job; returns when
        the controller has stored both. What it warns of is logged.

        Raises:
            RequestRefused: the controller does not take the job; says why.
            BrokerUnavailable: no controller answered within ``timeout_s``.
        """
        job = f"{spec.name[:51]}-{self._connection.unique()[:12]}"
        if isinstance(model, m.VersionRef):
            submit = m.Submit(
                driver=self.id, request=self._connection.unique(), job=job, spec=spec, parent=model
            )
            stored = ask(self._connection, submit, m.Done)
        else:
            stored = self._submit(job, spec, model)
        for warning in stored.warnings:
            log.warning("job %s: %s", job, warning)
        return Job(self._connection, job)

    def _submit(self, job: str, spec: JobSpec, model: Model | Mapping[str, Array]) -> m.Done:
        initial = model if isinstance(model, Model) else Model.of(model)
        manifest = m.ModelManifest.of(
            initial.spec,
            version=0,
            digest=initial.digest,
            encoding="raw",
            chunk_bytes=spec.transfer.chunk_bytes,
        )
        submit = m.Submit(
            driver=self.id, request=self._connection.unique(), job=job, spec=spec, model=manifest
        )
        # What is handed over is left alone from then on; this is the caller's.
        sent = initial if handing(self.transport) is None else initial.copy()
        inbox, patience_s, again_at, num_chunks = "", 0.0, 0.0, 0
        with Answers(self._connection, submit) as answers:
            while isinstance(answer := answers.next(m.Submitted, m.Done), m.Submitted):
                is_new = (
                    answer.inbox != inbox
                )  # another controller has taken over, and has nothing of the model
                grows, num_chunks = answer.num_chunks > num_chunks, answer.num_chunks
                if not is_new and (grows or self._connection.runtime.steady_s() < again_at):
                    continue
                inbox, key = answer.inbox, f"{self.id}.{answer.inbox}"
                publish_model(self.transport, self.topology.updates, [key], job, manifest, sent.buffer)
                # A broker that was started anew has lost what was on its way; a slow one has it still.
                patience_s = FIRST_PATIENCE_S if is_new else 2 * patience_s
                again_at = self._connection.runtime.steady_s() + patience_s
        assert isinstance(answer, m.Done)  # noqa: S101 - what ``next`` promises, for the type checker
        return answer

    def job(self, job: str) -> Job:
        """A job that was submitted before, by whomever. Nothing is sent."""
        return Job(self._connection, job)

    def jobs(self) -> tuple[m.JobSummary, ...]:
        """All jobs of the federation, oldest first."""
        return list_jobs(self._connection)

    def learners(self) -> tuple[m.LearnerSummary, ...]:
        """The learners that are there."""
        request = m.ListLearners(driver=self.id, request=self._connection.unique())
        pages = ask_for_pages(self._connection, request, m.Learners)
        return tuple({one.learner: one for page in pages for one in page.learners}.values())

    def ask(self, request: m.Request, expected: type[R]) -> R:
        """Send a request and wait for its answer.

        Raises:
            RequestRefused: with the controller's reason.
            BrokerUnavailable: no controller answered within ``timeout_s``.
        """
        return ask(self._connection, request, expected)

    def download(self, job: str, version: int | None) -> tuple[int, Model]:
        """Fetch a model version; None is the newest. Its number comes back with it.

        Raises:
            RequestRefused: there is no such job or version.
            BrokerUnavailable: the model did not arrive; ``timeout_s`` counts from the last chunk.
        """
        return download(self._connection, job, version)

    def fail(self, error: Exception) -> None:
        """Raise ``error`` wherever an answer is waited for, now or later: who knows that no controller will
        answer need not wait for a timeout.
        """
        self._connection.fail(error)
