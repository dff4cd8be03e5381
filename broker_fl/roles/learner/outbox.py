"""What a host of learners sends: reports on one thread, results and updates on another, so that a large
update never holds up a heartbeat.
"""

from __future__ import annotations

from collections.abc import Callable

from broker_fl.interfaces import Transport
from broker_fl.model import Array
from broker_fl.roles.learner.group_task import GroupTask
from broker_fl.roles.learner.policy import Guard, NoGuard
from broker_fl.roles.learner.shares import FinishedShare, publish_sum
from broker_fl.roles.learner.tasks import HeldTask
from broker_fl.roles.runtime import Clock, Runtime
from broker_fl.roles.sender import Sender, handing, publish_outcome, publish_together
from broker_fl.topology import Topology
from broker_fl.wire.messages import Message, Result


class Outbox:
    """Of one host; its methods are called on the loop's thread, ``report`` on any."""

    def __init__(
        self, transport: Transport, topology: Topology, guard: Guard | NoGuard, clock: Clock, runtime: Runtime
    ) -> None:
        self._transport = transport
        self._topology = topology
        self._guard = guard
        self._clock = clock
        self._reports = Sender(transport, "learner-reports", runtime)
        self._updates = Sender(transport, "learner-updates", runtime)

    def report(self, name: str, report: Message) -> None:
        """Tell the controller something, in the name of a learner or a group."""
        self._reports.send(self._topology.reports, [f"{name}.{report.KIND}"], report, persistent=True)

    def after_reports(self, call: Callable[[], None]) -> None:
        """Have ``call`` made, on the reports' thread, when all reports so far are on their way."""
        self._reports.post(call)

    def send_result(self, held: HeldTask, result: Result) -> None:
        """Send a result, and its update unless that is to be asked for."""
        task = held.task
        exchange, key = self._topology.updates, f"{held.learner}.{task.inbox}"
        if (update := held.update) is None or task.upload != "at_once":
            self._updates.send(exchange, [key], result)
            return
        held.is_sent = self._count_again(update, is_sent=held.is_sent)
        if handing(self._transport) is not None:
            held.update = None  # its memory is free again as soon as it is in the sum
        publish = publish_together if task.compact else publish_outcome
        self._updates.post(lambda: publish(self._transport, exchange, key, result, update))

    def send_share(self, group: str, task: GroupTask, share: FinishedShare, *, is_asked_for: bool) -> None:
        """Send the pages of a group's result, and its sum unless that is to be asked for."""
        if task.cancelled:
            return
        exchange, key, newest = self._topology.updates, f"{group}.{task.newest.inbox}", task.newest
        self.send_pages(group, newest.inbox, share)
        if share.total is not None and (is_asked_for or newest.upload == "at_once"):
            task.is_sent = self._count_again(share.total, is_sent=task.is_sent)
            self._updates.post(lambda: publish_sum(self._transport, exchange, key, share))

    def send_pages(self, group: str, inbox: str, share: FinishedShare) -> None:
        """Send the pages of a group's result, without its sum."""
        for page in share.pages:
            self._updates.send(self._topology.updates, [f"{group}.{inbox}"], page)

    def _count_again(self, update: Array, *, is_sent: bool) -> bool:
        """Count an update of a task that has sent one, whoever asked for it; the first one was counted when
        the task was taken. Comes back true.
        """
        if is_sent:
            self._guard.count(update.nbytes, self._clock.now())
        return True

    def stop_updates(self, timeout_s: float) -> None:
        """Wait until all results and updates are on their way."""
        self._updates.stop(timeout_s)

    def stop_reports(self, timeout_s: float) -> None:
        """Wait until all reports are on their way."""
        self._reports.stop(timeout_s)
