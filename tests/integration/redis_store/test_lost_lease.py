"""A lease that Redis was given and has lost again: by a failover, or by a power cut with ``everysec``."""

from __future__ import annotations

import pytest
from redis import Redis

from broker_fl.errors import Fenced
from broker_fl.stores.redis import RedisStore
from broker_fl.workers.servers import RedisNode
from tests.integration.redis_store.writing import KEYS, acquire, opened


def given_and_lost(store: RedisStore, admin: Redis) -> int:
    """The epoch of "first", of which the server knows nothing any more."""
    before = acquire(store, "before")
    admin.delete(KEYS.lease)
    epoch = acquire(store, "first")
    admin.hset(KEYS.controller, mapping={"epoch": before, "owner": "before"})
    admin.delete(KEYS.lease)
    return epoch


def test_of_two_controllers_with_one_epoch_only_the_later_one_may_write(
    store: RedisStore, admin: Redis, private_redis: RedisNode
) -> None:
    epoch = given_and_lost(store, admin)
    with opened(private_redis.url) as other:
        assert acquire(other, "second") == epoch
        with pytest.raises(Fenced, match=f"epoch {epoch}, and gave it to another"):
            store.renew_lease(epoch, 60)
        with pytest.raises(Fenced):
            store.save_job("job", b"of the first", epoch=epoch)
        store.release_lease(epoch)
        assert store.acquire_lease("third", 60) is None
        other.renew_lease(epoch, 60)
        other.save_job("job", b"of the second", epoch=epoch)
        assert other.jobs() == {"job": b"of the second"}


def test_who_comes_before_anybody_else_keeps_a_lease_that_was_lost(
    store: RedisStore, admin: Redis, private_redis: RedisNode
) -> None:
    epoch = given_and_lost(store, admin)
    store.renew_lease(epoch, 60)
    store.save_job("job", b"state", epoch=epoch)
    with opened(private_redis.url) as other:
        assert other.acquire_lease("second", 60) is None
        assert other.jobs() == {"job": b"state"}
