"""Where attacks are made: a federation on a real broker, and in it one enrolled learner, mallory."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pika
import pytest
from pika import exceptions as pika_errors

from broker_fl.identity.joinfile import read_join_file
from broker_fl.model import Array, Model
from broker_fl.observer import Nobody, RefusalReason, UpdateOutcome
from broker_fl.roles.driver import Driver, Job
from broker_fl.roles.learner import LearnerHost
from broker_fl.wire import events as e
from broker_fl.wire import messages as m
from broker_fl.wire.chunks import cut
from broker_fl.wire.frames import pack_chunk
from broker_fl.wire.job import JobSpec
from tests.servers.enrolling import DEADLINE_S, Adds, Operator, eventually
from tests.servers.provision import Broker

ROUNDS = 2
GOOD = ("hospital-a", "hospital-b")
EXAMPLES = 1_000_000
"""That mallory says to have trained from; the others have 1."""
REFUSED = 403
"""The broker's answer to what an account may not do."""


class Mallory:
    """Raw AMQP with the account of one party, by default a learner."""

    def __init__(self, by: Operator, port: int, name: str = "mallory", role: str = "learner") -> None:
        self.path = by.enroll(name, role)
        file = read_join_file(self.path)
        self.name = name
        self.topology = by.topology
        self.user = file.account.user
        credentials = pika.PlainCredentials(self.user, str(file.password))
        # Without heartbeats: nobody answers them while a test is busy with something else.
        self.access = pika.ConnectionParameters(
            *("127.0.0.1", port, by.vhost, credentials),
            heartbeat=0,
            socket_timeout=DEADLINE_S,
            stack_timeout=DEADLINE_S,
        )
        self.connection = pika.BlockingConnection(self.access)
        self._channel = self.connection.channel()
        self._channel.confirm_delivery()

    def attempt(self, do: Callable[[Any], object]) -> int:
        """The code with which the broker refuses it; 0 if it does not."""
        channel = self.connection.channel()
        channel.confirm_delivery()
        try:
            do(channel)
        except pika_errors.ChannelClosedByBroker as error:
            return int(error.reply_code)
        channel.close()
        return 0

    def send(self, exchange: str, key: str, body: bytes, headers: Mapping[str, Any] | None = None) -> None:
        """Publish, as this account."""
        properties = pika.BasicProperties(user_id=self.user, headers=dict(headers) if headers else None)
        self._channel.basic_publish(exchange, key, body, properties)

    def report(self, body: bytes) -> None:
        self.send(self.topology.reports, f"{self.name}.report", body)

    def deliver(self, inbox: str, bodies: Iterable[bytes]) -> None:
        """To a controller's inbox."""
        for body in bodies:
            self.send(self.topology.updates, f"{self.name}.{inbox}", body)


class Counts(Nobody):
    """What the metrics are counted from: updates by what became of them, refused messages by where."""

    def __init__(self) -> None:
        self.updates: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()

    def update(self, outcome: UpdateOutcome, reason: RefusalReason = "", count: int = 1) -> None:
        self.updates[outcome] += count

    def refused(self, source: str) -> None:
        self.refusals[source] += 1


class Stage:
    """Controller, two good learners, a driver, and mallory."""

    def __init__(self, by: Operator, port: int) -> None:
        self.operator = by
        self.topology = by.topology
        self.port = port
        self.counts = Counts()
        self.controller = by.controller(self.counts)
        self.inbox = f"controller-{self.controller.epoch}"
        self.good = {name: Adds() for name in GOOD}
        self.hosts: list[LearnerHost] = []
        for name, adds in self.good.items():
            host = by.learner(by.enroll(name), adds)
            assert host.wait_welcomed(DEADLINE_S)
        self.driver: Driver = by.driver()
        self.mallory = Mallory(by, port)
        self.in_peace = self.finish(self.begin())

    def begin(self, **settings: Any) -> Job:
        """A job whose first round is open: the good learners are at work, and wait."""
        for adds in self.good.values():
            adds.at_work.clear()
            adds.gate.clear()
        protocol = {"min_learners": 2, "quorum": 2, "deadline_s": 60.0}
        spec = {"termination": {"rounds": ROUNDS}, "protocol": protocol}
        job = self.driver.submit(JobSpec.model_validate(spec | settings), {"w": np.zeros(8, np.float32)})
        for adds in self.good.values():
            assert adds.at_work.wait(DEADLINE_S)
        return job

    def finish(self, job: Job) -> Mapping[str, Array]:
        """Let it go on to its end."""
        for adds in self.good.values():
            adds.gate.set()
        finished = job.wait()
        assert finished.state == "done", finished.reason
        return dict(job.model())

    def check_as_in_peace(
        self, job: Job, expected: Array | None = None, rounds: int = ROUNDS
    ) -> list[e.Event]:
        """Finish the job; its model and contributors are as if nothing had been."""
        model = self.finish(job)
        np.testing.assert_array_equal(model["w"], self.in_peace["w"] if expected is None else expected)
        events = list(job.events(follow=False))
        commits = [event for event in events if isinstance(event, e.VersionCommitted)]
        assert [sorted(commit.contributors) for commit in commits] == [sorted(GOOD)] * rounds
        lost = [event for event in events if isinstance(event, e.LearnerLost | e.LearnerLeft)]
        assert not [event for event in lost if event.learner in GOOD]
        return events

    def dead_letters(self) -> list[str]:
        """Reasons of what was refused since the last look."""
        return [letter.reason for letter, _ in self.letters()]

    def letters(self) -> list[tuple[m.DeadLetter, bytes]]:
        """What was refused since the last look, and why."""
        api, vhost = self.operator.api, self.operator.vhost
        taken = [m.decode(body) for body, _ in api.take_messages(vhost, self.topology.dead, 10_000)]
        return [
            (letter, bytes(body))
            for letter, body in taken
            if isinstance(letter, m.DeadLetter) and body is not None
        ]

    def refused(self, num: int) -> list[str]:
        """Reasons, once there are so many."""
        found: list[str] = []

        def enough() -> bool:
            found.extend(self.dead_letters())
            return len(found) >= num

        eventually(enough, f"{num} refusals, not {len(found)}")
        return found


@contextmanager
def staged(folder: Path, rabbitmq: Broker) -> Iterator[Stage]:
    """On a virtual host of its own, while the block runs."""
    if rabbitmq.management is None:
        pytest.skip("needs a management interface")
    with rabbitmq.vhost(f"test-{secrets.token_hex(6)}") as url:
        federation = f"test-{secrets.token_hex(6)}"
        port = int(url.rpartition(":")[2].partition("/")[0])
        with Operator(folder, url, rabbitmq.management, federation) as by:
            stage = Stage(by, port)
            yield stage
            stage.mallory.connection.close()


def update_of(learner: str, task: m.TaskRef, value: float) -> list[bytes]:
    """A whole and valid update: its result and its chunk."""
    model = Model.of({"w": np.full(8, value, np.float32)})
    manifest = m.UpdateManifest.of(model.spec, encoding="raw", chunk_bytes=1 << 20)
    result = m.Result(learner=learner, task=task, num_examples=EXAMPLES, update=manifest)
    (chunk,) = cut(model.buffer, 1 << 20)
    header = m.UpdateChunk(learner=learner, task=task, index=0, count=1, checksum=chunk.checksum)
    return [result.pack(), pack_chunk(header.KIND, header.model_dump(), chunk.payload)]
