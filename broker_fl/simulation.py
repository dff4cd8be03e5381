"""A whole federation in one process: the same roles, on the memory transport and a SQLite store. No server is
needed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from broker_fl.interfaces import Learner
from broker_fl.model import Array, Model
from broker_fl.roles.controller import Controller, ControllerSettings
from broker_fl.roles.driver import Driver, Job
from broker_fl.roles.learner import LearnerHost, LearnerSettings
from broker_fl.stores.sqlite import SQLiteStore
from broker_fl.transports.memory import MemoryBroker
from broker_fl.wire.job import JobSpec


class Federation:
    """Controller, learners and a driver on threads of this process; a context manager.

    ::

        with Federation({"a": learner_a, "b": learner_b}) as federation:
            job = federation.submit(JobSpec(termination={"rounds": 10}), initial_model)
            job.wait()
            final = job.model()
    """

    def __init__(
        self,
        learners: Mapping[str, Learner],
        *,
        folder: str | Path | None = None,
        num_workers: int = 2,
        name: str = "simulation",
    ) -> None:
        """Keep state in ``folder`` (a temporary one if None); ``num_workers`` learners work at a time."""
        self._temporary = tempfile.TemporaryDirectory() if folder is None else None
        self.folder = Path(self._temporary.name if self._temporary else folder or ".")
        self.broker = MemoryBroker()
        self._store = SQLiteStore(self.folder / "state.sqlite", federation=name)
        self._transports = [self.broker.connect(role) for role in ("controller", "learners")]
        self.controller = Controller(self._transports[0], self._store, ControllerSettings(federation=name))
        host_settings = LearnerSettings(federation=name, num_workers=num_workers)
        self.learners = LearnerHost(self._transports[1], learners, host_settings)
        self._name = name
        self.driver: Driver

    def __enter__(self) -> Self:
        self.controller.start()
        self.controller.wait_active()
        self.learners.start()
        self.driver = Driver(self.broker.connect("driver"), self._name)
        return self

    def __exit__(self, *_: object) -> None:
        self.driver.close()
        self.learners.stop(drain_s=0.0, reason="the simulation is over")
        self.controller.stop()
        self.controller.wait(10.0)
        for transport in self._transports:
            transport.close()
        self._store.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def submit(self, spec: JobSpec, model: Model | Mapping[str, Array]) -> Job:
        """Start a job; it waits until ``spec.protocol.min_learners`` are there."""
        return self.driver.submit(spec, model)
