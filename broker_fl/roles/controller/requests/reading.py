"""Requests that change nothing: lists of jobs, versions and learners; events; models."""

from __future__ import annotations

from functools import partial

from broker_fl.coordination.membership import Presence
from broker_fl.coordination.state import Phase
from broker_fl.errors import RequestRefused
from broker_fl.roles.controller.requests.desk import Desk
from broker_fl.roles.controller.requests.download import send_version
from broker_fl.roles.controller.speakers import Speaker
from broker_fl.wire import messages as m
from broker_fl.wire.pages import pages

EVENTS_PER_PAGE = 2_000
PAGE_BYTES = 2_000_000
LINE_BYTES = 256
"""Of a list, about."""
MAX_DOWNLOADS = 4
"""Of one account that are answered at a time: models of all jobs wait behind them."""


class Reading:
    """Of one controller, on its thread. Lists and events say how many bytes they answer with, about."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._services = desk.services
        self._jobs = desk.jobs
        self._reading: dict[str, str] = {}
        """Requests for models that are being answered, and their drivers."""

    def jobs(self, request: m.ListJobs) -> int:
        """All jobs, oldest first."""
        states = sorted(self._jobs.states().values(), key=lambda state: state.submitted_at)
        for jobs, last in pages([state.summary() for state in states], _num_bytes):
            self._desk.reply(request, m.Jobs(request=request.request, jobs=jobs, last=last))
        return len(states) * LINE_BYTES

    def versions(self, request: m.ListVersions) -> int:
        """The versions that are kept of a job."""
        evaluations = self._desk.state(request.job).evaluations
        records = self._desk.versions(request.job).records()
        summaries = [record.summary(evaluations.get(record.version, {})) for record in records]
        for versions, last in pages(summaries, _num_bytes):
            self._desk.reply(request, m.Versions(request=request.request, versions=versions, last=last))
        return len(summaries) * LINE_BYTES

    def learners(self, request: m.ListLearners) -> int:
        """Who is there."""
        now = self._services.clock.now()
        presences = sorted(self._jobs.members, key=lambda presence: presence.member.learner)
        for learners, last in pages([_summary(presence, now) for presence in presences], _num_bytes):
            self._desk.reply(request, m.Learners(request=request.request, learners=learners, last=last))
        return len(presences) * LINE_BYTES

    def events(self, request: m.ReadEvents) -> int:
        """One page; the driver asks for the next with the number of the last event it has."""
        self._desk.state(request.job)
        if (runner := self._jobs.runner(request.job)) is not None:
            runner.flush()
        read = partial(
            self._services.store.read_events, request.job, after=request.after, limit=EVENTS_PER_PAGE
        )
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
        self._desk.reply(request, m.Events(request=request.request, events=tuple(page), last=last))
        return size

    def check_room(self, request: m.ReadModel, speaker: Speaker) -> None:
        """Hold an account against how many models are on their way to it.

        Raises:
            RequestRefused: too many.
        """
        if speaker.account is None or request.request in self._reading:
            return
        if sum(map(speaker.account.speaks_for, self._reading.values())) >= MAX_DOWNLOADS:
            raise RequestRefused(f"{MAX_DOWNLOADS} models are on their way to {speaker.account} already")

    def model(self, request: m.ReadModel) -> None:
        """A version: what it is, then its chunks. It is read where it is sent: one at a time, and nobody else
        waits for it.
        """
        state, services = self._desk.state(request.job), self._services
        if request.request in self._reading:  # asked again because a large one takes its time
            return
        may_change = state.phase is not Phase.ENDED
        versions = self._desk.versions(request.job)
        versions.stream(request.version)  # whether it is there at all
        self._reading[request.request] = request.driver

        def sent() -> None:
            del self._reading[request.request]

        def send() -> None:
            try:
                send_version(services, request, versions, may_change=may_change)
            finally:
                services.post(sent)

        services.bulk_sender.post(send)


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
