from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from broker_fl.coordination.selection import make_selector
from broker_fl.wire.selectors import SelectRotation
from tests.unit.coordination.selecting import Rounds, everybody, ids


def spread(counts: list[int]) -> int:
    return max(counts) - min(counts)


def test_a_hundred_rounds_of_seven_among_thirty_who_come_and_go() -> None:
    """Ten are always there, ten half of the time, and ten come after half of the rounds."""
    draw = random.Random(5)
    steady, fickle, late = ids(30)[:10], ids(30)[10:20], ids(30)[20:]
    present = [
        steady + [one for one in fickle if draw.random() < 0.5] + late * (number >= 50)
        for number in range(100)
    ]
    rounds = Rounds(there=present.__getitem__).play(make_selector(SelectRotation(count=7)), 100)
    counts, later = rounds.counts(), rounds.counts(since=50)
    assert spread([counts[one] for one in steady]) <= 1
    assert spread([later[one] for one in late]) <= 1
    # A newcomer has its turn as often as the others from then on, and does not make up for what it missed.
    assert all(abs(later[new] - later[old]) <= 3 for new in late for old in steady)
    assert all(later[old] >= 10 for old in steady)


@given(
    st.integers(2, 9),
    st.integers(1, 9),
    st.lists(st.sets(st.sampled_from([f"x{index}" for index in range(9)])), min_size=1, max_size=40),
)
def test_learners_that_are_always_there_are_asked_equally_often(
    num_steady: int, count: int, others: list[set[str]]
) -> None:
    steady = ids(num_steady)
    rounds = Rounds(there=lambda number: [*steady, *others[number]])
    selector = make_selector(SelectRotation(count=count))
    for _ in others:
        rounds.play(selector, 1)
        counts = rounds.counts()
        assert spread([counts[one] for one in steady]) <= 1


@given(st.integers(1, 30), st.floats(0.01, 1.0))
def test_nobody_waits_longer_than_a_whole_turn(num_learners: int, fraction: float) -> None:
    rounds = Rounds(there=everybody(num_learners))
    rounds.play(make_selector(SelectRotation(fraction=fraction)), 40)
    turn = -(-num_learners // len(rounds.cohorts[0]))
    for learner in ids(num_learners):
        asked = [-1, *rounds.rounds_of(learner)]
        assert all(later - earlier <= turn for earlier, later in pairwise(asked))
        assert 40 - asked[-1] <= turn
