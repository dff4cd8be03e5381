"""A controller that loses its store, and not the broker: who hears learners and drivers meanwhile."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from broker_fl.aggregation.sums import WeightedSum
from broker_fl.errors import AggregationError, Fenced
from broker_fl.roles.controller.intake import Intake
from broker_fl.roles.controller.requests import Requests
from broker_fl.roles.driver import answers
from tests.unit.roles.stage import WAIT_S, Adds, Stage, done, eventually, kinds, model_of, same, spec


@pytest.fixture
def stage(tmp_path: Path):  # type: ignore[no-untyped-def]
    with Stage(tmp_path, heartbeat_s=0.3, lease_ttl_s=0.6) as made:
        yield made


def test_requests_and_reports_go_to_the_controller_that_took_over(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one has taken requests, and waits for its store with one of them in hand."""
    monkeypatch.setattr(answers, "_REPEAT_AFTER_S", 0.5)
    cut_off = stage.controller()
    stage.host({"a": Adds(1.0), "b": Adds(3.0)})
    drivers = [stage.driver, stage.connect()]
    cord, _ = stage.cords[cut_off]
    cord.pulled = True
    heir = stage.controller(wait=False)  # not before: a pause would give it the lease of one that is well
    wanted = spec(rounds=2, min_learners=2)
    with ThreadPoolExecutor(len(drivers)) as pool:
        jobs = list(pool.map(lambda driver: driver.submit(wanted, model_of()), drivers))
    assert heir.wait_active(WAIT_S)
    for job in jobs:
        done(job)
        same(job.model(), model_of(4.0))
        assert kinds(job).count("version_committed") == 2
    assert cut_off.error is None, "it has heard nothing of it"
    cord.pulled = False
    assert cut_off.wait(WAIT_S)
    assert isinstance(cut_off.error, Fenced)
    assert heir.error is None


@pytest.mark.parametrize("fault", ["pulled", "denies_renewals"])
def test_who_is_confirmed_again_hears_what_has_waited_and_takes_nobody_for_lost(
    stage: Stage, fault: str
) -> None:
    controller = stage.controller()
    stage.host({"a": (adds := Adds(1.0))})
    adds.gate.clear()
    job = stage.submit(rounds=3)
    assert adds.at_work.wait(WAIT_S)
    cord, _ = stage.cords[controller]
    setattr(cord, fault, True)
    beats = 6  # more than it takes to count as lost
    eventually(lambda: stage.broker.depth(stage.topology.reports) >= beats, "heartbeats that nobody reads")
    with ThreadPoolExecutor(1) as pool:
        listing = pool.submit(stage.driver.jobs)
        eventually(lambda: stage.broker.depth(stage.topology.control), "a request that nobody reads")
        setattr(cord, fault, False)
        assert [one.job for one in listing.result(WAIT_S)] == [job.id]
    adds.gate.set()
    done(job)
    same(job.model(), model_of(3.0))
    assert adds.num_trained == 3
    assert "learner_lost" not in kinds(job)
    assert controller.error is None


def test_requests_are_left_at_the_same_moment_as_reports(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker takes its time to give the reports back, and meanwhile a request comes."""
    controller = stage.controller()
    cord, transport = stage.cords[controller]
    take, handle, cancel = Intake._take, Requests.handle, transport.cancel
    came = threading.Event()
    handled: list[Any] = []
    handled_meanwhile: list[int] = []
    listings: list[Future[Any]] = []

    def taken(intake: Intake, reading: Any, delivery: Any) -> None:
        take(intake, reading, delivery)
        if reading.source.queue == stage.topology.control:
            came.set()

    def counted(requests: Requests, *request: Any) -> None:
        handled.append(request)
        handle(requests, *request)

    def slow(queue: str, *, hand_back: bool = False) -> None:
        if queue == stage.topology.reports and not listings:
            listings.append(pool.submit(stage.driver.jobs))
            assert came.wait(WAIT_S)
            handled_meanwhile.append(len(handled))
        cancel(queue, hand_back=hand_back)

    monkeypatch.setattr(Intake, "_take", taken)
    monkeypatch.setattr(Requests, "handle", counted)
    monkeypatch.setattr(transport, "cancel", slow)
    with ThreadPoolExecutor(1) as pool:
        cord.denies_renewals = True
        eventually(lambda: handled_meanwhile, "reports that are given back")
        cord.denies_renewals = False
        assert not listings[0].result(WAIT_S)
    assert handled_meanwhile == [0]


def test_a_sum_that_is_lost_ends_the_job_with_the_reason(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(*_: object, **__: object) -> None:
        raise AggregationError("an addition broke off before")

    monkeypatch.setattr(WeightedSum, "add", add)
    stage.controller()
    stage.host({"a": Adds(1.0)})
    finished = stage.submit(rounds=1).wait()
    assert finished.state == "failed"
    assert "an addition broke off before" in finished.reason
