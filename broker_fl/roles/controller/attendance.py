"""Who is there: learners and groups that join, leave, or are not heard of any more; what they, the jobs and
the audit log are told of it.
"""

from __future__ import annotations

import logging
from functools import partial

from broker_fl.coordination import signals as s
from broker_fl.coordination.membership import Lost
from broker_fl.interfaces import Member, Transport
from broker_fl.roles.attributes import check_size
from broker_fl.roles.controller.groups import Groups
from broker_fl.roles.controller.jobs import Jobs
from broker_fl.roles.controller.limits import JOINS, RateLimit
from broker_fl.roles.controller.lost_mailboxes import LostMailboxes
from broker_fl.roles.controller.services import Services
from broker_fl.roles.controller.speakers import Speaker
from broker_fl.security.audit import Deed
from broker_fl.wire import messages as m
from broker_fl.wire.events import GroupJoined, GroupLeft, GroupLost, LearnerJoined, LearnerLeft, LearnerLost

log = logging.getLogger(__name__)


class Attendance:
    """Of one federation, on the controller's thread."""

    def __init__(self, services: Services, jobs: Jobs) -> None:
        self._services = services
        self._members = services.members
        self._topology = services.topology
        self._jobs = jobs
        self._groups = Groups(self._members)
        self._joins = RateLimit(JOINS, "joins")
        self._mailboxes = LostMailboxes(services)

    # ------------------------------------------------------------ who comes

    def ask_who_is_there(self) -> None:
        """Have all learners and groups join again."""
        self._send(self._topology.ALL_LEARNERS, m.Rejoin())

    def join(self, join: m.Join, speaker: Speaker) -> None:
        """A learner is there.

        Raises:
            FrameRefused: it tells too much of itself.
        """
        check_size(join.learner, join.attributes)
        self._mailboxes.heard(join.learner, join.mailbox)
        if self._joins_too_often(speaker):
            return
        now = self._services.clock.now()
        is_new = self._members.join(
            Member(learner=join.learner, attributes=join.attributes, software=join.software),
            session=join.session,
            software=join.software,
            now=now,
            compact=join.compact,
        )
        self._members.heard(join.learner, join.session, join.tasks, now)
        self._services.keys.note(join.learner, join.mailbox)
        self._welcome(self._services.keys.of(join.learner))
        if is_new:
            log.info("learner %s joined; %d are there", join.learner, len(self._members))
            self._write_down(speaker, f"learner {join.learner}", session=join.session, software=join.software)
            self._jobs.emit(
                lambda job: LearnerJoined(job=job, learner=join.learner, attributes=dict(join.attributes))
            )
        self._jobs.signal_all(s.LearnerUp(join.learner, join.tasks))

    def join_group(self, page: m.GroupJoin, speaker: Speaker) -> None:
        """A group is there, once all of its pages are.

        Raises:
            FrameRefused: it tells too much of itself, or names a member twice.
        """
        check_size(page.group, page.attributes)
        self._mailboxes.heard(page.group, page.mailbox)
        joining = self._groups.page(page, self._services.clock.now())
        if joining is None or self._joins_too_often(speaker):
            return
        change = self._members.join_group(joining)
        self._services.keys.note(page.group, page.mailbox)
        self._welcome(self._services.keys.of(page.group))
        if change.gone:
            self._say_gone(page.group, change.gone, "its group goes on without it")
        if change.is_new:
            learners = tuple(joining.members)
            log.info(
                "group %s joined with %d learners; %d are there",
                page.group,
                len(learners),
                len(self._members),
            )
            self._write_down(
                speaker,
                f"group {page.group}",
                session=page.session,
                software=page.software,
                num_learners=len(learners),
            )
            self._jobs.emit(
                lambda job: GroupJoined(
                    job=job, group=page.group, learners=learners, attributes=page.attributes
                )
            )
        self._jobs.signal_all(s.GroupUp(page.group, joining.tasks))

    def _joins_too_often(self, speaker: Speaker) -> bool:
        """Each join may be written down for good, and answered with a task and its model."""
        account = speaker.account
        if account is None or speaker.replayed_by:
            return False
        return not self._joins.take(account.user, self._services.clock.now())

    def _write_down(self, speaker: Speaker, subject: str, **details: str | int) -> None:
        more = {**details, **speaker.how_known}
        self._services.audit.add(Deed(actor=speaker.user, action="joined", subject=subject, details=more))

    def _welcome(self, key: str) -> None:
        welcome = m.Welcome(federation=self._topology.federation, heartbeat_s=self._members.heartbeat_s)
        self._send(key, welcome, mandatory=True)

    def _send(self, key: str, message: m.Message, *, mandatory: bool = False) -> None:
        self._services.sender.send(self._topology.tasks, [key], message, mandatory=mandatory)

    # ------------------------------------------------------------ who stays

    def heard(self, beat: m.Heartbeat) -> bool:
        """Note a heartbeat; False if nobody knows who that is: it is asked to join."""
        self._mailboxes.heard(beat.learner, beat.mailbox)
        self._services.keys.note(beat.learner, beat.mailbox)
        if self._members.heard(beat.learner, beat.session, beat.tasks, self._services.clock.now()):
            return True
        self._send(self._services.keys.of(beat.learner), m.Rejoin(), mandatory=True)
        return False

    def is_without_mailbox(self, exchange: str, key: str) -> None:
        """What was sent to one learner has reached no queue: its mailbox is lost, and made anew for who is
        still there.

        Enrolled learners may not declare it themselves. What was in it is sent again when it is missed.
        """
        prefix = self._topology.learner_key("")
        name, _, generation = key.removeprefix(prefix).partition(".")
        if exchange != self._topology.tasks or not key.startswith(prefix):
            return
        self._mailboxes.lost(name, int(generation or 0))

    def pace(self) -> None:
        """Have a great many be heard of less often, and a few as often as at first."""
        if (heartbeat_s := self._members.pace()) is not None:
            log.info("%d are there; heartbeats are %.1f s apart now", len(self._members), heartbeat_s)
            self._welcome(self._topology.ALL_LEARNERS)

    # ------------------------------------------------------------ who goes

    def leave(self, leave: m.Leave) -> None:
        """A learner or a group says that it goes."""
        learner, reason = leave.learner, leave.reason or "it left"
        if (members := self._members.leave_group(learner, leave.session)) is not None:
            log.info("group %s left with %d learners: %s", learner, len(members), leave.reason)
            self._say_gone(learner, members, reason)
        elif self._members.leave(learner, leave.session):
            log.info("learner %s left: %s", learner, leave.reason)
            self._jobs.emit(lambda job: LearnerLeft(job=job, learner=learner, reason=leave.reason))
            self._jobs.signal_all(s.LearnerDown(learner, reason))

    def _say_gone(self, group: str, members: tuple[str, ...], reason: str) -> None:
        self._jobs.emit(lambda job: GroupLeft(job=job, group=group, learners=members, reason=reason))
        self._jobs.signal_all(s.GroupDown(group, members, reason))

    def expire(self, now: float) -> None:
        """Give up those that have been silent for too long; at least once a heartbeat."""
        self._mailboxes.forget(now)
        behind = partial(is_behind, self._services.transport, self._topology.reports)
        for lost in self._members.expire(now, behind):
            self._lost(lost)

    def _lost(self, lost: Lost) -> None:
        if lost.members is not None:
            self._lost_group(lost.learner, lost.members, lost.silent_s)
            return
        log.info("learner %s has not been heard of for %.0f s", lost.learner, lost.silent_s)
        self._jobs.emit(lambda job: LearnerLost(job=job, learner=lost.learner, silent_s=lost.silent_s))
        self._jobs.signal_all(s.LearnerDown(lost.learner, f"not heard of for {lost.silent_s:.0f} s"))

    def _lost_group(self, group: str, members: tuple[str, ...], silent_s: float) -> None:
        log.info("group %s of %d learners has not been heard of for %.0f s", group, len(members), silent_s)
        self._jobs.emit(lambda job: GroupLost(job=job, group=group, learners=members, silent_s=silent_s))
        self._jobs.signal_all(s.GroupDown(group, members, f"not heard of for {silent_s:.0f} s"))


def is_behind(transport: Transport, queue: str) -> bool:
    """Whether messages wait at the broker that nobody has fetched; of a transport that cannot say, no."""
    depth = getattr(transport, "depth", None)
    return depth is not None and bool(depth(queue))
