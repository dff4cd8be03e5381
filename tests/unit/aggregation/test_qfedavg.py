from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_fl.errors import UpdateRefused
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

RATE = 0.1


def reference(w: Reals, contributions: list[Contribution], q: float, *, equal: bool) -> Reals:
    """Algorithm 2 of the paper, tensor by tensor in float64."""
    lipschitz = 1 / RATE
    deltas, hs = [], []
    for c in contributions:
        loss = c.evaluation["loss"] + 1e-10
        p = 1.0 if equal else float(c.num_examples)
        dw = {tensor: lipschitz * (w[tensor] - reals(c.model)[tensor]) for tensor in w}
        squared = sum(float((change**2).sum()) for change in dw.values())
        deltas.append({tensor: p * loss**q * change for tensor, change in dw.items()})
        hs.append(p * (q * loss ** (q - 1) * squared + lipschitz * loss**q))
    return {tensor: w[tensor] - sum(delta[tensor] for delta in deltas) / sum(hs) for tensor in w}


@settings(max_examples=60, deadline=None)
@given(
    cohorts(),
    st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]),
    st.sampled_from(["examples", "equal"]),
    st.randoms(use_true_random=False),
)
def test_a_round_is_that_of_the_paper_in_any_order_and_whoever_drops_out(
    cohort: Cohorts, q: float, weighting: str, chance: random.Random
) -> None:
    start, [contributions] = cohort
    rule = rule_of("qfedavg", q=q, learning_rate=RATE, weighting=weighting)
    [combined] = play(rule, start, [contributions], chance)
    check_floats(combined.model, reference(reals(start), contributions, q, equal=weighting == "equal"))
    weights = [1.0 if weighting == "equal" else float(c.num_examples) for c in contributions]
    check_whole(combined.model, contributions, weights)


@settings(max_examples=25, deadline=None)
@given(cohorts())
def test_a_refused_update_changes_nothing(cohort: Cohorts) -> None:
    start, [contributions] = cohort
    bad = [
        Contribution(learner="x", model=contributions[0].model, num_examples=3, evaluation=evaluation)
        for evaluation in ({}, {"loss": -0.1}, {"loss": float("nan")}, {"loss": float("inf")})
    ]
    check_refusals(rule_of("qfedavg", learning_rate=RATE), start, contributions, *bad)


def test_with_q_zero_it_is_fedavg() -> None:
    start = Model.of({"a": np.zeros(3)})
    updates = [
        Contribution(
            learner=str(k),
            model=Model.of({"a": np.full(3, float(k))}),
            num_examples=k,
            evaluation={"loss": 10.0 / k},
        )
        for k in (1, 2, 5)
    ]
    [averaged] = play(rule_of("fedavg"), start, [updates])
    [fair] = play(rule_of("qfedavg", q=0.0, learning_rate=0.3), start, [updates])
    np.testing.assert_allclose(fair.model["a"], averaged.model["a"], rtol=1e-12)


def test_the_learner_with_the_larger_loss_pulls_more() -> None:
    start = Model.of({"a": np.zeros(1)})
    updates = [
        Contribution(
            learner=str(to), model=Model.of({"a": np.full(1, to)}), num_examples=1, evaluation={"loss": loss}
        )
        for to, loss in ((-1.0, 1.0), (1.0, 3.0))
    ]
    [fair] = play(rule_of("qfedavg", q=2.0, learning_rate=1.0), start, [updates])
    assert fair.model["a"][0] > 0


@pytest.mark.parametrize("loss", [1e-6, 1e9])
def test_powers_far_out_of_the_range_of_float32_do_no_harm(loss: float) -> None:
    start, after = (Model.of({"a": np.full(3, value, np.float32)}) for value in (0.0, 1e-4))
    update = Contribution(learner="a", model=after, num_examples=1, evaluation={"loss": loss})
    [combined] = play(rule_of("qfedavg", q=20.0, learning_rate=RATE), start, [[update, update]])
    check_floats(combined.model, reference(reals(start), [update, update], 20.0, equal=True), scale=1e-4)


@pytest.mark.parametrize("losses", [(0.0, 5.0), (5.0, 0.0)])
def test_losses_far_from_one_another_do_no_harm_in_any_order(losses: tuple[float, float]) -> None:
    start = Model.of({"a": np.zeros(40_000, np.float32)})
    updates = [
        Contribution(
            learner=f"{loss}",
            model=Model.of({"a": np.full(40_000, 0.1 + loss, np.float32)}),
            num_examples=5,
            evaluation={"loss": loss},
        )
        for loss in losses
    ]
    [combined] = play(rule_of("qfedavg", q=10.0, learning_rate=RATE), start, [updates])
    check_floats(combined.model, reference(reals(start), updates, 10.0, equal=True), scale=0.0)


def test_a_loss_whose_power_no_number_holds_is_refused() -> None:
    model = Model.of({"a": np.ones(1)})
    accumulator = rule_of("qfedavg", q=100.0, learning_rate=RATE).begin(
        Given(spec=model.spec, model=lambda: model)
    )
    for loss in (0.0, 1e9):
        update = Contribution(learner="a", model=model, num_examples=1, evaluation={"loss": loss})
        with pytest.raises(UpdateRefused, match="to the power of q = 100"):
            accumulator.fold(update)


def test_an_update_without_a_loss_is_refused_and_told_why() -> None:
    model = Model.of({"a": np.ones(1)})
    accumulator = rule_of("qfedavg", learning_rate=RATE).begin(Given(spec=model.spec, model=lambda: model))
    with pytest.raises(UpdateRefused, match="has no metric 'loss'"):
        accumulator.fold(Contribution(learner="a", model=model, num_examples=1, evaluation={"accuracy": 1.0}))
