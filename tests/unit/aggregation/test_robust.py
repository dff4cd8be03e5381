"""The robust rules against plain references, written from the papers' equations."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_fl.aggregation import blocks
from broker_fl.aggregation.sorting import exchanges, sort_columns
from broker_fl.errors import AggregationError
from broker_fl.interfaces import Contribution
from broker_fl.model import Array, Model
from broker_fl.roles.learner import LearnerHost, LearnerSettings
from broker_fl.simulation import Federation
from broker_fl.wire.job import JobSpec
from tests.unit.aggregation.attacked import Round, check, check_refusals, rounds
from tests.unit.roles.stage import FEDERATION, WAIT_S, Adds, model_of, same

NEEDED: dict[str, Callable[[int], int]] = {
    "median": lambda f: 2 * f + 1,
    "trimmed_mean": lambda f: 2 * f + 1,
    "krum": lambda f: 2 * f + 3,
    "multi_krum": lambda f: 2 * f + 3,
    "bulyan": lambda f: 4 * f + 3,
    "geometric_median": lambda f: 2 * f + 1,
}
FEW = settings(max_examples=60, deadline=None)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small models have several blocks too."""
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 64)
    monkeypatch.setattr(blocks, "MIN_WIDTH", 16)


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


def squared_distances(vectors: Array) -> Array:
    return np.array([[((a - b) ** 2).sum() for b in vectors] for a in vectors])


def krum_scores(squared: Array, f: int) -> list[float]:
    """Blanchard et al. 2017, section 4."""
    n = len(squared)
    return [sum(sorted(squared[i][j] for j in range(n) if j != i)[: max(1, n - f - 2)]) for i in range(n)]


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


def bulyan_selection(squared: Array, f: int) -> list[int]:
    """El Mhamdi et al. 2018, section 4, step 1."""
    left = list(range(len(squared)))
    chosen: list[int] = []
    while len(chosen) < len(squared) - 2 * f:
        found = krum_scores(squared[np.ix_(left, left)], f)
        chosen.append(left.pop(int(np.argmin(found))))
    return chosen


def about_the_median(values: Array, count: int) -> float:
    """Step 2; of two values equally far away, the lower."""
    median = np.median(values)
    return float(np.mean(sorted(values, key=lambda value: (abs(value - median), value))[:count]))


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


def sum_of_distances(points: Array, alpha: Array, v: Array) -> float:
    return float(alpha @ np.sqrt(((points - v) ** 2).sum(axis=1)))


def geometric_median(points: Array, alpha: Array) -> Array:
    """Shares of the points in it, by very many steps of Vardi and Zhang 2000 in extended precision, on the
    vectors themselves, from the point of the least sum of distances on.
    """
    points = np.asarray(points, np.longdouble)
    alpha = np.asarray(alpha / alpha.sum(), np.longdouble)
    best = np.argmin([sum_of_distances(points, alpha, point) for point in points])
    shares: Array = np.eye(len(points), dtype=np.longdouble)[best]
    for _ in range(20_000):
        away = points - shares @ points
        distances = np.sqrt((away**2).sum(axis=1))
        apart = distances > 0
        beta = np.where(apart, alpha / np.where(apart, distances, 1), 0)
        pull, eta = beta @ away, alpha[~apart].sum()
        r = np.sqrt(pull @ pull)
        if r <= eta + 1e-15:
            break
        shares = shares + (1 - eta / r) * (beta / beta.sum() - shares)
    return shares


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


# ---------------------------------------------------------------- all that keep the updates


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


# ---------------------------------------------------------------- norm clipping


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


# ---------------------------------------------------------------- through a job

AMOUNTS = np.array([1.0, 1.5, 2.25, 3.0, 3.5, 4.25, 100.0])
"""What each of seven learners adds to every element of the model in each round; the last one attacks."""
LINE = squared_distances(AMOUNTS[:, None])


@pytest.mark.parametrize(
    ("rule", "added"),
    [
        ({"name": "median"}, 3.0),
        ({"name": "trimmed_mean"}, AMOUNTS[1:-1].mean()),
        ({"name": "krum"}, AMOUNTS[np.argmin(krum_scores(LINE, 1))]),
        ({"name": "multi_krum"}, AMOUNTS[np.argsort(krum_scores(LINE, 1))[:4]].mean()),
        ({"name": "bulyan"}, about_the_median(AMOUNTS[bulyan_selection(LINE, 1)], 3)),
        ({"name": "geometric_median"}, np.median(AMOUNTS)),
        ({"name": "norm_clipping", "max_norm": 4.0}, np.minimum(AMOUNTS, 2.0).mean()),
    ],
    ids=lambda given: given["name"] if isinstance(given, dict) else "",
)
def test_a_job_with_the_rule_makes_the_model_computed_by_hand(rule: dict[str, Any], added: float) -> None:
    learners = {f"l{i}": Adds(amount, num_examples=i + 1) for i, amount in enumerate(AMOUNTS)}
    settings = {"rule": rule, "protocol": {"min_learners": 7}, "termination": {"rounds": 3}}
    with Federation(learners) as federation:
        job = federation.submit(JobSpec.model_validate(settings), model_of())
        assert job.wait().state == "done"
        for array in job.model().values():
            np.testing.assert_allclose(array, 3 * added, rtol=1e-5)
        newest = job.history().versions[3]
        assert len(newest.contributors) == 7
        if rule["name"] == "krum":
            assert newest.used == {
                name: float(f"l{np.argmin(krum_scores(LINE, 1))}" == name) for name in learners
            }


def test_a_round_that_loses_too_many_learners_waits_for_enough_and_combines_no_fewer() -> None:
    """Enough are there when it begins; then one leaves, and comes back."""
    leaver = Adds(1.0)
    leaver.gate.clear()
    spec = {"rule": {"name": "median"}, "protocol": {"min_learners": 3}, "termination": {"rounds": 2}}
    with Federation({"a": Adds(1.0), "b": Adds(1.0)}, name=FEDERATION) as federation:
        transports = [federation.broker.connect(name) for name in ("leaver", "back")]
        hosts = [
            LearnerHost(transport, {"c": leaver}, LearnerSettings(federation=FEDERATION))
            for transport in transports
        ]
        hosts[0].start()
        job = federation.driver.submit(JobSpec.model_validate(spec), model_of())
        assert leaver.at_work.wait(WAIT_S)
        hosts[0].stop(drain_s=0.0, reason="it has had enough")
        transports[0].close()
        leaver.gate.set()
        hosts[1].start()
        assert job.wait().state == "done"
        hosts[1].stop(drain_s=0.0)
        transports[1].close()
        same(job.model(), model_of(2.0))
        assert all(len(version.contributors) == 3 for version in list(job.history().versions.values())[1:])
