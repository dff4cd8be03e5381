"""What holds for all rules that keep the updates of a round: too few of them, any order, far ones, memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from broker_fl.aggregation import blocks
from broker_fl.errors import AggregationError
from broker_fl.interfaces import Contribution
from tests.unit.aggregation.attacked import Round, check_refusals
from tests.unit.aggregation.robust.references import NEEDED


@pytest.mark.parametrize("name", NEEDED)
@pytest.mark.parametrize("f", [0, 1, 3])
def test_a_cohort_that_is_too_small_is_an_error_that_says_how_large_it_must_be(name: str, f: int) -> None:
    needed = NEEDED[name](f)
    round = Round([("float32", (5,))], needed, f, seed=0)
    round.combine(name=name, max_attackers=f)
    with pytest.raises(AggregationError, match=rf"{needed - 1} updates are too few.* needs {needed} \("):
        round.combine(round.updates[1:], name=name, max_attackers=f)


def test_multi_krum_needs_as_many_more_as_it_is_to_select() -> None:
    round = Round([("float32", (5,))], 9, 1, seed=0)
    round.combine(name="multi_krum", max_attackers=1, num_selected=6)
    with pytest.raises(AggregationError, match=r"9 updates are too few.* needs 10"):
        round.combine(name="multi_krum", max_attackers=1, num_selected=7)


@pytest.mark.parametrize("name", NEEDED)
@pytest.mark.parametrize("size", [1.0, 1e10, 3e38])
def test_f_attackers_do_not_move_the_result_out_of_the_honest_ones(name: str, size: float) -> None:
    """Whatever the size of what they send: also when it is as large as its type allows."""
    round = Round([("float32", (200,)), ("int64", (3,))], 15, 0, seed=3)
    rng = np.random.default_rng(4)
    for update in round.updates[:3]:
        update.model["t0"][...] = size * np.sign(rng.normal(size=200))
        update.model["t1"][...] = 2**62
    honest = round.updates[3:]
    spread = max(np.abs(update.model["t0"]).max() for update in honest)
    found = round.combine(name=name, max_attackers=3)
    assert np.abs(found["t0"]).max() <= 1.01 * spread
    if size > 1:
        assert np.linalg.norm(found["t0"] - np.mean([u.model["t0"] for u in honest], axis=0)) < 16


@pytest.mark.parametrize("name", ["median", "krum", "multi_krum", "bulyan", "geometric_median"])
def test_distances_that_overflow_float64_are_infinite_and_nothing_else(name: str) -> None:
    round = Round([("float64", (50,))], 11, 0, seed=5)
    for index, update in enumerate(round.updates[:2]):
        update.model["t0"][...] = 1.7e308 * (-1) ** index
    assert np.abs(round.combine(name=name, max_attackers=2)["t0"]).max() < 5


@pytest.mark.parametrize("name", NEEDED)
def test_the_order_of_arrival_does_not_change_a_bit_and_refused_updates_do_not_count(name: str) -> None:
    round = Round([("float64", (7,)), ("float16", (9,)), ("bool", (5,)), ("int32", ())], 15, 3, seed=6)
    digests = {
        round.combine(order, name=name, max_attackers=3).digest
        for order in (round.updates, round.updates[::-1], round.updates[7:] + round.updates[:7])
    }
    assert len(digests) == 1
    check_refusals(round, name=name, max_attackers=3)


@pytest.mark.parametrize("name", NEEDED)
def test_a_rule_that_chooses_says_which_updates_the_result_is_made_of(name: str) -> None:
    """One update is far away; Krum takes one, Multi-Krum n - f - 2, Bulyan n - 2 f, the others all but it."""
    round = Round([("float64", (20,))], 9, 1, seed=15)
    accumulator = round.begin(name=name, max_attackers=1)
    for index in round.order:
        accumulator.fold(round.updates[index])
    combined = accumulator.result()
    if name in ("median", "trimmed_mean"):
        assert combined.used is None
        return
    assert combined.used is not None
    shares = np.array([combined.used[update.learner] for update in round.updates])
    assert len(combined.used) == 9
    assert shares.sum() == pytest.approx(1.0)
    if name == "geometric_median":
        assert 0 < shares[0] < shares[1:].min()
    else:
        assert shares[0] == 0
        assert (shares > 0).sum() == {"krum": 1, "multi_krum": 6, "bulyan": 7}[name]
    if name != "bulyan":
        np.testing.assert_allclose(combined.model["t0"], shares @ round.values("t0"), rtol=1e-12)


@pytest.mark.parametrize("name", NEEDED)
def test_equal_updates_give_themselves(name: str) -> None:
    round = Round([("float32", (70,)), ("bfloat16", (9,)), ("uint8", (5,)), ("bool", (4,))], 1, 0, seed=7)
    one = round.updates[0].model
    same = [Contribution(learner=f"l{i}", model=one, num_examples=i + 1) for i in range(7)]
    found = round.combine(same, name=name, max_attackers=1)
    for tensor in one:
        np.testing.assert_allclose(
            found[tensor].astype(np.float64), one[tensor].astype(np.float64), rtol=1e-6
        )


@pytest.mark.parametrize("name", NEEDED)
def test_a_round_is_used_up_by_its_result_and_a_model_without_floats_has_one(name: str) -> None:
    round = Round([("int16", (4,))], 7, 0, seed=8)
    accumulator = round.begin(name=name, max_attackers=1)
    for update in round.updates:
        assert accumulator.fold(update) == 1.0, "every update has one vote"
    assert accumulator.total_weight == 7
    assert accumulator.result().memory is None
    with pytest.raises(AggregationError, match="0 updates"):
        accumulator.result()


@pytest.mark.parametrize("name", NEEDED)
def test_memory_is_the_updates_the_result_and_a_few_blocks(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", block := 1 << 14)
    round = Round([("float32", (300_000,))], 15, 3, seed=14)
    accumulator = round.begin(name=name, max_attackers=3)
    tracemalloc.start()
    try:
        for update in round.updates:
            accumulator.fold(update)
        folding = tracemalloc.get_traced_memory()[1]
        accumulator.result()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert folding < round.given.spec.num_bytes / 2, "updates are kept as they are"
    assert peak < round.given.spec.num_bytes + 6 * 8 * block


def test_a_median_that_overflows_is_an_error() -> None:
    round = Round([("float64", (2,))], 4, 0, seed=9)
    for update in round.updates:
        update.model["t0"][...] = 1.7e308
    with pytest.raises(AggregationError, match="overflows float64"):
        round.combine(name="median", max_attackers=1)
