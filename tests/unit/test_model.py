"""Arrays ⇄ spec and buffer: layout, views, digests, files, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save_file

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

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


def bits(array: np.ndarray[Any, Any]) -> bytes:
    """Values as bytes: NaNs and negative zeros count, unlike with ``==``."""
    return np.ascontiguousarray(array).tobytes()


@st.composite
def arrays(draw: st.DrawFn, dtypes: tuple[str, ...] = tuple(DTYPES)) -> np.ndarray[Any, Any]:
    dtype = DTYPES[draw(st.sampled_from(dtypes))]
    shape = draw(SHAPES)
    length = int(np.prod(shape)) * dtype.itemsize
    raw = np.frombuffer(draw(st.binary(min_size=length, max_size=length)), np.uint8)
    return (raw & 1 if dtype == np.bool_ else raw).view(dtype).reshape(shape)


def models() -> st.SearchStrategy[dict[str, np.ndarray[Any, Any]]]:
    return st.dictionaries(NAMES, arrays(), max_size=6)


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


def test_a_blank_models_gaps_are_zero_whatever_the_memory_held(monkeypatch: pytest.MonkeyPatch) -> None:
    types = {"a": np.int8, "b": np.float64, "c": np.uint8, "d": np.float32}
    spec = ModelSpec.of({name: np.zeros(3, dtype) for name, dtype in types.items()})
    monkeypatch.setattr(np, "empty", lambda size, dtype: np.full(size, 0xFF, dtype))
    blank = Model.blank(spec)
    for array in blank.values():
        array[...] = 0
    assert not blank.buffer.any()
    assert Model.blank(ModelSpec(())).buffer.size == 0


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


# ---------------------------------------------------------------- files


@pytest.fixture
def every_type() -> Model:
    values = {name: np.arange(3).astype(dtype) for name, dtype in DTYPES.items()}
    return Model.of(
        {
            "z": np.array(1.5, np.float32),
            **values,
            "nothing": np.zeros((0, 4), np.float64),
            "a": np.ones((2, 2)),
        }
    )


def test_a_file_brings_back_every_type_in_the_same_order(every_type: Model, tmp_path: Path) -> None:
    every_type.save(tmp_path / "model.safetensors")
    again = Model.load(tmp_path / "model.safetensors")
    assert list(again) == list(every_type)
    assert again.spec == every_type.spec
    assert again.digest == every_type.digest
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_file_of_other_software_is_read_in_its_own_order(tmp_path: Path) -> None:
    save_file({"b": np.ones(2, np.float32), "a": np.zeros(1)}, tmp_path / "foreign.safetensors")
    assert {name: array.tolist() for name, array in Model.load(tmp_path / "foreign.safetensors").items()} == {
        "a": [0],
        "b": [1, 1],
    }


@pytest.mark.parametrize(
    "order", ["5", "{}", "null", "[1]", "not json", '["a", "a", "b"]', '["a"]', '["a", "c"]']
)
def test_a_damaged_order_never_loses_a_tensor(order: str, tmp_path: Path) -> None:
    path = tmp_path / "damaged.safetensors"
    save_file({"a": np.ones(2), "b": np.zeros(1)}, path, metadata={"broker_fl.order": order})
    try:
        model = Model.load(path)
    except ModelError as error:
        assert str(path) in str(error)  # noqa: PT017 - either is right, silence about a lost tensor is not
    else:
        assert sorted(model) == ["a", "b"]


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 7, b"\xff" * 64, b'\x08\x00\x00\x00\x00\x00\x00\x00{"a": 1}']
)
def test_what_is_no_safetensors_file_is_refused_with_its_path(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"broken\.safetensors"):
        Model.load(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"missing\.safetensors"):
        Model.load(tmp_path / "missing.safetensors")


def test_a_model_that_cannot_be_written_leaves_nothing_behind(every_type: Model, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(ModelError, match="cannot be written"):
        every_type.save(tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    with pytest.raises(ModelError, match="cannot be written"):
        every_type.save(tmp_path / "no" / "such" / "folder")


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
