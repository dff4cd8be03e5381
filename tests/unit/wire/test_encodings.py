"""Encodings: what they change, by how much at most, and what they leave alone."""

from __future__ import annotations

import math
import struct
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from broker_fl import recycled
from broker_fl.errors import FrameRefused
from broker_fl.model import DTYPES, FLOATS, Model, ModelSpec
from broker_fl.wire.encodings import ENCODINGS as ALL
from broker_fl.wire.encodings import encoding

ENCODINGS = {name: one for name, one in ALL.items() if not one.coarse}
NARROWED = ("float32", "float16", "bfloat16")
EPSILON = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8 * (1 + 2.0**-15)}
"""Largest relative error of rounding to nearest; bfloat16 with room for rounding float64 twice."""
LARGEST = {"float32": 3.4028234663852886e38, "float16": 65504.0, "bfloat16": 3.3895313892515355e38}
SMALLEST = {"float32": 2.0**-126, "float16": 2.0**-14, "bfloat16": 2.0**-126}
WIDER = {"float32": ("float64",), "float16": ("float64", "float32"), "bfloat16": ("float64", "float32")}


def there_and_back(model: Model, name: str) -> Model:
    encoded = ENCODINGS[name].encode(model)
    assert encoded.nbytes == ENCODINGS[name].num_bytes(model.spec)
    return ENCODINGS[name].decode(encoded.copy(), model.spec)


@given(st.data(), st.sampled_from(NARROWED))
def test_the_error_is_at_most_that_of_rounding(data: st.DataObject, name: str) -> None:
    dtype = data.draw(st.sampled_from(WIDER[name]))
    largest = float(np.nextafter(np.array(LARGEST[name] * (1 - 2.0**-9), dtype), 0))
    elements = st.floats(-largest, largest, width=64 if dtype == "float64" else 32)
    values = data.draw(hnp.arrays(dtype, 8, elements=elements))
    after = there_and_back(Model.of({"x": values}), name)["x"]
    bound = EPSILON[name] * np.maximum(np.abs(values.astype(np.float64)), SMALLEST[name])
    assert (np.abs(after.astype(np.float64) - values.astype(np.float64)) <= bound).all()


@given(st.sampled_from(sorted(ENCODINGS)), st.data())
def test_all_other_types_come_back_bit_by_bit(name: str, data: st.DataObject) -> None:
    kept = sorted(set(DTYPES) - set(WIDER.get(name, ())))
    dtype = DTYPES[data.draw(st.sampled_from(kept))]
    raw = np.frombuffer(data.draw(st.binary(min_size=64, max_size=64)), np.uint8)
    values = (raw & 1 if dtype == np.bool_ else raw).view(dtype)
    wide = np.ones(3, np.float64)
    after = there_and_back(Model.of({"wide": wide, "x": values, "more": wide}), name)
    assert after["x"].tobytes() == values.tobytes()


@pytest.mark.parametrize("name", sorted(ENCODINGS))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_infinity_and_zeros_survive(name: str, dtype: str) -> None:
    values = np.array([math.nan, math.inf, -math.inf, 0.0, -0.0], dtype)
    after = there_and_back(Model.of({"x": values}), name)["x"]
    assert np.isnan(after[0])
    assert after[1:].tobytes() == values[1:].tobytes()


@pytest.mark.parametrize(("name", "value"), [("float16", 65520.0), ("bfloat16", 3.4e38), ("float32", 3.5e38)])
def test_what_is_too_large_becomes_infinite(name: str, value: float) -> None:
    model = Model.of({"x": np.array([value, -value], WIDER[name][0])})
    assert there_and_back(model, name)["x"].tolist() == [math.inf, -math.inf]


@pytest.mark.parametrize("name", [*NARROWED, "int8"])
@pytest.mark.parametrize("sign", [1, -1])
@given(data=st.data())
def test_a_value_that_cannot_be_carried_is_found_before_it_is_sent(
    name: str, sign: int, data: st.DataObject
) -> None:
    """It says so if, and only if, a finite value is infinite or refused at the other end."""
    dtype = data.draw(st.sampled_from(sorted(set(WIDER.get(name, FLOATS)))))
    largest = LARGEST.get(dtype, float(np.finfo(np.float64).max))
    powers = st.integers(0, 16).map(lambda power: largest * 2.0**-power)
    around = [65504.0, 65519.0, 65520.0, 65536.0, 3.3895e38, 3.3961e38, 3.4e38, 3.5e38, 4.4e40]
    value = data.draw(powers | st.sampled_from([one for one in around if one <= largest]))
    x = np.zeros(300, DTYPES[dtype])
    x[7] = sign * value
    model = Model.of({"a": np.ones(300, DTYPES[dtype]), "x": x, "n": np.array([70_000])})
    used = encoding(name)
    try:
        is_lost = not np.isfinite(used.decode(used.encode(model), model.spec)["x"][7])
    except FrameRefused:
        is_lost = True
    assert used.overflow(model) == ("x" if is_lost else None)
    assert encoding(name, ["x"]).overflow(model) is None, "it is not encoded"


@pytest.mark.parametrize("name", [*ALL, "topk/2"])
def test_what_is_not_finite_anyway_does_not_overflow(name: str) -> None:
    model = Model.of({"x": np.array([math.nan, 1.0] * 200), "y": np.array([math.inf, -math.inf] * 200)})
    assert encoding(name).overflow(model) is None
    assert encoding(name).overflow(Model.of({"x": np.zeros((0, 2))})) is None


@pytest.mark.parametrize("name", NARROWED)
def test_buffers_are_not_narrowed(name: str) -> None:
    """Variances may be above 65504, or below what float16 tells from zero."""
    wide = WIDER[name][0]
    values = {key: np.array([1e300 if wide == "float64" else 1e30, 1e-30], wide) for key in ("var", "w")}
    used, model = encoding(name, ["var"]), Model.of({"w": values["w"], "var": values["var"]})
    encoded = used.encode(model)
    assert encoded.nbytes == used.num_bytes(model.spec) < model.spec.num_bytes
    after = used.decode(encoded.copy(), model.spec)
    assert after["var"].tobytes() == values["var"].tobytes()
    assert after["w"].tobytes() != values["w"].tobytes()


@given(st.floats(width=32, allow_nan=False))
def test_bfloat16_is_the_upper_half_of_float32_rounded_to_even(value: float) -> None:
    (word,) = struct.unpack("<I", struct.pack("<f", value))
    rounded = (word + 0x7FFF + ((word >> 16) & 1)) >> 16
    encoded = ENCODINGS["bfloat16"].encode(Model.of({"x": np.array([value], np.float32)}))
    assert encoded.tobytes() == struct.pack("<H", rounded)


@given(st.floats(width=32, allow_nan=False, min_value=-65504, max_value=65504))
def test_float16_is_rounded_as_the_standard_library_does(value: float) -> None:
    encoded = ENCODINGS["float16"].encode(Model.of({"x": np.array([value], np.float32)}))
    assert encoded.tobytes() == struct.pack("<e", value)


def test_the_encoded_buffer_is_laid_out_as_a_narrower_model() -> None:
    model = Model.of({"a": np.ones(3), "n": np.array(5, np.int32), "b": np.ones(1, np.float32)})
    encoded = ENCODINGS["float16"].encode(model)
    narrow = ModelSpec.from_wire([["a", "float16", [3]], ["n", "int32", []], ["b", "float16", [1]]])
    assert Model(narrow, encoded)["n"] == 5
    assert narrow.offsets == (0, 8, 12)


@pytest.mark.parametrize("name", sorted(ENCODINGS))
def test_nothing_is_copied_where_nothing_is_narrowed(name: str) -> None:
    kept = {dtype: np.ones(2).astype(DTYPES[dtype]) for dtype in DTYPES if dtype not in WIDER.get(name, ())}
    model = Model.of(kept)
    assert ENCODINGS[name].encode(model) is model.buffer
    assert ENCODINGS[name].decode(model.buffer, model.spec).buffer is model.buffer


@pytest.mark.parametrize("name", sorted(ENCODINGS))
def test_a_boolean_that_is_neither_0_nor_1_is_refused(name: str) -> None:
    spec = ModelSpec.of({"x": np.zeros(1, np.float32), "b": np.zeros(3, np.bool_)})
    encoded = ENCODINGS[name].encode(Model.empty(spec)).copy()
    encoded[-1] = 2
    with pytest.raises(FrameRefused, match="boolean"):
        ENCODINGS[name].decode(encoded, spec)


@pytest.mark.parametrize("name", sorted(ENCODINGS))
@pytest.mark.parametrize(
    "arrays", [{}, {"x": np.zeros((0, 2))}, {"x": np.array(1.5)}], ids=["none", "empty", "scalar"]
)
def test_small_models_are_encoded_too(name: str, arrays: dict[str, Any]) -> None:
    model = Model.of(arrays)
    assert there_and_back(model, name).digest == model.digest


def test_the_encoding_of_an_unknown_name_is_refused() -> None:
    assert encoding("raw") is ENCODINGS["raw"]
    with pytest.raises(
        FrameRefused, match="'zip' is not one of raw, float32, float16, bfloat16, int8, topk/N"
    ):
        encoding("zip")


def test_every_float_type_is_covered_here() -> None:
    assert {"float64", *NARROWED} == FLOATS
    assert float(np.array(0x7F7F, np.uint16).view(ml_dtypes.bfloat16)) == LARGEST["bfloat16"]


@pytest.mark.parametrize("name", [*ALL, "topk/3"])
def test_what_the_memory_held_before_is_in_no_decoded_model(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rooms are used again."""
    rng = np.random.default_rng(0)
    shapes = {"w": (40, 70), "none": (0, 3), "b": (5,), "s": ()}
    model = Model.of({one: rng.normal(size=shape).astype(np.float32) for one, shape in shapes.items()})
    used = encoding(name)
    clean = used.decode(used.encode(model).copy(), model.spec)
    monkeypatch.setattr(recycled, "empty", lambda num_bytes: np.full(num_bytes, 0xAB, np.uint8))
    again = used.decode(used.encode(model).copy(), model.spec)
    assert again.buffer.tobytes() == clean.buffer.tobytes()
