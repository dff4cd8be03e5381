"""Arrays and their buffer: views, copies, digests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given

from broker_fl.model import Model, ModelError, ModelSpec
from tests.unit.model.drawing import bits, models


@given(models())
def test_every_array_comes_back_bit_by_bit(given_arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    model = Model.of(given_arrays)
    assert list(model) == list(given_arrays)
    for name, array in given_arrays.items():
        assert model[name].shape == array.shape
        assert model[name].dtype == array.dtype
        assert bits(model[name]) == bits(array)


@given(models())
def test_a_model_is_its_spec_on_the_wire_and_its_buffer(
    given_arrays: dict[str, np.ndarray[Any, Any]],
) -> None:
    model = Model.of(given_arrays)
    again = Model(ModelSpec.from_wire(model.spec.to_wire()), np.frombuffer(model.buffer.tobytes(), np.uint8))
    assert again.spec == model.spec
    assert again.digest == model.digest
    assert {name: bits(array) for name, array in again.items()} == {n: bits(a) for n, a in model.items()}


def test_a_blank_models_gaps_are_zero_whatever_the_memory_held(monkeypatch: pytest.MonkeyPatch) -> None:
    types = {"a": np.int8, "b": np.float64, "c": np.uint8, "d": np.float32}
    spec = ModelSpec.of({name: np.zeros(3, dtype) for name, dtype in types.items()})
    monkeypatch.setattr(np, "empty", lambda size, dtype: np.full(size, 0xFF, dtype))
    blank = Model.blank(spec)
    for array in blank.values():
        array[...] = 0
    assert not blank.buffer.any()
    assert Model.blank(ModelSpec(())).buffer.size == 0


def test_scalars_and_empty_arrays_have_places_of_their_own() -> None:
    model = Model.of(
        {"scalar": np.array(2.5), "empty": np.zeros((2, 0, 3), np.int16), "flag": np.array(True)}
    )
    assert model.spec.offsets == (0, 8, 8)
    assert model.spec.num_elements == 2
    assert model["scalar"].shape == ()
    assert model["scalar"] == 2.5
    assert model["empty"].shape == (2, 0, 3)
    assert model["flag"]


def test_a_model_of_nothing_has_no_bytes() -> None:
    model = Model.of({})
    assert (len(model), model.spec.num_bytes, model.spec.runs) == (0, 0, ())
    assert model.digest == Model.empty(ModelSpec(())).digest


def test_writing_to_a_view_changes_the_model() -> None:
    model = Model.of({"a": np.zeros(3, np.float32), "b": np.zeros((), np.int64)})
    before = model.digest
    model["a"][1] = 7
    model["b"][...] = -1
    assert model.digest != before
    assert model.buffer.view(np.int32)[1] == np.float32(7).view(np.int32)
    assert model.buffer[16:].tobytes() == b"\xff" * 8


def test_making_a_model_of_its_own_views_copies_nothing() -> None:
    model = Model.of(
        {"a": np.arange(6.0).reshape(2, 3), "s": np.array(1, np.float32), "none": np.zeros(0, np.int8)}
    )
    assert Model.of(model).buffer is model.buffer
    assert Model.of(dict(model)).buffer is model.buffer
    assert Model.of(dict(reversed(list(model.items()))), model.spec).buffer is model.buffer


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays | {"a": arrays["a"].copy()},
        lambda arrays: arrays | {"a": arrays["a"].T},
        lambda arrays: arrays | {"a": arrays["b"], "b": arrays["a"]},
        lambda arrays: dict(reversed(list(arrays.items()))),
        lambda arrays: {"a": arrays["a"]},
    ],
    ids=["a copy", "transposed", "swapped", "in another order", "a part"],
)
def test_what_is_not_exactly_the_model_is_copied(change: Any) -> None:
    model = Model.of({"a": np.arange(4.0).reshape(2, 2), "b": np.ones((2, 2))})
    changed = change(dict(model))
    other = Model.of(changed)
    assert other.buffer is not model.buffer
    for name, array in changed.items():
        np.testing.assert_array_equal(other[name], array)


def test_the_buffer_is_wrapped_not_copied() -> None:
    spec = ModelSpec.of({"a": np.zeros(4, np.float32)})
    buffer = np.zeros(16, np.uint8)
    model = Model(spec, buffer)
    buffer[:4] = np.frombuffer(np.float32(3).tobytes(), np.uint8)
    assert model["a"][0] == 3
    assert model.copy().buffer is not buffer


@pytest.mark.parametrize(
    "buffer",
    [
        np.zeros(15, np.uint8),
        np.zeros(17, np.uint8),
        np.zeros(16, np.int8),
        np.zeros((4, 4), np.uint8),
        np.zeros(32, np.uint8)[::2],
    ],
    ids=["short", "long", "signed", "2-d", "strided"],
)
def test_a_buffer_that_does_not_fit_is_refused(buffer: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ModelError, match="buffer"):
        Model(ModelSpec.of({"a": np.zeros(4, np.float32)}), buffer)


@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8", ">i2", ">i4", ">i8"])
def test_big_endian_arrays_are_stored_little_endian(dtype: str) -> None:
    values = np.array([1, -2, 300], dtype)
    model = Model.of({"a": values})
    assert model["a"].dtype.str[0] == "<"
    np.testing.assert_array_equal(model["a"], values)
    assert model.digest == Model.of({"a": values.astype(values.dtype.newbyteorder("<"))}).digest


def test_arrays_in_any_memory_order_give_the_same_model() -> None:
    array = np.arange(24.0).reshape(2, 3, 4)
    plain = Model.of({"a": array})
    assert Model.of({"a": np.asfortranarray(array)}).digest == plain.digest
    assert Model.of({"a": np.repeat(array, 2, axis=1)[:, ::2]}).digest == plain.digest
    assert Model.of({"a": array[::-1][::-1]}).digest == plain.digest


def test_lists_and_numbers_are_taken_as_numpy_takes_them() -> None:
    model = Model.of({"a": [1.0, 2.0], "b": 3})  # type: ignore[dict-item]
    assert model.spec.to_wire() == (("a", "float64", (2,)), ("b", "int64", ()))


def test_equal_models_have_equal_digests_and_anything_else_another() -> None:
    base = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(2, np.float32)}
    others: list[dict[str, np.ndarray[Any, Any]]] = [
        base | {"a": np.zeros((3, 2), np.float32)},
        base | {"a": np.zeros((2, 3), np.int32)},
        base | {"a": np.full((2, 3), -0.0, np.float32)},
        {"A": base["a"], "b": base["b"]},
        {"b": base["b"], "a": base["a"]},
        base | {"c": np.zeros(0, np.float32)},
        {"a": base["a"]},
    ]
    digests = [Model.of(arrays).digest for arrays in (base, *others)]
    assert len(set(digests)) == len(digests)
    assert digests[0] == Model.of({name: array.copy() for name, array in base.items()}).digest
    assert all(len(digest) == 32 for digest in digests)


def test_a_digest_is_the_same_on_every_machine_and_in_every_release() -> None:
    model = Model.of({"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(-1, np.int64)})
    assert model.spec.digest == "c99a98df1d233dc09250e5b96279a4b8"
    assert model.digest == "3863ad1941b5149cda239bc482a8aeb1"


def test_a_spec_in_another_order_sorts_the_arrays_by_name() -> None:
    spec = ModelSpec.of({"b": np.zeros(2, np.float32), "a": np.zeros(1, np.float32)})
    model = Model.of({"a": np.array([1], np.float32), "b": np.array([2, 3], np.float32)}, spec)
    assert list(model) == ["b", "a"]
    assert model.buffer.view(np.float32).tolist() == [2, 3, 1]


def test_a_frozen_model_cannot_be_written_to_and_says_its_digest_once() -> None:
    model = Model.of({"a": np.arange(3, dtype=np.float32)})
    before, frozen = model.digest, model.frozen()
    assert np.shares_memory(frozen.buffer, model.buffer)
    assert frozen.digest == before
    with pytest.raises(ValueError, match="read-only"):
        frozen["a"][0] = 7
    model["a"][0] = 7
    assert frozen.digest == before, "who freezes a model leaves it alone"
    assert model.digest != before
    mine = frozen.own()
    mine["a"][0] = 8
    assert float(frozen["a"][0]) == 7
    assert mine.digest not in (before, model.digest)
    assert model.own() is model
