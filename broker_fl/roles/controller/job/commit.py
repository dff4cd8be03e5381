"""The end of a round: its sum becomes the next version, stored with all that belongs to it."""

from __future__ import annotations

from dataclasses import replace

from broker_fl.coordination import signals as s
from broker_fl.coordination.job import Job
from broker_fl.errors import AggregationError, AppError
from broker_fl.interfaces import Combined
from broker_fl.model import ModelSpec
from broker_fl.roles.controller.job.cache import VersionCache
from broker_fl.roles.controller.job.eventlog import EventLog
from broker_fl.roles.controller.job.open_round import OpenRound
from broker_fl.roles.controller.job.stored_updates import StoredUpdates
from broker_fl.roles.controller.job.versions import VersionRecord
from broker_fl.roles.controller.services import Services
from broker_fl.roles.usage import resident_bytes


class Committer:
    """Of one job."""

    def __init__(  # noqa: PLR0913 - all that a version is made of, and where it goes
        self,
        job: Job,
        spec: ModelSpec,
        services: Services,
        round: OpenRound,
        cache: VersionCache,
        updates: StoredUpdates,
        events: EventLog,
    ) -> None:
        self._job = job
        self._spec = spec
        self._services = services
        self._round = round
        self._cache = cache
        self._updates = updates
        self._events = events

    def commit(self, version: int) -> s.VersionWasStored | s.CommitFailed:
        """Make the open round's sum this version; what came of it.

        Raises:
            Fenced, StoreUnavailable: see ``Services.persist``.
            VersionsLost: the store has lost the version before this one.
        """
        steady_s = self._services.clock.steady_s
        began = steady_s()
        try:
            total = self._round.close()
            combined = total.result()
            # It may be an update, whose arrays are a learner's; from here on it only is read.
            combined = replace(combined, model=combined.model.own().frozen())
        except (AggregationError, AppError) as error:
            return s.CommitFailed(f"round {self._job.state.round + 1}: {error}")
        record = VersionRecord(
            version=version,
            spec=self._spec,
            digest=combined.model.digest,
            committed_at=self._services.clock.now(),
            memory_spec=combined.memory.spec if combined.memory else None,
        )
        aggregated = steady_s()
        stored = s.VersionWasStored(
            version=version,
            digest=record.digest,
            total_weight=total.total_weight,
            used=combined.used,
            aggregate_s=aggregated - began,
            store_s=0.0,
            memory_bytes=resident_bytes(),
        )
        self._store(record, combined, stored)
        self._cache.put(version, combined.model, combined.memory)
        self._round.carry(version, combined.carried)
        return replace(stored, store_s=steady_s() - aggregated)

    def _store(self, record: VersionRecord, combined: Combined, stored: s.VersionWasStored) -> None:
        """Store the version after the events of all that is in it: its record is whole, whoever dies."""
        services, state = self._services, self._job.state
        services.persist(self._events.flush_all)
        after = self._job.state_after_commit(stored, self._events.last, services.clock.now())
        versions = services.versions(state.job)
        keep = state.spec.keep_versions

        def commit() -> None:
            versions.write(record, combined, after, keep=keep)

        self._updates.replace(combined.updates, commit)
