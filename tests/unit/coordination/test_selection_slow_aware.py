from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from broker_fl.coordination.selection import make_selector
from broker_fl.interfaces import Member, Record
from broker_fl.wire.selectors import SelectRandom, SelectRotation, SelectSlowAware
from tests.unit.coordination.selecting import Rounds, everybody, ids

SLOW = ids(40)[::5]


def seconds(number: int, learner: str) -> float:
    """Eight of forty take ten times as long."""
    return 100.0 if learner in SLOW else 10.0


def test_a_hundred_rounds_last_half_as_long_and_the_slow_still_take_part() -> None:
    aware = Rounds(there=everybody(40), task_s=seconds).play(make_selector(SelectSlowAware(count=10)), 100)
    for unaware in (SelectRandom(count=10), SelectRotation(count=10)):
        others = Rounds(there=everybody(40), task_s=seconds).play(make_selector(unaware), 100)
        assert aware.mean_round_s() < 0.5 * others.mean_round_s()
    assert {len(cohort) for cohort in aware.cohorts} == {10}
    assert all(aware.counts()[one] >= 15 for one in SLOW)  # of 20 rounds in which it is their turn
    turns = {number for one in SLOW for number in aware.rounds_of(one)}
    assert all((number + 1) % 5 == 0 for number in turns if number >= 4)


def test_without_a_size_all_but_the_slow_take_part_and_in_their_round_all() -> None:
    rounds = Rounds(there=everybody(40), task_s=seconds)
    rounds.play(make_selector(SelectSlowAware(slow_every=4)), 100)
    for number, cohort in enumerate(rounds.cohorts):
        everybody_is_asked = number == 0 or (number + 1) % 4 == 0
        assert cohort == (ids(40) if everybody_is_asked else [one for one in ids(40) if one not in SLOW])


def test_a_learner_that_becomes_faster_is_soon_asked_as_often_as_the_others() -> None:
    rounds = Rounds(
        there=everybody(40),
        task_s=lambda number, learner: (
            10.0 if learner == SLOW[0] and number >= 50 else seconds(number, learner)
        ),
    )
    rounds.play(make_selector(SelectSlowAware()), 100)
    assert len([number for number in rounds.rounds_of(SLOW[0]) if number >= 75]) == 25
    assert len([number for number in rounds.rounds_of(SLOW[1]) if number >= 75]) == 5


@given(
    st.integers(2, 30).flatmap(lambda num: st.lists(st.floats(0.1, 1000), min_size=num, max_size=num)),
    st.integers(1, 30),
    st.integers(2, 6),
)
def test_nobody_starves_however_slow_and_however_few_are_asked(
    times: list[float], count: int, slow_every: int
) -> None:
    learners = ids(len(times))
    rounds = Rounds(
        there=everybody(len(times)),
        task_s=lambda number, learner: times[learners.index(learner)],
    )
    selector = make_selector(SelectSlowAware(count=count, slow_every=slow_every))
    longest = slow_every * (-(-len(times) // count) + 1)
    rounds.play(selector, 4 * longest)
    for learner in learners:
        asked = [-1, *rounds.rounds_of(learner), 4 * longest]
        assert max(later - earlier for earlier, later in pairwise(asked)) <= longest


def test_slow_learners_fill_up_a_count_the_fastest_of_them_first() -> None:
    history = {one: Record(last_round=0, task_s=1.0) for one in "abc"}
    history |= {"d": Record(last_round=0, task_s=20.0), "e": Record(last_round=0, task_s=10.0)}
    members = [Member(learner=one) for one in "abcde"]
    assert make_selector(SelectSlowAware(count=4)).select(members, 1, history) == ["a", "b", "c", "e"]
    # A quorum that is a count could not be reached without them.
    assert make_selector(SelectSlowAware()).select(members, 1, history) == ["a", "b", "c"]
    assert make_selector(SelectSlowAware(), at_least=4).select(members, 1, history) == ["a", "b", "c", "e"]
