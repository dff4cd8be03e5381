from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_fl.errors import SettingError
from broker_fl.partition import dirichlet

LABELS = np.repeat(np.arange(10), 100)


@settings(deadline=None)  # time says nothing on a busy machine
@given(
    labels=st.lists(st.integers(0, 5), min_size=20, max_size=200),
    num_parts=st.integers(1, 10),
    alpha=st.floats(0.001, 1000),
    seed=st.integers(0, 2**32),
    min_examples=st.integers(0, 2),
)
def test_every_example_is_in_exactly_one_part_and_no_part_is_too_small(
    labels: list[int], num_parts: int, alpha: float, seed: int, min_examples: int
) -> None:
    parts = dirichlet(labels, num_parts, alpha=alpha, seed=seed, min_examples=min_examples)
    assert len(parts) == num_parts
    assert sorted(np.concatenate(parts)) == list(range(len(labels)))
    assert min(len(part) for part in parts) >= min_examples
    assert all((np.diff(part) > 0).all() for part in parts)


def test_the_seed_decides_the_split() -> None:
    def split(seed: int) -> list[list[int]]:
        return [part.tolist() for part in dirichlet(LABELS, 7, alpha=0.3, seed=seed)]

    assert split(1) == split(1)
    assert split(1) != split(2)


def test_a_small_alpha_gives_parts_few_classes_and_a_large_one_all() -> None:
    def mean_share_of_the_commonest_class(alpha: float) -> float:
        parts = dirichlet(LABELS, 10, alpha=alpha, seed=3, min_examples=10)
        return float(np.mean([np.bincount(LABELS[part]).max() / len(part) for part in parts]))

    assert mean_share_of_the_commonest_class(0.05) > 0.6
    assert mean_share_of_the_commonest_class(1000) < 0.15


def test_a_split_without_room_to_spare_is_still_found() -> None:
    assert [len(part) for part in dirichlet(LABELS, 100, alpha=0.01, min_examples=10)] == [10] * 100


def test_labels_may_be_words() -> None:
    assert len(dirichlet(["cat", "dog", "cat"], 2, alpha=1, min_examples=1)) == 2


def test_a_hundred_thousand_parts_take_seconds_not_minutes() -> None:
    parts = dirichlet(np.arange(1_000_000) % 10, 100_000, alpha=0.3, min_examples=3)
    assert min(map(len, parts)) >= 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_parts": 0}, "num_parts must be at least 1, not 0"),
        ({"alpha": 0.0}, "alpha must be a number above 0"),
        ({"alpha": float("nan")}, "alpha must be a number above 0"),
        ({"min_examples": -1}, "min_examples must be at least 0"),
        ({"min_examples": 101}, "1000 examples are too few for 10 parts of at least 101"),
        ({"labels": np.zeros((2, 2))}, "one-dimensional"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, object], message: str) -> None:
    arguments = {"labels": LABELS, "num_parts": 10, "alpha": 0.3} | change
    with pytest.raises(SettingError, match=message):
        dirichlet(**arguments)  # type: ignore[arg-type]
