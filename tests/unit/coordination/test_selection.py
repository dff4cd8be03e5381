from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from broker_fl.coordination.selection import make_selector
from broker_fl.interfaces import Member
from broker_fl.wire.selectors import SelectAll, SelectRandom

MEMBERS = st.integers(1, 60).map(lambda num: [Member(learner=f"l{index:03}") for index in range(num)])


def test_all_is_everybody() -> None:
    members = [Member(learner="a"), Member(learner="b")]
    assert make_selector(SelectAll()).select(members, 3, {}) == ["a", "b"]


@given(MEMBERS, st.floats(0.001, 1.0), st.integers(0, 100), st.integers(0, 2**62))
def test_a_fraction_is_rounded_up_and_drawn_without_repetition(
    members: list[Member], fraction: float, number: int, seed: int
) -> None:
    chosen = make_selector(SelectRandom(fraction=fraction, seed=seed)).select(members, number, {})
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= {member.learner for member in members}
    exact = fraction * len(members)
    assert len(chosen) == max(1, math.ceil(exact - 1e-9))
    assert chosen == make_selector(SelectRandom(fraction=fraction, seed=seed)).select(members, number, {})


def test_a_tenth_of_thirty_is_three_whatever_the_rounding_of_floats() -> None:
    members = [Member(learner=f"l{index:02}") for index in range(30)]
    assert len(make_selector(SelectRandom(fraction=0.1)).select(members, 0, {})) == 3


@given(MEMBERS, st.integers(1, 100))
def test_a_count_is_met_as_far_as_there_are_learners(members: list[Member], count: int) -> None:
    assert len(make_selector(SelectRandom(count=count)).select(members, 0, {})) == min(count, len(members))


def test_choices_differ_from_round_to_round_and_from_seed_to_seed() -> None:
    members = [Member(learner=f"l{index:02}") for index in range(50)]
    drawn = {
        tuple(make_selector(SelectRandom(count=5, seed=seed)).select(members, number, {}))
        for seed in range(5)
        for number in range(20)
    }
    assert len(drawn) > 95


def test_everybody_gets_a_turn() -> None:
    members = [Member(learner=f"l{index:02}") for index in range(20)]
    selector = make_selector(SelectRandom(fraction=0.25, seed=7))
    assert len({learner for number in range(60) for learner in selector.select(members, number, {})}) == 20
