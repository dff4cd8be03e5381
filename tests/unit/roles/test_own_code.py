"""Jobs with a rule or a selector of the user's own: refused, run, ended by it, and taken over."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from broker_fl.aggregation.sums import WeightedSum
from broker_fl.errors import AppError, BrokerFLError, SettingRefused
from broker_fl.extensions import OwnClasses
from broker_fl.interfaces import Combined, Contribution, Given, Member, Record, TaskContext, Update
from broker_fl.model import Arrays, Model, ModelSpec
from broker_fl.simulation import Federation
from broker_fl.wire import events as e
from tests.unit.roles.stage import WAIT_S, Adds, Stage, done, model_of, same, spec


class Capped:
    """FedAvg in which no learner weighs more than ``most``; it counts its rounds in its memory."""

    def __init__(self, most: int = 100, fail_after: int = 99) -> None:
        self.most = most
        self.fail_after = fail_after

    def begin(self, given: Given) -> CappedRound:
        return CappedRound(self, given)


class CappedRound:
    def __init__(self, rule: Capped, given: Given) -> None:
        self.rule = rule
        self.rounds = int(given.memory["rounds"]) if given.memory else 0
        self.sum = WeightedSum(given.spec)

    def fold(self, update: Contribution) -> float:
        if self.rounds >= self.rule.fail_after:
            raise RuntimeError("tired of it")
        weight = float(min(update.num_examples, self.rule.most))
        self.sum.add(update.model, weight)
        return weight

    def result(self) -> Combined:
        memory = Model.of({"rounds": np.array(self.rounds + 1)})
        return Combined(model=self.sum.mean(), memory=memory)


class Alternating:
    """One learner a round, in turn; after ``until`` rounds somebody who is not there."""

    def __init__(self, until: int = 99) -> None:
        self.until = until

    def select(self, members: Sequence[Member], round: int, history: Mapping[str, Record]) -> list[str]:
        return [members[round % len(members)].learner if round < self.until else "nobody-there"]


class Pausing(Adds):
    """Adds 1, and stands still in one round until its gate is opened."""

    def __init__(self, in_round: int) -> None:
        super().__init__(1.0)
        self.in_round = in_round
        self.paused = threading.Event()

    def train(self, model: Arrays, task: TaskContext) -> Update:
        if task.round == self.in_round and not self.paused.is_set():
            self.gate.clear()
            self.paused.set()
        return super().train(model, task)


OWN = OwnClasses.of([Capped, Alternating])


def rule(**settings: Any) -> dict[str, Any]:
    return {"name": "own", "rule": "Capped", "settings": settings}


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path, lease_ttl_s=1.0) as stage:
        yield stage


def test_a_job_runs_with_the_users_rule_and_its_settings(stage: Stage) -> None:
    """Weights 3 and 1 in place of 9 and 1: a round adds (3 * 4 + 1 * 0) / 4 = 3."""
    stage.controller(own=OWN)
    stage.host({"a": Adds(4.0, num_examples=9), "b": Adds(0.0)})
    job = stage.submit(rounds=3, min_learners=2, rule=rule(most=3))
    done(job)
    same(job.model(), model_of(9.0))
    committed = [event for event in job.events(follow=False) if isinstance(event, e.VersionCommitted)]
    assert [event.total_weight for event in committed] == [4.0] * 3


def test_a_job_asks_whom_the_users_selector_chooses(stage: Stage) -> None:
    stage.controller(own=OWN)
    stage.host({"a": Adds(4.0), "b": Adds(1.0)})
    job = stage.submit(rounds=4, min_learners=2, selector={"name": "own", "selector": "Alternating"})
    done(job)
    started = [event for event in job.events(follow=False) if isinstance(event, e.RoundStarted)]
    assert [event.cohort for event in started if event.train] == [("a",), ("b",)] * 2
    same(job.model(), model_of(10.0))


def test_a_job_is_refused_before_anything_of_it_is_stored(stage: Stage) -> None:
    stage.controller(own=OWN)
    for wanted, told in (
        ({"rule": rule(least=3)}, r"Capped.* cannot be made .*'least'"),
        ({"rule": rule(fail_after=0)}, "made-up updates: .*test_own_code.py:.*RuntimeError: tired of it"),
        ({"rule": {"name": "own", "rule": "Cupped"}}, "it has Capped"),
        ({"selector": {"name": "own", "selector": "Capped"}}, "no selector 'Capped'.* Alternating"),
    ):
        with pytest.raises(SettingRefused, match=told):
            stage.submit(**wanted)
    assert not stage.driver.jobs()


def test_a_rule_that_fails_in_a_round_ends_its_job_and_nothing_else(stage: Stage) -> None:
    controller = stage.controller(own=OWN)
    stage.host({"a": Adds(1.0), "b": Adds(1.0)})
    job = stage.submit(rounds=5, min_learners=2, rule=rule(fail_after=2))
    finished = job.wait()
    assert finished.state == "failed"
    assert "round 3: " in finished.reason
    assert "RuntimeError: tired of it, at: raise RuntimeError" in finished.reason
    same(job.model(), model_of(2.0))
    done(stage.submit(rounds=1, min_learners=2))
    assert controller.error is None


def test_a_selector_that_chooses_a_stranger_in_a_round_ends_its_job_and_nothing_else(stage: Stage) -> None:
    controller = stage.controller(own=OWN)
    stage.host({"a": Adds(1.0)})
    choosing = {"name": "own", "selector": "Alternating", "settings": {"until": 2}}
    job = stage.submit(rounds=5, selector=choosing)
    finished = job.wait()
    assert (finished.state, finished.version) == ("failed", 2)
    assert "round 3: " in finished.reason
    assert "chose 'nobody-there', which is not the id of a member" in finished.reason
    done(stage.submit(rounds=1))
    assert controller.error is None


def test_the_next_controller_goes_on_with_the_rule_and_its_memory_if_it_has_it(stage: Stage) -> None:
    slow = Pausing(2)
    first = stage.controller(own=OWN)
    stage.host({"a": slow})
    job = stage.submit(rounds=6, rule=rule(fail_after=4))
    assert slow.paused.wait(WAIT_S)
    stage.kill(first)
    stage.controller(own=OWN)
    slow.gate.set()
    assert "round 5: " in job.wait().reason  # it has counted on
    same(job.model(), model_of(4.0))


def test_a_controller_without_the_app_ends_the_job_and_says_what_is_missing(stage: Stage) -> None:
    slow = Pausing(1)
    first = stage.controller(own=OWN)
    stage.host({"a": slow})
    job = stage.submit(rounds=6, rule=rule())
    assert slow.paused.wait(WAIT_S)
    stage.kill(first)
    second = stage.controller()
    slow.gate.set()
    finished = job.wait()
    assert (finished.state, finished.version) == ("failed", 1)
    assert "no own rule 'Capped' is known here" in finished.reason
    assert "--app" in finished.reason
    assert second.error is None


def test_a_federation_of_one_process_is_given_classes_as_they_are() -> None:
    learners = {"a": Adds(4.0, num_examples=9), "b": Adds(0.0)}
    with Federation(learners, own=[Capped, Alternating]) as federation:
        job = federation.submit(spec(rounds=1, min_learners=2, rule=rule(most=3)), model_of())
        done(job)
        same(job.model(), model_of(3.0))
    with pytest.raises(AppError, match="neither a rule"):
        Federation(learners, own=[Adds])


class Doubling:
    """Adds twice what was sent; in place, unless it takes a copy as it should."""

    seen: ClassVar[list[str]] = []

    def __init__(self, in_place: bool = False) -> None:
        self.in_place = in_place

    def begin(self, given: Given) -> DoublingRound:
        return DoublingRound(given.spec, in_place=self.in_place)


class DoublingRound:
    def __init__(self, spec: ModelSpec, *, in_place: bool) -> None:
        self.sum = WeightedSum(spec)
        self.in_place = in_place

    def fold(self, update: Contribution) -> float:
        assert not any(array.flags.writeable for array in update.model.values())
        Doubling.seen.append(update.learner)
        model = update.model if self.in_place else update.model.own()
        for array in model.values():
            np.multiply(array, 2, out=array)
        self.sum.add(model, 1.0)
        return 1.0

    def result(self) -> Combined:
        return Combined(model=self.sum.mean())


@pytest.mark.parametrize("embedded", [True, False])
def test_updates_are_read_only_however_they_came(embedded: bool, stage: Stage) -> None:
    settings: dict[str, Any] = {"rounds": 1, "min_learners": 2}
    name = {"name": "own", "rule": "Doubling"}
    learners = {"a": Adds(2.0), "b": Adds(4.0)}
    Doubling.seen.clear()
    with Federation(learners, own=[Doubling]) if embedded else nullcontext(stage.driver) as driver:
        if not embedded:
            stage.controller(own=OwnClasses.of([Doubling]))
            stage.host(learners)
        with pytest.raises(BrokerFLError, match=r"test_own_code\.py:.*read-only"):
            driver.submit(spec(rule={**name, "settings": {"in_place": True}}, **settings), model_of())
        job = driver.submit(spec(rule=name, **settings), model_of())
        done(job)
        same(job.model(), model_of(6.0))
    assert {"a", "b"} <= set(Doubling.seen)
