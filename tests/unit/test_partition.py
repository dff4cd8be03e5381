from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from broker_fl.errors import SettingError
from broker_fl.partition import Indices, by_key, dirichlet, dirichlet_sizes, iid, power_law, shards

LABELS = np.repeat(np.arange(10), 100)


SPLITS: dict[str, Callable[..., list[Indices]]] = {
    "iid": lambda labels, num_parts, seed: iid(len(labels), num_parts, seed=seed),
    "shards": lambda labels, num_parts, seed: shards(labels, num_parts, shards_per_part=1, seed=seed),
    "dirichlet": lambda labels, num_parts, seed: dirichlet(labels, num_parts, alpha=0.3, seed=seed),
    "power_law": lambda labels, num_parts, seed: power_law(len(labels), num_parts, exponent=2, seed=seed),
    "dirichlet_sizes": lambda labels, num_parts, seed: dirichlet_sizes(
        len(labels), num_parts, alpha=0.3, seed=seed
    ),
    "by_key": lambda labels, num_parts, seed: by_key(np.arange(len(labels)) % 10, num_parts, seed=seed),
}
"""Every way of splitting, with one signature."""


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
@given(
    labels=st.lists(st.integers(0, 5), min_size=10, max_size=100),
    num_parts=st.integers(1, 10),
    seed=st.integers(0, 2**32),
)
def test_every_split_has_each_example_once_and_leaves_no_part_empty(
    split: Callable[..., list[Indices]], labels: list[int], num_parts: int, seed: int
) -> None:
    parts = split(labels, num_parts, seed)
    assert len(parts) == num_parts
    assert sorted(np.concatenate(parts)) == list(range(len(labels)))
    assert all(len(part) and (np.diff(part) > 0).all() for part in parts)
    assert [part.tolist() for part in parts] == [part.tolist() for part in split(labels, num_parts, seed)]


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_another_seed_is_another_split(split: Callable[..., list[Indices]]) -> None:
    first, second = ([part.tolist() for part in split(LABELS, 7, seed)] for seed in (1, 2))
    assert first != second


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_fewer_examples_than_learners_is_told(split: Callable[..., list[Indices]]) -> None:
    with pytest.raises(SettingError, match="9 examples are too few for 10 parts of at least 1"):
        split([0] * 9, 10, 0)


@given(num_examples=st.integers(1, 1000), num_parts=st.integers(1, 50), seed=st.integers(0, 99))
def test_iid_parts_are_of_one_size_up_to_1(num_examples: int, num_parts: int, seed: int) -> None:
    assume(num_examples >= num_parts)
    sizes = [len(part) for part in iid(num_examples, num_parts, seed=seed)]
    assert max(sizes) - min(sizes) <= 1


def test_two_shards_of_mnist_as_in_the_paper_are_one_or_two_digits_and_600_examples() -> None:
    """100 clients, 200 shards of 300: section 3 of McMahan et al. 2017; each digit 6,000 times."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 6_000))
    parts = shards(labels, 100, shards_per_part=2, seed=0)
    assert {len(part) for part in parts} == {600}
    counts = [np.bincount(labels[part], minlength=10) for part in parts]
    assert {count for row in counts for count in row.tolist()} == {0, 300, 600}


@given(
    num_parts=st.integers(1, 40),
    exponent=st.floats(0.1, 5),
    min_examples=st.integers(0, 5),
    seed=st.integers(0, 99),
)
def test_sizes_follow_the_power_law(num_parts: int, exponent: float, min_examples: int, seed: int) -> None:
    """Against the law itself, to the rounding of two cuts."""
    parts = power_law(10_000, num_parts, exponent=exponent, min_examples=min_examples, seed=seed)
    law = np.arange(1, num_parts + 1) ** -exponent
    expected = min_examples + (10_000 - num_parts * min_examples) * law / law.sum()
    found = sorted((len(part) for part in parts), reverse=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1.0)


def test_a_small_alpha_leaves_most_examples_with_few_parts() -> None:
    def largest(alpha: float) -> int:
        return max(len(part) for part in dirichlet_sizes(1_000, 20, alpha=alpha, seed=1))

    assert largest(0.05) > 400
    assert largest(1000) < 70


def test_a_part_for_each_key_in_their_order() -> None:
    parts = by_key(["rome", "oslo", "rome", "bern"])
    assert [part.tolist() for part in parts] == [[3], [1], [0, 2]]


@given(keys=st.lists(st.integers(0, 20), min_size=1), num_parts=st.integers(1, 8), seed=st.integers(0, 99))
def test_examples_of_one_key_stay_together_and_parts_have_as_many_keys(
    keys: list[int], num_parts: int, seed: int
) -> None:
    assume(len(set(keys)) >= num_parts)
    owned = [set(np.asarray(keys)[part].tolist()) for part in by_key(keys, num_parts, seed=seed)]
    assert sum(map(len, owned)) == len(set(keys))
    assert max(map(len, owned)) - min(map(len, owned)) <= 1


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (lambda: iid(10, 0), "num_parts must be at least 1, not 0"),
        (lambda: shards([0, 1], 1, shards_per_part=0), "shards_per_part must be at least 1, not 0"),
        (lambda: shards([0, 1, 2], 2), "3 examples are too few for 2 parts of at least 2"),
        (lambda: power_law(10, 2, exponent=0), "exponent must be a number above 0, not 0"),
        (lambda: dirichlet_sizes(10, 2, alpha=-1), "alpha must be a number above 0, not -1"),
        (lambda: by_key([1, 1, 1], 2), "1 keys are too few for 2 parts"),
        (lambda: by_key([]), "keys is empty"),
        (lambda: by_key(np.zeros((2, 2))), "keys must be one-dimensional"),
    ],
)
def test_what_cannot_be_split_is_told(split: Callable[[], object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        split()


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
