"""A Redis of its own, with a store and an administrator."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis

from broker_fl.stores.redis import RedisStore
from broker_fl.workers.servers import RedisNode
from tests.integration.redis_store.writing import opened


@pytest.fixture
def admin(private_redis: RedisNode) -> Iterator[Redis]:
    client = Redis.from_url(private_redis.url)
    yield client
    client.close()


@pytest.fixture
def store(private_redis: RedisNode) -> Iterator[RedisStore]:
    with opened(private_redis.url) as store:
        yield store
