"""Sums that are folded in parts, as groups do, against sums that are folded at once and against float64."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_fl.aggregation.fedavg import FedAvg
from broker_fl.aggregation.sums import WeightedSum, sum_spec
from broker_fl.errors import UpdateRefused
from broker_fl.interfaces import Given, SumAccumulator
from broker_fl.model import Model, ModelSpec, TensorSpec

DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "uint8", "bool")


def model(seed: int, dtypes: tuple[str, ...], size: int = 5) -> Model:
    draw = np.random.default_rng(seed)
    tensors = (TensorSpec(f"t{place}", dtype, (size,)) for place, dtype in enumerate(dtypes))
    made = Model.empty(ModelSpec(tuple(tensors)))
    for array in made.values():
        if array.dtype.kind in "ub":
            array[...] = draw.integers(0, 2 if array.dtype.kind == "b" else 200, size)
        else:
            array[...] = draw.standard_normal(size) * 10
    return made


@settings(max_examples=60, deadline=None)
@given(
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=4).map(tuple),
    weights=st.lists(st.integers(1, 1000), min_size=1, max_size=12),
    cuts=st.lists(st.integers(0, 12), max_size=4),
)
def test_sums_of_sums_are_the_sum(dtypes: tuple[str, ...], weights: list[int], cuts: list[int]) -> None:
    models = [model(seed, dtypes) for seed in range(len(weights))]
    spec = models[0].spec
    parts, whole = WeightedSum(spec), WeightedSum(spec)
    for one, weight in zip(models, weights, strict=True):
        whole.add(one, float(weight))
    edges = sorted({0, len(models), *(cut for cut in cuts if cut < len(models))})
    for start, stop in pairwise(edges):
        part = WeightedSum(spec)
        for one, weight in zip(models[start:stop], weights[start:stop], strict=True):
            part.add(one, float(weight))
        weight_of_part = part.total_weight
        total = part.total()
        assert total.spec == sum_spec(spec)
        parts.add_sum(total, weight_of_part)
    assert parts.total_weight == whole.total_weight == sum(weights)
    found, at_once = parts.mean(), whole.mean()
    if len(edges) == 2:
        assert found.digest == at_once.digest, "one sum is taken over as it is"
    for name, array in found.items():
        if array.dtype.kind in "iub":  # rounded to a whole number at the end; a tie may go either way
            assert np.abs(array.astype(float) - at_once[name].astype(float)).max() <= 1
            continue
        exact = np.average([one[name].astype(np.float64) for one in models], axis=0, weights=weights)
        digits = {"float64": 1e-12, "float32": 1e-5}.get(array.dtype.name, 2e-2)
        np.testing.assert_allclose(array.astype(np.float64), exact, rtol=digits, atol=10 * digits)


def test_only_a_sum_of_this_model_with_finite_values_is_taken() -> None:
    one = model(1, ("float32",))
    begun = FedAvg().begin(Given(spec=one.spec, model=lambda: one))
    assert isinstance(begun, SumAccumulator)
    total = Model.empty(sum_spec(one.spec))
    total["sum.0"][...] = 3e36
    begun.fold_sum(total, 2.0)
    for bad, weight, reason in (
        (one, 1.0, "does not fit the model"),
        (total, 0.0, "positive and finite"),
        (Model.of({"sum.0": np.full(5, np.nan, np.float32)}), 1.0, "NaN or infinite"),
        (Model.of({"sum.0": np.full(5, 3.402e38, np.float32)}), 1.0, "could overflow"),
    ):
        with pytest.raises(UpdateRefused, match=reason):
            begun.fold_sum(bad, weight)
    np.testing.assert_array_equal(begun.result().model["t0"], np.full(5, 1.5e36, np.float32))
