"""The servers that tests run against; where they come from is in tests/servers/provision.py.

====================  ==================================================================================
`amqp_url`            an empty virtual host for each test (a given URL is used as it is)
`redis_url`           an empty database for each test (a given URL is used as it is)
`federation`          a name that no other test uses
`private_rabbitmq`    a node that the test may kill, freeze and restart; `private_amqp_url`: a vhost on it
`private_redis`       a server that the test may kill, freeze and restart; empty at its start
`certificates`        a private authority; `secured_rabbitmq`: takes nobody without its certificates
====================  ==================================================================================
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from redis import Redis

from broker_fl.workers.servers import RabbitMQNode, RedisNode, rabbitmq_available
from tests.servers import provision, secured
from tests.servers.secured import Certificates, SecuredRabbitMQ

# How long one example takes says more about the machine's other work than about the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(autouse=True)
def _logging_stays_as_it_was() -> Iterator[None]:
    """A command that a test runs in this process sets up logging; the next test must not hear less for it."""
    root = logging.getLogger()
    level, handlers = root.level, set(root.handlers)
    yield
    root.setLevel(level)
    for handler in set(root.handlers) - handlers:
        root.removeHandler(handler)


@pytest.fixture(scope="session", autouse=True)
def _no_audit_log_of_this_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Operators' commands write down what they did; those of tests do so elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def server_root() -> Iterator[Path]:
    """A folder for this session's servers."""
    with provision.server_root() as root:
        yield root


@pytest.fixture(scope="session")
def rabbitmq(server_root: Path) -> Iterator[provision.Broker]:
    """The RabbitMQ that all tests share; a test wants `amqp_url` instead."""
    with provision.broker(server_root) as server:
        yield server


@pytest.fixture(scope="session")
def redis(server_root: Path) -> Iterator[provision.Store]:
    """The Redis that all tests share; a test wants `redis_url` instead."""
    with provision.store(server_root) as server:
        yield server


@pytest.fixture
def federation() -> str:
    """The name of a federation that no other test uses, so that tests may share a broker and a store."""
    return f"test-{secrets.token_hex(6)}"


@pytest.fixture
def amqp_url(rabbitmq: provision.Broker) -> Iterator[str]:
    """The URL of an empty virtual host for this test."""
    with rabbitmq.vhost(f"test-{secrets.token_hex(6)}") as url:
        yield url


@pytest.fixture
def redis_url(redis: provision.Store) -> Iterator[str]:
    """The URL of an empty Redis database for this test."""
    yield redis.url
    if redis.ours:
        _wipe(redis.url)


@pytest.fixture(scope="session")
def _restartable_rabbitmq(server_root: Path) -> Iterator[RabbitMQNode]:
    with provision.private_rabbitmq(server_root / "restartable-rabbitmq") as node:
        yield node


@pytest.fixture
def private_rabbitmq(_restartable_rabbitmq: RabbitMQNode) -> Iterator[RabbitMQNode]:
    """A node to kill, freeze and restart at will; such tests share it, and it is mended after each."""
    node = _restartable_rabbitmq
    if node.pid is None:
        node.start()
    yield node
    node.thaw()


@pytest.fixture
def private_amqp_url(private_rabbitmq: RabbitMQNode) -> str:
    """The URL of an empty virtual host on the node that may be killed; the virtual host survives that."""
    url = private_rabbitmq.add_vhost(f"test-{secrets.token_hex(6)}")
    private_rabbitmq.flush()
    return url


@pytest.fixture
def private_redis(server_root: Path) -> Iterator[RedisNode]:
    """An empty Redis to kill, freeze and restart at will."""
    with provision.private_redis(server_root / f"redis-{secrets.token_hex(4)}") as node:
        yield node


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A private authority for this session."""
    return Certificates(tmp_path_factory.mktemp("authority") / "ca")


@pytest.fixture(scope="session")
def secured_rabbitmq(server_root: Path, certificates: Certificates) -> Iterator[SecuredRabbitMQ]:
    """A node that speaks TLS to who shows a certificate; such tests share it."""
    if not rabbitmq_available():
        pytest.skip("needs a RabbitMQ of its own, and none is installed here (tests/servers/provide.sh)")
    with secured.secured_rabbitmq(server_root / "secured-rabbitmq", certificates) as server:
        yield server


def _wipe(url: str) -> None:
    with Redis.from_url(url) as client:
        client.flushall()
