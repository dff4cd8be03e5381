"""Coarse encodings: how much they lose at most, and that nothing else is lost."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from broker_fl.errors import FrameRefused
from broker_fl.model import DTYPES, FLOATS, Array, Model, ModelSpec
from broker_fl.wire.coarse import INT8_BLOCK
from broker_fl.wire.encodings import encoding
from broker_fl.wire.messages import ModelManifest

NAMES = ("int8", "topk/2", "topk/10", "topk/1000000")
EPSILON = {"float64": 2.0**-24, "float32": 2.0**-22, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Of the scale, of the product and of the type, relative to the block's largest."""


def there_and_back(model: Model, name: str) -> Model:
    used = encoding(name)
    encoded = used.encode(model)
    assert encoded.nbytes == used.num_bytes(model.spec) <= model.spec.num_bytes
    return used.decode(encoded, model.spec)


@st.composite
def values(draw: st.DrawFn, dtype: str) -> Array:
    """A few blocks of numbers, some of them zero, some small beside the others."""
    size = draw(st.integers(40, 3 * INT8_BLOCK))
    largest = 1000.0 if dtype == "float16" else draw(st.sampled_from([1e-30, 1.0, 1e30]))
    numbers = draw(hnp.arrays(np.float64, size, elements=st.floats(-1, 1, width=32), fill=st.just(0.0)))
    return (numbers * largest).astype(DTYPES[dtype])


@given(st.data(), st.sampled_from(sorted(FLOATS)))
def test_an_int8_is_off_by_half_a_step_of_its_block_at_most(data: st.DataObject, dtype: str) -> None:
    before = data.draw(values(dtype))
    split = data.draw(st.integers(0, before.size))
    after = there_and_back(Model.of({"a": before[:split], "b": before[split:]}), "int8")
    found = np.concatenate([after["a"], after["b"]]).astype(np.float64)
    for start in range(0, before.size, INT8_BLOCK):
        block = before[start : start + INT8_BLOCK].astype(np.float64)
        largest = np.abs(block).max()
        off = np.abs(found[start : start + INT8_BLOCK] - block)
        assert (off <= largest / 127 / 2 + EPSILON[dtype] * largest + 127 * 2.0**-126).all()
        if not largest:
            assert not found[start : start + INT8_BLOCK].any()


@given(st.data(), st.sampled_from(sorted(FLOATS)), st.sampled_from([2, 3, 10, 1000]))
def test_topk_sends_the_largest_as_they_are_and_of_equal_ones_the_first(
    data: st.DataObject, dtype: str, one_in: int
) -> None:
    before = data.draw(values(dtype))
    model = Model.of({"x": before})
    after = there_and_back(model, f"topk/{one_in}")["x"]
    count = math.ceil(before.size / one_in)
    if count * (4 + before.itemsize) >= before.nbytes:
        count = before.size  # no shorter: sent whole
    order = np.argsort(-np.abs(before.astype(np.float64)), kind="stable")
    expected = np.zeros_like(before)
    expected[order[:count]] = before[order[:count]]
    np.testing.assert_array_equal(after, expected)


@pytest.mark.parametrize("make", [lambda rng, n: rng.normal(size=n), lambda rng, n: rng.integers(-3, 4, n)])
def test_topk_of_many_is_that_of_a_full_sort(make: Any) -> None:
    """Large runs are looked through by a sample first; ties and zeros must not change what is found."""
    before = make(np.random.default_rng(5), 300_000).astype(np.float32)
    before[:100_000] = 0
    for one_in in (2, 7, 100, 100_000):
        after = there_and_back(Model.of({"x": before}), f"topk/{one_in}")["x"]
        chosen = np.argsort(-np.abs(before), kind="stable")[: math.ceil(before.size / one_in)]
        expected = np.zeros_like(before)
        expected[chosen] = before[chosen]
        np.testing.assert_array_equal(after, expected if one_in > 2 else before)


@given(st.sampled_from(NAMES), st.data())
def test_integers_and_booleans_come_back_bit_by_bit(name: str, data: st.DataObject) -> None:
    dtype = DTYPES[data.draw(st.sampled_from(sorted(set(DTYPES) - FLOATS)))]
    raw = np.frombuffer(data.draw(st.binary(min_size=24, max_size=24)), np.uint8)
    kept = (raw & 1 if dtype == np.bool_ else raw).view(dtype)
    odd, wide = np.ones(3, np.int8), np.ones(300)  # so that sections begin anywhere
    model = Model.of({"odd": odd, "wide": wide, "x": kept, "more": wide.astype(DTYPES["bfloat16"])})
    after = there_and_back(model, name)
    assert after["x"].tobytes() == kept.tobytes()
    assert after["odd"].tobytes() == odd.tobytes()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "arrays", [{}, {"x": np.zeros((0, 2))}, {"x": np.ones(1, np.float32)}, {"x": np.ones(3, np.float16)}]
)
def test_what_would_be_no_shorter_is_sent_as_it_is(name: str, arrays: dict[str, Any]) -> None:
    model = Model.of(arrays)
    assert encoding(name).num_bytes(model.spec) == model.spec.num_bytes
    assert there_and_back(model, name).digest == model.digest


@pytest.mark.parametrize("name", ["int8", "topk/10"])
@pytest.mark.parametrize("dtype", sorted(FLOATS))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_never_taken_for_one_that_is(
    name: str, dtype: str, value: float
) -> None:
    model = Model.of({"x": np.ones(600).astype(DTYPES[dtype])})
    model["x"][300] = value
    encoded = encoding(name).encode(model)
    with pytest.raises(FrameRefused, match="finite"):
        encoding(name).decode(encoded, model.spec)


@pytest.mark.parametrize(
    "name", ["topk/0", "topk/1", "topk/01", "topk/", "topk/1000001", "topk/2 ", "topk/2\n", "TopK/2", "int4"]
)
def test_other_names_are_not_known(name: str) -> None:
    with pytest.raises(FrameRefused, match="is not one of raw"):
        encoding(name)


def test_a_run_too_long_to_number_is_refused_before_anything_is_allocated() -> None:
    spec = ModelSpec.from_wire([["x", "float32", [2**32 + 1]]])
    with pytest.raises(FrameRefused, match="32 bits"):
        encoding("topk/100").num_bytes(spec)


def test_a_version_may_be_int8_but_not_sparse() -> None:
    spec = ModelSpec.from_wire([["x", "float32", [512]]])
    manifest = ModelManifest.of(spec, version=0, digest="", encoding="int8", chunk_bytes=4096)
    assert manifest.num_bytes == 512 + 8
    assert manifest.model_spec(max_bytes=1 << 20) == spec
    sparse = ModelManifest.of(spec, version=0, digest="", encoding="topk/2", chunk_bytes=4096)
    with pytest.raises(FrameRefused, match="'topk/2', which is for changes only"):
        sparse.model_spec(max_bytes=1 << 20)
