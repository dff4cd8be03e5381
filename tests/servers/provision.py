"""Where the tests' RabbitMQ and Redis come from: given URLs, a Docker engine, or the installed programs."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest

from broker_fl.errors import BrokerUnavailable
from broker_fl.workers.servers import (
    ManagementApi,
    RabbitMQNode,
    RedisNode,
    rabbitmq_available,
    redis_available,
)

AMQP_VARIABLE = "BROKER_FL_TEST_AMQP_URL"
REDIS_VARIABLE = "BROKER_FL_TEST_REDIS_URL"
RABBITMQ_IMAGE = "rabbitmq:4.1-management-alpine"
REDIS_IMAGE = "redis:7.4-alpine"

_ROOT_PREFIX = "broker-fl-tests-"


@dataclass(frozen=True, kw_only=True)
class Broker:
    """A RabbitMQ for a whole test session; `management` is there when it is ours to make virtual hosts on."""

    url: str
    management: ManagementApi | None = None
    log: Path | None = None
    """What it writes; None where that is elsewhere."""

    @contextlib.contextmanager
    def vhost(self, name: str) -> Iterator[str]:
        """The URL of a virtual host of that name while the block runs; else of the given one."""
        if self.management is None:
            yield self.url
            return
        self.management.add_vhost(name)
        try:
            yield f"{self.url.rpartition('/')[0]}/{name}"
        finally:
            self.management.delete_vhost(name)


@dataclass(frozen=True, kw_only=True)
class Store:
    """A Redis for a whole test session; `ours` when its data may be wiped after each test."""

    url: str
    ours: bool


@contextlib.contextmanager
def broker(root: Path) -> Iterator[Broker]:
    """The first RabbitMQ that can be had, while the block runs."""
    if given := os.environ.get(AMQP_VARIABLE):
        yield Broker(url=given)
    elif docker_answers():
        with _rabbitmq_container() as server:
            yield server
    else:
        with private_rabbitmq(root / "rabbitmq") as node:
            api = ManagementApi(node.management_url, user=node.user, password=node.password)
            yield Broker(url=node.url, management=api, log=node.directory / "log" / "rabbitmq.log")


@contextlib.contextmanager
def store(root: Path) -> Iterator[Store]:
    """The first Redis that can be had, while the block runs."""
    if given := os.environ.get(REDIS_VARIABLE):
        yield Store(url=given, ours=False)
    elif docker_answers():
        with _redis_container() as server:
            yield server
    else:
        with private_redis(root / "redis") as node:
            yield Store(url=node.url, ours=True)


@contextlib.contextmanager
def private_rabbitmq(directory: Path) -> Iterator[RabbitMQNode]:
    """A node of our own from the installed program, wiped when the block ends."""
    if not rabbitmq_available():
        _missing("RabbitMQ", AMQP_VARIABLE)
    node = RabbitMQNode(directory, management=True)
    try:
        yield node.start()
    finally:
        node.kill()  # a tidy stop takes 6 s with the management interface, and nobody needs the data
        node.stop()
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def rabbitmq_cluster(root: Path, *, num_nodes: int = 3) -> Iterator[list[RabbitMQNode]]:
    """A cluster of our own; it starts in about 20 s on two processors, and takes 120 MB for each node."""
    if not rabbitmq_available():
        _missing("RabbitMQ", AMQP_VARIABLE)
    settings = {"cluster_partition_handling": "pause_minority", "net_ticktime": "16"}
    first = RabbitMQNode(root / "cluster-0", management=True, schedulers=1, settings=settings)
    others = [
        RabbitMQNode(root / f"cluster-{number}", schedulers=1, settings=settings, joins=first)
        for number in range(1, num_nodes)
    ]
    try:
        first.start()
        with ThreadPoolExecutor(len(others)) as starting:
            list(starting.map(_start_in_cluster, others))
        yield [first, *others]
    finally:
        for node in (*others, first):
            node.kill()
            node.stop()
            shutil.rmtree(node.directory, ignore_errors=True)


@contextlib.contextmanager
def private_redis(directory: Path) -> Iterator[RedisNode]:
    """A server of our own from the installed program, wiped when the block ends."""
    if not redis_available():
        _missing("Redis", REDIS_VARIABLE)
    node = RedisNode(directory, password=True)
    try:
        yield node.start()
    finally:
        node.kill()
        node.stop()
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def server_root() -> Iterator[Path]:
    """A folder for this session's servers; those that a killed session left behind are ended first."""
    for old in Path(tempfile.gettempdir()).glob(f"{_ROOT_PREFIX}*"):
        if not _process_lives(int(old.name.split("-")[3])):
            end_servers(old)
    root = Path(tempfile.mkdtemp(prefix=f"{_ROOT_PREFIX}{os.getpid()}-"))
    try:
        yield root
    finally:
        end_servers(root)


def end_servers(root: Path) -> None:
    """End every server whose folder is in `root`, and remove them all."""
    for identity in root.glob("*/identity.json"):
        for node in (RabbitMQNode(identity.parent), RedisNode(identity.parent)):
            node.kill()
            node.stop()
    shutil.rmtree(root, ignore_errors=True)


@cache
def docker_answers() -> bool:
    """Whether there is a Docker engine to start containers on (the program alone is not enough)."""
    command = ["docker", "version", "--format", "{{.Server.Version}}"]
    try:
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def wait_management(management: ManagementApi, *, deadline_s: float = 60.0) -> None:
    """Wait until it answers: a container takes AMQP connections some time before it does."""
    give_up_at = time.monotonic() + deadline_s
    while True:
        try:
            management.request("GET", "/api/overview")
        except BrokerUnavailable:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.1)
        else:
            return


@contextlib.contextmanager
def _rabbitmq_container() -> Iterator[Broker]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # testcontainers deprecates parts of itself
        from testcontainers.rabbitmq import RabbitMqContainer  # slow, and needs Docker

        container = RabbitMqContainer(RABBITMQ_IMAGE, username="tests", password="tests").with_exposed_ports(
            15672
        )
        container.start()
    try:
        host = container.get_container_host_ip()
        address = f"http://{host}:{container.get_exposed_port(15672)}"
        management = ManagementApi(address, user="tests", password="tests")
        wait_management(management)
        yield Broker(
            url=f"amqp://tests:tests@{host}:{container.get_exposed_port(5672)}/%2F", management=management
        )
    finally:
        container.stop()


@contextlib.contextmanager
def _redis_container() -> Iterator[Store]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # testcontainers deprecates parts of itself
        from testcontainers.redis import RedisContainer  # slow, and needs Docker

        container = RedisContainer(REDIS_IMAGE)
        container.start()
    try:
        host, port = container.get_container_host_ip(), container.get_exposed_port(6379)
        yield Store(url=f"redis://{host}:{port}/0", ours=True)
    finally:
        container.stop()


def _start_in_cluster(node: RabbitMQNode) -> None:
    node.start()
    node.control("await_startup")  # it takes connections before it can take part in making a virtual host


def _missing(server: str, variable: str) -> NoReturn:
    if os.environ.get(variable) or docker_answers():
        reason = f"needs a {server} of its own, and none is installed here (tests/servers/provide.sh)"
    else:
        reason = f"no {server}: set {variable}, start Docker, or install it (tests/servers/provide.sh)"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def _process_lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
