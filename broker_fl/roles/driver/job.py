"""One job of a federation, seen from a driver."""

from __future__ import annotations

from collections.abc import Iterator

from broker_fl.errors import BrokerUnavailable, RequestRefused
from broker_fl.model import Model
from broker_fl.record.history import History
from broker_fl.roles.driver.answers import ask, ask_for_pages, download
from broker_fl.roles.driver.connection import Connection
from broker_fl.roles.driver.watch import Watch
from broker_fl.wire import messages as m
from broker_fl.wire.events import Event, JobFinished, decode_event


class Job:
    """Nothing is asked before it is needed."""

    def __init__(self, connection: Connection, job: str) -> None:
        self._connection = connection
        self.id = job

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    def summary(self) -> m.JobSummary:
        """State, version and reason at this moment.

        Raises:
            RequestRefused: there is no such job.
        """
        found = next((one for one in list_jobs(self._connection) if one.job == self.id), None)
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
        with Watch(self._connection, self.id) as watch:
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
        connection = self._connection
        ask(
            connection,
            m.StopJob(driver=connection.id, request=connection.unique(), job=self.id, reason=reason),
            m.Done,
        )

    def pause(self, reason: str = "") -> None:
        """Begin no new round (asynchronous: give no new task); what is under way is finished.

        Raises:
            RequestRefused: the job has ended.
        """
        connection = self._connection
        ask(
            connection,
            m.PauseJob(driver=connection.id, request=connection.unique(), job=self.id, reason=reason),
            m.Done,
        )

    def resume(self, *, versions: int | None = None) -> None:
        """Go on after ``pause``; with ``versions``, pause again after so many new ones.

        Raises:
            RequestRefused: the job has ended.
        """
        connection = self._connection
        request = m.ResumeJob(
            driver=connection.id, request=connection.unique(), job=self.id, versions=versions
        )
        ask(connection, request, m.Done)

    def step(self) -> None:
        """Go on for one version; returns at once."""
        self.resume(versions=1)

    def delete(self, reason: str = "") -> None:
        """Delete a job that has ended: its versions, events and all else that is stored of it, for good.

        Raises:
            RequestRefused: it has not ended, or there is no such job.
        """
        connection = self._connection
        request = m.DeleteJob(driver=connection.id, request=connection.unique(), job=self.id, reason=reason)
        ask(connection, request, m.Done)

    def version(self, version: int | None = None) -> m.VersionRef:
        """A version of this job for ``Driver.submit`` to go on from; None is the newest there is then."""
        return m.VersionRef(job=self.id, version=version)

    def versions(self) -> tuple[m.VersionSummary, ...]:
        """The model versions that are kept, oldest first."""
        connection = self._connection
        request = m.ListVersions(driver=connection.id, request=connection.unique(), job=self.id)
        pages = ask_for_pages(connection, request, m.Versions)
        return tuple({one.version: one for page in pages for one in page.versions}.values())

    def model(self, version: int | None = None) -> Model:
        """A model version; None is the newest.

        Raises:
            RequestRefused: there is no such version, or it is no longer kept.
        """
        return download(self._connection, self.id, version)[1]

    def _stored(self, *, after: int) -> Iterator[Event]:
        connection = self._connection
        while True:
            request = m.ReadEvents(
                driver=connection.id, request=connection.unique(), job=self.id, after=after
            )
            page = ask(connection, request, m.Events)
            for body in page.events:
                event = decode_event(body)
                after = event.sequence
                yield event
            if page.last:
                return


def list_jobs(connection: Connection) -> tuple[m.JobSummary, ...]:
    """All jobs of the federation, oldest first."""
    request = m.ListJobs(driver=connection.id, request=connection.unique())
    pages = ask_for_pages(connection, request, m.Jobs)
    return tuple({job.job: job for page in pages for job in page.jobs}.values())
