"""How chunks lie in Redis, and how long."""

from __future__ import annotations

import pytest
from redis import Redis

from broker_fl.errors import Fenced
from broker_fl.stores.redis import RedisStore
from broker_fl.workers.servers import RedisNode
from tests.integration.redis_store.writing import (
    KEYS,
    MIB,
    acquire,
    check,
    chunk_keys,
    commit,
    opened,
    write,
    write_and_commit,
)


class TestChunks:
    def test_those_of_an_unfinished_version_expire_and_those_of_a_committed_one_do_not(
        self, store: RedisStore, admin: Redis
    ) -> None:
        epoch = acquire(store)
        write(store, 0, 5, epoch)
        store._stages["job", 0, epoch].flush()
        assert len(chunk_keys(admin, expiring=True)) == 5
        commit(store, 0, 4, epoch)
        assert chunk_keys(admin, expiring=True) == []
        assert len(chunk_keys(admin, expiring=False)) == 4

    def test_a_controller_fenced_while_it_writes_is_told_within_a_window(
        self, store: RedisStore, private_redis: RedisNode, admin: Redis
    ) -> None:
        epoch = acquire(store)
        write(store, 0, 3, epoch)
        store.release_lease(epoch)
        with opened(private_redis.url) as other:
            acquire(other, "second")
        with pytest.raises(Fenced):
            write(store, 0, 20, epoch)
        assert chunk_keys(admin, expiring=False) == []

    def test_a_version_that_is_committed_already_is_not_sent_again(
        self, store: RedisStore, admin: Redis
    ) -> None:
        epoch = acquire(store)
        write_and_commit(store, 0, 3, epoch)
        write_and_commit(store, 0, 3, epoch)
        assert chunk_keys(admin, expiring=True) == []
        check(store, 0)

    def test_a_connection_that_still_waits_for_answers_is_not_used_for_anything_else(
        self, store: RedisStore
    ) -> None:
        epoch = acquire(store)
        write(store, 0, 1, epoch)
        stage = store._stages["job", 0, epoch]
        connection = stage._connection
        assert connection.is_connected
        stage.close()
        assert not connection.is_connected
        assert len(store.jobs()) == 0

    def test_versions_that_are_dropped_leave_no_key(self, store: RedisStore, admin: Redis) -> None:
        epoch = acquire(store)
        for number in range(6):
            write_and_commit(store, number, 3, epoch)
        assert len(chunk_keys(admin, expiring=False)) == 2 * 3
        assert sorted(admin.keys("*")) == sorted(
            [
                KEYS.controller.encode(),
                KEYS.jobs.encode(),
                KEYS.lease.encode(),
                KEYS.versions("job").encode(),
                *chunk_keys(admin, expiring=False),
            ]
        )

    def test_a_model_beyond_512_mb(self, store: RedisStore, admin: Redis) -> None:
        admin.config_set("appendonly", "no")
        epoch, num_chunks = acquire(store), 130
        chunk = bytearray(4 * MIB)
        for index in range(num_chunks):
            chunk[:8] = b"%08d" % index
            store.write_chunk("job", 0, index, memoryview(chunk), epoch=epoch)
        commit(store, 0, num_chunks, epoch)
        for index in range(num_chunks):
            data = store.read_chunk("job", 0, index)
            assert (data[:8], len(data)) == (b"%08d" % index, 4 * MIB)
