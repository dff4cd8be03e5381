"""Servers that are there and take nothing: alarms, a full inbox, a Redis without memory or replicas."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from redis import Redis

from broker_fl.topology import Topology
from broker_fl.wire import events as e
from broker_fl.wire.job import JobSpec, Termination, Transfer
from broker_fl.wire.protocols import Asynchronous
from broker_fl.wire.rules import FedAsync
from broker_fl.workers.servers import RabbitMQNode
from tests.faults.bench import bench_for
from tests.faults.cells import VICTIM, Bench, Watched, bring_to, go_on, outcome
from tests.faults.cells import Phase as AtPhase
from tests.faults.federation import LEARNERS, NOBODY_IS_LOST, SIZE

DISK = "{resource_limit, disk, node()}"


@pytest.fixture(scope="module")
def bench(_restartable_rabbitmq: RabbitMQNode, server_root: Path) -> Iterator[Bench]:
    with bench_for("troubles", _restartable_rabbitmq, server_root, NOBODY_IS_LOST) as bench:
        yield bench


def log_of(bench: Bench, name: str) -> str:
    return bench.federation.processes[name].log.read_text()


def play(
    bench: Bench,
    phase: AtPhase,
    begin: Callable[[], object],
    noticed: Callable[[], object],
    end: Callable[[], object],
) -> None:
    """Trouble from the phase on, until it has been noticed; then the job ends as if nothing had been."""
    with ExitStack() as stack:
        watched = bring_to(phase, bench)
        stack.callback(end)
        begin()
        go_on(bench, watched)
        bench.federation.wait(noticed, "that somebody notices")
    played = outcome("server", "trouble", phase, bench, watched, over_at=0.0)
    assert played.is_good, (played, bench.federation.logs())
    assert played.trained_again == 0


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (("set_vm_memory_high_watermark", "0.000001"), ("set_vm_memory_high_watermark", "0.6")),
        # A limit on free space is looked at where the system tells it, which not every sandbox does.
        (
            ("eval", f"rabbit_alarm:set_alarm({{{DISK}, []}})."),
            ("eval", f"rabbit_alarm:clear_alarm({DISK})."),
        ),
    ],
    ids=["memory", "disk"],
)
def test_an_alarm_of_the_broker_holds_a_round_up_and_no_more(
    bench: Bench, begin: tuple[str, ...], end: tuple[str, ...]
) -> None:
    assert bench.rabbitmq is not None
    rabbitmq, before = bench.rabbitmq, log_of(bench, VICTIM).count("alarm and blocks")
    play(
        bench,
        "training",
        lambda: rabbitmq.control(*begin),
        lambda: log_of(bench, VICTIM).count("alarm and blocks") > before,
        lambda: rabbitmq.control(*end),
    )


Command = tuple[str | int, ...]


@pytest.mark.parametrize(
    ("begin", "end", "words"),
    [
        (("CONFIG", "SET", "maxmemory", 1), ("CONFIG", "SET", "maxmemory", 0), "is full"),
        (
            ("CONFIG", "SET", "min-replicas-to-write", 1),
            ("CONFIG", "SET", "min-replicas-to-write", 0),
            "NOREPLICAS",
        ),
        (("REPLICAOF", "127.0.0.1", 1), ("REPLICAOF", "NO", "ONE"), "read only replica"),
    ],
    ids=["out of memory", "without replicas", "a replica by now"],
)
def test_a_redis_that_takes_no_writes_holds_a_commit_up_and_no_more(
    bench: Bench, begin: Command, end: Command, words: str
) -> None:
    """It is not enough that the lease can not be renewed: the commit itself must have been refused."""
    assert bench.redis is not None

    def refused() -> int:
        return len(re.findall(f"trying again: .*{words}", log_of(bench, "controller")))

    with Redis.from_url(bench.redis.url) as redis:
        before = refused()
        play(
            bench,
            "folding",
            lambda: redis.execute_command(*begin),
            lambda: refused() > before,
            lambda: redis.execute_command(*end),
        )


def test_a_full_inbox_holds_uploads_up_and_loses_none(bench: Bench) -> None:
    """A policy makes it full at once; learners' uploads are rejected until it is gone."""
    assert bench.rabbitmq is not None
    rabbitmq, topology = bench.rabbitmq, Topology(bench.federation.name)
    vhost = bench.federation.broker.rpartition("/")[2]
    inbox = topology.inbox("controller-").replace(".", r"\.")
    words = "a queue refuses messages"
    before = log_of(bench, VICTIM).count(words)
    play(
        bench,
        "training",
        lambda: rabbitmq.control(
            "set_policy", "-p", vhost, "full", f"^{inbox}", '{"max-length":0}', "--apply-to", "queues"
        ),
        lambda: log_of(bench, VICTIM).count(words) > before,
        lambda: rabbitmq.control("clear_policy", "-p", vhost, "full"),
    )


@pytest.mark.parametrize("how", ["frozen", "reads nothing"])
def test_a_slow_consumer_holds_nobody_up_and_fills_no_queue(bench: Bench, how: str) -> None:
    """One learner takes nothing in while the others make forty versions: only one task waits for it."""
    assert bench.rabbitmq is not None
    rabbitmq, federation = bench.rabbitmq, bench.federation
    mailbox = Topology(federation.name).mailbox(VICTIM)
    vhost = federation.broker.rpartition("/")[2]

    def waiting_bytes() -> int:
        rows = rabbitmq.control("list_queues", "-p", vhost, "name", "message_bytes", "--no-table-headers")
        return int(dict(line.split("\t") for line in rows.splitlines())[mailbox])

    with ExitStack() as stack:
        if how == "frozen":
            stack.callback(federation.processes[VICTIM].send, signal.SIGCONT)
            federation.processes[VICTIM].freeze()
        else:
            stack.callback(federation.to_broker[VICTIM].release)
            federation.to_broker[VICTIM].hold("down")
        spec = JobSpec(
            protocol=Asynchronous(min_learners=2),
            rule=FedAsync(),
            termination=Termination(versions=40),
            transfer=Transfer(chunk_bytes=4096),
            evaluate=False,
        )
        watched = Watched(bench.driver.submit(spec, {"w": np.zeros(SIZE, np.float32)}))
        federation.open_gates(watched.id)
        federation.wait(lambda: watched.has_ended, "the end of a job that one learner takes no part in")
        assert isinstance(watched.events[-1], e.JobFinished)
        assert watched.events[-1].state == "done"
        made = [event.contributors for event in watched.events if isinstance(event, e.VersionCommitted)]
        assert len(made) == 40
        assert {name for names in made for name in names} == set(LEARNERS) - {VICTIM}
        assert 0 < waiting_bytes() < 2 * 4 * SIZE
    federation.wait(lambda: waiting_bytes() == 0, "that the learner reads what waits for it")
    watched = bench.submit()
    federation.open_gates(watched.id)
    played = outcome("learner", how, "training", bench, watched, over_at=0.0)
    assert played.is_good, (played, federation.logs())
