"""What models look like: layout, differences, and what is refused."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given

from broker_fl.errors import SettingError
from broker_fl.model import (
    DTYPES,
    MAX_DIMENSIONS,
    MAX_NAME_CHARS,
    Array,
    Model,
    ModelError,
    ModelSpec,
    Run,
    TensorSpec,
)
from tests.unit.model.drawing import models


@given(models())
def test_tensors_are_aligned_ordered_and_do_not_overlap(
    given_arrays: dict[str, np.ndarray[Any, Any]],
) -> None:
    spec = ModelSpec.of(given_arrays)
    end = 0
    for tensor, offset in zip(spec.tensors, spec.offsets, strict=True):
        size = DTYPES[tensor.dtype].itemsize
        assert offset % size == 0
        assert 0 <= offset - end < size, "no more padding than the alignment needs"
        end = offset + tensor.num_bytes
    assert spec.num_bytes == end


@given(models())
def test_padding_is_zero_and_runs_cover_all_but_padding(
    given_arrays: dict[str, np.ndarray[Any, Any]],
) -> None:
    model = Model.of(given_arrays)
    padding = np.ones(model.spec.num_bytes, np.bool_)
    for run in model.spec.runs:
        assert padding[run.start : run.stop].all(), "runs do not overlap"
        padding[run.start : run.stop] = False
        assert model.run(run).dtype == DTYPES[run.dtype]
    assert not model.buffer[padding].any()
    assert int(padding.sum()) == model.spec.num_bytes - sum(array.nbytes for array in given_arrays.values())


def test_neighbours_of_one_type_are_one_run_and_empty_tensors_are_in_none() -> None:
    spec = ModelSpec.of(
        {
            "a": np.zeros(3, np.float32),
            "b": np.zeros((), np.float32),
            "nothing": np.zeros((0, 5), np.int8),
            "c": np.zeros(2, np.float32),
            "d": np.zeros(1, np.int8),
            "e": np.zeros(1, np.float32),
        }
    )
    assert spec.runs == (Run("float32", 0, 24), Run("int8", 24, 25), Run("float32", 28, 32))


def test_an_empty_tensor_of_a_wide_type_still_aligns_what_follows() -> None:
    spec = ModelSpec.of(
        {"a": np.zeros(1, np.int8), "none": np.zeros(0, np.float64), "b": np.zeros(1, np.int8)}
    )
    assert spec.offsets == (0, 8, 8)
    assert spec.runs == (Run("int8", 0, 1), Run("int8", 8, 9))


def test_differences_name_tensor_and_both_sides() -> None:
    spec = ModelSpec.of(
        {"a": np.zeros(2, np.float32), "b": np.zeros(1, np.float32), "c": np.zeros(1, np.int8)}
    )
    other = ModelSpec.of(
        {"a": np.zeros((2, 1), np.float64), "c": np.zeros(1, np.int8), "d": np.zeros(1, np.int8)}
    )
    assert spec.differences(other) == [
        "tensor 'a' has element type float64 instead of float32",
        "tensor 'a' has shape (2, 1) instead of (2,)",
        "tensor 'b' is missing",
        "tensor 'd' is not in the model",
    ]
    assert spec.differences(ModelSpec(spec.tensors[::-1])) == []


def test_arrays_that_do_not_look_like_the_spec_are_refused_with_the_first_few_differences() -> None:
    spec = ModelSpec.of({f"layer{i}": np.zeros(2, np.float32) for i in range(8)})
    with pytest.raises(ModelError, match=r"'layer0' is missing.*'layer4' is missing; and 3 more"):
        Model.of({}, spec)
    with pytest.raises(ModelError, match=r"'layer3' has shape \(3,\) instead of \(2,\)"):
        Model.of(
            {name: np.zeros(3 if name == "layer3" else 2, np.float32) for name in Model.empty(spec)}, spec
        )


@pytest.mark.parametrize(
    "array",
    [
        np.array([object()]),
        np.array(["text"]),
        np.array([b"bytes"]),
        np.array([1j]),
        np.zeros(1, "M8[s]"),
        np.zeros(1, [("x", "f4")]),
        np.zeros(1, np.uint32),
        np.zeros(1, np.uint64),
        np.zeros(1, np.longdouble),
        np.zeros(1, ml_dtypes.float8_e4m3fn),
        np.zeros(1, ml_dtypes.int4),
    ],
    ids=lambda array: str(array.dtype),
)
def test_other_element_types_are_refused_by_name(array: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ModelError, match=r"tensor 'weights': element type .* is not one of float16"):
        Model.of({"fine": np.zeros(1), "weights": array})


@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [
        ("", "float32", ()),
        ("x" * (MAX_NAME_CHARS + 1), "float32", ()),
        ("\ud800", "float32", ()),
        ("a", "float128", ()),
        ("a", "<f4", ()),
        ("a", "float32", (-1,)),
        ("a", "float32", (1,) * (MAX_DIMENSIONS + 1)),
    ],
)
def test_a_tensor_that_cannot_be_is_refused(name: str, dtype: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="tensor"):
        TensorSpec(name, dtype, shape)


def test_two_tensors_of_one_name_are_refused() -> None:
    with pytest.raises(ModelError, match="more than once: a"):
        ModelSpec.from_wire([["a", "int8", []], ["b", "int8", []], ["a", "int8", [1]]])
    with pytest.raises(ModelError, match="same name"):
        Model.of({1: np.zeros(1), "1": np.zeros(2)})  # type: ignore[dict-item]


def test_a_model_error_is_a_setting_error() -> None:
    assert issubclass(ModelError, SettingError)


def test_a_spec_that_is_read_twice_is_one() -> None:
    rows = (("a", "float32", (2, 3)), ("b", "int8", ()))
    assert ModelSpec.from_wire(rows) is ModelSpec.from_wire([["a", "float32", [2, 3]], ["b", "int8", []]])
    assert ModelSpec.from_wire(rows[:1]) != ModelSpec.from_wire(rows)


@pytest.mark.parametrize(
    "arrays",
    [
        {"a": np.zeros(3, np.float32)},
        {"a": np.zeros(3, np.float32), "b": np.zeros(2), "c": np.zeros(1)},
        {"a": np.zeros(3, np.float32), "c": np.zeros(2)},
        {"a": np.zeros((3, 1), np.float32), "b": np.zeros(2)},
        {"a": np.zeros(3, np.float64), "b": np.zeros(2)},
    ],
)
def test_arrays_that_differ_in_one_thing_are_not_described(arrays: dict[str, Array]) -> None:
    spec = ModelSpec.of({"a": np.zeros(3, np.float32), "b": np.zeros(2)})
    assert spec.describes({"b": np.zeros(2), "a": np.zeros(3, np.float32)})
    assert not spec.describes(arrays)
    with pytest.raises(ModelError):
        Model.of(arrays, spec)
