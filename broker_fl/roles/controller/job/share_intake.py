"""Groups' shares, from the first page to the sum of the open round: each brings a sum of updates."""

from __future__ import annotations

import logging
from collections.abc import Callable

from broker_fl.coordination import signals as s
from broker_fl.coordination.groups import GroupJob
from broker_fl.coordination.job import Job
from broker_fl.coordination.shares import Share
from broker_fl.coordination.state import Phase
from broker_fl.errors import AggregationError, FrameRefused, MessageRefused, UpdateRefused
from broker_fl.interfaces import SumAccumulator
from broker_fl.model import ModelSpec
from broker_fl.roles.controller.job.open_round import OpenRound
from broker_fl.roles.controller.job.shares import ShareReceiver, SumUpload
from broker_fl.roles.controller.job.update_intake import reason_of
from broker_fl.roles.controller.services import Services
from broker_fl.wire.fields import MAX_REASON_CHARS
from broker_fl.wire.messages import GroupResult, UpdateChunk
from broker_fl.wire.rules import Summable

log = logging.getLogger(__name__)


class ShareIntake:
    """Of one job. ``signal`` tells the job what came of them."""

    def __init__(
        self,
        job: Job,
        spec: ModelSpec,
        services: Services,
        round: OpenRound,
        signal: Callable[[s.Signal], None],
    ) -> None:
        self._job = job
        self._services = services
        self._round = round
        self._signal = signal
        self.receiver = ShareReceiver(spec, job.state.spec.transfer)
        self.num_dropped = 0
        """Results and chunks that nobody waits for (late, doubled, of another round)."""

    def result(self, page: GroupResult) -> None:
        """Take in a page of a group's result.

        Raises:
            MessageRefused: it contradicts an earlier one, or the sum that it announces cannot be folded.
        """
        state, services = self._job.state, self._services
        known = page.group in state.cohort.groups or services.members.is_group(page.group)
        if not known or not isinstance(self._job, GroupJob):
            log.info("a result of %s for job %s is of no group", page.group, page.task.job)
            self.num_dropped += 1
            return
        # Of a task that is not open no page is kept until the others are there: one is enough to say so.
        is_open = page.num_pages == 1 or self._job.awaits(page.group, page.task)
        share = self.receiver.page(page) if is_open else Share.of([page])
        if share is None:
            return
        self._signal(s.ShareArrived(share))
        if not self._job.expects_share(share):
            if state.phase is Phase.TRAINING or not is_open:
                self.num_dropped += 1
            services.observer.update("late", count=len(share.learners))
            return
        try:
            upload = self.receiver.expect(share, services.clock.now())
        except UpdateRefused as error:
            self._refuse(share, error)
            raise
        self._fold_if_complete(upload)

    def chunk(self, chunk: UpdateChunk, payload: memoryview) -> None:
        """Take in a part of a group's sum.

        Raises:
            MessageRefused: the part, or the sum that it completes, is not usable.
        """
        share = self.receiver.of(chunk)
        if not self.receiver.admits(chunk, len(payload), self._job.has_turn):
            return
        try:
            upload = self.receiver.add(chunk, payload, self._services.clock.now())
        except FrameRefused as error:
            if share is not None:
                self._refuse(share, error)
            raise
        if upload is None:
            self.num_dropped += 1
            return
        self._round.arrived(len(payload))
        self._fold_if_complete(upload)

    def _fold_if_complete(self, upload: SumUpload) -> None:
        if not upload.assembly.complete:
            return
        clock, rule = self._services.clock, self._job.state.spec.rule
        share, began = upload.share, clock.steady_s()
        self.receiver.drop(share)
        if not isinstance(self._job, GroupJob) or not self._job.expects_share(share):
            return
        weight = float(share.weights(rule.weighting if isinstance(rule, Summable) else "examples").sum())
        total = self._round.sum()
        try:
            if not isinstance(total, SumAccumulator):
                raise UpdateRefused(f"the rule {rule.name!r} takes no sums of groups")
            total.fold_sum(self.receiver.model(upload), weight)
        except MessageRefused as error:
            self._refuse(share, error)
            raise
        except AggregationError as error:
            self._signal(s.CannotGoOn(f"round {self._job.state.round + 1}: {error}"))
            return
        folded = s.ShareWasFolded(
            share=share,
            weight=weight,
            num_bytes=self.receiver.sum_bytes,
            num_messages=upload.num_messages,
            upload_s=max(0.0, clock.now() - upload.first_at),
            fold_s=clock.steady_s() - began,
        )
        self._signal(folded)

    def _refuse(self, share: Share, error: MessageRefused) -> None:
        self.receiver.drop(share)
        self._services.observer.update("refused", reason_of(error), len(share.learners))
        self._signal(s.ShareWasRefused(share, str(error)[:MAX_REASON_CHARS]))
