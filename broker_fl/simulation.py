"""A whole federation in one process: the same roles, on the memory transport and a SQLite store. No server is
needed.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from broker_fl.errors import BrokerFLError
from broker_fl.interfaces import Learner
from broker_fl.model import Array, Model
from broker_fl.roles.controller import Controller, ControllerSettings
from broker_fl.roles.driver import Driver, Job
from broker_fl.roles.learner import LearnerHost, LearnerSettings
from broker_fl.stores.sqlite import SQLiteStore
from broker_fl.transports.memory import MemoryBroker
from broker_fl.wire.job import JobSpec
from broker_fl.wire.messages import VersionRef

STORE_PATIENCE_S = 3.0
"""A disk that is full for so long ends the federation: nobody stands by to mend it, as with a daemon."""


class Federation:
    """Controller, learners and a driver on threads of this process; a context manager.

    What ends the controller before its time is raised at once from whatever waits for it, and by the context
    manager: ``StoreUnavailable`` if the disk is full.

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
        controller_settings = ControllerSettings(federation=name, store_patience_s=STORE_PATIENCE_S)
        self.controller = Controller(self._transports[0], self._store, controller_settings)
        host_settings = LearnerSettings(federation=name, num_workers=num_workers)
        self.learners = LearnerHost(self._transports[1], learners, host_settings)
        self._name = name
        self._closing = ExitStack()
        self._guard = threading.Thread(target=self._watch_controller, name="simulation-guard", daemon=True)
        self.driver: Driver

    def __enter__(self) -> Self:
        with ExitStack() as closing:
            closing.callback(self._close_files)
            self.controller.start()
            closing.callback(self._stop_controller)
            if not self.controller.wait_active():
                raise self.controller.error or BrokerFLError("the controller ended before it was active")
            self.learners.start()
            closing.callback(self.learners.stop, drain_s=0.0, reason="the simulation is over")
            self.driver = Driver(self.broker.connect("driver"), self._name)
            closing.callback(self.driver.close)
            self._guard.start()
            self._closing = closing.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        cause = self.controller.error  # before the end: what happens meanwhile is of no interest
        self._closing.close()
        self._guard.join()
        if cause is not None and cause is not error and isinstance(error, BrokerFLError | None):
            raise cause from error

    def _watch_controller(self) -> None:
        self.controller.wait()
        if isinstance(error := self.controller.error, Exception):
            self.driver.fail(error)

    def _stop_controller(self) -> None:
        self.controller.stop()
        self.controller.wait(10.0)

    def _close_files(self) -> None:
        for transport in self._transports:
            transport.close()
        self._store.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def submit(self, spec: JobSpec, model: Model | Mapping[str, Array] | VersionRef) -> Job:
        """Start a job; it waits until ``spec.protocol.min_learners`` are there."""
        return self.driver.submit(spec, model)
