"""A cluster of three RabbitMQ nodes, of which one after the other is killed in the middle of a round."""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from broker_fl import connect
from broker_fl.errors import QueueLost
from broker_fl.topology import Binding, Entity, Exchange, Queue
from broker_fl.transports.rabbitmq import RabbitMQTransport
from broker_fl.workers.servers import RabbitMQNode
from tests.faults.cells import Bench, Phase, bring_to, go_on, outcome
from tests.faults.federation import LEARNERS, WAIT_S, Federation
from tests.servers import provision

pytestmark = pytest.mark.timeout(300)
PHASES: tuple[Phase, ...] = ("training", "folding", "training")


@pytest.fixture(scope="module")
def cluster(server_root: Path) -> Iterator[list[RabbitMQNode]]:
    with provision.rabbitmq_cluster(server_root) as nodes:
        yield nodes


@pytest.fixture
def nodes(cluster: list[RabbitMQNode]) -> list[RabbitMQNode]:
    """All of them running; a test may leave one killed."""
    for node in cluster:
        if node.pid is None:
            node.start()
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
    running = Federation(tmp_path, broker=url, store=redis_url, federation=federation, straight=True)
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
