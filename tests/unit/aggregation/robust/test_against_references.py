"""The robust rules against plain references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_fl.aggregation.sorting import exchanges, sort_columns
from broker_fl.model import Array
from tests.unit.aggregation.attacked import Round, check, rounds
from tests.unit.aggregation.robust.references import (
    FEW,
    NEEDED,
    about_the_median,
    bulyan_selection,
    geometric_median,
    krum_scores,
    squared_distances,
)

# ---------------------------------------------------------------- coordinate by coordinate


@FEW
@given(rounds(NEEDED["median"]))
def test_the_median_is_numpys(attacked: tuple[Round, int]) -> None:
    round, f = attacked
    found = round.combine(name="median", max_attackers=f)
    check(found, lambda name: np.median(round.values(name), axis=0), round.values)


@FEW
@given(rounds(NEEDED["trimmed_mean"]))
def test_the_trimmed_mean_leaves_out_f_values_at_either_end(attacked: tuple[Round, int]) -> None:
    round, f = attacked

    def reference(name: str) -> Array:
        values = round.values(name)
        kept: Array = np.sort(values, axis=0)[f : len(values) - f].mean(axis=0)
        return kept

    check(round.combine(name="trimmed_mean", max_attackers=f), reference, round.values)


@pytest.mark.parametrize("count", range(1, 12))
def test_the_network_sorts_every_column_of_zeros_and_ones_and_so_everything(count: int) -> None:
    """The 0-1 principle (Knuth 5.3.4, theorem Z)."""
    columns = (np.arange(2**count) >> np.arange(count)[:, None]) & 1
    rows = columns.astype(np.float32)
    sort_columns(rows)
    np.testing.assert_array_equal(rows, np.sort(columns, axis=0))


@pytest.mark.parametrize("count", [12, 15, 16, 17, 50, 100, 129])
def test_the_network_sorts_many_rows_with_far_fewer_exchanges_than_pairs(count: int) -> None:
    rows = np.random.default_rng(count).normal(size=(count, 50))
    expected = np.sort(rows, axis=0)
    sort_columns(rows)
    np.testing.assert_array_equal(rows, expected)
    assert len(exchanges(count)) <= count * np.log2(2 * count) ** 2 / 4


# ---------------------------------------------------------------- Krum and Bulyan


@FEW
@given(rounds(NEEDED["krum"]))
def test_krum_is_the_update_of_the_lowest_score(attacked: tuple[Round, int]) -> None:
    round, f = attacked
    best = int(np.argmin(krum_scores(squared_distances(round.vectors()), f)))
    assert round.combine(name="krum", max_attackers=f).digest == round.updates[best].model.digest


@FEW
@given(rounds(lambda f: 2 * f + 4), st.sampled_from([None, 1, 2]))
def test_multi_krum_is_the_mean_of_the_lowest_scores(attacked: tuple[Round, int], m: int | None) -> None:
    round, f = attacked
    found = krum_scores(squared_distances(round.vectors()), f)
    best = np.argsort(found, kind="stable")[: m or len(found) - f - 2]
    model = round.combine(name="multi_krum", max_attackers=f, num_selected=m)
    check(model, lambda name: round.values(name)[best].mean(axis=0), round.values)


@FEW
@given(rounds(NEEDED["bulyan"]))
def test_bulyan_is_the_mean_about_the_median_of_what_krum_selects(attacked: tuple[Round, int]) -> None:
    round, f = attacked
    chosen = bulyan_selection(squared_distances(round.vectors()), f)

    def reference(name: str) -> Array:
        values = round.values(name)[chosen]
        flat = values.reshape(len(chosen), int(np.prod(values.shape[1:])))
        means = [about_the_median(column, len(chosen) - 2 * f) for column in flat.T]
        return np.array(means, np.float64).reshape(values.shape[1:])

    check(round.combine(name="bulyan", max_attackers=f), reference, round.values)


# ---------------------------------------------------------------- geometric median


@FEW
@given(rounds(lambda f: 2 * f + 3), st.sampled_from(["equal", "examples"]))
def test_the_geometric_median_is_the_minimiser_and_takes_integers_by_the_same_shares(
    attacked: tuple[Round, int], weighting: str
) -> None:
    round, f = attacked
    examples = np.array([update.num_examples for update in round.updates], np.float64)
    shares = geometric_median(
        round.vectors(), examples if weighting == "examples" else np.ones(len(examples))
    ).astype(np.float64)
    rule: dict[str, Any] = {"max_iterations": 100_000, "tolerance": 1e-13, "weighting": weighting}
    found = round.combine(name="geometric_median", max_attackers=f, **rule)
    check(found, lambda name: np.tensordot(shares, round.values(name), 1), round.values)


@settings(max_examples=80, deadline=None)
@given(
    num_updates=st.integers(3, 25),
    share=st.floats(0, 1),
    far=st.sampled_from([0.0, 1e-9, 1e3, 1e6, 1e12, 1e30, 1e150]),
    step=st.sampled_from([1e-4, 1.0, 1e3]),
    spread=st.sampled_from([0.0, 1e-3, 1.0]),
    seed=st.integers(0, 2**32),
)
def test_neither_the_given_model_sent_back_nor_far_attackers_keep_it_from_the_minimiser(
    num_updates: int, share: float, far: float, step: float, spread: float, seed: int
) -> None:
    """With the defaults, and up to as many attackers as it withstands: half of them free riders."""
    rng = np.random.default_rng(seed)
    round = Round([("float64", (30,))], num_updates, 0, seed)
    num_attackers = int(share * ((num_updates - 1) // 2))
    base, direction = round.given["t0"], rng.normal(size=30)
    for index, update in enumerate(round.updates):
        update.model["t0"][...] = base + step * (direction + spread * rng.normal(size=30))
        if index < num_attackers:
            update.model["t0"][...] = base
        if far and index < num_attackers // 2:
            update.model["t0"][...] += far * step * rng.normal(size=30)
    found = round.combine(name="geometric_median", max_attackers=num_attackers)["t0"]
    points, alpha = round.vectors(), np.ones(num_updates) / num_updates
    best = (geometric_median(points, alpha) @ points.astype(np.longdouble)).astype(np.float64)
    honest = points[num_attackers:]
    size = float(np.median(np.linalg.norm(honest - best, axis=1)))
    # Less the sum at the best: of each point by itself, or a far one leaves no digits of the others.
    d, d_best = (np.linalg.norm(points - v, axis=1) for v in (found, best))
    with np.errstate(invalid="ignore"):
        lost = alpha @ np.nan_to_num(
            ((found - best) * (found + best - 2 * points)).sum(axis=1) / (d + d_best)
        )
    assert lost <= 1e-6 * size + 1e-12
