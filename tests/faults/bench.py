"""Servers, federation and driver put together."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

from broker_fl import connect
from broker_fl.workers.servers import RabbitMQNode, RedisNode
from tests.faults.cells import Bench
from tests.faults.federation import IMPATIENT, LEARNERS, WAIT_S, Federation, Patience
from tests.servers import provision


@contextlib.contextmanager
def bench_on(
    rabbitmq: RabbitMQNode,
    redis: RedisNode | str,
    folder: Path,
    environments: Mapping[str, dict[str, str]] | None = None,
    patience: Patience = IMPATIENT,
) -> Iterator[Bench]:
    """A federation of three learners in a new virtual host, with all its processes running; ``redis`` is a
    server, or the URL of several; ``environments``: what processes are given besides, by name.
    """
    url = rabbitmq.add_vhost(f"faults-{secrets.token_hex(4)}")
    rabbitmq.flush()  # RabbitMQ 3 would forget it when it is killed
    name = f"faults-{secrets.token_hex(4)}"
    node = None if isinstance(redis, str) else redis
    store = redis if isinstance(redis, str) else redis.url
    federation = Federation(folder, broker=url, store=store, federation=name, patience=patience)
    federation.environments.update(environments or {})
    try:
        for one in ("controller", *LEARNERS):
            federation.start(one)
        with connect(url, name, timeout_s=WAIT_S) as driver:
            bench = Bench(federation, driver, rabbitmq, node)
            bench.run_undisturbed()
            yield bench
    finally:
        federation.close()


@contextlib.contextmanager
def bench_for(name: str, rabbitmq: RabbitMQNode, root: Path, patience: Patience) -> Iterator[Bench]:
    """The same with a Redis of its own, on a node that other tests have killed and may have left so."""
    if rabbitmq.pid is None:
        rabbitmq.start()
    with (
        provision.private_redis(root / f"redis-of-{name}") as redis,
        bench_on(rabbitmq, redis, root / f"federation-of-{name}", patience=patience) as bench,
    ):
        yield bench


@contextlib.contextmanager
def private_bench(root: Path) -> Iterator[Bench]:
    """The same on servers of its own."""
    with (
        provision.private_rabbitmq(root / "rabbitmq") as rabbitmq,
        provision.private_redis(root / "redis") as redis,
        bench_on(rabbitmq, redis, root / "federation") as bench,
    ):
        yield bench
