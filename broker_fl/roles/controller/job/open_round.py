"""The open round of a job: the sum that updates are folded into, and how much of them has arrived."""

from __future__ import annotations

from collections.abc import Callable

from broker_fl.aggregation import make_rule
from broker_fl.coordination.job import Job
from broker_fl.interfaces import Accumulator, Given, LazyAccumulator
from broker_fl.model import ModelSpec
from broker_fl.roles.controller.job.cache import VersionCache
from broker_fl.roles.controller.job.stored_updates import StoredUpdates
from broker_fl.roles.controller.services import Services
from broker_fl.roles.progress import Progress
from broker_fl.wire.events import Event, TransferProgress
from broker_fl.wire.rules import PerUpdate


class OpenRound:
    """Of one job. A protocol without rounds has one open at a time all the same: the next version's."""

    def __init__(
        self,
        job: Job,
        spec: ModelSpec,
        services: Services,
        cache: VersionCache,
        updates: StoredUpdates,
        emit: Callable[[Event], None],
    ) -> None:
        rule = job.state.spec.rule
        self._job = job
        self._spec = spec
        self._services = services
        self._cache = cache
        self._emit = emit
        self._updates = updates if isinstance(rule, PerUpdate) and rule.stores_updates else {}
        self._rule = make_rule(rule, services.own)
        self._buffers = job.state.spec.buffers_of(spec)
        self._sum: Accumulator | None = None
        self._carried: tuple[int, object] = -1, None
        self._arrived: Progress | None = None

    def begin(self, expected_bytes: int) -> None:
        """Begin anew; ``expected_bytes`` is what all updates of the round take together."""
        self._sum = None
        self._arrived = Progress(expected_bytes, self._services.clock.steady_s, self._tell_arrived)

    def arrived(self, num_bytes: int) -> None:
        """So many more bytes of updates are there."""
        if self._arrived is not None:
            self._arrived.add(num_bytes)

    def sum(self) -> Accumulator:
        """What updates are folded into.

        Raises:
            AppError: an own rule cannot begin.
            VersionsLost: the store has lost the version that the rule goes on from.
        """
        if self._sum is None:
            version = self._job.state.version
            carried_by, carried = self._carried
            given = Given(
                spec=self._spec,
                model=lambda: self._cache.model(version),
                memory=self._cache.memory(version),
                buffers=self._buffers,
                round=self._job.state.round,
                learners=self._job.learners,
                updates=self._updates,
                carried=carried if carried_by == version else None,
            )
            self._sum = self._rule.begin(given)
        return self._sum

    def settle(self) -> None:
        """Nothing else is to be done: add the updates that wait to be added together."""
        if isinstance(self._sum, LazyAccumulator):
            self._sum.settle()

    def close(self) -> Accumulator:
        """The sum, which is out of here; what its rule carried on may change from now on."""
        closed = self.sum()
        self._sum, self._carried = None, (-1, None)
        return closed

    def carry(self, version: int, carried: object) -> None:
        """What the rule hands on from making this version to the next round, in memory only."""
        self._carried = (version, carried)

    def clear(self) -> None:
        """Hold nothing."""
        self._sum, self._carried = None, (-1, None)

    def _tell_arrived(self, num_bytes: int, total_bytes: int) -> None:
        state = self._job.state
        event = TransferProgress(
            job=state.job, round=state.round, direction="up", num_bytes=num_bytes, total_bytes=total_bytes
        )
        self._emit(event)
