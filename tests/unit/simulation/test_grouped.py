"""Thousands of learners in one process, in groups."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from broker_fl.errors import SettingError
from broker_fl.interfaces import LearnerContext
from broker_fl.simulation import Federation, LazyLearners, World
from broker_fl.wire import events as e
from tests.unit.roles.stage import Adds, done, model_of, same, spec

NUM = 1_000


def test_a_thousand_learners_in_three_groups_make_the_model_computed_by_hand() -> None:
    """Learner ``i`` adds ``i % 4``: 1.5 a round. It is made by its place among all, when it is needed."""
    made: Counter[int] = Counter()
    lock = threading.Lock()

    def make(context: LearnerContext) -> Adds:
        assert context.count == NUM
        assert context.learner == f"l{context.index:04}"
        with lock:
            made[context.index] += 1
        return Adds(float(context.index % 4))

    learners = LazyLearners((f"l{index:04}" for index in range(NUM)), make)
    with Federation(learners, groups=3) as federation:
        assert not made, "nobody is made before there is work"
        job = federation.submit(spec(rounds=2, min_learners=NUM, evaluate=False), model_of())
        done(job)
        same(job.model(), model_of(3.0))
        events = list(job.events(follow=False))
        assert len(federation.driver.learners()) == NUM
    assert set(made) == set(range(NUM))
    versions = [event for event in events if isinstance(event, e.VersionCommitted)]
    assert [event.num_learners for event in versions] == [NUM, NUM]
    folded = [event for event in events if isinstance(event, e.GroupFolded)]
    assert {event.group for event in folded} == {"group-0", "group-1", "group-2"}


def test_learners_that_are_there_already_can_be_grouped_too() -> None:
    learners = {f"l{index}": Adds(float(index)) for index in range(5)}
    with Federation(learners, groups=2) as federation:
        job = federation.submit(spec(rounds=2, min_learners=5), model_of())
        done(job)
        same(job.model(), model_of(4.0))
    assert [learner.num_trained for learner in learners.values()] == [2] * 5


@pytest.mark.parametrize(("groups", "world"), [(0, None), (6, None), (2, World())])
def test_groups_that_cannot_be_are_refused(groups: int, world: World | None) -> None:
    learners = {f"l{index}": Adds(1.0) for index in range(5)}
    with pytest.raises(SettingError, match="group"):
        Federation(learners, groups=groups, world=world)
