from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_fl.aggregation.fednova import local_work
from broker_fl.errors import AggregationError, UpdateRefused
from broker_fl.interfaces import Contribution, Given
from broker_fl.model import Model
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


def work(num_steps: int, rho: float) -> float:
    """``‖a‖₁`` from what it is made of: the gradient of step j is in all momenta that follow it."""
    return sum(sum(rho**age for age in range(num_steps - j)) for j in range(num_steps))


def reference(x: Reals, contributions: list[Contribution], rho: float) -> Reals:
    n = sum(c.num_examples for c in contributions)
    p = [c.num_examples / n for c in contributions]
    a = [work(c.num_steps, rho) for c in contributions]
    tau_eff = sum(p_k * a_k for p_k, a_k in zip(p, a, strict=True))
    after = {}
    for tensor, before in x.items():
        d = [(before - reals(c.model)[tensor]) / a_k for c, a_k in zip(contributions, a, strict=True)]
        after[tensor] = before - tau_eff * sum(p_k * d_k for p_k, d_k in zip(p, d, strict=True))
    return after


@settings(max_examples=60, deadline=None)
@given(cohorts(rounds=1), st.sampled_from([0.0, 0.9]), st.randoms(use_true_random=False))
def test_a_round_is_that_of_the_paper_in_any_order_and_whoever_drops_out(
    cohort: Cohorts, momentum: float, chance: random.Random
) -> None:
    start, [contributions] = cohort
    [combined] = play(rule_of("fednova", momentum=momentum), start, [contributions], chance)
    expected = reference(reals(start), contributions, momentum)
    changes = [work(c.num_steps, momentum) for c in contributions]
    check_floats(combined.model, expected, scale=10 * max(changes) / min(changes))
    check_whole(combined.model, contributions, [c.num_examples for c in contributions])


@settings(max_examples=25, deadline=None)
@given(cohorts())
def test_a_refused_update_changes_nothing(cohort: Cohorts) -> None:
    start, [contributions] = cohort
    good = contributions[0].model
    without = [Contribution(learner="x", model=good, num_examples=3, num_steps=steps) for steps in (0, -1)]
    check_refusals(rule_of("fednova"), start, contributions, *without)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("num_steps", [1, 2, 17])
def test_local_work_is_the_sum_of_what_each_gradient_did(num_steps: int, momentum: float) -> None:
    assert local_work(num_steps, momentum) == pytest.approx(work(num_steps, momentum))


def test_with_equal_work_it_is_fedavg() -> None:
    start = Model.of({"a": np.zeros(3)})
    updates = [
        Contribution(learner=str(k), model=Model.of({"a": np.full(3, float(k))}), num_examples=k, num_steps=7)
        for k in (1, 2, 5)
    ]
    [averaged], [normalised] = (play(rule_of(name), start, [updates]) for name in ("fedavg", "fednova"))
    np.testing.assert_allclose(normalised.model["a"], averaged.model["a"], rtol=1e-12)


def test_with_unequal_work_it_goes_towards_the_optimum_that_fedavg_misses() -> None:
    """Two learners with ``(x − c)² / 2``, as many examples, but 1 and 30 steps: the optimum is the middle."""
    rate, targets, steps = 0.01, (0.0, 1.0), (1, 30)
    ends = {}
    for name in ("fedavg", "fednova"):
        model = Model.of({"x": np.zeros(1)})
        for _ in range(600):
            updates = [
                Contribution(
                    learner=str(tau),
                    model=Model.of({"x": target + (model["x"] - target) * (1 - rate) ** tau}),
                    num_examples=10,
                    num_steps=tau,
                )
                for target, tau in zip(targets, steps, strict=True)
            ]
            model = play(rule_of(name), model, [updates])[0].model
        ends[name] = model["x"][0]
    assert ends["fedavg"] > 0.95
    assert abs(ends["fednova"] - 0.5) < 0.05


def test_an_update_without_steps_is_refused_and_told_why() -> None:
    model = Model.of({"a": np.ones(1)})
    accumulator = rule_of("fednova").begin(Given(spec=model.spec, model=lambda: model))
    with pytest.raises(UpdateRefused, match="num_steps is 0, and the rule counts optimiser steps"):
        accumulator.fold(Contribution(learner="a", model=model, num_examples=1))
    with pytest.raises(AggregationError, match="no update"):
        accumulator.result()
