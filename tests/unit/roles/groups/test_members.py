"""Members of a group: made when they are worked on, and seen by the selector."""

from __future__ import annotations

from typing import Any

import numpy as np

from broker_fl.errors import AppError
from broker_fl.interfaces import LearnerContext
from broker_fl.roles.learner import LazyLearners
from broker_fl.wire import events as e
from broker_fl.wire.job import JobSpec, Termination
from broker_fl.wire.rules import FedAvg
from tests.unit.roles.groups.learners import of
from tests.unit.roles.stage import Adds, Stage, done, model_of


def test_learners_are_made_when_they_are_worked_on_and_few_are_kept(stage: Stage) -> None:
    alive, most = set[int](), [0]

    class Counted(Adds):
        def __init__(self, context: LearnerContext) -> None:
            super().__init__(float(context.index))
            assert context.count == 40
            alive.add(id(self))
            most[0] = max(most[0], len(alive))

        def __del__(self) -> None:
            alive.discard(id(self))

    stage.controller()
    learners = LazyLearners([f"a-{index:02}" for index in range(40)], Counted, num_cached=4)
    stage.host(learners, group="a", num_workers=2)
    job = stage.submit(rounds=2, min_learners=40, evaluate=False)
    assert done(job).version == 2
    np.testing.assert_allclose(job.model()["w"], 2 * 19.5, rtol=1e-6)
    assert most[0] <= 7


def test_a_factory_that_raises_for_one_learner_costs_that_one(stage: Stage) -> None:
    def make(context: LearnerContext) -> Adds:
        if context.index == 1:
            raise AppError("its file is not there")
        return Adds(1.0)

    stage.controller()
    stage.host(LazyLearners(["a-0", "a-1", "a-2"], make), group="a")
    job = stage.submit(rounds=1, min_learners=3, quorum=2, evaluate=False)
    assert done(job).version == 1
    (missed,) = of(job, e.GroupMissed)
    assert isinstance(missed, e.GroupMissed)
    assert missed.learners == ("a-1",)
    assert "its file is not there" in missed.reasons[0]


def test_attributes_of_members_reach_the_selector(stage: Stage) -> None:
    class Told(Adds):
        def __init__(self, index: int) -> None:
            super().__init__(1.0)
            if index % 2:
                self.attributes = {"region": "eu", "place": index}

    stage.controller()
    stage.host({f"a-{index}": Told(index) for index in range(6)}, group="a")
    selector: Any = {"name": "all", "where": {"region": "eu", "place": {"min": 2}}}
    job = stage.driver.submit(
        JobSpec(termination=Termination(rounds=1), selector=selector, rule=FedAvg()), model_of()
    )
    assert done(job).version == 1
    (committed,) = of(job, e.VersionCommitted)
    assert committed.contributors == ("a-3", "a-5")  # type: ignore[attr-defined]
