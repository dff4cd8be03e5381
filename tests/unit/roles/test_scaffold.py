"""SCAFFOLD through the whole system, held against the paper's Algorithm 1 in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from broker_fl.errors import RequestRefused
from broker_fl.frameworks import ControlVariate
from broker_fl.interfaces import Metrics, TaskContext, Update
from broker_fl.model import Arrays
from broker_fl.roles.driver import Job
from broker_fl.wire import events as e
from broker_fl.wire.messages import Result, decode
from tests.unit.roles.stage import WAIT_S, Stage, done, eventually

Vector = npt.NDArray[np.float64]
DIM, STEPS, RATE = 3, 10, 0.05
NAMES = [f"l{index}" for index in range(6)]
SCAFFOLD = {"name": "scaffold"}


class Quadratic:
    """``f_i(w) = ½ (w − b)ᵀ A (w − b)``: with many local steps, each learner drifts towards its own ``b``."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.curvature = np.diag(rng.uniform(0.2, 4.0, DIM))
        self.best = rng.normal(size=DIM) * 5
        self.failing: Callable[[TaskContext], bool] = lambda _: False
        self.on_train: Callable[[TaskContext], object] = lambda _: None

    def gradient(self, at: Vector) -> Vector:
        return np.asarray(self.curvature @ (at - self.best))

    def train(self, model: Arrays, task: TaskContext) -> Update:
        assert list(model) == ["w", "count"]
        self.on_train(task)
        if self.failing(task):
            raise RuntimeError("no luck")
        w, control = model["w"].copy(), ControlVariate(task)
        for _ in range(STEPS):
            w -= RATE * control.corrected("w", self.gradient(w))
        after = {"w": w, "count": model["count"] + 1}
        return Update(model=after, num_examples=1, num_steps=STEPS, control=control.result())

    def evaluate(self, model: Arrays, task: TaskContext) -> Metrics:
        return {"first": float(model["w"][0])}


class Algorithm1:
    """The paper's, with option II as it is printed."""

    def __init__(self, learners: Mapping[str, Quadratic], server_rate: float = 1.0) -> None:
        self.learners = learners
        self.server_rate = server_rate
        self.x = np.zeros(DIM)
        self.c = np.zeros(DIM)
        self.own = {name: np.zeros(DIM) for name in learners}

    def round(self, sampled: list[str]) -> None:
        moved, changed = [], []
        for name in sampled:
            y = self.x.copy()
            for _ in range(STEPS):
                y -= RATE * (self.learners[name].gradient(y) - self.own[name] + self.c)
            after = self.own[name] - self.c + (self.x - y) / (STEPS * RATE)
            moved.append(y - self.x)
            changed.append(after - self.own[name])
            self.own[name] = after
        share = len(sampled) / len(self.learners)
        self.x = self.x + self.server_rate * np.mean(moved, axis=0)
        self.c = self.c + share * np.mean(changed, axis=0)

    def forget(self) -> None:
        """All variates begin anew."""
        self.c = np.zeros(DIM)
        self.own = {name: np.zeros(DIM) for name in self.learners}


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path, lease_ttl_s=1.0) as stage:
        yield stage


def quadratics() -> dict[str, Quadratic]:
    return {name: Quadratic(index) for index, name in enumerate(NAMES)}


def begin(stage: Stage, **settings: Any) -> Job:
    model = {"w": np.zeros(DIM), "count": np.array(0)}
    return stage.submit(model, min_learners=len(NAMES), **({"rule": SCAFFOLD} | settings))


def cohorts(job: Job) -> list[list[str]]:
    """Who contributed, round by round."""
    events = job.events(follow=False)
    return [list(event.contributors) for event in events if isinstance(event, e.VersionCommitted)]


def optimum(learners: Mapping[str, Quadratic]) -> Vector:
    curvatures = [learner.curvature for learner in learners.values()]
    targets = [learner.curvature @ learner.best for learner in learners.values()]
    return np.asarray(np.linalg.solve(sum(curvatures), sum(targets)))


def distance(job: Job, learners: Mapping[str, Quadratic]) -> float:
    return float(np.linalg.norm(job.model()["w"] - optimum(learners)))


def test_it_is_algorithm_1_and_does_not_drift_as_fedavg_does(stage: Stage) -> None:
    stage.controller()
    stage.host(learners := quadratics())
    job, fedavg = begin(stage, rounds=60), begin(stage, rounds=60, rule={"name": "fedavg"})
    done(job)
    done(fedavg)
    reference = Algorithm1(learners)
    for cohort in cohorts(job):
        reference.round(cohort)
    np.testing.assert_allclose(job.model()["w"], reference.x, rtol=1e-10)
    assert job.model()["count"] == 60
    assert distance(job, learners) < 1e-6
    assert distance(fedavg, learners) > 0.1


def test_some_learners_a_round_and_some_of_those_fail_and_a_server_rate(stage: Stage) -> None:
    """A learner whose update did not count goes on from the variate that it had before."""
    stage.controller()
    learners = quadratics()
    learners["l1"].failing = lambda task: task.round % 3 == 0
    stage.host(learners)
    job = begin(
        stage,
        rounds=150,
        quorum=0.5,
        selector={"name": "random", "count": 3, "seed": 1},
        rule=SCAFFOLD | {"learning_rate": 0.7},
    )
    done(job)
    reference = Algorithm1(learners, server_rate=0.7)
    sampled = cohorts(job)
    for cohort in sampled:
        reference.round(cohort)
    assert {len(cohort) for cohort in sampled} == {2, 3}
    np.testing.assert_allclose(job.model()["w"], reference.x, rtol=1e-9)
    assert distance(job, learners) < 1e-3


def test_an_update_that_came_too_late_changes_nobodys_variate(stage: Stage) -> None:
    """Its learner has computed a new variate that the server never heard of, and must not go on from it."""
    stage.controller()
    learners = quadratics()
    late = []

    def be_late(task: TaskContext) -> None:
        if task.round in (2, 5):
            late.append(task.round)
            eventually(lambda: any(o.round_seen > task.round for o in others), "the next round")

    others = [Seen(learner) for name, learner in learners.items() if name != "l0"]
    learners["l0"].on_train = be_late
    stage.host(learners)
    job = begin(stage, rounds=12, quorum=0.5, deadline_s=3.0)
    done(job)
    reference = Algorithm1(learners)
    for cohort in cohorts(job):
        reference.round(cohort)
    assert late == [2, 5]
    assert [len(cohort) for cohort in cohorts(job)].count(len(NAMES) - 1) >= 2
    np.testing.assert_allclose(job.model()["w"], reference.x, rtol=1e-9)


class Seen:
    """Notes in which round its learner last began to train."""

    def __init__(self, learner: Quadratic) -> None:
        self.round_seen = -1
        learner.on_train = self.note

    def note(self, task: TaskContext) -> None:
        self.round_seen = task.round


def test_the_next_controller_goes_on_with_everybodys_variates(stage: Stage) -> None:
    first = stage.controller()
    stage.host(learners := quadratics())
    job = begin(stage, rounds=200, selector={"name": "random", "count": 4, "seed": 2})
    for event in job.events():
        if isinstance(event, e.VersionCommitted) and event.version == 5:
            break
    stage.kill(first)
    stage.controller()
    done(job)
    reference = Algorithm1(learners)
    for cohort in cohorts(job):
        reference.round(cohort)
    np.testing.assert_allclose(job.model()["w"], reference.x, rtol=1e-9)
    assert distance(job, learners) < 1e-6


def test_a_learner_that_was_started_anew_has_all_begin_with_zero_again(stage: Stage) -> None:
    """Without that, what it had contributed would stay in the server's variate for ever, and bias it."""
    stage.controller()
    learners = quadratics()
    ordinary = stage.host({name: learner for name, learner in learners.items() if name != "l0"})
    lone = stage.host({"l0": learners["l0"]})

    def stay(task: TaskContext) -> None:
        """Until it is told to end: a test that is held up would leave them too few rounds after that."""
        if task.round >= 5:
            eventually(lone._drain_began.is_set, "the end")

    learners["l0"].on_train = stay
    job = begin(stage, rounds=80, quorum=6)
    for event in job.events():
        if isinstance(event, e.VersionCommitted) and event.version == 5:
            break
    lone.stop(drain_s=WAIT_S)
    lone._transport.close()
    stage.host({"l0": learners["l0"]})
    done(job)
    assert ordinary.error is None
    assert distance(job, learners) < 1e-6


def test_a_learner_that_does_not_do_it_fails_and_says_what_is_missing(stage: Stage) -> None:
    class Plain(Quadratic):
        def train(self, model: Arrays, task: TaskContext) -> Update:
            return Update(model=model, num_examples=1)

    stage.controller()
    stage.host(dict.fromkeys(NAMES, Plain(0)))
    finished = begin(stage, rounds=2, max_retries=0).wait()
    assert finished.state == "failed"
    assert "'scaffold' needs control variates, which the learner does not do" in finished.reason


def test_a_model_whose_tensors_are_called_as_variates_is_refused(stage: Stage) -> None:
    stage.controller()
    with pytest.raises(RequestRefused, match="'control/w': names that begin with 'control/'"):
        stage.submit({"w": np.zeros(1), "control/w": np.zeros(1)}, rule=SCAFFOLD)


def test_an_update_of_software_that_does_not_know_it_is_refused_and_changes_nothing(stage: Stage) -> None:
    """Such a learner sends as many tensors as it got, and does not say what those behind the model's are."""
    learners = quadratics()

    def forget(_exchange: str, body: bytes) -> list[bytes]:
        message, _ = decode(body)
        if not isinstance(message, Result) or message.update is None:
            return [body]
        update = message.update.model_copy(update={"control": "none"})
        return [message.model_copy(update={"update": update}).pack()]

    stage.controller()
    stage.host({name: learner for name, learner in learners.items() if name != "l0"})
    stage.host({"l0": learners["l0"]}, tamper=forget)
    job = begin(stage, rounds=3, quorum=0.5)
    done(job)
    events = job.events(follow=False)
    reasons = {event.reason for event in events if isinstance(event, e.UpdateRefused)}
    assert len(reasons) == 1
    assert "needs control variates, which the learner does not do" in reasons.pop()
    reference = Algorithm1(learners)
    for cohort in cohorts(job):
        assert "l0" not in cohort
        reference.round(cohort)
    np.testing.assert_allclose(job.model()["w"], reference.x, rtol=1e-10)
