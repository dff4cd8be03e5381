"""What a controller has in memory of a job's versions; what it has not, it reads from the store."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TypeVar

from broker_fl.errors import RequestRefused, VersionsLost
from broker_fl.model import Model, ModelSpec
from broker_fl.roles.controller.services import Services
from broker_fl.wire.job import JobSpec

T = TypeVar("T")


def lets_go(job: JobSpec, spec: ModelSpec) -> bool:
    """Whether a version is let go of once it is on its way: it is large, and nothing needs it to take updates
    in. Whom it must be sent to again gets it from the store.
    """
    return job.takes_groups and spec.num_bytes > job.transfer.upload_budget_bytes


class VersionCache:
    """Of one job: the newest version, what the rule kept with it, and one older version at most.

    All that asks the store waits until it answers, and raises ``StoreUnavailable`` if the controller is
    stopped meanwhile.
    """

    def __init__(self, services: Services, job: str, newest: tuple[int, Model] | None) -> None:
        """``newest``: a version and its number, if it is in memory already."""
        self._services = services
        self._job = job
        self._model = newest
        self._on_its_way: tuple[int, weakref.ref[Model]] | None = None
        """A version that is held no more, for as long as a sender has it."""
        self._memory: tuple[int, Model | None] | None = None
        self._base: tuple[int, Model] | None = None

    def model(self, version: int) -> Model:
        """The newest version.

        Raises:
            VersionsLost: the store has it no more.
        """
        if self._model is None and self._on_its_way is not None and self._on_its_way[0] == version:
            model = self._on_its_way[1]()
            self._model = None if model is None else (version, model)
        if self._model is None or self._model[0] != version:
            versions = self._services.versions(self._job)
            self._model = (version, self._read(lambda: versions.read(version))[1])
        return self._model[1]

    def memory(self, version: int) -> Model | None:
        """What the rule kept when it made the newest version.

        Raises:
            VersionsLost: the store has it no more.
        """
        if self._memory is None or self._memory[0] != version:
            versions = self._services.versions(self._job)
            self._memory = (version, self._read(lambda: versions.read_memory(version)))
        return self._memory[1]

    def older(self, version: int) -> Model:
        """A version before the newest.

        Raises:
            RequestRefused: it is not kept.
        """
        if self._base is None or self._base[0] != version:
            versions = self._services.versions(self._job)
            self._base = (version, self._services.persist(lambda: versions.read(version))[1])
        return self._base[1]

    def put(self, version: int, model: Model, memory: Model | None) -> None:
        """This is the newest version now, and what the rule kept when it made it."""
        self._model, self._memory = (version, model), (version, memory)

    def let_go(self, version: int, model: Model) -> None:
        """Hold the version only for as long as somebody else does."""
        self._model, self._on_its_way = None, (version, weakref.ref(model))

    def clear(self) -> None:
        """Hold nothing."""
        self._model = self._memory = self._base = None

    def _read(self, read: Callable[[], T]) -> T:
        """Read the newest version, which the store can only have lost if it has not got it."""
        try:
            return self._services.persist(read)
        except RequestRefused as error:
            raise VersionsLost(f"the store has lost a version: {error}") from error
