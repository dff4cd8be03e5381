"""A Redis with replicas whose primary goes away in the middle of a round, set up as in docs/operations.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker_fl.wire import events as e
from broker_fl.workers.servers import RabbitMQNode
from tests.faults.bench import bench_on
from tests.faults.cells import ROUND, Bench, bring_to, go_on, outcome
from tests.faults.federation import LEARNERS
from tests.servers.replicated import ReplicatedRedis, replicated_redis, until


@pytest.fixture(scope="module")
def redises(server_root: Path) -> Iterator[ReplicatedRedis]:
    with replicated_redis(server_root / "replicated-redis") as redises:
        yield redises


@pytest.fixture(scope="module")
def bench(
    _restartable_rabbitmq: RabbitMQNode, redises: ReplicatedRedis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    if _restartable_rabbitmq.pid is None:
        _restartable_rabbitmq.start()
    with bench_on(_restartable_rabbitmq, redises.url, tmp_path_factory.mktemp("replicated")) as bench:
        yield bench


def reached(redises: ReplicatedRedis) -> set[int]:
    """Servers to which HAProxy leads, by port: of forty connections."""
    return {redises.led_to() for _ in range(40)}


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_replica_takes_over_in_the_middle_of_a_commit(
    bench: Bench, redises: ReplicatedRedis, how: str
) -> None:
    """The replicas have all that was confirmed, so nothing is lost; and when the old primary is back it still
    takes itself for one, but nobody is led there.
    """
    old = redises.primary
    watched = bring_to("committing", bench)
    redises.wait_in_step(old)
    if how == "killed":
        old.kill()
    else:
        old.freeze()
    go_on(bench, watched)
    new = redises.wait_taken_over(old)
    played = outcome("Redis", how, "committing", bench, watched, over_at=0.0)
    assert played.is_good, (played, bench.federation.logs())
    assert played.trained_again == 0
    if how == "killed":
        redises.run(old, of=None)
        until(lambda: redises.facts(old)["role"] == "master", "the old primary")
    else:
        old.thaw()
    assert reached(redises) == {new.port}
    redises.ask(old.port, "REPLICAOF", "127.0.0.1", str(new.port))  # as Sentinel does, after 10 s or more
    redises.wait_in_step(new)


def test_a_version_that_no_replica_had_is_missed_and_made_again(
    bench: Bench, redises: ReplicatedRedis
) -> None:
    """Replicas have been silent, for less than the primary puts up with, when it is gone for good."""
    federation, old = bench.federation, redises.primary
    controller = federation.processes["controller"]
    replicas = [node for node in redises.nodes if node is not old]
    watched = bring_to("folding", bench)
    redises.wait_in_step(old)
    redises.ask(old.port, "CONFIG", "SET", "min-replicas-max-lag", "60")  # this machine may be slow
    for node in replicas:
        node.freeze()
    federation.open_gates(watched.id, round=ROUND)
    federation.wait(lambda: watched.has(e.VersionCommitted, round=ROUND), "a version that no replica has")
    federation.wait_training(watched.id, ROUND + 1)
    for node in redises.nodes:  # what replicas had been sent and not read is gone with them
        node.kill()
    for node in replicas:
        redises.run(node, of=old)
    redises.wait_taken_over(old)
    go_on(bench, watched)
    federation.wait(lambda: controller.exit_code is not None, "that the controller notices")
    assert controller.exit_code == 1
    lost = f"has lost versions of job '{watched.id}': version {ROUND + 1} was in it, the newest is {ROUND}"
    assert lost in controller.log.read_text()
    federation.start("controller")
    played = outcome("Redis", "failover", "folding", bench, watched, over_at=0.0)
    assert played.is_good, (played, federation.logs())
    assert watched.has(e.VersionCommitted, round=ROUND) == 2
    assert played.trained_again == 2 * len(LEARNERS), "of the lost round, and of the one that built on it"
