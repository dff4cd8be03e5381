"""What learners and groups report between their results: that they are there, what they hold, what failed."""

from __future__ import annotations

from itertools import islice

from broker_fl.coordination import signals as s
from broker_fl.errors import FrameRefused
from broker_fl.roles.controller.attendance import Attendance
from broker_fl.roles.controller.jobs import Jobs
from broker_fl.roles.controller.limits import FORGOTTEN, RateLimit
from broker_fl.roles.controller.services import Services
from broker_fl.roles.controller.speakers import Speaker
from broker_fl.wire import messages as m

MAX_FORGOTTEN = 4
"""Tasks that one heartbeat is answered with: it may name a hundred, of jobs that never were."""


class Reports:
    """Of one controller, on its thread."""

    def __init__(self, services: Services, jobs: Jobs, attendance: Attendance) -> None:
        self._services = services
        self._members = services.members
        self._jobs = jobs
        self._attendance = attendance
        self._forgotten = RateLimit(FORGOTTEN, "tasks of jobs that have ended")

    def take(self, message: m.Message, _payload: memoryview | None, speaker: Speaker) -> None:
        """Handle one report.

        Raises:
            FrameRefused: it is no report, or in the name of somebody else.
        """
        speaker.check_report(message)
        match message:
            case m.Join():
                self._attendance.join(message, speaker)
            case m.GroupJoin():
                self._attendance.join_group(message, speaker)
            case m.Leave():
                self._attendance.leave(message)
            case m.Heartbeat():
                self._heartbeat(message, speaker)
            case m.Accepted(learner=learner, task=task, receive_s=receive_s):
                accepted = s.GroupHasAccepted if self._members.is_group(learner) else s.TaskWasAccepted
                self._jobs.signal(task.job, accepted(learner, task, receive_s))
            case m.Failed(learner=learner, task=task, reason=reason):
                failed = s.GroupHasFailed if self._members.is_group(learner) else s.TaskHasFailed
                self._jobs.signal(task.job, failed(learner, task, reason))
            case _:
                raise FrameRefused(f"a {message.KIND!r} message is not a report")

    def _heartbeat(self, beat: m.Heartbeat, speaker: Speaker) -> None:
        if not self._attendance.heard(beat):
            return
        is_group = self._members.is_group(beat.learner)
        for runner in self._jobs.running():
            if is_group:
                runner.group_heartbeat(s.GroupReported(beat.learner, beat.tasks))
            else:
                runner.heartbeat(s.LearnerReported(beat.learner, beat.tasks))
        self._forget_ended(beat, speaker)

    def _forget_ended(self, beat: m.Heartbeat, speaker: Speaker) -> None:
        """Have a learner let go of tasks whose jobs have ended without it: each holds a whole update.

        The jobs may be deleted by now, so those that nobody knows count as well; the rest comes again.
        """
        services, account = self._services, speaker.account
        if not services.is_sure():  # another controller may have begun them
            return
        ended = (status.task for status in beat.tasks if self._jobs.runner(status.task.job) is None)
        for task in islice(ended, MAX_FORGOTTEN):
            if account is not None and not self._forgotten.take(account.user, services.clock.now()):
                return
            cancel = m.Cancel(task=task, reason="the job has ended")
            services.sender.send(services.topology.tasks, [services.keys.of(beat.learner)], cancel)
