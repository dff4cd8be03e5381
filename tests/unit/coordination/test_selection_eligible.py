"""Whom selectors choose from."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_fl.coordination.selection import make_selector
from broker_fl.interfaces import Member, Record
from broker_fl.wire.selectors import SelectAll, SelectRandom, SelectRotation
from tests.unit.coordination.selecting import Rounds, everybody, ids, members_and_history


def site(learner: str, software: str = "", **attributes: str | float | None) -> Member:
    return Member(learner=learner, attributes=attributes, software=software)


SITES = [
    site("a", "broker_fl 0.1.0", region="eu", gpu=True, num_examples=50),
    site("b", "broker_fl 0.2.1", region="eu", gpus=1, num_examples=500),
    site("c", "foreign", region="us", gpu=True, num_examples=5000.0),
    site("d", region=None, gpu="true", num_examples="500"),
]


@pytest.mark.parametrize(
    ("where", "matching"),
    [
        ({}, "abcd"),
        ({"region": "eu"}, "ab"),
        ({"region": ["us", "uk"]}, "c"),
        ({"region": None}, "d"),
        ({"gpu": True}, "ac"),
        ({"gpus": 1.0}, "b"),
        ({"gpus": True}, ""),
        ({"gpu": 1}, ""),
        ({"num_examples": {"min": 500}}, "bc"),
        ({"num_examples": {"min": 50, "max": 500}}, "ab"),
        ({"num_examples": {"max": 49.5}}, ""),
        ({"region": "eu", "num_examples": {"min": 100}}, "b"),
        ({"software": {"min": "0.1.0"}}, "ab"),
        ({"software": {"min": "0.1.0", "max": "0.2"}}, "a"),
        ({"software": "foreign"}, "c"),
        ({"learner": ["a", "d", "e"]}, "ad"),
        ({"country": "de"}, ""),
    ],
    ids=str,
)
def test_only_learners_with_these_attributes_are_chosen(where: dict[str, object], matching: str) -> None:
    selector = make_selector(SelectAll.model_validate({"where": where}))
    assert selector.select(SITES, 0, {}) == list(matching)
    assert [member.learner for member in selector.matching(SITES)] == list(matching)


def test_a_fraction_is_of_those_that_match() -> None:
    members = [Member(learner=one, attributes={"half": index % 2}) for index, one in enumerate(ids(40))]
    chosen = make_selector(SelectRandom(fraction=0.25, where={"half": 1})).select(members, 0, {})
    assert len(chosen) == 5


# ---------------------------------------------------------------- failures


def test_a_hundred_rounds_with_one_that_keeps_failing_and_one_that_recovers() -> None:
    rounds = Rounds(
        there=everybody(5),
        fails=lambda number, learner: learner == "l000" or (learner == "l001" and number < 20),
    )
    rounds.play(make_selector(SelectAll(exclude_after=3, exclude_rounds=5)), 100)
    assert rounds.rounds_of("l000") == [0, 1, *range(2, 100, 6)]
    assert rounds.rounds_of("l001") == [0, 1, 2, 8, 14, *range(20, 100)]
    assert all(rounds.counts()[one] == 100 for one in ids(5)[2:])


def test_failures_that_are_not_in_a_row_leave_nobody_out() -> None:
    rounds = Rounds(there=everybody(2), fails=lambda number, learner: number % 3 != 0)
    rounds.play(make_selector(SelectAll(exclude_after=3)), 30)
    assert rounds.counts() == {"l000": 30, "l001": 30}


def test_where_all_keep_failing_the_longest_left_out_is_asked_again() -> None:
    rounds = Rounds(there=everybody(6), fails=lambda number, learner: True)
    rounds.play(make_selector(SelectRotation(count=2, exclude_after=1, exclude_rounds=100)), 60)
    assert {len(cohort) for cohort in rounds.cohorts} == {1, 2}
    counts = rounds.counts()
    assert max(counts.values()) - min(counts.values()) <= 1


@given(members_and_history(), st.integers(1, 4), st.integers(1, 20), st.integers(0, 60), st.integers(1, 12))
def test_who_is_left_out_has_failed_so_often_and_as_many_as_are_needed_stay(
    scene: tuple[list[Member], Mapping[str, Record]], limit: int, num_rounds: int, number: int, at_least: int
) -> None:
    members, history = scene
    settings = SelectAll(exclude_after=limit, exclude_rounds=num_rounds)
    chosen = make_selector(settings, at_least=at_least).select(members, number, history)
    out = {member.learner for member in members} - set(chosen)
    failing = {
        member.learner
        for member in members
        if member.learner in history
        and history[member.learner].num_failures >= limit
        and number <= history[member.learner].last_round + num_rounds
    }
    assert out <= failing
    assert len(chosen) == min(len(members), max(at_least, len(members) - len(failing)))
    back = failing - out
    assert all(history[x].last_round <= history[y].last_round for x in back for y in out)
