"""A group makes the model that its learners would make alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from broker_fl.record.history import History
from broker_fl.wire import events as e
from broker_fl.wire.job import Transfer
from broker_fl.wire.rules import FedProx
from broker_fl.wire.selectors import SelectRandom
from tests.unit.roles.groups.learners import Draws, mean_of, named, of
from tests.unit.roles.stage import Adds, Stage, done


def test_one_group_makes_the_model_of_the_same_learners_alone_bit_for_bit(stage: Stage) -> None:
    stage.controller()
    stage.host({f"a-{index}": Draws(index) for index in range(8)}, num_workers=1, group="a")
    settings: dict[str, Any] = {"rounds": 3, "parameters": {"epochs": 1}}
    grouped = stage.submit(min_learners=8, **settings)
    assert done(grouped).version == 3
    stage.hosts[0].stop(drain_s=0.0)
    stage.host({f"a-{index}": Draws(index) for index in range(8)}, num_workers=1)
    alone = stage.submit(min_learners=8, **settings)
    assert done(alone).version == 3
    assert np.array_equal(grouped.model()["w"], alone.model()["w"])
    ours, theirs = (History.of(job.events(follow=False)) for job in (grouped, alone))
    assert ours.counts == theirs.counts
    for number in range(3):
        one, other = ours.rounds[number], theirs.rounds[number]
        for counted in (
            "sent",
            "finished",
            "folded",
            "failed",
            "late",
        ):  # word of acceptance may be overtaken
            assert one.counts[counted] == other.counts[counted] == (0 if counted in ("failed", "late") else 8)
        assert one.metrics == pytest.approx(dict(other.metrics), rel=1e-12)
        assert one.evaluation == pytest.approx(dict(other.evaluation), rel=1e-12)
        assert one.total_weight == other.total_weight
        assert [
            (row.learner, row.outcome, row.weight, row.num_steps, dict(row.metrics)) for row in one.tasks
        ] == [(row.learner, row.outcome, row.weight, row.num_steps, dict(row.metrics)) for row in other.tasks]


@pytest.mark.parametrize("weighting", ["examples", "steps", "equal"])
def test_groups_and_single_learners_make_one_mean(stage: Stage, weighting: str) -> None:
    """Against float64; a float32 sum of so few is within a few of its last digits."""
    stage.controller()
    learners = {
        f"{name}-{index}": Draws(10 * place + index) for place, name in enumerate("abc") for index in range(4)
    }
    for name in "ab":
        stage.host({key: one for key, one in learners.items() if key[0] == name}, group=name)
    stage.host({key: one for key, one in learners.items() if key[0] == "c"})
    job = stage.submit(rounds=1, min_learners=12, rule=FedProx(mu=0.1, weighting=weighting))  # type: ignore[arg-type]
    assert done(job).version == 1
    weighers: dict[str, Callable[[Any], float]] = {
        "examples": lambda one: one.num_examples,
        "steps": lambda _: 2,
        "equal": lambda _: 1,
    }
    weight = weighers[weighting]
    expected = np.average(
        [one.w.astype(np.float64) for one in learners.values()],
        axis=0,
        weights=[weight(one) for one in learners.values()],
    )
    np.testing.assert_allclose(job.model()["w"], expected, rtol=2e-6, atol=1e-6)
    (committed,) = of(job, e.VersionCommitted)
    assert isinstance(committed, e.VersionCommitted)
    assert committed.contributors == tuple(sorted(learners))
    assert committed.total_weight == sum(weight(one) for one in learners.values())
    assert len(of(job, e.GroupFolded)) == 2


def test_integers_booleans_and_narrow_floats_survive_a_group(stage: Stage) -> None:
    model: dict[str, Any] = {
        "h": np.ones(3, np.float16),
        "w": np.zeros(2, np.float32),
        "n": np.zeros(2, np.int64),
        "u": np.zeros(1, np.uint8),
        "d": np.zeros((), np.float64),
    }
    stage.controller()
    stage.host({f"a-{index}": Adds(1.0) for index in range(5)}, group="a")
    job = stage.submit(model, rounds=2, min_learners=5, transfer=Transfer(encoding="bfloat16"))
    assert done(job).version == 2
    after = job.model()
    assert {name: (array.dtype, array.tolist()) for name, array in after.items()} == {
        name: (array.dtype, (array + 2).tolist()) for name, array in model.items()
    }


def test_a_cohort_that_is_drawn_from_a_group_is_worked_on_and_nobody_else(stage: Stage) -> None:
    stage.controller()
    learners = named("a", 20)
    stage.host(learners, group="a")
    job = stage.submit(rounds=3, min_learners=20, selector=SelectRandom(count=4, seed=2), evaluate=False)
    assert done(job).version == 3
    expected = 0.0
    for event in of(job, e.VersionCommitted):
        assert isinstance(event, e.VersionCommitted)
        assert len(event.contributors) == 4
        expected += mean_of(*(learners[name] for name in event.contributors))
    np.testing.assert_allclose(job.model()["w"], expected, rtol=1e-6)
    trained = {name for event in of(job, e.GroupFinished) for name in event.learners}  # type: ignore[attr-defined]
    assert {name for name, one in learners.items() if one.num_trained} == trained
