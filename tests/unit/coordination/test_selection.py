"""What every selector holds to; and the two that know of no history."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from broker_fl.coordination.selection import make_selector
from broker_fl.errors import AppError
from broker_fl.interfaces import Member, Record
from broker_fl.wire.selectors import AnySelector, OwnSelector, SelectAll, SelectRandom
from tests.unit.coordination.selecting import ids, members_and_history

MEMBERS = st.integers(1, 60).map(lambda num: [Member(learner=learner) for learner in ids(num)])
SIZES = st.one_of(
    st.fixed_dictionaries({"count": st.integers(1, 30)}),
    st.fixed_dictionaries({"fraction": st.floats(0.01, 1.0)}),
)
EVERY: dict[str, dict[str, Any]] = {
    "all": {"name": "all"},
    "random": {"name": "random", "seed": 3},
    "rotation": {"name": "rotation"},
    "power_of_choice": {"name": "power_of_choice", "num_candidates": 30, "seed": 3},
    "slow_aware": {"name": "slow_aware", "slow_factor": 1.5, "slow_every": 3},
}
COMMON = st.fixed_dictionaries(
    {},
    optional={
        "where": st.sampled_from([{"region": "eu"}, {"num_examples": {"min": 100}}, {"gpu": [True]}]),
        "exclude_after": st.integers(1, 4),
    },
)
Scene = tuple[list[Member], dict[str, Record]]


def settings_of(fields: dict[str, Any]) -> AnySelector:
    return TypeAdapter[AnySelector](AnySelector).validate_python(fields)


@pytest.mark.parametrize("name", EVERY)
@given(scene=members_and_history(), size=SIZES, common=COMMON, number=st.integers(0, 50))
def test_a_choice_is_of_the_eligible_never_empty_as_large_as_asked_for_and_the_same_again(
    name: str, scene: Scene, size: dict[str, Any], common: dict[str, Any], number: int
) -> None:
    members, history = scene
    settings = settings_of(EVERY[name] | common | ({} if name == "all" else size))
    selector = make_selector(settings)
    before = copy.deepcopy(history)
    chosen = selector.select(members, number, history)
    eligible = [member.learner for member in selector.eligible(members, number, history)]
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(eligible)
    wanted = size.get("count", math.ceil(size.get("fraction", 1.0) * len(eligible) - 1e-9))
    assert len(chosen) == min(len(eligible), len(eligible) if name == "all" else wanted)
    assert bool(eligible) == bool(selector.matching(members))
    assert repr(history) == repr(before)
    assert chosen == make_selector(settings).select(list(members), number, dict(reversed(history.items())))


@pytest.mark.parametrize("name", EVERY)
def test_where_nobody_matches_nobody_is_chosen(name: str) -> None:
    size = {} if name == "all" else {"count": 2}
    selector = make_selector(settings_of(EVERY[name] | size | {"where": {"region": "eu"}}))
    assert selector.select([Member(learner="a"), Member(learner="b")], 0, {}) == []


def test_the_users_own_selector_needs_an_app_file() -> None:
    with pytest.raises(AppError, match="there is no selector 'Mine'"):
        make_selector(OwnSelector(selector="Mine"))


# ---------------------------------------------------------------- all, random


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
    members = [Member(learner=learner) for learner in ids(30)]
    assert len(make_selector(SelectRandom(fraction=0.1)).select(members, 0, {})) == 3


@given(MEMBERS, st.integers(1, 100))
def test_a_count_is_met_as_far_as_there_are_learners(members: list[Member], count: int) -> None:
    assert len(make_selector(SelectRandom(count=count)).select(members, 0, {})) == min(count, len(members))


def test_choices_differ_from_round_to_round_and_from_seed_to_seed() -> None:
    members = [Member(learner=learner) for learner in ids(50)]
    drawn = {
        tuple(make_selector(SelectRandom(count=5, seed=seed)).select(members, number, {}))
        for seed in range(5)
        for number in range(20)
    }
    assert len(drawn) > 95


def test_everybody_gets_a_turn() -> None:
    members = [Member(learner=learner) for learner in ids(20)]
    selector = make_selector(SelectRandom(fraction=0.25, seed=7))
    assert len({learner for number in range(60) for learner in selector.select(members, number, {})}) == 20
