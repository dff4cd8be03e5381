"""Protocols, pacing and control of jobs over RabbitMQ and Redis; embedded: ``tests/unit/roles``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from broker_fl.roles.controller import Controller, ControllerSettings
from broker_fl.roles.driver import Driver, Job
from broker_fl.roles.learner import LearnerHost, LearnerSettings
from broker_fl.stores import open_store
from broker_fl.transports.rabbitmq import RabbitMQTransport
from broker_fl.wire import events as e
from broker_fl.wire.job import JobSpec
from tests.unit.roles.stage import Adds, done, eventually, model_of, same

NAMES = tuple("abcde")


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
        learners = {learner: Adds(1.0) for learner in NAMES}
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
        job = driver.submit(JobSpec.model_validate({"termination": {"rounds": 200}}), model_of())
        eventually(lambda: of(job, e.VersionCommitted), "the first version")
        job.pause()
        eventually(lambda: driver.jobs()[0].state == "paused", "the pause")
        eventually(lambda: all(map(_is_idle, driver.learners())), "learners that are idle")
        before = driver.jobs()[0].version
        job.step()
        eventually(lambda: driver.jobs()[0].version == before + 1, "one version more")
        job.stop()
        other = driver.submit(JobSpec.model_validate({"termination": {"rounds": 2}}), job.version())
        done(other)
        same(other.model(), model_of(before + 3.0))


def _is_idle(learner) -> bool:  # type: ignore[no-untyped-def]
    return all(task.phase == "finished" for task in learner.tasks)
