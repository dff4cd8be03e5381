"""Numbers and foreign text for people."""

from __future__ import annotations

import math
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_fl.record.text import count, number, one_line, plural, seconds, size


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (math.nan, "–"), (0, "0 s"), (0.000_4, "0 s"), (0.042, "42 ms"), (0.999_4, "999 ms"),
        (1, "1.00 s"),
        (9.994, "9.99 s"), (9.996, "10.0 s"), (59.94, "59.9 s"), (59.96, "1 min 00 s"), (125, "2 min 05 s"),
        (3_599.4, "59 min 59 s"), (3_599.6, "1 h 00 min"), (12_000, "3 h 20 min"),
    ],
)  # fmt: skip
def test_durations(value: float | None, text: str) -> None:
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1 kB"),
        (407_080, "407 kB"),
        (1.25e6, "1.25 MB"),
        (3e19, "3e+04 PB"),
    ],
)
def test_sizes(value: float, text: str) -> None:
    assert size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (math.nan, "–"), (math.inf, "inf"), (0, "0"), (7, "7"), (0.94991, "0.9499"),
        (2.3, "2.300"),
        (123.456, "123.5"), (-2.3, "-2.300"), (1e-5, "1e-05"), (1.5e9, "1.5e+09"), (99_999.5, "100000"),
    ],
)  # fmt: skip
def test_metrics(value: float | None, text: str) -> None:
    assert number(value) == text


def test_counts() -> None:
    assert count(1_234_567) == "1\N{NARROW NO-BREAK SPACE}234\N{NARROW NO-BREAK SPACE}567"
    assert plural(1, "learner") == "1 learner"
    assert plural(0, "learner") == "0 learners"


@given(st.floats())
@settings(deadline=None)
def test_every_metric_can_be_written(value: float) -> None:
    assert 0 < len(number(value)) <= 14


@given(st.text(max_size=500), st.integers(1, 300))
@settings(deadline=None)
def test_foreign_text_becomes_one_visible_line(text: str, limit: int) -> None:
    shown = one_line(text, limit)
    assert len(shown) <= limit
    assert not [char for char in shown if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
