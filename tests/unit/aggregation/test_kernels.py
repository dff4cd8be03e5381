from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from broker_fl.aggregation import blas, kernels
from broker_fl.model import DTYPES, Array

SIZES = [0, 1, 3, 32_768, 131_073, 1_048_577]


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("size", SIZES)
def test_adding_is_exact_for_whole_numbers_of_every_type_and_size(dtype: str, size: int) -> None:
    drawn = np.random.default_rng(size).integers(0, 2 if dtype == "bool" else 100, size)
    values = drawn.astype(DTYPES[dtype])
    total_type: type = np.float32 if dtype in ("float16", "bfloat16", "float32") else np.float64
    total: Array = np.full(size, 0.5, total_type)
    kernels.add_scaled(total, values, 3.0)
    np.testing.assert_array_equal(total, 0.5 + 3.0 * drawn)
    assert total.dtype == total_type


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blas_adds_what_numpy_adds_and_leaves_alone_what_it_cannot_take(
    dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(5)
    values: Array = draw.standard_normal(300_001).astype(dtype)
    start: Array = draw.standard_normal(300_001).astype(dtype)
    total: Array = start.copy()
    if not blas.add_scaled(total[1:], values[1:], 0.3):
        pytest.skip("this NumPy has no BLAS that is known here")
    monkeypatch.setattr(blas, "_functions", dict)
    expected: Array = start.copy()
    kernels.add_scaled(expected[1:], values[1:], 0.3)
    assert np.abs(total - expected).max() <= 4 * np.finfo(dtype).eps
    assert total[0] == start[0]
    monkeypatch.undo()
    wide: Array = np.zeros(20, dtype)
    read_only: Array = np.zeros(10, dtype)
    read_only.flags.writeable = False
    other: Array = np.ones(10, np.float64 if dtype is np.float32 else np.float32)
    for target, term in ((wide[::2], values[:10]), (read_only, values[:10]), (wide[:10], other)):
        assert not blas.add_scaled(target, term, 1.0)
        assert not target.any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", SIZES)
def test_dividing_is_numpys(dtype: type, size: int) -> None:
    total: Array = np.arange(size, dtype=dtype)
    expected = total / dtype(3)
    kernels.divide(total, 3.0)
    np.testing.assert_array_equal(total, expected)


@settings(max_examples=300, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.float16, np.float32, np.float64]),
        hnp.array_shapes(max_dims=1, min_side=0, max_side=40),
        elements=st.one_of(
            st.floats(width=16), st.sampled_from([65504.0, -65504.0, 6e-8, float("nan"), float("inf")])
        ),
    )
)
def test_finite_is_what_numpy_says(values: Array) -> None:
    assert kernels.all_finite(values) == bool(np.isfinite(values).all())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("size", [1, 5, 1_100_000])
def test_values_whose_squares_overflow_are_finite_and_one_bad_value_is_found_anywhere(
    dtype: str, size: int
) -> None:
    largest = float(ml_dtypes.finfo(DTYPES[dtype]).max)  # type: ignore[no-untyped-call]
    values = np.full(size, largest, DTYPES[dtype])
    values[::2] *= -1
    assert kernels.all_finite(values)
    for place in {0, size // 2, size - 1}:
        for bad in (np.nan, np.inf, -np.inf):
            broken = values.copy()
            broken[place] = bad
            assert not kernels.all_finite(broken)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int64"])
def test_whole_numbers_are_finite(dtype: str) -> None:
    assert kernels.all_finite(np.ones(5, DTYPES[dtype]))
