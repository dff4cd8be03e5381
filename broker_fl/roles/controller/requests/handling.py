"""Every request of a driver: whether it may be asked for, who carries it out, what is written down."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from broker_fl.errors import FrameRefused, RequestRefused, StoreUnavailable, VersionsLost
from broker_fl.roles.controller.jobs import Jobs
from broker_fl.roles.controller.limits import READ_BYTES, READS, WRITTEN_DOWN, RateLimit
from broker_fl.roles.controller.requests.control import Control
from broker_fl.roles.controller.requests.desk import Desk, refused_by
from broker_fl.roles.controller.requests.reading import Reading
from broker_fl.roles.controller.requests.submissions import Submissions
from broker_fl.roles.controller.services import Services
from broker_fl.roles.controller.speakers import Speaker
from broker_fl.wire import messages as m

log = logging.getLogger(__name__)
_AUDITED = frozenset({m.Submit, m.StopJob, m.PauseJob, m.ResumeJob, m.DeleteJob, m.ReadModel})


class Requests:
    """Answers drivers, on the controller's thread."""

    def __init__(self, services: Services, jobs: Jobs, max_model_bytes: int) -> None:
        self._services = services
        self._desk = desk = Desk(services, jobs)
        self._written_down = RateLimit(WRITTEN_DOWN, "requests that are written down")
        self._reads = RateLimit(READS, "requests")
        self.submissions = Submissions(desk, max_model_bytes)
        self._control = Control(desk)
        self._reading = reading = Reading(desk)
        self._answers: dict[type, Callable[[Any], int | None]] = {
            m.StopJob: self._control.stop,
            m.PauseJob: self._control.pause,
            m.ResumeJob: self._control.resume,
            m.DeleteJob: self._control.delete,
            m.ListJobs: reading.jobs,
            m.ListLearners: reading.learners,
            m.ListVersions: reading.versions,
            m.ReadEvents: reading.events,
            m.ReadModel: reading.model,
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
            self._desk.reply(request, refused_by(request, error, again=True))
            return
        try:
            speaker.check_request(request)
            self._answer(request, speaker)
        except (RequestRefused, FrameRefused, StoreUnavailable) as error:
            log.info("request %s of driver %s: %s", request.KIND, request.driver, error)
            again = isinstance(error, StoreUnavailable)
            if not again and type(request) in _AUDITED:
                self._desk.write_down(request, speaker, refused=str(error)[:300])
            self._desk.reply(request, refused_by(request, error, again=again))
        except VersionsLost as error:
            self._desk.reply(request, refused_by(request, error))
            raise

    def _check_rate(self, request: m.Request, speaker: Speaker) -> None:
        """Hold an account against how much it may ask for, refused or not.

        Raises:
            RequestRefused: it is over that.
        """
        if speaker.account is None or speaker.replayed_by:
            return
        if isinstance(request, m.ReadModel):
            self._reading.check_room(request, speaker)
        user, now = speaker.account.user, self._services.clock.now()
        if type(request) not in _AUDITED:
            if not self._reads.take(user, now):
                raise RequestRefused(f"{speaker.account} asks too often, or for too much: try again later")
        elif not self._written_down.take(user, now):
            raise RequestRefused(
                f"{speaker.account} asks too often: {WRITTEN_DOWN.per_s:g} requests a second are written down"
            )

    def _answer(self, request: m.Request, speaker: Speaker) -> None:
        if isinstance(request, m.Submit):
            self.submissions.submit(request, speaker)
            return
        if (answer := self._answers.get(type(request))) is None:
            raise RequestRefused(f"requests of kind {request.KIND!r} are not known here")
        if self._control.was_done(request):
            self._desk.done(request)
            return
        if isinstance(request, m.StopJob | m.PauseJob | m.ResumeJob | m.DeleteJob | m.ReadModel):
            self._desk.state(request.job)
            self._desk.write_down(request, speaker)  # before it is done: nothing is that was not written down
        num_bytes = answer(request)
        if num_bytes and speaker.account is not None:
            self._reads.spend(speaker.account.user, self._services.clock.now(), num_bytes // READ_BYTES)
