from __future__ import annotations

import math
import random
from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_fl.coordination.selection import make_selector
from broker_fl.interfaces import Member, Record
from broker_fl.wire.selectors import SelectPowerOfChoice
from tests.unit.coordination.selecting import Rounds, everybody, ids, members_and_history

NUM_DRAWS = 20_000


def test_a_hundred_rounds_choose_high_losses_more_and_leave_nobody_out() -> None:
    """The first eight of forty have five times the loss of the others; all of it with some noise."""
    draw = random.Random(1)
    high, low = ids(40)[:8], ids(40)[8:]
    rounds = Rounds(
        there=everybody(40),
        loss=lambda number, learner: (1.0 if learner in high else 0.2) * draw.uniform(0.8, 1.2),
    )
    rounds.play(make_selector(SelectPowerOfChoice(count=4, num_candidates=8, seed=3)), 100)
    counts = rounds.counts()
    mean_high, mean_low = (sum(counts[one] for one in group) / len(group) for group in (high, low))
    assert mean_high > 2 * mean_low
    assert min(counts[one] for one in ids(40)) >= 1
    alike = Rounds(there=everybody(40)).play(
        make_selector(SelectPowerOfChoice(count=4, num_candidates=4, seed=3)), 100
    )
    assert sum(alike.counts()[one] for one in high) / 8 < 1.5 * 10  # where d = m, the loss has no say


@given(members_and_history(), st.integers(1, 25), st.integers(0, 99))
def test_where_all_are_candidates_the_highest_known_losses_are_chosen_after_the_unknown(
    scene: tuple[list[Member], dict[str, Record]], count: int, number: int
) -> None:
    members, history = scene
    chosen = make_selector(SelectPowerOfChoice(count=count, num_candidates=25)).select(
        members, number, history
    )
    losses = {}
    for member in members:
        known = history[member.learner].evaluation.get("loss") if member.learner in history else None
        losses[member.learner] = math.inf if known is None or known != known else known
    assert sorted(losses[one] for one in chosen) == sorted(losses.values())[-len(chosen) :]


def drawn(shares: dict[str, int], *, size: int) -> Counter[tuple[str, ...]]:
    members = [Member(learner=one, attributes={"num_examples": number}) for one, number in shares.items()]
    selector = make_selector(SelectPowerOfChoice(count=size, num_candidates=size, seed=11))
    return Counter(tuple(selector.select(members, number, {})) for number in range(NUM_DRAWS))


def test_candidates_are_drawn_without_replacement_by_their_share_of_examples() -> None:
    shares = {"a": 100, "b": 200, "c": 300, "d": 400}
    ones, pairs, total = drawn(shares, size=1), drawn(shares, size=2), sum(shares.values())
    p = {one: number / total for one, number in shares.items()}
    expected = {(one,): p[one] for one in p} | {
        (x, y): p[x] * p[y] / (1 - p[x]) + p[y] * p[x] / (1 - p[y]) for x, y in combinations(p, 2)
    }
    for choice, chance in expected.items():
        five_deviations = 5 * math.sqrt(chance * (1 - chance) / NUM_DRAWS)
        found = (ones if len(choice) == 1 else pairs)[choice] / NUM_DRAWS
        assert found == pytest.approx(chance, abs=five_deviations)


def test_a_learner_that_told_no_number_of_examples_counts_by_what_it_trained_on_or_as_the_mean() -> None:
    members = [
        Member(learner="told", attributes={"num_examples": 300}),
        Member(learner="trained"),
        Member(learner="unknown", attributes={"num_examples": "many"}),
    ]
    history = {"told": Record(num_examples=1), "trained": Record(num_examples=100)}
    selector = make_selector(SelectPowerOfChoice(count=1, num_candidates=1))
    counts = Counter(selector.select(members, number, history)[0] for number in range(NUM_DRAWS))
    for learner, share in {"told": 300 / 600, "trained": 100 / 600, "unknown": 200 / 600}.items():
        assert counts[learner] / NUM_DRAWS == pytest.approx(share, abs=0.02)


def test_equal_losses_are_chosen_in_the_order_of_the_draw_not_of_the_names() -> None:
    rounds = Rounds(there=everybody(20))
    rounds.play(make_selector(SelectPowerOfChoice(count=2, num_candidates=20)), 10)
    assert rounds.counts() == Counter(ids(20))  # nobody is known at first, and each becomes known once
    assert rounds.cohorts[0] != ids(2)
