"""What each encoding makes of models and changes, with rounds and without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from broker_fl.interfaces import TaskContext, Update
from broker_fl.model import Array, Arrays, Model
from broker_fl.wire import events as e
from broker_fl.wire import rules
from broker_fl.wire.encodings import encoding
from broker_fl.wire.job import Transfer
from tests.unit.coordination.bench import asynchronous
from tests.unit.roles.encoded_jobs.replaying import (
    ROUNDS,
    SIZE,
    Waits,
    Wanders,
    check,
    initial,
    of,
    replay,
    step,
)
from tests.unit.roles.stage import WAIT_S, Adds, Stage, done, eventually

# ---------------------------------------------------------------- each encoding


@pytest.mark.parametrize("name", ["int8", "topk/10", "topk/100"])
@pytest.mark.parametrize("budget", [1, 1 << 30])
def test_learners_send_what_the_encoding_lost_with_their_next_changes(
    stage: Stage, name: str, budget: int
) -> None:
    transfer = Transfer(encoding=name, chunk_bytes=4096, upload_budget_bytes=budget)
    job = stage.run({one: Wanders() for one in "abc"}, initial(), rounds=ROUNDS, transfer=transfer)
    done(job)
    check(job, replay(name, "abc"))
    sizes = {event.num_bytes for event in of(job, e.UpdateFolded)}
    assert sizes == {encoding(name).num_bytes(Model.of(initial()).spec)}


@pytest.mark.parametrize(
    ("transfer", "off"),
    [
        ({"form": "changes"}, 1e-6),
        ({"encoding": "float16", "broadcast": "raw"}, 2e-3),
        ({"encoding": "bfloat16", "form": "changes"}, 4e-3),
        ({"broadcast": "int8"}, 1e-6),
        ({"broadcast": "int8", "encoding": "int8"}, 2e-3),
        ({"broadcast": "bfloat16", "encoding": "topk/2", "form": "changes"}, 1e-6),
    ],
    ids=str,
)
def test_what_versions_lose_on_the_way_out_is_not_in_the_next_version(
    stage: Stage, transfer: dict[str, Any], off: float
) -> None:
    """But for rounding, since these learners' steps do not depend on what they are given."""
    job = stage.run({one: Wanders() for one in "ab"}, initial(), rounds=ROUNDS, transfer=Transfer(**transfer))
    done(job)
    steps = [step(learner, round).astype(np.float64) for learner in "ab" for round in range(ROUNDS)]
    check(job, initial()["w"] + sum(steps) / 2, atol=off * (2 if "broadcast" in transfer else 1))


@pytest.mark.parametrize("group", [None, "a"])
def test_a_version_that_the_broadcast_cannot_carry_ends_the_job_with_the_reason(
    stage: Stage, group: str | None
) -> None:
    """Learners would have been given infinities, and each of their updates refused as not finite."""
    stage.controller()
    learners = {f"a-{index}": Adds(40_000.0) for index in range(2)}
    stage.host(learners, group=group)
    transfer = Transfer(broadcast="float16")
    job = stage.submit({"b": np.zeros(2, np.float32), "w": np.zeros(3, np.float32)}, rounds=4, min_learners=2,
                       transfer=transfer)  # fmt: skip
    finished = job.wait()
    assert finished.state == "failed"
    assert "version 2 cannot be sent as 'float16': a value of tensor 'b' is too large" in finished.reason
    np.testing.assert_array_equal(job.model()["w"], 80_000)
    assert {one.num_trained for one in learners.values()} == {2}


@pytest.mark.parametrize(
    "settings",
    [
        {"transfer": Transfer(broadcast="float16")},
        {"transfer": Transfer(encoding="float16")},
        {"transfer": Transfer(encoding="bfloat16", form="changes")},
        {"transfer": Transfer(encoding="float16"), "rule": rules.Scaffold()},
    ],
    ids=str,
)
def test_statistics_are_not_narrowed_on_their_way(stage: Stage, settings: dict[str, Any]) -> None:
    model = {
        "bn.running_var": np.array([1e6 + 1, 1e-9, 1 / 3], np.float32),
        "w": np.ones(5, np.float32),
    }
    seen: list[Array] = []

    class Looks(Adds):
        def train(self, model: Arrays, task: TaskContext) -> Update:
            seen.append(np.array(model["bn.running_var"]))
            control = {"w": np.ones(5, np.float32)} if task.control is not None else None
            return Update(model=model, num_examples=1, control=control)

    job = stage.run({one: Looks(0.0) for one in "ab"}, model, rounds=2, evaluate=False, **settings)
    done(job)
    assert len(seen) == 4
    for variances in (*seen, job.model()["bn.running_var"]):
        np.testing.assert_array_equal(variances, model["bn.running_var"])


def test_statistics_reach_a_group_as_they_are(stage: Stage) -> None:
    stage.controller()
    stage.host({f"a-{index}": Adds(1.0) for index in range(3)}, group="a")
    model = {"bn.running_var": np.array([1e6], np.float32), "w": np.zeros(2, np.float32)}
    job = stage.submit(model, rounds=2, min_learners=3, transfer=Transfer(encoding="float16"))
    done(job)
    np.testing.assert_array_equal(job.model()["bn.running_var"], 1e6 + 2)
    np.testing.assert_array_equal(job.model()["w"], 2)


@pytest.mark.parametrize(
    "rule",
    [
        rules.FedAvgM(momentum=0.0),
        rules.Median(),
        rules.GeometricMedian(),
        rules.NormClipping(max_norm=100.0),
        rules.FedNova(),
        rules.Krum(max_attackers=0),
        rules.QFedAvg(q=0.0, learning_rate=1.0),
    ],
    ids=lambda rule: rule.name,
)
def test_every_rule_is_given_whole_models(stage: Stage, rule: Any) -> None:
    """With learners that all do the same, each rule makes of them what they did."""

    class Same(Wanders):
        def train(self, model: Arrays, task: TaskContext) -> Update:
            model["w"][...] += step("a", task.round)
            return Update(model=model, num_examples=1, num_steps=1)

        def evaluate(self, model: Arrays, task: TaskContext) -> Mapping[str, float]:
            return {"loss": 1.0}

    learners = {one: Same() for one in "abc"}
    job = stage.run(learners, initial(), rounds=ROUNDS, rule=rule, transfer=Transfer(encoding="int8"))
    done(job)
    check(job, replay("int8", "a"), atol=1e-4)


@pytest.mark.parametrize("name", ["int8", "topk/10"])
def test_statistics_of_batch_normalisation_travel_as_they_are_both_ways(stage: Stage, name: str) -> None:
    """A residual of an old round could make a variance negative, and a coarse one could be zero."""
    seen: list[Array] = []

    class Normalised(Wanders):
        def train(self, model: Arrays, task: TaskContext) -> Update:
            seen.append(model["running_var"].copy())
            model["running_var"][...] *= np.float32(0.1)
            return super().train(model, task)

    tiny = np.linspace(1e-4, 1, SIZE, dtype=np.float32)
    given = {"w": initial()["w"], "running_var": tiny, "v": 1000 * initial()["w"], "n": initial()["n"]}
    transfer = Transfer(encoding=name, broadcast="int8")
    job = stage.run({one: Normalised() for one in "ab"}, given, rounds=3, transfer=transfer)
    done(job)
    for round in range(3):
        for array in seen[2 * round : 2 * round + 2]:
            np.testing.assert_allclose(array, tiny * 0.1**round, rtol=1e-5)
    np.testing.assert_allclose(job.model()["running_var"], tiny * 0.1**3, rtol=1e-5)
    update_bytes = {event.num_bytes for event in of(job, e.UpdateFolded)}
    assert update_bytes == {encoding(name, ["running_var"]).num_bytes(job.model().spec)}


# ---------------------------------------------------------------- without rounds


@pytest.mark.parametrize(
    "rule",
    [
        rules.FedBuff(buffer_size=1),
        rules.FedAsync(alpha=1.0),
        rules.FedRec(),
    ],
    ids=lambda rule: rule.name,
)
@pytest.mark.parametrize("name", ["int8", "topk/10"])
def test_learners_of_an_asynchronous_job_keep_residuals_too(stage: Stage, name: str, rule: Any) -> None:
    stage.controller()
    stage.host({"a": Wanders()})
    settings = asynchronous(
        versions=ROUNDS, rule=rule, max_staleness=0, evaluate=False, transfer=Transfer(encoding=name)
    )
    job = stage.driver.submit(settings, initial())
    done(job)
    check(job, replay(name, "a"))


def test_a_change_is_added_to_the_version_that_it_began_from_however_old(stage: Stage) -> None:
    """With alpha = 1, FedAsync's version is the update: nothing is left of those in between."""
    stage.controller()
    late, other = Waits(moves=True), Waits(moves=True)
    stage.host({"a": late, "b": other})
    settings = asynchronous(
        versions=3,
        min_learners=2,
        rule=rules.FedAsync(alpha=1.0, staleness=rules.Constant()),
        max_staleness=2,
        keep_versions=3,
        evaluate=False,
        transfer=Transfer(encoding="int8"),
    )
    job = stage.driver.submit(settings, initial())
    assert late.at_work.wait(WAIT_S)
    other.turns.release(2)
    eventually(lambda: len(of(job, e.VersionCommitted)) == 2, "two versions of the other's")
    late.turns.release()
    done(job)
    assert of(job, e.VersionCommitted)[-1].contributors == ("a",)
    np.testing.assert_allclose(job.model()["w"], initial()["w"] + step("a", 0), atol=2e-3)
