"""Whole jobs among all faults that there are; ``world.py`` checks the invariants at each step."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker_fl.wire import events as e
from broker_fl.wire.job import JobSpec, Termination, Transfer
from broker_fl.wire.pacing import Aimd
from broker_fl.wire.rules import FedBuff, FedRec
from broker_fl.wire.selectors import SelectRandom
from tests.unit.coordination.bench import asynchronous, spec
from tests.unit.coordination.world import Disk, Faults, World

ALL = Faults(
    lose=0.05,
    double=0.1,
    delay_s=3.0,
    fail=0.05,
    refuse=0.05,
    learner_crash=0.01,
    learner_leave=0.01,
    controller_crash=0.01,
)

JOBS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "deadline": {"deadline_s": 60.0, "quorum": 0.6, "min_learners": 2},
    "short deadline": {"deadline_s": 10.0, "evaluate": False},
    "count": {"quorum": 3},
    "everybody by the deadline": {"quorum": 5, "deadline_s": 40.0},
    "uploads in turns": {"transfer": Transfer(upload_budget_bytes=250)},
    "uploads one by one": {"transfer": Transfer(upload_budget_bytes=1), "deadline_s": 100.0},
    "random two": {"selector": SelectRandom(count=2, seed=1)},
    "random share": {"selector": SelectRandom(fraction=0.5, seed=2), "deadline_s": 60.0},
}


ASYNCHRONOUS: dict[str, JobSpec] = {
    "each update": asynchronous(),
    "a buffer": asynchronous(rule=FedBuff(buffer_size=3), min_learners=3),
    "everybody in the buffer": asynchronous(rule=FedBuff(buffer_size=5), min_learners=5, deadline_s=60.0),
    "two at a time": asynchronous(max_concurrent=2, deadline_s=30.0),
    "nothing old": asynchronous(max_staleness=2),
    "nobody ahead": asynchronous(max_lead=1, max_failures=100),
    "uploads one by one": asynchronous(transfer=Transfer(upload_budget_bytes=1)),
    "the newest of each": asynchronous(rule=FedRec()),
    "paced": asynchronous(pacing=Aimd(target_s=2.0)),
}


def check(disk: Disk, rounds: int) -> None:
    """Every version is of one round, and all that happened to it was said once and in order."""
    assert disk.version == rounds
    used = [training for learners in disk.contributions.values() for training in learners.values()]
    assert len(used) == len(set(used)), "one training is part of two versions"
    committed = [event.version for event in disk.events if isinstance(event, e.VersionCommitted)]
    assert committed == sorted(set(committed))
    starts = [event.round for event in disk.events if isinstance(event, e.RoundStarted)]
    assert starts == sorted(starts)
    ends = [event for event in disk.events if isinstance(event, e.JobFinished)]
    assert len(ends) == 1
    assert disk.events[-1] is ends[0]
    assert not disk.updates, "of a job that has ended nothing is left"


FAULTS: dict[str, st.SearchStrategy[float]] = {
    "lose": st.sampled_from([0.0, 0.02, 0.3]),
    "double": st.sampled_from([0.0, 0.5]),
    "delay_s": st.sampled_from([0.01, 3.0, 30.0]),
    "fail": st.sampled_from([0.0, 0.3]),
    "refuse": st.sampled_from([0.0, 0.3]),
    "learner_crash": st.sampled_from([0.0, 0.05]),
    "controller_crash": st.sampled_from([0.0, 0.05]),
    "down_s": st.sampled_from([1.0, 60.0]),
}


@pytest.mark.parametrize("name", JOBS)
def test_a_job_gets_through_a_world_of_faults(name: str) -> None:
    for seed in range(12):
        world = World(spec(rounds=12, max_retries=100, **JOBS[name]), seed=seed, faults=ALL)
        disk = world.run()
        assert disk.events[-1].state == "done", f"seed {seed}"  # type: ignore[attr-defined]
        check(disk, 12)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    name=st.sampled_from(sorted(JOBS)),
    **FAULTS,
)
def test_whatever_goes_wrong_a_job_is_done_once_it_stops(seed: int, name: str, **faults: float) -> None:
    world = World(spec(rounds=5, max_retries=100, **JOBS[name]), seed=seed, faults=Faults(**faults))
    disk = world.run()
    if disk.events[-1].state == "done":  # type: ignore[attr-defined]
        check(disk, 5)
    else:  # what fails a job here is bad luck a hundred times in one round, and it says so
        assert "missed its quorum 101 times" in disk.events[-1].reason  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", JOBS)
def test_groups_and_single_learners_get_through_a_world_of_faults(name: str) -> None:
    for seed in range(8):
        settings = spec(rounds=12, max_retries=100, **JOBS[name])
        world = World(settings, seed=seed, num_learners=2, group_sizes=(4, 3), faults=ALL)
        disk = world.run()
        assert disk.events[-1].state == "done", f"seed {seed}"  # type: ignore[attr-defined]
        check(disk, 12)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    name=st.sampled_from(sorted(JOBS)),
    **FAULTS,
    num_learners=st.sampled_from([0, 3]),
)
@example(  # a failure that came in a share while its group was lost
    seed=442, name="as it comes", num_learners=0, lose=0.3, double=0.0, delay_s=30.0, fail=0.3, refuse=0.3,
    learner_crash=0.0, controller_crash=0.0, down_s=1.0,
)  # fmt: skip
def test_whatever_goes_wrong_a_job_of_groups_is_done_once_it_stops(
    seed: int, name: str, num_learners: int, **faults: float
) -> None:
    settings = spec(rounds=5, max_retries=100, **JOBS[name])
    group_sizes = (5 - num_learners, 3)
    world = World(
        settings, seed=seed, num_learners=num_learners, group_sizes=group_sizes, faults=Faults(**faults)
    )
    disk = world.run()
    if disk.events[-1].state == "done":  # type: ignore[attr-defined]
        check(disk, 5)
    else:
        assert "missed its quorum 101 times" in disk.events[-1].reason  # type: ignore[attr-defined]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), wall_clock_s=st.sampled_from([5.0, 50.0, 500.0]))
def test_the_wall_clock_ends_a_job_among_faults(seed: int, wall_clock_s: float) -> None:
    termination = Termination(wall_clock_s=wall_clock_s)
    faults = replace(ALL, controller_crash=0.0)  # one that is down ends nothing until it is back
    world = World(spec(termination=termination, max_retries=100), seed=seed, faults=faults)
    disk = world.run()
    assert disk.events[-1].state == "done"  # type: ignore[attr-defined]
    assert world.now <= wall_clock_s + 1.0


@pytest.mark.parametrize("name", ASYNCHRONOUS)
def test_an_asynchronous_job_gets_through_a_world_of_faults(name: str) -> None:
    for seed in range(12):
        world = World(ASYNCHRONOUS[name], seed=seed, faults=ALL)
        disk = world.run()
        end = disk.events[-1]
        if end.state == "failed":  # type: ignore[attr-defined]
            assert "nobody is left to ask" in end.reason, f"seed {seed}"  # type: ignore[attr-defined]
        else:
            check(disk, 20)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    lose=st.sampled_from([0.0, 0.02, 0.3]),
    double=st.sampled_from([0.0, 0.5]),
    delay_s=st.sampled_from([0.01, 3.0, 30.0]),
    fail=st.sampled_from([0.0, 0.3]),
    refuse=st.sampled_from([0.0, 0.3]),
    learner_crash=st.sampled_from([0.0, 0.05]),
    controller_crash=st.sampled_from([0.0, 0.05]),
    down_s=st.sampled_from([1.0, 60.0]),
    name=st.sampled_from(sorted(ASYNCHRONOUS)),
)
def test_whatever_goes_wrong_an_asynchronous_job_ends(seed: int, name: str, **faults: float) -> None:
    disk = World(ASYNCHRONOUS[name], seed=seed, faults=Faults(**faults)).run()
    end = disk.events[-1]
    if end.state == "done":  # type: ignore[attr-defined]
        check(disk, 20)
    else:
        assert "nobody is left to ask" in end.reason  # type: ignore[attr-defined]


def test_a_world_follows_from_its_seed() -> None:
    def story(seed: int) -> list[str]:
        disk = World(spec(), seed=seed, faults=ALL).run()
        return [event.to_json() for event in disk.events]

    assert story(5) == story(5)
    assert story(5) != story(6)


def test_forty_learners_of_whom_fourteen_die_are_done_without_them() -> None:
    settings = spec(rounds=5, quorum=0.75, deadline_s=60.0, min_learners=30)
    world = World(settings, seed=1, num_learners=44)
    for index, learner in enumerate(world.learners.values()):
        learner.train_s = 10.0
        if index < 14:
            world.at(6.0, learner.end)
    disk = world.run()
    assert disk.events[-1].state == "done"  # type: ignore[attr-defined]
    assert not [event for event in disk.events if isinstance(event, e.RoundRetried)]
    assert [len(disk.contributions[version]) for version in (2, 3, 4, 5)] == [30] * 4


def test_a_world_is_fast_enough_to_be_run_a_million_times() -> None:
    def signals_per_s() -> float:
        began, world = time.process_time(), World(spec(rounds=300), seed=3, num_learners=20)
        world.run()
        return world.num_signals / (time.process_time() - began)

    assert any(signals_per_s() > 3_000 for _ in range(5)), "5 times less than on a 2-core machine"
