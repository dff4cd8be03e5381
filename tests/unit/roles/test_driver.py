"""The driver as a notebook uses it: inside a running event loop, for a long time, with a controller that may
end.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker_fl.errors import StoreUnavailable
from broker_fl.roles.controller import Controller, ControllerSettings
from broker_fl.roles.driver import Driver, watch
from broker_fl.simulation import Federation
from broker_fl.stores.sqlite import SQLiteStore
from broker_fl.transports.memory import MemoryBroker
from broker_fl.wire.events import JobFinished
from tests.unit.roles.stage import WAIT_S, Adds, Cord, Stage, done, model_of, same, spec


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path) as stage:
        yield stage


def test_a_driver_works_inside_a_running_event_loop(stage: Stage) -> None:
    async def notebook() -> None:
        job = stage.run({"a": Adds(1.0)}, rounds=3)
        assert isinstance(list(job.events())[-1], JobFinished)
        same(job.model(), model_of(3.0))

    asyncio.run(notebook())


def test_a_driver_that_is_used_for_long_keeps_nothing(stage: Stage) -> None:
    job = stage.run({"a": Adds(1.0)}, rounds=1)
    done(job)
    for _ in range(50):
        assert isinstance(list(job.events())[-1], JobFinished)
        job.model()
    assert not stage.driver._connection._watches
    assert not stage.driver._connection._downloads
    assert not stage.driver._connection._waiting


def test_where_not_all_are_trusted_a_job_without_a_deadline_is_warned_of(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """One learner that stays and delivers nothing would hold it for ever."""
    stage.controller()
    federation = stage.topology.federation
    transport = stage.broker.connect("driver", user=f"{federation}.driver.ana")
    with Driver(transport, federation) as enrolled:
        for driver, deadline_s, warned in (
            (enrolled, None, 1),
            (enrolled, 60.0, 0),
            (stage.driver, None, 0),  # one account for all: all are trusted
        ):
            caplog.clear()
            driver.submit(spec(deadline_s=deadline_s), model_of())
            told = [one for one in caplog.messages if "job for ever" in one]
            assert len(told) == warned, (driver.id, deadline_s)


def test_a_driver_asks_to_be_told_of_a_new_connection_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = stage.broker.connect("driver")
    callbacks: list[object] = []
    monkeypatch.setattr(transport, "on_reconnect", callbacks.append)
    job = stage.run({"a": Adds(1.0)}, rounds=1)
    with Driver(transport, stage.topology.federation) as driver:
        for _ in range(50):
            list(driver.job(job.id).events())
    assert len(callbacks) == 1


def test_a_watch_is_given_the_error_at_once_that_ends_all_answers(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LOOK_AFTER_S", 2 * WAIT_S)  # at stored events
    stuck = Adds(1.0)
    stuck.gate.clear()
    job = stage.run({"a": stuck}, rounds=2)
    events = job.events()
    next(events)
    error = StoreUnavailable("the disk is full")
    threading.Timer(0.2, stage.driver.fail, [error]).start()
    began = time.monotonic()
    try:
        with pytest.raises(StoreUnavailable, match="the disk is full"):
            list(events)
    finally:
        stuck.gate.set()
    assert time.monotonic() - began < WAIT_S, "it has waited until it looked at stored events"
    with pytest.raises(StoreUnavailable, match="the disk is full"):
        stage.driver.jobs()


def test_a_controller_whose_store_fails_for_too_long_ends_before_it_is_active(tmp_path: Path) -> None:
    store = Cord(SQLiteStore(tmp_path / "state.sqlite", federation="f"))
    inner = store._inner
    store.pulled = True
    transport = MemoryBroker().connect("controller")
    settings = ControllerSettings(federation="f", store_patience_s=0.0)
    controller = Controller(transport, store, settings)
    controller.start()
    assert not controller.wait_active()
    assert controller.wait(10.0)
    assert isinstance(controller.error, StoreUnavailable)
    transport.close()
    inner.close()


def test_events_that_the_store_does_not_take_for_too_long_end_the_federation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker_fl.simulation.federation.STORE_PATIENCE_S", 0.1)

    def append_events(*_: object, **__: object) -> None:
        raise StoreUnavailable("no room for events")

    def run() -> None:
        with Federation({"a": Adds(1.0)}, folder=tmp_path) as federation:
            monkeypatch.setattr(federation._store, "append_events", append_events)
            federation.submit(spec(rounds=2), model_of()).wait()

    with pytest.raises(StoreUnavailable, match="no room for events"):
        run()


def test_a_federation_whose_controller_cannot_begin_raises_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker_fl.simulation.federation.STORE_PATIENCE_S", 0.0)
    federation = Federation({"a": Adds(1.0)}, folder=tmp_path)

    def jobs() -> dict[str, bytes]:
        raise StoreUnavailable("the disk is gone")

    monkeypatch.setattr(federation._store, "jobs", jobs)
    with pytest.raises(StoreUnavailable, match="the disk is gone"), federation:
        pytest.fail("it began")
