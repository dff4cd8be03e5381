"""What all requests of drivers are answered with."""

from __future__ import annotations

from typing import Any

from broker_fl.coordination.state import JobState
from broker_fl.errors import RequestRefused, SettingRefused, StoreUnavailable, VersionsLost
from broker_fl.roles.controller.job.runner import JobRunner
from broker_fl.roles.controller.job.versions import Versions
from broker_fl.roles.controller.jobs import Jobs
from broker_fl.roles.controller.services import Services
from broker_fl.roles.controller.speakers import Speaker
from broker_fl.security.audit import Deed
from broker_fl.wire import messages as m


class Desk:
    """Of one controller, on its thread."""

    def __init__(self, services: Services, jobs: Jobs) -> None:
        self.services = services
        self.jobs = jobs

    def reply(self, request: m.Request, reply: m.Reply) -> None:
        """Answer the driver that asked."""
        topology = self.services.topology
        self.services.sender.send(topology.answers, [topology.driver_key(request.driver)], reply)

    def done(self, request: m.Request) -> None:
        """Answer that it is done."""
        self.reply(request, m.Done(request=request.request))

    def write_down(self, request: Any, speaker: Speaker, **details: str) -> None:
        """Into the audit log, and not go on before the store has it."""
        more = {name: value for name in ("version", "reason") if (value := getattr(request, name, None))}
        deed = Deed(
            actor=speaker.user,
            action=request.KIND,
            subject=f"job {request.job}",
            details={"driver": request.driver, **more, **details, **speaker.how_known},
        )
        self.services.audit.add(deed)
        self.services.persist(self.services.audit.write)

    def state(self, job: str) -> JobState:
        """A job that is known here.

        Raises:
            RequestRefused: there is none, it cannot be resumed, or the store has lost it.
            StoreUnavailable: perhaps another controller knows it.
        """
        states = self.jobs.states()
        if job not in states and not self.services.is_sure():
            raise StoreUnavailable(
                f"job {job!r} is not known here, and another controller may have taken over: the store has "
                "not confirmed the lease for a while"
            )
        if (reason := self.jobs.given_up.get(job)) is not None:
            raise RequestRefused(f"job {job!r} cannot be resumed: {reason}")
        if job not in states:
            self._check_not_elsewhere(job)
            known = ", ".join(sorted(states)[-5:]) or "none"
            raise RequestRefused(f"there is no job {job!r}; the latest are: {known}")
        return states[job]

    def _check_not_elsewhere(self, job: str) -> None:
        store = self.services.store
        if not store.num_events(job):  # raises if the store is away: then nobody knows whose the job is
            return
        if job in store.jobs():
            raise StoreUnavailable(f"job {job!r} is another controller's, which has taken over")
        raise RequestRefused(
            f"job {job!r} is lost: the store has its events, and forgot the job; submit it anew"
        )

    def versions(self, job: str) -> Versions:
        """What is stored of a job: all that its state says, or an older version would pass for the newest.

        Raises:
            VersionsLost: it is not; whoever starts as controller now makes up for it.
            RequestRefused: it is not, and nobody can.
        """
        versions = self.services.versions(job)
        try:
            versions.check_not_lost(self.state(job).version)
        except VersionsLost as error:
            if job in self.jobs.found_ended:
                raise RequestRefused(str(error)) from error
            raise
        return versions

    def running(self, job: str) -> JobRunner:
        """A job that has not ended.

        Raises:
            RequestRefused: it has, or there is none.
            StoreUnavailable: as ``state``.
        """
        state = self.state(job)
        if (runner := self.jobs.runner(job)) is None:
            raise RequestRefused(f"job {job!r} has ended: {state.end}, {state.reason}")
        return runner


def refused_by(request: m.Request, error: Exception, *, again: bool = False) -> m.Refused:
    """The answer to a request that cannot be carried out; ``again``: not now, but perhaps later."""
    setting = isinstance(error, SettingRefused)
    return m.Refused(request=request.request, reason=str(error)[:2000], again=again, setting=setting)
