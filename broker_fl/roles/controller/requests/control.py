"""Requests that change a job which is there: stop, pause, resume, delete."""

from __future__ import annotations

from collections import deque

from broker_fl.coordination import signals as s
from broker_fl.errors import RequestRefused
from broker_fl.roles.controller.requests.desk import Desk
from broker_fl.wire import messages as m

MAX_REMEMBERED = 256


class Control:
    """Of one controller, on its thread."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._jobs = desk.jobs
        self._deleted: deque[str] = deque(maxlen=MAX_REMEMBERED)
        """The latest requests by which a job was deleted: they may come again."""

    def was_done(self, request: m.Request) -> bool:
        """Whether this very request has deleted its job."""
        return request.request in self._deleted

    def stop(self, request: m.StopJob) -> None:
        """End a job; what it has committed is kept."""
        self._desk.state(request.job)
        if (runner := self._jobs.runner(request.job)) is not None:
            runner.signal(s.StopWanted(request.reason or f"stopped by {request.driver}"))
        self._desk.done(request)

    def pause(self, request: m.PauseJob) -> None:
        """Have a job begin no new round."""
        self._desk.running(request.job).signal(s.PauseWanted(request.reason or f"paused by {request.driver}"))
        self._desk.done(request)

    def resume(self, request: m.ResumeJob) -> None:
        """Have a job go on."""
        self._desk.running(request.job).signal(s.ResumeWanted(request.versions))
        self._desk.done(request)

    def delete(self, request: m.DeleteJob) -> None:
        """Delete a job that has ended, with all that is stored of it."""
        if (away := self._jobs.flush()) is not None:  # what has just ended is put away by it
            raise away
        if (runner := self._jobs.runner(request.job)) is not None:
            state = runner.job.state.summary().state
            raise RequestRefused(f"job {request.job!r} has not ended, it is {state}: stop it first")
        self._jobs.delete(request.job, request.reason or f"deleted by {request.driver}")
        self._deleted.append(request.request)
        self._desk.done(request)
