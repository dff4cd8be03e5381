"""What attributes are compared with: which values meet it, and which conditions are none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from broker_fl.wire.conditions import AnyCondition, Where, is_met, version

NUMBERS = st.one_of(st.integers(-(2**60), 2**60), st.floats(allow_nan=False, allow_infinity=False))
PARTS = st.lists(st.integers(0, 999), min_size=1, max_size=5)


def condition(given: Any) -> AnyCondition:
    return TypeAdapter[dict[str, AnyCondition]](Where).validate_python({"x": given})["x"]


@given(NUMBERS, NUMBERS, NUMBERS)
def test_a_range_of_numbers_holds_what_is_between_its_ends(value: float, one: float, other: float) -> None:
    lowest, highest = sorted((one, other))
    assert is_met(condition({"min": lowest}), value) == (value >= lowest)
    assert is_met(condition({"max": highest}), value) == (value <= highest)
    assert is_met(condition({"min": lowest, "max": highest}), value) == (lowest <= value <= highest)


@pytest.mark.parametrize("value", [True, None, "5", "five", ""])
def test_a_range_of_numbers_holds_nothing_else(value: Any) -> None:
    assert not is_met(condition({"min": -10, "max": 10}), value)


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("0.1", "0.1.1"),
        ("0.9", "0.10"),
        ("1.9.9", "2"),
        ("1.0rc1", "1.0"),
        ("1.0.dev3", "1"),
        ("1.0-alpha.1", "1.0.0"),
        ("broker_fl 0.1.0", "broker_fl 0.2.0"),
        ("v2.1", "v2.2"),
        ("torch 2.3.9+cu121", "torch 2.4"),
    ],
)
def test_versions_are_compared_number_by_number(older: str, newer: str) -> None:
    assert is_met(condition({"min": older}), newer)
    assert not is_met(condition({"min": newer}), older)
    assert is_met(condition({"max": newer}), older)
    assert not is_met(condition({"max": older}), newer)


@given(
    st.lists(st.integers(0, 999), min_size=1, max_size=5),
    st.lists(st.integers(0, 999), min_size=1, max_size=5),
)
def test_versions_are_in_the_order_of_their_numbers(one: list[int], other: list[int]) -> None:
    length = max(len(one), len(other))
    padded = [numbers + [0] * (length - len(numbers)) for numbers in (one, other)]
    first, second = (".".join(map(str, numbers)) for numbers in (one, other))
    assert is_met(condition({"max": second}), first) == (padded[0] <= padded[1])


def test_equal_versions_have_one_number_whatever_is_behind_them() -> None:
    assert version("1.0") == version("1.0.0") == version("v1") == version("x 1.0.post2") == version("1.0+cu1")


@pytest.mark.parametrize("value", ["", "foreign", "1.x", "2024-05-01", "1.2.3.x", "٣", 1, 1.0, None, True])
def test_what_is_no_version_is_in_no_range_of_versions(value: Any) -> None:
    assert not is_met(condition({"min": "0"}), value)
    assert not is_met(condition({"max": "9999"}), value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "a range needs 'min', 'max' or both"),
        ({"min": None}, "a range needs 'min', 'max' or both"),
        ({"least": 1}, "unknown field 'least': a range has 'min' and 'max'"),
        ({"min": 2, "max": 1}, "'min' = 2 is above 'max' = 1: nothing is in between"),
        ({"min": "0.10", "max": "0.9"}, "'min' = '0.10' is above 'max' = '0.9'"),
        ({"min": "high"}, "'min' = 'high' is neither a number nor a version"),
        ({"max": True}, "'max' = True is neither a number nor a version"),
        ({"min": 1, "max": "2"}, "must be of one kind"),
        ({"min": float("nan")}, "nan is not a finite number"),
        ([], "an empty list matches no learner"),
        ([{"min": 1}], "a dict is neither a text, a number, a boolean nor nothing"),
        ("x" * 129, "129 characters; at most 128"),
        (2**63, "does not fit into a signed 64-bit integer"),
        (b"eu", "is neither a text"),
        (list(range(1001)), "1001 values; at most 1000"),
    ],
    ids=lambda given: str(given)[:40],
)
def test_a_condition_that_is_none_is_refused_with_a_reason(given: Any, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        condition(given)
    assert words in str(caught.value)
