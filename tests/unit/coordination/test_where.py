"""Jobs that choose by attributes: nobody else is ever asked, and a job waits for learners that match."""

from __future__ import annotations

from typing import Any

import pytest

from broker_fl.coordination.state import Phase
from broker_fl.wire import events as e
from broker_fl.wire.job import JobSpec
from broker_fl.wire.selectors import SelectAll, SelectRandom
from tests.unit.coordination.bench import Bench, asynchronous, spec

ONLY_ABC: Any = {"learner": ["a", "b", "c"]}


def settings(*, is_asynchronous: bool, **fields: Any) -> JobSpec:
    return (asynchronous if is_asynchronous else spec)(selector=SelectAll(where=ONLY_ABC), **fields)


@pytest.mark.parametrize("is_asynchronous", [False, True])
def test_a_job_waits_with_a_reason_until_enough_learners_match(is_asynchronous: bool) -> None:
    bench = Bench(settings(is_asynchronous=is_asynchronous, min_learners=2, max_wait_s=60.0), "a", "x", "y")
    (waiting,) = bench.all(e.JobWaiting)
    assert waiting.reason == "1 of 3 learners match 'selector.where', 2 are needed"
    assert (bench.phase, bench.job.next_timer()) == (Phase.WAITING, bench.now + 60.0)
    bench.up("z")
    assert (bench.phase, bench.asked()) == (Phase.WAITING, set())
    bench.up("b")
    assert bench.asked() == {"a", "b"}


@pytest.mark.parametrize("is_asynchronous", [False, True])
def test_a_job_that_nobody_matches_fails_after_its_patience(is_asynchronous: bool) -> None:
    bench = Bench(settings(is_asynchronous=is_asynchronous, max_wait_s=60.0), "x")
    bench.wait(60.0)
    (finished,) = bench.all(e.JobFinished)
    assert (finished.state, finished.reason) == (
        "failed",
        "for 60 s: 0 of 1 learners match 'selector.where', 1 are needed",
    )


def test_nobody_takes_the_place_of_another_who_does_not_match() -> None:
    bench = Bench(spec(selector=SelectRandom(count=1, where=ONLY_ABC), quorum=1), "a", "b", "x", "y")
    (first,) = bench.asked()
    bench.down(first)
    (second,) = bench.asked()
    assert {first, second} == {"a", "b"}
    bench.down(second)
    assert bench.asked() == set()
    assert bench.job.state.reason == "0 of 2 learners match 'selector.where', 1 are needed"
    bench.up("c")
    assert bench.asked() == {"c"}


def test_spare_learners_match_too_and_have_not_kept_failing() -> None:
    selector = SelectRandom(count=1, where=ONLY_ABC, exclude_after=1)
    bench = Bench(spec(selector=selector, over_selection=5, rounds=9), "a", "b", "c", "x")
    assert bench.asked() == {"a", "b", "c"}
    bench.fail("a")
    bench.deliver("b")
    bench.stored()
    assert bench.asked() == {"b", "c"}


@pytest.mark.parametrize("num_rounds", range(9))
def test_a_learner_that_keeps_failing_replaces_another_only_if_nobody_else_can(num_rounds: int) -> None:
    bench = Bench(spec(selector=SelectRandom(count=1, exclude_after=1), rounds=99), "a", "b", "c")
    (failed,) = bench.asked()
    bench.fail(failed)
    for _ in range(num_rounds + 1):
        bench.play(*bench.asked())
    (one,) = bench.asked()
    (last,) = {"a", "b", "c"} - {failed, one}
    bench.down(one)
    assert bench.asked() == {last}
    bench.down(last)
    assert bench.asked() == {failed}


def test_without_rounds_only_those_that_match_get_tasks_and_evaluate_the_last_version() -> None:
    bench = Bench(asynchronous(versions=3, selector=SelectAll(where=ONLY_ABC)), "a", "b", "x")
    assert bench.asked() == {"a", "b"}
    bench.up("y")
    assert bench.asked() == set()
    bench.up("c")
    assert bench.asked() == {"c"}
    for _ in range(3):
        bench.play("a")
    assert bench.phase == Phase.EVALUATING
    assert bench.asked() == {"a", "b", "c"}
