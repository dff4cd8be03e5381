"""FedAsync and FedBuff against plain float64 references, and the weights of stale updates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_fl.aggregation.staleness import discount
from broker_fl.errors import AggregationError, UpdateRefused
from broker_fl.interfaces import Contribution, Given
from broker_fl.model import Model
from broker_fl.wire.rules import Constant, Hinge, Polynomial
from tests.unit.aggregation.cohorts import check_floats, check_whole, cohorts, play, reals, rule_of

FUNCTIONS: list[tuple[dict[str, Any], Any]] = [
    ({"name": "constant"}, lambda tau: 1.0),
    ({"name": "hinge", "a": 2.0, "b": 3.0}, lambda tau: 1.0 if tau <= 3 else 1 / (2 * (tau - 3) + 1)),
    ({"name": "polynomial", "a": 0.5}, lambda tau: 1 / np.sqrt(1 + tau)),
]


@pytest.mark.parametrize(("function", "expected"), FUNCTIONS)
@given(chance=st.randoms(use_true_random=False), cohort=cohorts(), alpha=st.sampled_from([0.1, 0.6, 1.0]))
@settings(max_examples=25, deadline=None)
def test_fedasync_mixes_each_update_into_the_newest_version_by_its_staleness(
    chance: Any, cohort: Any, alpha: float, function: dict[str, Any], expected: Any
) -> None:
    start, [contributions] = cohort
    updates = [replace(one, staleness=chance.randint(0, 9)) for one in contributions]
    found = play(rule_of("fedasync", alpha=alpha, staleness=function), start, [[one] for one in updates])
    model = reals(start)
    for update in updates:
        share = alpha * expected(update.staleness)
        model = {name: (1 - share) * model[name] + share * new for name, new in reals(update.model).items()}
    check_floats(found[-1].model, model, slack=len(updates), scale=10.0)


@pytest.mark.parametrize(("function", "expected"), FUNCTIONS)
@given(
    chance=st.randoms(use_true_random=False),
    cohort=cohorts(),
    learning_rate=st.sampled_from([0.3, 1.0, 2.0]),
)
@settings(max_examples=25, deadline=None)
def test_fedbuff_moves_by_the_mean_change_in_any_order(
    chance: Any, cohort: Any, learning_rate: float, function: dict[str, Any], expected: Any
) -> None:
    start, [contributions] = cohort
    buffer = [replace(one, staleness=chance.randint(0, 9)) for one in contributions]
    rule = rule_of("fedbuff", learning_rate=learning_rate, staleness=function)
    found = play(rule, start, [buffer], chance)[0].model
    weights = [expected(one.staleness) for one in buffer]
    moved = {
        name: base
        + learning_rate
        * sum(w * reals(one.model)[name] for w, one in zip(weights, buffer, strict=True))
        / len(buffer)
        for name, base in reals(start).items()
    }
    check_floats(found, moved, scale=10.0)
    check_whole(found, buffer, weights)


@pytest.mark.parametrize("rule", ["fedasync", "fedbuff"])
def test_an_update_that_is_not_usable_changes_nothing(rule: str) -> None:
    start = Model.of({"a": np.ones(3, np.float32)})
    broken = Model.of({"a": np.array([1, np.nan, 1], np.float32)})
    step = rule_of(rule).begin(Given(spec=start.spec, model=lambda: start))
    with pytest.raises(UpdateRefused, match="'a' of the update has values that are NaN"):
        step.fold(Contribution(learner="x", model=broken, num_examples=1))
    assert step.total_weight == 0.0
    with pytest.raises(AggregationError, match="no update was folded"):
        step.result()


def test_a_second_update_needs_a_version_of_its_own() -> None:
    start = Model.of({"a": np.ones(3, np.float32)})
    step = rule_of("fedasync", alpha=0.5).begin(Given(spec=start.spec, model=lambda: start))
    step.fold(Contribution(learner="x", model=start, num_examples=1))
    with pytest.raises(UpdateRefused, match="one update makes a version"):
        step.fold(Contribution(learner="y", model=start, num_examples=1))
    step.result()
    assert step.total_weight == 0.5  # of the update, not of the version before


@given(tau=st.integers(0, 10_000))
def test_a_staler_update_never_counts_more(tau: int) -> None:
    for function in (Constant(), Hinge(), Hinge(a=0.1, b=0.0), Polynomial(), Polynomial(a=3.0)):
        weigh = discount(function)
        assert weigh(0) == 1.0
        assert 0.0 < weigh(tau + 1) <= weigh(tau) <= 1.0
