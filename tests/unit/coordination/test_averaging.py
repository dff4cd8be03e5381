from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from broker_fl.coordination.averaging import weighted_mean

VALUES = st.floats(-1e6, 1e6)


@given(st.lists(st.tuples(VALUES, st.floats(0.001, 1e6)), min_size=1))
def test_a_mean_lies_between_the_smallest_and_the_largest(rows: list[tuple[float, float]]) -> None:
    mean = weighted_mean(({"x": value}, weight) for value, weight in rows)["x"]
    values = [value for value, _ in rows]
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert min(values) - slack <= mean <= max(values) + slack


def test_what_is_not_finite_or_has_no_weight_is_left_out() -> None:
    rows = [
        ({"x": 1.0, "y": math.inf}, 2.0),
        ({"x": math.nan}, 5.0),
        ({"x": 99.0, "z": 1.0}, 0.0),
        ({"x": 4.0}, 1.0),
    ]
    assert weighted_mean(rows) == {"x": 2.0}
