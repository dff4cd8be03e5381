from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_fl.coordination.averaging import LatestMean, Means

VALUES = st.floats(-1e6, 1e6)


def mean_of(rows: Iterable[tuple[dict[str, float], float]]) -> dict[str, float]:
    means = Means()
    for metrics, weight in rows:
        means.add(metrics, weight)
    return means.means()


@given(st.lists(st.tuples(VALUES, st.floats(0.001, 1e6)), min_size=1))
def test_a_mean_lies_between_the_smallest_and_the_largest(rows: list[tuple[float, float]]) -> None:
    mean = mean_of(({"x": value}, weight) for value, weight in rows)["x"]
    values = [value for value, _ in rows]
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert min(values) - slack <= mean <= max(values) + slack


def test_a_sum_that_overflows_is_no_infinite_mean_that_reaches_every_target() -> None:
    assert mean_of([({"x": 1e308, "y": 1.0}, 2.0**62), ({"x": 0.5, "y": 3.0}, 2.0**62)]) == {"y": 2.0}


def test_what_is_not_finite_or_has_no_weight_is_left_out() -> None:
    rows = [
        ({"x": 1.0, "y": math.inf}, 2.0),
        ({"x": math.nan}, 5.0),
        ({"x": 99.0, "z": 1.0}, 0.0),
        ({"x": 4.0}, 1.0),
    ]
    assert mean_of(rows) == {"x": 2.0}


@pytest.mark.parametrize("huge", [1e30, 1.7e308, -1.7e308, 5e-324])
def test_a_huge_metric_leaves_no_trace_once_it_is_replaced(huge: float) -> None:
    latest = LatestMean()
    latest.add("a", {"x": 0.25}, 3)
    latest.add("b", {"x": huge}, 2**62)
    latest.add("b", {"x": 0.75}, 1)
    assert latest.mean() == {"x": 0.375}
    latest.remove("b")
    assert (latest.mean(), latest.total_weight) == ({"x": 0.25}, 3)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(allow_nan=False), st.integers(1, 2**63 - 1))))
def test_the_latest_mean_is_the_mean_of_what_each_said_last(rows: list[tuple[str, float, int]]) -> None:
    latest, said = LatestMean(), {}
    for learner, value, weight in rows:
        latest.add(learner, {"x": value}, weight)
        said[learner] = (value, weight)
    finite = [(Fraction(value), weight) for value, weight in said.values() if math.isfinite(value)]
    total = sum(weight for _, weight in finite)
    expected = {"x": float(sum(value * weight for value, weight in finite) / total)} if finite else {}
    assert latest.mean() == expected
