"""A cluster of three RabbitMQ nodes, of which one is killed, frozen or cut off in the middle of a round."""

from __future__ import annotations

import contextlib
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from broker_fl import connect
from broker_fl.errors import BrokerUnavailable, QueueLost
from broker_fl.identity.management import ManagementApi
from broker_fl.topology import Binding, Entity, Exchange, Queue, Topology
from broker_fl.transports.rabbitmq import RabbitMQTransport
from broker_fl.wire import events as e
from broker_fl.workers.servers import RabbitMQNode
from tests.faults.cells import ROUND, VICTIM, Bench, Phase, bring_to, go_on, outcome
from tests.faults.federation import LEARNERS, WAIT_S, Federation
from tests.servers import partition, provision
from tests.servers.enrolling import Operator

PARTITIONED = "broker-fl"  # a node's name, in the list of those that somebody takes for another cluster's
PHASES: tuple[Phase, ...] = ("training", "folding", "training")


@pytest.fixture(scope="module")
def cluster(server_root: Path) -> Iterator[list[RabbitMQNode]]:
    with provision.rabbitmq_cluster(server_root) as nodes:
        yield nodes


@pytest.fixture
def nodes(cluster: list[RabbitMQNode]) -> list[RabbitMQNode]:
    """All of them running, and together; a test may leave one killed."""
    for node in cluster:
        if node.pid is None:
            node.start()
    for node in cluster:
        node.control("await_online_nodes", str(len(cluster)))
    return cluster


def cluster_url(nodes: list[RabbitMQNode], vhost: str) -> str:
    """One URL with all nodes of the cluster."""
    first = urlsplit(nodes[0].url_of(vhost))
    hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
    return f"amqp://{first.username}:{first.password}@{hosts}{first.path}"


def test_any_node_may_be_killed_in_the_middle_of_a_round(
    nodes: list[RabbitMQNode], redis_url: str, federation: str, tmp_path: Path
) -> None:
    vhost = f"test-{secrets.token_hex(4)}"
    nodes[0].add_vhost(vhost)
    url = cluster_url(nodes, vhost)
    running = Federation(tmp_path, broker=url, store=redis_url, federation=federation)
    try:
        for name in ("controller", *LEARNERS):
            running.start(name)
        with connect(f"{url}?heartbeat=2", federation, timeout_s=WAIT_S) as driver:
            bench = Bench(running, driver)
            bench.run_undisturbed()
            for node, phase in zip(nodes, PHASES, strict=True):
                watched = bring_to(phase, bench)
                node.kill()
                go_on(bench, watched)
                played = outcome("node", "kill -9", phase, bench, watched, over_at=time.time())
                assert played.is_good, played
                node.start()
    finally:
        running.close()
    for process in running.processes.values():  # every node had its turn, so every queue lost its own
        log = process.log.read_text()
        assert re.search(r"queue '\S+' is on a node that is down; reading '\S+' instead", log), running.logs()


def test_a_queue_whose_node_is_down_is_said_to_be_lost(nodes: list[RabbitMQNode]) -> None:
    vhost = f"test-{secrets.token_hex(4)}"
    nodes[0].add_vhost(vhost)
    home, lost = nodes[2], threading.Event()
    entities: list[Entity] = [Exchange("x", "direct"), Queue(name="q"), Binding("x", "q", "k")]
    spare = Queue(name="s", spare=True)
    at_home = RabbitMQTransport(home.url_of(vhost))
    at_home.declare([*entities, spare])
    elsewhere = RabbitMQTransport(nodes[1].url_of(vhost))
    try:
        elsewhere.on_queue_lost(lambda queue: lost.set() if queue == "q" else None)
        elsewhere.declare(entities)
        elsewhere.consume("q", lambda delivery: delivery.ack(), prefetch=1)
        home.kill()
        assert lost.wait(WAIT_S)
        with pytest.raises(QueueLost, match="is down or inaccessible"):
            elsewhere.declare([Queue(name="q")])
        elsewhere.cancel("q")
        with pytest.raises(QueueLost):
            elsewhere.consume("q", lambda delivery: delivery.ack(), prefetch=1)
        elsewhere.declare([spare, Queue(name="another"), Binding("x", "another", "k")])
    finally:
        elsewhere.close()
        at_home.close()


@pytest.fixture(scope="module")
def enrolled(
    cluster: list[RabbitMQNode], server_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    """A federation on the cluster in which everybody has an account of their own, and declares nothing."""
    name, folder = f"test-{secrets.token_hex(4)}", tmp_path_factory.mktemp("enrolled")
    first = cluster[0]
    if first.pid is None:
        first.start()
    vhost = f"test-{secrets.token_hex(4)}"
    first.add_vhost(vhost)
    first.flush()
    url = cluster_url(cluster, vhost)
    api = ManagementApi(first.management_url, user=first.user, password=first.password)
    with (
        provision.private_redis(server_root / "redis-of-cluster") as redis,
        Operator(folder, url, api, name, shown_url=f"{url}?heartbeat=2") as operator,
    ):
        joins = {one: operator.enroll(one) for one in LEARNERS}
        joins["controller"] = operator.enroll("main", "controller")
        running = Federation(folder, broker=url, store=redis.url, federation=name, joins=joins)
        try:
            for one in joins:
                running.start(one)
            bench = Bench(running, operator.driver())
            bench.run_undisturbed()
            yield bench
        finally:
            running.close()
            first.control("await_startup")  # by it accounts are deleted; cut off, it stops until it is let in


def home_of_mailbox(nodes: list[RabbitMQNode], bench: Bench) -> RabbitMQNode:
    """The node with the mailbox that the victim reads."""
    vhost = bench.federation.broker.rpartition("/")[2]
    mailbox = Topology(bench.federation.name).mailbox(VICTIM)
    wanted = ("name", "consumers", "pid", "--no-table-headers")
    give_up_at = time.monotonic() + WAIT_S
    while time.monotonic() < give_up_at:  # after a node was away, it may still be on its way back
        for row in nodes[1].control("list_queues", "-p", vhost, *wanted).splitlines():
            name, consumers, pid = row.split("\t")
            if name.startswith(mailbox) and consumers == "1":
                return next(node for node in nodes if node.name in pid)
    raise AssertionError(f"nobody reads {mailbox}")


def freeze(node: RabbitMQNode, others: list[RabbitMQNode]) -> None:
    """Until the others have given it up, by ``net_ticktime``."""
    node.freeze()
    give_up_at = time.monotonic() + WAIT_S
    for log in (other.directory / "log" / "rabbitmq.log" for other in others):
        while f"'{node.name}' not responding" not in log.read_text():
            assert time.monotonic() < give_up_at, "nobody notices that a node is frozen"
            time.sleep(0.05)


def thaw(node: RabbitMQNode, others: list[RabbitMQNode]) -> None:
    """Let it go on, and see it among the others again.

    Either it takes itself for a cluster of its own, which any of them may be the one to say, and has to be
    told to join; or it sees in time that it is alone: then it pauses, and comes back by itself.
    """
    node.thaw()
    give_up_at = time.monotonic() + WAIT_S
    while node.name not in others[0].control("eval", "rabbit_mnesia:cluster_nodes(running)."):
        assert time.monotonic() < give_up_at, "a node that woke up is not let in again"
        with contextlib.suppress(BrokerUnavailable):  # it pauses at this moment
            if any(
                PARTITIONED in one.control("eval", "rabbit_node_monitor:partitions().")
                for one in (node, *others)
            ):
                node.control("stop_app")
                node.control("start_app")


@pytest.mark.parametrize("how", ["killed", "frozen", "cut off"])
def test_enrolled_learners_go_on_when_the_node_with_their_mailboxes_is_gone(
    nodes: list[RabbitMQNode], enrolled: Bench, how: str
) -> None:
    """The node is back only when the round is over that it was lost in. One that wakes up takes itself for a
    cluster of its own, and has to be told to join: ``pause_minority`` does not notice.
    """
    home = home_of_mailbox(nodes, enrolled)
    others = [node for node in nodes if node is not home]
    away: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "killed": (home.kill, home.start),
        "frozen": (lambda: freeze(home, others), lambda: thaw(home, others)),
        "cut off": (lambda: partition.cut_off(home), lambda: partition.join_again(home, others)),
    }
    begin, end = away[how]
    watched = bring_to("training", enrolled)
    begin()
    try:
        enrolled.federation.open_gates(watched.id, round=ROUND)
        enrolled.federation.wait(
            lambda: watched.has(e.VersionCommitted, round=ROUND), "the round without the node"
        )
    finally:
        end()
    go_on(enrolled, watched)
    played = outcome("node", how, "training", enrolled, watched, over_at=0.0)
    assert played.is_good, (played, enrolled.federation.logs())
    assert played.trained_again == 0
