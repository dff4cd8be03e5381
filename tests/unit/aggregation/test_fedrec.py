"""FedRec against the exact mean, in fractions, of the newest update of every learner."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_fl.aggregation.exact import ExactSum
from broker_fl.errors import AggregationError, UpdateRefused
from broker_fl.interfaces import Combined, Contribution, Given
from broker_fl.model import DTYPES, FLOATS, Model
from tests.unit.aggregation.cohorts import check_refusals, rule_of

SIZE = 3
Updates = dict[str, Contribution]


class Job:
    """A job's versions one by one, its store as a dict; ``restart`` leaves what is in the store."""

    def __init__(self, start: Model, **settings: Any) -> None:
        self.version = start
        self.stored: Updates = {}
        self.carried: object = None
        self._settings = settings
        self.restart()

    def restart(self) -> None:
        self._rule, self.carried = rule_of("fedrec", **self._settings), None

    def begin(self) -> Any:
        before = self.version
        return self._rule.begin(
            Given(spec=before.spec, model=lambda: before, updates=self.stored, carried=self.carried)
        )

    def deliver(self, update: Contribution) -> Combined:
        step = self.begin()
        step.fold(update)
        combined: Combined = step.result()
        self.stored |= {one.learner: one for one in combined.updates}
        self.version, self.carried = combined.model, combined.carried
        return combined


def limits_of(dtype: str) -> Any:
    """``finfo``, of bfloat16 too."""
    return ml_dtypes.finfo(DTYPES[dtype])  # type: ignore[no-untyped-call]


def values_of(dtype: str) -> st.SearchStrategy[float]:
    """Of all sizes, the smallest and the largest that the type has as well."""
    if dtype == "bool":
        return st.sampled_from([0.0, 1.0])
    if dtype not in FLOATS:
        limits = np.iinfo(DTYPES[dtype])
        return st.integers(max(limits.min, -(2**40)), min(limits.max, 2**40)).map(float)
    largest = min(float(limits_of(dtype).max), 1e250)
    return st.floats(-largest, largest) | st.sampled_from([0.0, 1.0, -1.0, 1e-3, largest, -largest, 5e-324])


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[Model, list[Contribution]]:
    """A model, and updates of four learners in any order, with weights that change."""
    dtypes = draw(st.lists(st.sampled_from(sorted(DTYPES)), min_size=1, max_size=3))
    updates = []
    for _ in range(draw(st.integers(1, 12))):
        arrays = {}
        for index, dtype in enumerate(dtypes):
            drawn = draw(st.lists(values_of(dtype), min_size=SIZE, max_size=SIZE))
            arrays[f"t{index}"] = np.array(drawn).astype(DTYPES[dtype])
        update = Contribution(
            learner=draw(st.sampled_from("abcd")),
            model=Model.of(arrays),
            num_examples=draw(st.integers(1, 2**29) | st.sampled_from([1, 2, 60_000])),
            num_steps=draw(st.integers(1, 100)),
            staleness=draw(st.integers(0, 9)),
        )
        updates.append(update)
    return Model.empty(updates[0].model.spec), updates


def exact_means(newest: Mapping[str, Contribution], weights: Mapping[str, int]) -> dict[str, list[Fraction]]:
    """``Σ n w / Σ n``; the products of float64 rounded once, as the rule says."""

    def term(value: Any, weight: int, dtype: str) -> Fraction:
        rounded = dtype in ("float64", "int64")
        return Fraction(float(value) * weight) if rounded else weight * Fraction(float(value))

    total = sum(weights[learner] for learner in newest)
    first = next(iter(newest.values())).model
    return {
        tensor.name: [
            sum(
                (term(one.model[tensor.name][i], weights[k], tensor.dtype) for k, one in newest.items()),
                Fraction(0),
            )
            / total
            for i in range(SIZE)
        ]
        for tensor in first.spec.tensors
    }


def spacing(dtype: str, value: float) -> Fraction:
    """Of the type's numbers about there."""
    info = limits_of(dtype)
    exponent = math.frexp(value)[1] - 1 if value else -2000
    return max(Fraction(float(info.eps)) * Fraction(2) ** exponent, Fraction(float(info.smallest_subnormal)))


def check(found: Model, newest: Mapping[str, Contribution], weights: Mapping[str, int]) -> None:
    """As near as the element's type allows: half a unit of its last place; of float64, two roundings."""
    means = exact_means(newest, weights)
    for tensor in found.spec.tensors:
        for value, mean in zip(found[tensor.name].tolist(), means[tensor.name], strict=True):
            if tensor.dtype == "bool":
                assert value == (mean > Fraction(1, 2))
            elif tensor.dtype in FLOATS:
                allowed = spacing(tensor.dtype, float(mean)) / 2
                allowed *= 3 if tensor.dtype == "float64" else 1 + Fraction(1, 2**20)
                assert abs(Fraction(value) - mean) <= allowed, (tensor, value, float(mean))
            else:
                assert abs(value - mean) <= Fraction(1, 2) + Fraction(1, 2**10)


WEIGHTS: dict[str, Callable[[Contribution], int]] = {
    "examples": lambda update: update.num_examples,
    "steps": lambda update: update.num_steps,
    "equal": lambda update: 1,
}


@pytest.mark.parametrize("weighting", WEIGHTS)
@given(case=deliveries(), chance=st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_a_version_is_the_exact_mean_of_the_newest_updates_whatever_came_before(
    weighting: str, case: tuple[Model, list[Contribution]], chance: Any
) -> None:
    """Learners that never come again stay in it, and a controller that is started anew changes nothing."""
    start, updates = case
    job, newest = Job(start, weighting=weighting), Updates()
    for update in updates:
        newest[update.learner] = update
        if chance.random() < 0.2:
            job.restart()
        combined = job.deliver(update)
        check(combined.model, newest, {k: WEIGHTS[weighting](one) for k, one in newest.items()})
        assert combined.updates == (update,)
        assert combined.memory is None
    alone = Job(start, weighting=weighting)
    for update in sorted(newest.values(), key=lambda _: chance.random()):
        alone.deliver(update)
    assert alone.version.digest == job.version.digest, "to the last bit"


def normal(rng: np.random.Generator, scale: float, size: int = 20_000) -> Model:
    return Model.of({"w": (rng.normal(size=size) * scale).astype(np.float32)})


def test_thousands_of_replacements_leave_nothing_not_even_of_diverged_updates() -> None:
    rng = np.random.default_rng(3)
    models = [normal(rng, scale, 50) for scale in [0.05] * 8 + [1e-6, 1e30]]
    job = Job(models[0])
    for count in range(5_000):
        learner, model = f"l{rng.integers(20)}", models[rng.integers(len(models))]
        job.deliver(Contribution(learner=learner, model=model, num_examples=int(rng.integers(1, 10_000))))
        if count % 500 == 0:
            weights = {k: one.num_examples for k, one in job.stored.items()}
            means = exact_means(job.stored, weights)["w"]
            assert job.version["w"][:SIZE].tolist() == [float(np.float32(float(mean))) for mean in means]
    sane = Updates()
    for index in range(20):
        model, learner = models[index % 8], f"l{index}"
        sane[learner] = Contribution(learner=learner, model=model, num_examples=100 + index)
        job.deliver(sane[learner])
    alone = Job(models[0])
    for update in sane.values():
        alone.deliver(update)
    assert job.version.digest == alone.version.digest
    counts = np.array([float(update.num_examples) for update in sane.values()])
    rows = np.stack([update.model["w"].astype(np.float64) for update in sane.values()])
    np.testing.assert_allclose(job.version["w"], counts @ rows / counts.sum(), rtol=1e-7, atol=1e-12)


def test_what_is_left_when_large_terms_cancel_is_exact() -> None:
    """Powers of two from 2^-300 to 2^300 come and go: the sum is the float64 nearest to the exact one."""
    rng = np.random.default_rng(11)
    size = 300
    terms = [np.ldexp(rng.choice([-1.0, 1.0], size), rng.integers(-300, 300, size)) for _ in range(8)]
    terms += [np.ldexp(rng.choice([-1.0, 1.0], size), rng.integers(-60, 60, size)) for _ in range(8)]
    total = ExactSum(Model.of({"x": terms[0]}).spec)
    there = [list[Fraction]() for _ in range(size)]
    for index in [*range(16), *rng.permutation(16)[:15]]:
        sign = 1.0 if len(there[0]) < 16 else -1.0
        total.add((Model.of({"x": terms[index]}), sign))
        for place, value in zip(there, terms[index].tolist(), strict=True):
            place.append(Fraction(sign * value))
        for value, place in zip(total.mean(1.0)["x"].tolist(), there, strict=True):
            exact = sum(place, Fraction(0))
            half = spacing("float64", float(exact)) / 2 * (1 + Fraction(1, 2**50))  # a tie goes either way
            assert abs(Fraction(value) - exact) <= half


def test_one_update_in_the_place_of_another_may_leave_only_the_smallest_part() -> None:
    large, one, small = (Model.of({"x": np.array([value])}) for value in (2.0**53, 1.0, 2.0**-60))
    total = ExactSum(large.spec)
    for model in (large, one, small):
        total.add((model, 1.0))
    total.add((one, -1.0), (large, -1.0))
    assert total.mean(1.0)["x"].tolist() == [2.0**-60]
    total.add((large, 1.0), (one, 1.0))
    total.add((large, -1.0), (one, -1.0))
    assert total.mean(1.0)["x"].tolist() == [2.0**-60]


def test_the_sum_takes_as_much_memory_as_it_needs_to_be_exact_and_gives_it_back() -> None:
    rng = np.random.default_rng(5)
    models = [normal(rng, 0.05) for _ in range(4)]
    total = ExactSum(models[0].spec)
    for model in models:
        total.add((model, 1234.0))
    usual = total.num_bytes
    assert usual <= 2 * 8 * 20_000
    huge = normal(rng, 1e30)
    total.add((huge, 7.0))
    assert total.num_bytes >= usual + 8 * 20_000
    total.add((models[0], 5.0), (huge, -7.0))
    assert total.num_bytes == usual
    for model in models:
        total.add((model, -1234.0))
    total.add((models[0], -5.0))
    assert not total.mean(1.0)["w"].any()
    assert total.num_bytes == 8 * 20_000


def test_an_update_is_read_from_the_store_only_when_its_learner_delivers_again() -> None:
    """The work of an update does not grow with the number of learners."""

    class Counting(Mapping[str, Contribution]):
        def __init__(self) -> None:
            self.inner, self.read = Updates(), list[str]()

        def __getitem__(self, learner: str) -> Contribution:
            self.read.append(learner)
            return self.inner[learner]

        def __iter__(self) -> Any:
            return iter(self.inner)

        def __len__(self) -> int:
            return len(self.inner)

        def __or__(self, other: Updates) -> Counting:
            self.inner |= other
            return self

    job = Job(Model.of({"w": np.zeros(2, np.float32)}))
    job.stored = stored = Counting()  # type: ignore[assignment]
    for learner in [*"abcdefgh", "c", "c", "a"]:
        job.deliver(Contribution(learner=learner, model=job.version, num_examples=1))
    assert stored.read == ["c", "c", "a"]
    job.restart()
    job.deliver(Contribution(learner="z", model=job.version, num_examples=1))
    assert sorted(stored.read[3:]) == [*"abcdefgh"]


def test_an_update_that_is_not_usable_changes_nothing() -> None:
    start = Model.of({"t0": np.ones(3, np.float32), "d": np.zeros(2)})
    too_large = Model.of({"t0": np.ones(3, np.float32), "d": np.full(2, 1e300)})
    good = Contribution(learner="a", model=start, num_examples=4)
    check_refusals(
        rule_of("fedrec"), start, [good], Contribution(learner="a", model=too_large, num_examples=9)
    )
    with pytest.raises(UpdateRefused, match="counts optimiser steps"):
        Job(start, weighting="steps").deliver(good)


def test_one_update_makes_a_version() -> None:
    job = Job(Model.of({"a": np.ones(3, np.float32)}))
    step = job.begin()
    with pytest.raises(AggregationError, match="no update was folded"):
        step.result()
    assert step.total_weight == 0.0
    job.deliver(Contribution(learner="x", model=job.version, num_examples=5))
    job.deliver(Contribution(learner="y", model=job.version, num_examples=2))
    step = job.begin()
    assert step.fold(Contribution(learner="x", model=job.version, num_examples=9)) == 9.0
    assert step.total_weight == 11.0
    with pytest.raises(UpdateRefused, match="one update makes a version"):
        step.fold(Contribution(learner="y", model=job.version, num_examples=1))
