"""What comes into a controller's inbox: results, updates and sums of groups, on their way to the job that
waits for them; and the initial models of jobs that are submitted.
"""

from __future__ import annotations

import logging

from broker_fl.coordination import signals as s
from broker_fl.errors import FrameRefused, MessageRefused
from broker_fl.interfaces import Delivery
from broker_fl.roles.controller.jobs import Jobs
from broker_fl.roles.controller.limits import Waste
from broker_fl.roles.controller.requests.submissions import Submissions
from broker_fl.roles.controller.services import Services
from broker_fl.roles.controller.speakers import Speaker
from broker_fl.wire import messages as m
from broker_fl.wire.fields import MAX_REASON_CHARS

log = logging.getLogger(__name__)


class Results:
    """Of one controller, on its thread."""

    def __init__(self, services: Services, jobs: Jobs, submissions: Submissions, waste: Waste) -> None:
        self._services = services
        self._jobs = jobs
        self._submissions = submissions
        self._waste = waste

    def take(self, message: m.Message, payload: memoryview | None, speaker: Speaker) -> None:
        """Hand one message of the inbox to whoever waits for it.

        Raises:
            MessageRefused: it is not for an inbox, in the name of somebody else, or not usable.
        """
        if isinstance(message, m.ModelChunk) and payload is not None:
            _check_submits(speaker, message)
            self._submissions.initial_chunk(speaker, message, payload)
            return
        if not isinstance(message, m.Result | m.GroupResult | m.UpdateChunk):
            raise FrameRefused(f"a {message.KIND!r} message does not belong into an inbox")
        speaker.check_report(message)
        runner = self._jobs.runner(message.task.job)
        if runner is None:
            log.info(
                "a %s of learner %s for job %s came too late", message.KIND, speaker.name, message.task.job
            )
            self._waste.add(speaker)
        elif not runner.take(message, payload):
            self._waste.add(speaker)

    def refused(self, delivery: Delivery, speaker: Speaker, reason: str) -> None:
        """A learner whose result cannot be read has nothing better to send: its round goes on without it."""
        broken = m.broken_result(delivery.body)
        if broken is None or broken[0] != speaker.name:
            return
        learner, task = broken
        if not _is_readable(delivery.body):  # others were counted by the job, with what is wrong
            self._services.observer.update("refused", "unreadable")
        is_group = self._services.members.is_group(learner)
        signal = s.GroupHasFailed if is_group else s.UpdateWasRefused
        self._jobs.signal(task.job, signal(learner, task, reason[:MAX_REASON_CHARS]))


def _check_submits(speaker: Speaker, chunk: m.ModelChunk) -> None:
    if speaker.account is not None and speaker.account.role != "driver":
        raise FrameRefused(f"{speaker.account} sent a {chunk.KIND!r} message, which is for a driver")


def _is_readable(body: bytes) -> bool:
    try:
        m.decode(body)
    except MessageRefused:
        return False
    return True
