from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_fl.errors import AggregationError, UpdateRefused
from broker_fl.interfaces import Contribution, Given
from broker_fl.model import Array, Model
from tests.unit.aggregation.cohorts import (
    Cohorts,
    Reals,
    check_floats,
    check_refusals,
    check_whole,
    cohorts,
    play,
    reals,
    rule_of,
)

NAMES = ["fedavgm", "fedadagrad", "fedadam", "fedyogi"]
HARSH = {"learning_rate": 0.3, "beta1": 0.5, "tau": 0.05}
"""Settings at which rounding does not blow up: τ divides it."""


def reference(
    name: str, options: dict[str, float], x: Reals, rounds: list[list[Contribution]]
) -> list[Reals]:
    """Algorithm 2 of the paper, tensor by tensor in float64."""
    m = {tensor: np.zeros_like(value) for tensor, value in x.items()}
    v = {tensor: np.full_like(value, options.get("tau", 0.0) ** 2) for tensor, value in x.items()}
    after = []
    for contributions in rounds:
        n = sum(c.num_examples for c in contributions)
        moved = {}
        for tensor, before in x.items():
            delta = sum((c.num_examples / n) * (reals(c.model)[tensor] - before) for c in contributions)
            moved[tensor] = before + _step(name, options, tensor, m, v, delta)
        x = moved
        after.append(x)
    return after


def _step(name: str, options: dict[str, float], tensor: str, m: Reals, v: Reals, delta: Any) -> Array:
    eta = options["learning_rate"]
    if name == "fedavgm":
        m[tensor] = options["momentum"] * m[tensor] + delta
        return eta * m[tensor]
    beta1, beta2 = options["beta1"], options.get("beta2", 0.0)
    m[tensor] = beta1 * m[tensor] + (1 - beta1) * delta
    square = delta**2
    match name:
        case "fedadagrad":
            v[tensor] = v[tensor] + square
        case "fedadam":
            v[tensor] = beta2 * v[tensor] + (1 - beta2) * square
        case "fedyogi":
            v[tensor] = v[tensor] - (1 - beta2) * square * np.sign(v[tensor] - square)
    return eta * m[tensor] / (np.sqrt(v[tensor]) + options["tau"])


def harsh(name: str) -> dict[str, float]:
    if name == "fedavgm":
        return {"learning_rate": 0.7, "momentum": 0.8}
    return HARSH if name == "fedadagrad" else {**HARSH, "beta2": 0.6}


@settings(max_examples=60, deadline=None)
@given(cohorts(rounds=3), st.sampled_from(NAMES), st.randoms(use_true_random=False))
def test_three_rounds_are_those_of_the_paper_in_any_order_and_whoever_drops_out(
    cohort: Cohorts, name: str, chance: random.Random
) -> None:
    start, rounds = cohort
    # Narrow types are rounded to the type in each round; the reference is not: they have a test of their own.
    if any(t.dtype in ("float16", "bfloat16") for t in start.spec.tensors):
        rounds = rounds[:1]
    expected = reference(name, harsh(name), reals(start), rounds)
    found = play(rule_of(name, **harsh(name)), start, rounds, chance)
    for combined, exact, contributions in zip(found, expected, rounds, strict=True):
        check_floats(combined.model, exact, slack=20)
        check_whole(combined.model, contributions, [c.num_examples for c in contributions])


@settings(max_examples=25, deadline=None)
@given(cohorts(), st.sampled_from(NAMES))
def test_a_refused_update_changes_nothing(cohort: Cohorts, name: str) -> None:
    start, [contributions] = cohort
    check_refusals(rule_of(name), start, contributions)


@pytest.mark.parametrize("name", NAMES)
def test_one_step_of_the_defaults_by_hand(name: str) -> None:
    """One learner that adds 1: Δ = 1, v₋₁ = 10⁻⁶."""
    start, after = (Model.of({"a": np.full(2, value, np.float64)}) for value in (0.0, 1.0))
    [combined] = play(rule_of(name), start, [[Contribution(learner="a", model=after, num_examples=3)]])
    v = {"fedadagrad": 1e-6 + 1, "fedadam": 0.99e-6 + 0.01, "fedyogi": 1e-6 + 0.01}
    steps = {key: 0.1 * (1.0 if key == "fedadagrad" else 0.1) / (np.sqrt(v[key]) + 1e-3) for key in v}
    np.testing.assert_allclose(combined.model["a"], {**steps, "fedavgm": 1.0}[name], rtol=1e-12)


def test_fedavgm_without_momentum_is_fedavg_to_the_last_bit_of_a_sum_that_is_exact() -> None:
    start = Model.of({"a": np.arange(5, dtype=np.float32), "n": np.array([3])})
    updates = [Model.of({"a": start["a"] + add, "n": np.array([9])}) for add in (1, 3)]
    cohort = [[Contribution(learner="x", model=model, num_examples=2) for model in updates]]
    [averaged] = play(rule_of("fedavg"), start, cohort)
    [moved] = play(rule_of("fedavgm", momentum=0.0), start, cohort)
    assert averaged.model.digest == moved.model.digest


def test_yogi_where_the_square_is_the_second_moment_stays_there() -> None:
    tau = 0.5
    start, after = (Model.of({"a": np.full(1, value)}) for value in (0.0, tau))
    rule = rule_of("fedyogi", tau=tau)
    [combined] = play(rule, start, [[Contribution(learner="a", model=after, num_examples=1)]])
    assert combined.memory is not None
    assert combined.memory["v.0"] == tau**2


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_moments_are_kept_in_the_type_of_the_sum_and_the_given_ones_are_not_written_to(dtype: type) -> None:
    start = Model.of({"a": np.zeros(4, dtype), "n": np.zeros(2, np.int64), "b": np.zeros(3, np.float64)})
    after = Model.of({"a": np.ones(4, dtype), "n": np.ones(2, np.int64), "b": np.ones(3, np.float64)})
    cohort = [Contribution(learner="a", model=after, num_examples=1)]
    first, second = play(rule_of("fedadam"), start, [cohort, cohort])
    assert first.memory is not None
    kinds = {t.name: (t.dtype, t.shape) for t in first.memory.spec.tensors}
    assert kinds == {
        "m.0": ("float32", (4,)),
        "m.1": ("float64", (3,)),
        "v.0": ("float32", (4,)),
        "v.1": ("float64", (3,)),
    }
    np.testing.assert_allclose(first.memory["m.1"], 0.1)
    assert second.memory is not None
    assert second.memory["m.1"][0] > 0.1


def test_moments_that_another_rule_left_are_not_used() -> None:
    start, after = (Model.of({"a": np.full(2, value, np.float32)}) for value in (0.0, 1.0))
    contribution = Contribution(learner="a", model=after, num_examples=1)
    foreign = Model.of({"m.0": np.ones(2, np.float32)})
    fresh, after_other = (
        rule_of("fedadam").begin(Given(spec=start.spec, model=lambda: start, memory=memory))
        for memory in (None, foreign)
    )
    for accumulator in (fresh, after_other):
        accumulator.fold(contribution)
    assert fresh.result().model.digest == after_other.result().model.digest


@pytest.mark.parametrize("name", NAMES)
def test_nothing_folded_is_an_error_and_so_is_a_sum_that_was_used_up(name: str) -> None:
    model = Model.of({"a": np.ones(2, np.float32)})
    accumulator = rule_of(name).begin(Given(spec=model.spec, model=lambda: model))
    with pytest.raises(AggregationError, match="no update"):
        accumulator.result()
    accumulator.fold(Contribution(learner="a", model=model, num_examples=2))
    accumulator.result()
    assert accumulator.total_weight == 2
    with pytest.raises(AggregationError):
        accumulator.result()


@pytest.mark.parametrize("name", NAMES)
def test_a_change_whose_square_overflows_is_an_error_and_no_memory(name: str) -> None:
    start, after = (Model.of({"a": np.full(2, value, np.float32)}) for value in (-3e38, 3e38))
    accumulator = rule_of(name).begin(Given(spec=start.spec, model=lambda: start))
    accumulator.fold(Contribution(learner="a", model=after, num_examples=1))
    with pytest.raises(AggregationError, match="overflow"):
        accumulator.result()


def test_steps_weigh_where_the_job_says_so() -> None:
    start = Model.of({"a": np.zeros(1)})
    updates = [
        Contribution(
            learner=str(steps),
            model=Model.of({"a": np.full(1, float(steps))}),
            num_examples=1,
            num_steps=steps,
        )
        for steps in (1, 3)
    ]
    rule = rule_of("fedavgm", weighting="steps")
    [combined] = play(rule, start, [updates])
    np.testing.assert_allclose(combined.model["a"], (1 * 1 + 3 * 3) / 4)
    with pytest.raises(UpdateRefused, match="num_steps is 0"):
        rule.begin(Given(spec=start.spec, model=lambda: start)).fold(
            Contribution(learner="a", model=start, num_examples=1)
        )
