"""SCAFFOLD's server step against a float64 reference. Whole federations are in ``roles/test_scaffold``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_fl.aggregation.scaffold import Variates
from broker_fl.errors import AggregationError
from broker_fl.interfaces import Combined, Contribution, Given
from broker_fl.model import Model, ModelError
from broker_fl.wire import control
from tests.unit.aggregation.cohorts import (
    Cohorts,
    Reals,
    check_floats,
    check_refusals,
    check_whole,
    cohorts,
    reals,
    rule_of,
)


def with_control(contributions: list[Contribution], seed: int) -> list[Contribution]:
    """Each with a random change of its learner's variate."""
    rng = np.random.default_rng(seed)
    return [
        replace(
            one,
            control={
                name: rng.normal(size=array.shape).astype(array.dtype)
                for name, array in control.zeros(one.model.spec).items()
            },
        )
        for one in contributions
    ]


def reference(
    x: Reals, c: Reals, contributions: list[Contribution], rate: float, num: int
) -> tuple[Reals, Reals]:
    """Algorithm 1, lines 16 and 17."""
    share = len(contributions) / num
    moved = [reals(one.model) for one in contributions]
    changed: list[Any] = [one.control for one in contributions]
    return (
        {name: x[name] + rate * np.mean([y[name] - x[name] for y in moved], axis=0) for name in x},
        {name: c[name] + share * np.mean([one[name].astype("f8") for one in changed], axis=0) for name in c},
    )


@given(cohorts(rounds=3), st.integers(0, 99), st.sampled_from([1.0, 0.3]), st.integers(4, 9), st.randoms())
def test_it_is_the_papers_server_step_in_any_order(
    cohort: Cohorts, seed: int, rate: float, num_learners: int, chance: Any
) -> None:
    start, rounds = cohort
    x, c = reals(start), {name: np.zeros(array.shape) for name, array in reals(start).items()}
    combined, there = Combined(model=start), [f"l{index}" for index in range(num_learners)]
    for number, plain in enumerate(rounds):
        contributions = with_control(plain, seed + number)
        before = combined
        accumulator = rule_of("scaffold", learning_rate=rate).begin(
            Given(
                spec=start.spec,
                model=partial(getattr, before, "model"),
                memory=before.memory,
                round=number,
                learners=lambda: there,
            )
        )
        arrived = list(contributions)
        chance.shuffle(arrived)
        assert [accumulator.fold(one) for one in arrived] == [1.0] * len(arrived)
        combined = accumulator.result()
        x, c = reference(reals(before.model), c, contributions, rate, num_learners)
        check_floats(combined.model, x, slack=4, scale=10)
        check_whole(combined.model, contributions, [1.0] * len(contributions))
        variates = Variates.of(combined.memory, start.spec)
        for name, array in variates.mean().items():
            np.testing.assert_allclose(array, c[name], rtol=1e-4, atol=1e-5)
        assert {one.learner for one in contributions} == {
            k for k, v in variates.rounds.items() if v == number
        }


@given(cohorts(), st.integers(0, 99))
def test_a_refused_update_changes_neither_model_nor_variate(cohort: Cohorts, seed: int) -> None:
    start, (plain,) = cohort
    contributions = with_control(plain, seed)
    good = contributions[0]
    assert good.control is not None
    nan = {name: np.full_like(array, np.nan) for name, array in good.control.items()}
    check_refusals(
        rule_of("scaffold"), start, contributions, replace(good, control=nan), replace(good, control={})
    )


def test_who_contributed_counts_when_gone_and_one_that_lost_its_own_has_all_begin_anew() -> None:
    start, ones = Model.of({"w": np.zeros(2)}), {"w": np.ones(2)}

    def play(before: Combined, there: list[str], number: int, **controls: Any) -> Combined:
        round = Given(
            spec=start.spec, model=lambda: start, memory=before.memory, round=number, learners=lambda: there
        )
        accumulator = rule_of("scaffold").begin(round)
        for learner, change in controls.items():
            accumulator.fold(Contribution(learner=learner, model=start, num_examples=1, control=change))
        combined: Combined = accumulator.result()
        return combined

    first = play(Combined(model=start), ["a", "b"], 0, a=ones, b=ones)
    second = play(first, ["b", "c", "d"], 1, c=ones)  # a is gone, and d was not asked
    known = Variates.of(second.memory, start.spec)
    assert (dict(known.rounds), known.num_learners) == ({"a": 0, "b": 0, "c": 1}, 4)
    assert known.mean()["w"].tolist() == [3 / 4] * 2
    third = play(second, ["b", "c"], 2, b=None, c=ones)
    assert third.memory is None
    assert Variates.of(third.memory, start.spec).mean()["w"].tolist() == [0.0] * 2


def test_without_updates_there_is_no_result() -> None:
    start = Model.of({"w": np.zeros(2)})
    with pytest.raises(AggregationError):
        rule_of("scaffold").begin(Given(spec=start.spec, model=lambda: start)).result()


@given(cohorts())
def test_what_is_joined_comes_apart_again(cohort: Cohorts) -> None:
    start, (plain,) = cohort
    variate = with_control(plain, 1)[0].control
    assert variate is not None
    model, found = control.parted(control.joined(start, variate))
    assert model.digest == start.digest
    assert found.keys() == variate.keys()
    assert all((found[name] == variate[name]).all() for name in found)
    with pytest.raises(ModelError):
        control.parted(start)
    with pytest.raises(ModelError, match="control/"):
        control.joined_spec(control.joined_spec(start.spec))
