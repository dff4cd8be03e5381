"""A job's target: whatever one learner or one group reports, it ends no job that the others would not end."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_fl.coordination.averaging import LatestMean
from broker_fl.coordination.target import is_reached_without_any_one
from broker_fl.wire import events as e
from broker_fl.wire.job import MetricTarget, Termination
from tests.unit.coordination.bench import Bench, asynchronous, spec
from tests.unit.coordination.test_groups import arrive, bench_of, fold, share

LIES = [
    ({"x": 1e300}, 1),
    ({"x": 1e290}, 2**50),
    ({"x": 1.0}, 2**62),
    ({"x": 30.0}, 10),
]


def ending(value: float = 0.9, **more: Any) -> Termination:
    return Termination(rounds=None, target=MetricTarget(metric="x", value=value, **more))


def report(bench: Bench, values: dict[str, float]) -> None:
    for learner, value in values.items():
        bench.deliver(learner, evaluation={"x": value}, evaluation_examples=10)


@pytest.mark.parametrize(("lie", "examples"), LIES)
def test_one_learner_ends_no_job_by_what_it_reports(lie: dict[str, float], examples: int) -> None:
    bench = Bench(spec(termination=ending(), min_learners=3), "a", "b", "mallory")
    report(bench, {"a": 0.5, "b": 0.8})
    bench.deliver("mallory", evaluation=lie, evaluation_examples=examples)
    assert bench.all(e.VersionEvaluated)[-1].metrics["x"] >= 0.9, "the mean is hers"
    assert bench.phase == "committing"
    bench.stored()
    report(bench, {"a": 0.89, "b": 0.92})
    bench.deliver("mallory", evaluation=lie, evaluation_examples=examples)
    (finished,) = bench.all(e.JobFinished)
    assert (finished.state, finished.version) == ("done", 1)


def test_nor_by_a_loss_below_all_others() -> None:
    bench = Bench(spec(termination=ending(0.1, mode="min"), min_learners=3), "a", "b", "mallory")
    report(bench, {"a": 0.5, "b": 0.11, "mallory": -1e300})
    assert bench.phase == "committing"
    bench.stored()
    report(bench, {"a": 0.1, "b": 0.1, "mallory": 0.1})
    assert bench.phase == "ended", "all are at the target exactly"


@pytest.mark.parametrize(("lie", "examples"), LIES)
def test_nor_one_without_rounds(lie: dict[str, float], examples: int) -> None:
    bench = Bench(asynchronous(termination=ending()), "a", "b", "mallory")
    for learner, value in (("a", 0.5), ("b", 0.8)):
        bench.play(learner, evaluation={"x": value}, evaluation_examples=10)
    bench.play("mallory", evaluation=lie, evaluation_examples=examples)
    assert bench.all(e.VersionEvaluated)[-1].metrics["x"] >= 0.9
    assert bench.phase == "training"
    bench.play("a", evaluation={"x": 1.1}, evaluation_examples=10)
    assert bench.phase == "evaluating", "the others' mean is 0.95"


def test_a_group_is_one_party_however_many_its_members_are() -> None:
    bench = bench_of(spec(min_learners=4, termination=ending()), "a")
    report(bench, {"a": 0.5})
    one = share(bench, "x", evaluation={"x": (1.0, 1.0, 1.0)}, evaluation_examples=(100,))
    arrive(bench, one)
    fold(bench, one)
    assert bench.all(e.VersionEvaluated)[-1].metrics["x"] > 0.9
    assert bench.phase == "committing"


def test_who_is_alone_or_the_only_one_to_evaluate_decides() -> None:
    bench = Bench(spec(termination=ending(), min_learners=2), "a", "mute")
    bench.deliver("mute")
    report(bench, {"a": 0.95})
    assert bench.phase == "ended"


def test_one_learner_does_not_do_for_a_quorum_of_two() -> None:
    bench = Bench(spec(termination=ending(), min_learners=3, quorum=2, deadline_s=5.0), "a", "b", "mallory")
    report(bench, {"mallory": 0.95})
    bench.wait(5.0)
    assert not bench.all(e.JobFinished)


NUMBERS = st.integers(-(10**6), 10**6)  # whose sums no float rounds
REPORTS = st.lists(st.tuples(NUMBERS, st.integers(1, 1_000)), min_size=1, max_size=8)
MODES = st.sampled_from(["max", "min"])


@given(honest=REPORTS, lie=st.floats(), examples=st.integers(1, 2**63 - 1), mode=MODES)
def test_whatever_one_reports_the_others_have_to_reach_it(
    honest: list[tuple[int, int]], lie: float, examples: int, mode: Any
) -> None:
    value = 1.0
    excesses = [weight * (number - value) for number, weight in honest]
    they_do = sum(excesses) >= 0 if mode == "max" else sum(excesses) <= 0
    target = MetricTarget(metric="x", value=value, mode=mode)
    said = [(f"l{i}", float(number), float(weight)) for i, (number, weight) in enumerate(honest)]
    if is_reached_without_any_one(target, [*said, ("mallory", lie, float(examples))]):
        assert they_do or (len(honest) == 1 and not math.isfinite(lie))


@given(rows=REPORTS, mode=MODES)
def test_with_rounds_and_without_it_is_the_same_question(rows: list[tuple[int, int]], mode: Any) -> None:
    target = MetricTarget(metric="x", value=3.0, mode=mode)
    latest = LatestMean()
    for index, (number, weight) in enumerate(rows):
        latest.add(f"l{index}", {"x": number}, weight)
    said = [(f"l{i}", float(number), float(weight)) for i, (number, weight) in enumerate(rows)]
    expected = is_reached_without_any_one(target, said)
    assert latest.reaches_without_any_one("x", 3.0, 1 if mode == "max" else -1) == expected
