from __future__ import annotations

import itertools
import random
import typing
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from broker_fl.aggregation import RULES, make_rule
from broker_fl.aggregation.fedavg import FedAvg, FedAvgRound
from broker_fl.aggregation.sums import WeightedSum
from broker_fl.errors import AggregationError, UpdateRefused
from broker_fl.interfaces import Contribution, Given
from broker_fl.model import DTYPES, FLOATS, Array, Model, ModelSpec
from broker_fl.wire.job import JobSpec
from broker_fl.wire.rules import FedAvg as Settings
from tests.unit.aggregation.cohorts import (
    Cohorts,
    check_floats,
    check_refusals,
    check_whole,
    cohorts,
    play,
    reals,
    rule_of,
)

EPSILON = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 2e-6, "float64": 1e-13}
"""Relative: half a step of the type, and what summing in float32 adds."""
SHAPES = st.sampled_from([(), (0,), (1,), (7,), (3, 2), (2, 0, 3)])


def begin(spec: ModelSpec) -> FedAvgRound:
    """A first round; FedAvg does not look at the model that was given."""
    return FedAvg().begin(Given(spec=spec, model=lambda: Model.empty(spec)))


def values(draw: st.DrawFn, dtype: str, shape: tuple[int, ...]) -> Array:
    if dtype in FLOATS:
        numbers = draw(hnp.arrays(np.float64, shape, elements=st.floats(-1e3, 1e3)))
        return numbers.astype(DTYPES[dtype])
    if dtype == "bool":
        return draw(hnp.arrays(np.bool_, shape))
    limits = np.iinfo(DTYPES[dtype])
    low, high = max(limits.min, -(2**40)), min(limits.max, 2**40)
    return draw(hnp.arrays(DTYPES[dtype], shape, elements=st.integers(low, high)))


@st.composite
def rounds(draw: st.DrawFn) -> list[Contribution]:
    """Contributions to one round, of random tensors of every type."""
    tensors = draw(st.lists(st.tuples(st.sampled_from(sorted(DTYPES)), SHAPES), min_size=1, max_size=6))
    return [
        Contribution(
            learner=f"l{index}",
            model=Model.of({f"t{i}": values(draw, dtype, shape) for i, (dtype, shape) in enumerate(tensors)}),
            num_examples=draw(st.one_of(st.integers(1, 50), st.just(100_000))),
        )
        for index in range(draw(st.integers(1, 5)))
    ]


def average(contributions: list[Contribution]) -> Model:
    accumulator = begin(contributions[0].model.spec)
    for contribution in contributions:
        assert accumulator.fold(contribution) == contribution.num_examples
    return accumulator.result().model


def reference(contributions: list[Contribution], name: str) -> Any:
    weights = np.array([contribution.num_examples for contribution in contributions], np.longdouble)
    stacked = np.stack([contribution.model[name].astype(np.longdouble) for contribution in contributions])
    return np.tensordot(weights / weights.sum(), stacked, 1)


def check(contributions: list[Contribution], mean: Model) -> None:
    for tensor in mean.spec.tensors:
        exact, found = reference(contributions, tensor.name), mean[tensor.name]
        if tensor.dtype == "bool":
            clear = np.abs(exact - 0.5) > 1e-9
            assert (found == (exact > 0.5))[clear].all()
            assert not found[~clear].any(), "a tie is False"
        elif tensor.dtype in FLOATS:
            largest = np.max([np.abs(c.model[tensor.name].astype(np.float64)) for c in contributions], axis=0)
            assert (np.abs(found.astype(np.float64) - exact) <= EPSILON[tensor.dtype] * largest + 1e-7).all()
        else:
            assert (np.abs(found.astype(np.float64) - exact.astype(np.float64)) <= 0.5 + 1e-3).all()


@settings(max_examples=300, deadline=None)
@given(rounds(), st.randoms(use_true_random=False))
def test_the_mean_is_that_of_a_reference_in_any_order(
    contributions: list[Contribution], chance: random.Random
) -> None:
    check(contributions, average(contributions))
    chance.shuffle(contributions)
    check(contributions, average(contributions))


@settings(max_examples=200, deadline=None)
@given(rounds())
def test_the_mean_lies_between_the_smallest_and_the_largest(contributions: list[Contribution]) -> None:
    mean = average(contributions)
    for tensor in mean.spec.tensors:
        stacked = np.stack([c.model[tensor.name].astype(np.float64) for c in contributions])
        found = mean[tensor.name].astype(np.float64)
        slack = EPSILON.get(tensor.dtype, 0.0) * np.abs(stacked).max(0) + (
            1e-7 if tensor.dtype in FLOATS else 0
        )
        assert (stacked.min(0) - slack <= found).all()
        assert (found <= stacked.max(0) + slack).all()


@settings(max_examples=100, deadline=None)
@given(rounds())
def test_equal_updates_give_themselves_to_the_last_bit_but_one(contributions: list[Contribution]) -> None:
    first = contributions[0]
    same = [
        Contribution(learner=c.learner, model=first.model, num_examples=c.num_examples) for c in contributions
    ]
    mean = average(same)
    for tensor in mean.spec.tensors:
        if tensor.dtype not in FLOATS:
            np.testing.assert_array_equal(mean[tensor.name], first.model[tensor.name])
    check(same, mean)


@settings(max_examples=200, deadline=None)
@given(rounds(), st.data())
def test_a_refused_update_changes_nothing(contributions: list[Contribution], data: st.DataObject) -> None:
    spec = contributions[0].model.spec
    undisturbed, disturbed = begin(spec), begin(spec)
    for contribution in contributions:
        undisturbed.fold(contribution)
        disturbed.fold(contribution)
        bad = data.draw(st.sampled_from(bad_ones(contribution)))
        with pytest.raises(UpdateRefused):
            disturbed.fold(bad)
    assert disturbed.total_weight == undisturbed.total_weight
    assert disturbed.result().model.digest == undisturbed.result().model.digest


def bad_ones(good: Contribution) -> list[Contribution]:
    """What must be refused, all of it near to what is fine."""
    bad = [Contribution(learner="bad", model=good.model, num_examples=number) for number in (0, -1)]
    models = [Model.of({**good.model, "extra": np.zeros(1, np.float32)})]
    for tensor in good.model.spec.tensors:
        if tensor.dtype in FLOATS and tensor.num_elements:
            for value in (np.nan, np.inf, -np.inf):
                broken = good.model.copy()
                broken[tensor.name].reshape(-1)[-1] = value
                models.append(broken)
    return bad + [Contribution(learner="bad", model=model, num_examples=1) for model in models]


def test_the_tensor_that_is_not_finite_is_named() -> None:
    good = Model.of({"a": np.ones(3, np.float32), "b": np.ones((2, 2), ml_dtypes.bfloat16)})
    good["b"][1, 1] = np.nan
    with pytest.raises(UpdateRefused, match="tensor 'b'"):
        begin(good.spec).fold(Contribution(learner="x", model=good, num_examples=1))


def test_another_order_of_tensors_is_refused_and_said_to_be_that() -> None:
    one = Model.of({"a": np.ones(2, np.float32), "b": np.zeros(2, np.float32)})
    other = Model.of({"b": np.zeros(2, np.float32), "a": np.ones(2, np.float32)})
    with pytest.raises(UpdateRefused, match="another order"):
        begin(one.spec).fold(Contribution(learner="x", model=other, num_examples=1))


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_is_positive_and_finite(weight: float) -> None:
    model = Model.of({"a": np.ones(2, np.float32)})
    total = WeightedSum(model.spec)
    with pytest.raises(UpdateRefused, match="weight"):
        total.add(model, weight)


def test_the_largest_weight_there_is_does_not_overflow_by_itself() -> None:
    model = Model.of({"a": np.full(3, 1e18, np.float32), "b": np.full(3, 7, np.int64)})
    mean = average([Contribution(learner=name, model=model, num_examples=2**62) for name in "ab"])
    np.testing.assert_allclose(mean["a"], 1e18, rtol=1e-6)
    np.testing.assert_array_equal(mean["b"], 7)


@pytest.mark.parametrize("size", [1, 40_000])
def test_an_update_with_which_the_sum_would_overflow_is_refused_and_the_sum_stays(size: int) -> None:
    model = Model.of({"a": np.full(size, 3e38, np.float32)})
    accumulator = begin(model.spec)
    accumulator.fold(Contribution(learner="a", model=model, num_examples=1))
    for num_examples in (1, 10):
        with pytest.raises(UpdateRefused, match=r"float32.*overflow"):
            accumulator.fold(Contribution(learner="b", model=model, num_examples=num_examples))
    np.testing.assert_array_equal(accumulator.result().model["a"], model["a"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_mean_at_the_edge_of_a_narrow_type_is_itself(dtype: str) -> None:
    largest = float(ml_dtypes.finfo(DTYPES[dtype]).max)  # type: ignore[no-untyped-call]
    model = Model.of({"a": np.full(3, largest, DTYPES[dtype])})
    accumulator = begin(model.spec)
    for name in "abc" if dtype == "float16" else "a":  # float16 is summed in a wider type
        accumulator.fold(Contribution(learner=name, model=model, num_examples=1))
    np.testing.assert_array_equal(accumulator.result().model["a"], model["a"])


def test_nothing_folded_is_an_error_and_so_is_a_sum_that_was_used_up() -> None:
    model = Model.of({"a": np.ones(2, np.float32)})
    accumulator = begin(model.spec)
    with pytest.raises(AggregationError, match="no update"):
        accumulator.result()
    accumulator.fold(Contribution(learner="a", model=model, num_examples=1))
    accumulator.result()
    with pytest.raises(AggregationError):
        accumulator.result()


def test_what_was_folded_is_not_kept_once_there_was_time() -> None:
    model = Model.of({"a": np.ones(50_000, np.float32)})
    accumulator = begin(model.spec)
    accumulator.fold(Contribution(learner="a", model=model, num_examples=3))
    accumulator.settle()
    model["a"][...] = 99
    np.testing.assert_array_equal(accumulator.result().model["a"], 1)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8"])
@pytest.mark.parametrize(("pair", "mean"), [((1, 2), 2), ((2, 3), 2), ((0, 1), 0), ((3, 4), 4)])
def test_whole_numbers_are_rounded_to_the_nearest_and_ties_to_even(
    dtype: str, pair: tuple[int, int], mean: int
) -> None:
    for weight in (1, 3, 49, 98, 103, 161, 1_000_003):
        models = [Model.of({"a": np.array([value], DTYPES[dtype])}) for value in pair]
        found = average([Contribution(learner="x", model=model, num_examples=weight) for model in models])
        assert found["a"][0] == mean, weight


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8"])
def test_whole_numbers_at_their_limits_do_not_wrap_around(dtype: str) -> None:
    limits = np.iinfo(DTYPES[dtype])
    for value in (limits.min, limits.max):
        model = Model.of({"a": np.array([value], DTYPES[dtype])})
        found = int(average([Contribution(learner=x, model=model, num_examples=7) for x in "abc"])["a"][0])
        assert abs(found - value) <= (0 if limits.bits < 64 else 1024), "float64 has 53 bits"


@pytest.mark.parametrize("weight", [1, 49, 98, 103, 107, 161])
def test_a_boolean_is_the_majority_by_weight_and_a_tie_is_false(weight: int) -> None:
    yes, no = (Model.of({"a": np.array([value])}) for value in (True, False))

    def vote(*votes: tuple[Model, int]) -> bool:
        return bool(average([Contribution(learner="x", model=m, num_examples=n) for m, n in votes])["a"][0])

    assert vote((yes, weight), (no, weight)) is False
    assert vote((yes, weight + 1), (no, weight)) is True
    assert vote((yes, weight), (no, weight + 1)) is False


@settings(max_examples=50, deadline=None)
@given(rounds(), st.integers(1, 3))
def test_sums_of_sums_compose_to_the_flat_result(contributions: list[Contribution], cut: int) -> None:
    """An unbalanced tree: one part's mean goes up with its whole weight. Float64 keeps rounding out of it."""
    exact = [
        Contribution(
            learner=c.learner,
            model=Model.of({name: array.astype(np.float64) for name, array in c.model.items()}),
            num_examples=c.num_examples,
        )
        for c in contributions
    ]
    left, right = exact[:cut], exact[cut:]
    below = Contribution(learner="left", model=average(left), num_examples=sum(c.num_examples for c in left))
    tree, flat = average([below, *right]), average(exact)
    for name in flat:
        np.testing.assert_allclose(tree[name], flat[name], rtol=1e-12, atol=1e-6)


def test_the_order_does_not_matter_at_all_while_sums_are_exact() -> None:
    models = [Model.of({"a": np.arange(40_000, dtype=np.float32) + index}) for index in range(3)]
    parts = [Contribution(learner=str(i), model=model, num_examples=i + 1) for i, model in enumerate(models)]
    assert len({average(list(order)).digest for order in itertools.permutations(parts)}) == 1


def test_the_settings_of_a_job_name_the_rule() -> None:
    assert isinstance(make_rule(Settings()), FedAvg)


def test_every_rule_that_a_job_can_name_is_there() -> None:
    choices = typing.get_args(JobSpec.model_fields["rule"].annotation)
    assert {choice.model_fields["name"].default for choice in choices} == {*RULES, "own"}


@settings(max_examples=50, deadline=None)
@given(cohorts(), st.sampled_from(["fedavg", "fedprox"]), st.sampled_from(["examples", "steps", "equal"]))
def test_updates_weigh_by_examples_steps_or_alike(cohort: Cohorts, name: str, weighting: str) -> None:
    start, [contributions] = cohort
    rule = rule_of(name, weighting=weighting, **({"mu": 0.1} if name == "fedprox" else {}))
    [combined] = play(rule, start, [contributions])
    weights = {
        "examples": [float(c.num_examples) for c in contributions],
        "steps": [float(c.num_steps) for c in contributions],
        "equal": [1.0 for _ in contributions],
    }[weighting]
    shares = np.array(weights) / sum(weights)
    mean = {
        t: np.tensordot(shares, np.stack([reals(c.model)[t] for c in contributions]), 1) for t in reals(start)
    }
    check_floats(combined.model, mean)
    check_whole(combined.model, contributions, weights)
    assert combined.memory is None
    check_refusals(rule, start, contributions)


def test_an_update_without_steps_has_no_weight_where_steps_are_counted() -> None:
    model = Model.of({"a": np.ones(2, np.float32)})
    accumulator = rule_of("fedavg", weighting="steps").begin(Given(spec=model.spec, model=lambda: model))
    with pytest.raises(UpdateRefused, match="num_steps is 0"):
        accumulator.fold(Contribution(learner="a", model=model, num_examples=3))
