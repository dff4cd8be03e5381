"""Norm clipping, which keeps no updates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_fl.errors import AggregationError
from broker_fl.interfaces import Contribution
from broker_fl.model import Array, Model
from tests.unit.aggregation.attacked import Round, check, check_refusals, rounds
from tests.unit.aggregation.robust.references import FEW


@FEW
@given(rounds(lambda f: f + 1), st.sampled_from(["equal", "examples"]), st.sampled_from([0.5, 5.0, 1e9]))
def test_norm_clipping_adds_the_mean_of_the_clipped_differences(
    attacked: tuple[Round, int], weighting: str, max_norm: float
) -> None:
    """Sun et al. 2019, section 4."""
    round, _ = attacked
    examples = np.array([update.num_examples for update in round.updates], np.float64)
    alpha = examples if weighting == "examples" else np.ones(len(examples))
    lengths = np.linalg.norm(round.vectors() - round.flat(round.given), axis=1)
    weights = alpha / alpha.sum() / np.maximum(1, lengths / max_norm)

    def reference(name: str) -> Array:
        base = round.given[name].astype(np.float64)
        moved: Array = base + np.tensordot(weights, round.values(name) - base, 1)
        return moved

    def largest(name: str) -> Array:
        return np.concatenate([round.values(name), round.given[name].astype(np.float64)[None]])

    rule: dict[str, Any] = {"name": "norm_clipping", "max_norm": max_norm, "weighting": weighting}
    check(round.combine(**rule), reference, largest)
    check_refusals(round, **rule)


@pytest.mark.parametrize("size", [1e6, 3e38])
def test_an_attacker_moves_a_clipped_mean_by_no_more_than_its_share_of_the_norm(size: float) -> None:
    round = Round([("float32", (100,))], 10, 0, seed=10)
    honest = round.combine(round.updates[1:], name="norm_clipping", max_norm=2.0)
    round.updates[0].model["t0"][...] = size
    found = round.combine(name="norm_clipping", max_norm=2.0)
    base = round.given["t0"].astype(np.float64)
    moved = (found["t0"] - base) - 0.9 * (honest["t0"] - base)
    assert np.linalg.norm(moved) <= 0.2 * 1.01


def test_a_difference_whose_length_overflows_counts_as_none() -> None:
    round = Round([("float64", (2,))], 1, 0, seed=11)
    round.updates[0].model["t0"][...] = 1.7e308
    np.testing.assert_array_equal(round.combine(name="norm_clipping", max_norm=1.0)["t0"], round.given["t0"])


def test_norm_clipping_keeps_nothing_of_an_update_and_needs_one() -> None:
    round = Round([("float32", (50,))], 2, 0, seed=12)
    expected = round.combine(round.updates, name="norm_clipping", max_norm=1.0)
    accumulator = round.begin(name="norm_clipping", max_norm=1.0)
    with pytest.raises(AggregationError, match="no update"):
        accumulator.result()
    for update in round.updates:
        model = update.model.copy()
        accumulator.fold(Contribution(learner=update.learner, model=model, num_examples=1))
        model["t0"][...] = np.nan
    assert accumulator.result().model.digest == expected.digest


def test_clipping_to_a_length_that_nothing_reaches_is_fedavg() -> None:
    round = Round([("float32", (50,)), ("int32", (4,)), ("bool", (4,))], 6, 2, seed=13)
    clipped = round.combine(round.updates, name="norm_clipping", max_norm=1e12, weighting="examples")
    mean: Model = round.combine(round.updates, name="fedavg")
    assert clipped.digest == mean.digest
