"""Groups over RabbitMQ and Redis, as daemons and by hand; embedded: ``tests/unit/roles/groups``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, closing
from typing import Any

import numpy as np

from broker_fl.interfaces import Learner
from broker_fl.record.history import History
from broker_fl.roles.controller import Controller, ControllerSettings
from broker_fl.roles.driver import Driver
from broker_fl.roles.learner import LazyLearners, LearnerHost, LearnerSettings
from broker_fl.stores import open_store
from broker_fl.transports.rabbitmq import RabbitMQTransport
from broker_fl.wire import events as e
from broker_fl.wire.job import JobSpec
from tests.unit.roles.stage import Adds, done, eventually, model_of

NAME = "groups"
NUM_HOSTS, NUM_MEMBERS = 2, 500


def start(
    stack: ExitStack, transport: RabbitMQTransport, learners: Mapping[str, Learner], **settings: Any
) -> None:
    """A host, until the stack ends."""
    host = LearnerHost(transport, learners, LearnerSettings(federation=NAME, **settings))
    host.start()
    stack.callback(host.stop, drain_s=0.0)


def test_a_thousand_learners_of_two_hosts_and_some_alone(amqp_url: str, redis_url: str) -> None:
    with ExitStack() as stack:
        store = stack.enter_context(closing(open_store(redis_url, federation=NAME)))
        transports = [
            stack.enter_context(closing(RabbitMQTransport(amqp_url, name=f"party-{place}")))
            for place in range(NUM_HOSTS + 2)
        ]
        controller = Controller(transports[0], store, ControllerSettings(federation=NAME))
        controller.start()
        stack.callback(controller.wait, 10.0)
        stack.callback(controller.stop)
        assert controller.wait_active(30.0)
        for place in range(NUM_HOSTS):
            ids = [f"host-{place}-{index}" for index in range(NUM_MEMBERS)]
            learners = LazyLearners(ids, lambda context: Adds(float(context.index), num_examples=2))
            start(stack, transports[1 + place], learners, group=f"host-{place}", num_workers=2)
        alone = {f"alone-{index}": Adds(1000.0, num_examples=2) for index in range(3)}
        start(stack, transports[-1], alone)
        driver = stack.enter_context(Driver(RabbitMQTransport(amqp_url, name="driver"), NAME))
        num_learners = NUM_HOSTS * NUM_MEMBERS + 3
        eventually(lambda: len(driver.learners()) == num_learners, "all learners to be there")

        job = driver.submit(
            JobSpec(
                protocol={"min_learners": num_learners},  # type: ignore[arg-type]
                termination={"rounds": 2},  # type: ignore[arg-type]
            ),
            model_of(),
        )
        assert done(job).version == 2
        mean = (NUM_HOSTS * sum(range(NUM_MEMBERS)) + 3 * 1000.0) / num_learners
        np.testing.assert_allclose(job.model()["w"], 2 * mean, rtol=1e-5)
        events = list(job.events(follow=False))
        kinds = Counter(event.KIND for event in events)
        assert kinds["group_folded"] == 2 * NUM_HOSTS
        assert kinds["update_folded"] == 2 * 3
        assert len(events) < 100
        history = History.of(events)
        assert history.counts["folded"] == 2 * num_learners
        assert history.rounds[1].counts["finished"] == num_learners
        assert history.rounds[1].num_contributors == num_learners
        weights = [event.total_weight for event in events if isinstance(event, e.VersionCommitted)]
        assert weights == [2.0 * num_learners] * 2
