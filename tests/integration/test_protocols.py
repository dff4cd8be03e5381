"""Protocols, pacing and control of jobs over RabbitMQ and Redis; embedded: ``tests/unit/roles``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from broker_fl.interfaces import TaskContext, Update
from broker_fl.model import Arrays
from broker_fl.roles.controller import Controller, ControllerSettings
from broker_fl.roles.driver import Driver, Job
from broker_fl.roles.learner import LearnerHost, LearnerSettings
from broker_fl.stores import open_store
from broker_fl.transports.rabbitmq import RabbitMQTransport
from broker_fl.wire import events as e
from broker_fl.wire.job import JobSpec
from tests.unit.roles.stage import Adds, done, eventually, model_of, same

NAMES = tuple("abcde")


class Counts(Adds):
    """Says besides how many steps it did and what its loss was, and has gradients of 0 for SCAFFOLD."""

    def train(self, model: Arrays, task: TaskContext) -> Update:
        if task.parameters.get("fails") == task.learner:
            raise RuntimeError("the disk is full")
        update = super().train(model, task)
        control = None if task.control is None else {name: a * 0 for name, a in task.control.items()}
        return replace(update, num_steps=2, control=control)

    def evaluate(self, model: Arrays, task: TaskContext) -> Mapping[str, float]:
        return {**super().evaluate(model, task), "loss": 1.0}


@contextmanager
def running(amqp_url: str, redis_url: str, name: str) -> Iterator[Driver]:
    """Five learners that each add 1, on one connection; a controller; a driver."""
    with ExitStack() as closing:
        store = closing.enter_context(_closing(open_store(redis_url, federation=name)))
        transports = [RabbitMQTransport(amqp_url, name=role) for role in ("controller", "learners")]
        for transport in transports:
            closing.callback(transport.close)
        controller = Controller(transports[0], store, ControllerSettings(federation=name))
        controller.start()
        closing.callback(controller.wait, 10.0)
        closing.callback(controller.stop)
        assert controller.wait_active(30.0)
        learners = {learner: Counts(1.0) for learner in NAMES}
        host = LearnerHost(transports[1], learners, LearnerSettings(federation=name, num_workers=5))
        host.start()
        closing.callback(host.stop, drain_s=0.0)
        driver = closing.enter_context(Driver(RabbitMQTransport(amqp_url, name="driver"), name))
        eventually(lambda: len(driver.learners()) == len(NAMES), "five learners")
        yield driver


@contextmanager
def _closing(thing):  # type: ignore[no-untyped-def]
    try:
        yield thing
    finally:
        thing.close()


def of(job: Job, kind: type[e.Event]) -> list[e.Event]:
    return [event for event in job.events(follow=False) if isinstance(event, kind)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"protocol": {"name": "synchronous", "min_learners": 5}}, 4.0),
        ({"protocol": {"name": "semi_synchronous", "min_learners": 5, "lam": 1.5}}, 4.0),
        (
            {
                "protocol": {"over_selection": 2, "min_learners": 5},
                "selector": {"name": "random", "count": 2},
            },
            4.0,
        ),
        ({"pacing": {"name": "aimd", "target_s": 60.0}}, 4.0),
        (
            {
                "protocol": {"name": "asynchronous", "min_learners": 5},
                "rule": {"name": "fedbuff", "buffer_size": 5, "staleness": {"name": "constant"}},
            },
            4.0,
        ),
        (
            {
                "protocol": {"name": "asynchronous", "max_concurrent": 1},
                "rule": {"name": "fedasync", "alpha": 1.0},
            },
            4.0,
        ),
    ],
)
def test_every_protocol_gets_the_model_that_is_computed_by_hand(
    amqp_url: str, redis_url: str, federation: str, settings: dict[str, object], expected: float
) -> None:
    spec = JobSpec.model_validate({**settings, "termination": {"versions": 4}})
    with running(amqp_url, redis_url, federation) as driver:
        job = driver.submit(spec, model_of())
        assert done(job).version == 4
        same(job.model(), model_of(expected))


ALL = {"min_learners": 5}
LENGTH = 2.0
"""Of the change that each learner makes: 1 in four elements."""
RULES: list[tuple[dict[str, Any], float]] = [
    ({"name": "fedprox", "mu": 0.1}, 2.0),
    ({"name": "fedavgm", "momentum": 0.5}, 1.0 + 1.5),
    ({"name": "fedadagrad", "tau": 0.5}, 0.1 / (1.25**0.5 + 0.5) + 0.1 / (2.25**0.5 + 0.5)),
    (
        {"name": "fedadam", "beta1": 0.0, "beta2": 0.0, "tau": 0.5},
        0.2 / 1.5,
    ),
    (
        {"name": "fedyogi", "beta1": 0.0, "beta2": 0.0, "tau": 0.5},
        0.1 / (1.25**0.5 + 0.5) + 0.1,
    ),
    ({"name": "fednova"}, 2.0),
    ({"name": "scaffold"}, 2.0),
    ({"name": "qfedavg", "q": 1.0, "learning_rate": 1.0}, 2 / (LENGTH**2 + 1)),
    ({"name": "norm_clipping", "max_norm": LENGTH / 4}, 0.5),
    ({"name": "median"}, 2.0),
    ({"name": "trimmed_mean"}, 2.0),
    ({"name": "krum"}, 2.0),
    ({"name": "multi_krum"}, 2.0),
    ({"name": "bulyan", "max_attackers": 0}, 2.0),
    ({"name": "geometric_median"}, 2.0),
]
PER_UPDATE: list[tuple[dict[str, Any], float]] = [
    ({"name": "fedrec"}, (1.0 + 2.0) / 2),
    ({"name": "fedbuff", "buffer_size": 2, "staleness": {"name": "constant"}}, 2.0),
]


def _name(case: object) -> str:
    return str(case["name"]) if isinstance(case, dict) else ""


@pytest.mark.parametrize(("rule", "expected"), [*RULES, *PER_UPDATE], ids=_name)
def test_every_rule_makes_two_versions_that_are_computed_by_hand(
    amqp_url: str, redis_url: str, federation: str, rule: dict[str, Any], expected: float
) -> None:
    protocol: dict[str, Any] = ALL
    if (rule, expected) in PER_UPDATE:
        # FedRec's versions are known when one learner works at a time; FedBuff's always.
        at_once = {"max_concurrent": 1} if rule["name"] == "fedrec" else {}
        protocol = {"name": "asynchronous", **ALL, **at_once}
    spec = JobSpec.model_validate({"rule": rule, "protocol": protocol, "termination": {"versions": 2}})
    with running(amqp_url, redis_url, federation) as driver:
        job = driver.submit(spec, model_of())
        assert done(job).version == 2
        for array in job.model().values():
            np.testing.assert_allclose(array, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("selector", "cohorts"),
    [
        ({"name": "random", "count": 3}, [3, 3]),
        ({"name": "rotation", "count": 2}, [["a", "b"], ["c", "d"]]),
        ({"name": "power_of_choice", "count": 2, "num_candidates": 4}, [2, 2]),
        ({"name": "slow_aware", "count": 4}, [4, 4]),
        ({"name": "all", "where": {"learner": ["a", "c", "e"]}}, [["a", "c", "e"]] * 2),
        ({"name": "all", "exclude_after": 1, "exclude_rounds": 5}, [list("abcde"), list("abcd")]),
    ],
    ids=lambda case: "-".join(case) if isinstance(case, dict) else "",
)
def test_every_way_of_choosing_asks_those_that_it_should(
    amqp_url: str,
    redis_url: str,
    federation: str,
    selector: dict[str, Any],
    cohorts: list[Any],
) -> None:
    spec = JobSpec.model_validate(
        {
            "selector": selector,
            "protocol": {"min_learners": 3, "quorum": 0.5},
            "termination": {"rounds": 2},
            "parameters": {"fails": "e" if "exclude_after" in selector else ""},
        }
    )
    with running(amqp_url, redis_url, federation) as driver:
        job = driver.submit(spec, model_of())
        assert done(job).version == 2
        same(job.model(), model_of(2.0))
        started = [event for event in of(job, e.RoundStarted) if isinstance(event, e.RoundStarted)]
        for event, expected in zip([one for one in started if one.train], cohorts, strict=True):
            if isinstance(expected, int):
                assert len(event.cohort) == expected
            else:
                assert sorted(event.cohort) == expected


def test_an_asynchronous_job_takes_updates_as_they_come(
    amqp_url: str, redis_url: str, federation: str
) -> None:
    spec = JobSpec.model_validate(
        {
            "protocol": {"name": "asynchronous"},
            "rule": {"name": "fedasync"},
            "termination": {"updates": 40},
        }
    )
    with running(amqp_url, redis_url, federation) as driver:
        job = driver.submit(spec, model_of())
        assert done(job).version == 40
        committed = [event for event in of(job, e.VersionCommitted) if isinstance(event, e.VersionCommitted)]
        by = Counter(name for event in committed for name in event.contributors)
        assert set(by) == set(NAMES)
        assert sum(by.values()) == 40


def test_a_job_is_paused_resumed_and_gone_on_from(amqp_url: str, redis_url: str, federation: str) -> None:
    with running(amqp_url, redis_url, federation) as driver:
        job = driver.submit(JobSpec.model_validate({"termination": {"rounds": 100_000}}), model_of())
        eventually(lambda: of(job, e.VersionCommitted), "the first version")
        job.pause()
        eventually(lambda: driver.jobs()[0].state == "paused", "the pause")
        eventually(
            lambda: _rounds(job, e.RoundStarted) == _rounds(job, e.VersionCommitted), "the round's end"
        )
        before = driver.jobs()[0].version
        job.step()
        eventually(lambda: driver.jobs()[0].version == before + 1, "one version more")
        job.stop()
        other = driver.submit(JobSpec.model_validate({"termination": {"rounds": 2}}), job.version())
        done(other)
        same(other.model(), model_of(before + 3.0))


def _rounds(job: Job, kind: type[e.Event]) -> set[int]:
    """Of training, by their number."""
    events: list[Any] = of(job, kind)
    return {event.round for event in events if getattr(event, "train", True)}
