"""A Redis that is full, read-only, restarted, frozen or lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from broker_fl.doctor import check_redis
from broker_fl.errors import StoreUnavailable
from broker_fl.stores.redis import RedisStore
from broker_fl.workers.servers import RedisNode
from broker_fl.workers.servers.process import free_port
from tests.integration.redis_store.writing import (
    MIB,
    F,
    acquire,
    check,
    chunk_keys,
    commit,
    opened,
    write,
    write_and_commit,
)


class TestUnwillingServer:
    def test_a_full_one_changes_nothing_and_takes_the_version_when_there_is_room(
        self, store: RedisStore, admin: Redis
    ) -> None:
        epoch = acquire(store)
        write_and_commit(store, 0, 2, epoch)
        used = int(admin.info("memory")["used_memory"])
        admin.config_set("maxmemory", used + 6 * MIB)
        with pytest.raises(StoreUnavailable, match=r"full.*maxmemory"):
            write_and_commit(store, 1, 30, epoch)
        admin.config_set("maxmemory", 1)
        with pytest.raises(StoreUnavailable, match="full"):
            commit(store, 1, 0, epoch)
        with pytest.raises(StoreUnavailable, match="full"):
            store.save_job("job", b"new", epoch=epoch)
        with pytest.raises(StoreUnavailable, match="full"):
            store.append_events("job", [b"new"], first=1, epoch=epoch)
        check(store, 0)
        assert store.num_events("job") == 0
        admin.config_set("maxmemory", 0)
        write_and_commit(store, 1, 30, epoch)
        check(store, 1)
        admin.config_set("maxmemory", 1)
        store.delete_job("job", epoch=epoch)  # makes room
        assert store.versions("job") == []
        admin.config_set("maxmemory", 0)

    def test_a_replica_takes_no_writes(self, store: RedisStore, admin: Redis) -> None:
        epoch = acquire(store)
        write_and_commit(store, 0, 1, epoch)
        admin.replicaof("127.0.0.1", free_port())
        with pytest.raises(StoreUnavailable, match="cannot write now"):
            write_and_commit(store, 1, 1, epoch)
        with pytest.raises(StoreUnavailable, match="cannot write now"):
            store.save_job("job", b"new", epoch=epoch)
        check(store, 0)
        admin.replicaof("NO", "ONE")
        write_and_commit(store, 1, 1, epoch)
        check(store, 1)

    def test_one_whose_disk_fails_takes_no_writes(
        self, store: RedisStore, admin: Redis, private_redis: RedisNode
    ) -> None:
        epoch = acquire(store)
        write_and_commit(store, 0, 1, epoch)
        obstacle = private_redis.directory / "dump.rdb"
        obstacle.mkdir()  # no snapshot can take its place
        admin.config_set("save", "3600 100000")
        admin.bgsave()
        self.wait_for(admin, "rdb_last_bgsave_status", "err")
        with pytest.raises(StoreUnavailable, match="MISCONF"):
            write_and_commit(store, 1, 1, epoch)
        check(store, 0)
        findings = check_redis(private_redis.url, federation=F)
        assert any("could not write to its disk" in f.what for f in findings if f.level == "error")
        obstacle.rmdir()
        admin.bgsave()
        self.wait_for(admin, "rdb_last_bgsave_status", "ok")
        write_and_commit(store, 1, 1, epoch)
        check(store, 1)

    @staticmethod
    def wait_for(admin: Redis, field: str, value: str) -> None:
        end = time.monotonic() + 60
        while (info := admin.info("persistence"))[field] != value or info["rdb_bgsave_in_progress"]:
            assert time.monotonic() < end, info
            time.sleep(0.01)


class TestLostConnection:
    def test_a_restarted_server_has_everything_and_is_written_to_again(
        self, store: RedisStore, private_redis: RedisNode
    ) -> None:
        epoch = acquire(store)
        for number in range(3):
            write_and_commit(store, number, 3, epoch)
        write(store, 3, 2, epoch)
        private_redis.restart()
        check(store, 2)
        with pytest.raises(StoreUnavailable):
            commit(store, 3, 3, epoch)
        write_and_commit(store, 3, 3, epoch)
        check(store, 3)

    def test_after_a_crash_of_the_server_the_newest_version_is_a_whole_one(
        self, store: RedisStore, private_redis: RedisNode
    ) -> None:
        epoch = acquire(store)
        number = 0
        for number in range(8):
            write_and_commit(store, number, 3, epoch)
        private_redis.kill()
        with pytest.raises(StoreUnavailable):
            store.jobs()
        private_redis.restart()
        newest = store.versions("job")[-1].version  # what came in its last second may be lost
        check(store, newest)
        assert newest <= number

    def test_a_connection_that_breaks_while_chunks_are_sent(self, store: RedisStore, admin: Redis) -> None:
        epoch = acquire(store)
        write(store, 0, 1, epoch)
        admin.client_kill_filter(_type="normal", skipme=True)
        with pytest.raises(StoreUnavailable):
            write_and_commit(store, 0, 3, epoch)
        assert store.versions("job") == []
        write_and_commit(store, 0, 3, epoch)
        check(store, 0)
        assert len(chunk_keys(admin, expiring=False)) == 3

    def test_a_commit_whose_answer_was_lost_is_repeated_and_harms_nothing(
        self, private_redis: RedisNode, admin: Redis
    ) -> None:
        with opened(private_redis.url, timeout_s=5.0) as store:
            epoch = acquire(store)
            write(store, 0, 3, epoch)
            stage = store._stages["job", 0, epoch]
            stage.flush()
            private_redis.freeze()
            with pytest.raises(StoreUnavailable):
                commit(store, 0, 3, epoch)  # it lies in the server's buffer
            private_redis.thaw()
            write_and_commit(store, 0, 3, epoch)
            check(store, 0)
        assert len(chunk_keys(admin, expiring=False)) == 3

    def test_a_frozen_server_is_unavailable_and_works_when_it_is_thawed(
        self, private_redis: RedisNode
    ) -> None:
        with opened(private_redis.url, timeout_s=5.0) as store:
            epoch = acquire(store)
            private_redis.freeze()
            with pytest.raises(StoreUnavailable, match="does not answer"):
                store.save_job("job", b"state 0", epoch=epoch)
            private_redis.thaw()
            store.save_job("job", b"state 1", epoch=epoch)
            assert store.jobs() == {"job": b"state 1"}


class TestCluster:
    """Two nodes, of which the second has all keys."""

    @pytest.fixture
    def nodes(self, tmp_path: Path) -> Iterator[tuple[RedisNode, RedisNode]]:
        def node(name: str, bus_port: int) -> RedisNode:
            settings = {
                "cluster-enabled": "yes",
                "cluster-port": str(bus_port),
                "cluster-node-timeout": "5000",
            }
            settings["cluster-require-full-coverage"] = "no"
            return RedisNode(tmp_path / name, settings=settings)

        bus_port = free_port()
        with node("empty", free_port()) as empty, node("owner", bus_port) as owner:
            first: Any
            second: Any
            with Redis.from_url(empty.url) as first, Redis.from_url(owner.url) as second:
                second.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
                first.execute_command("CLUSTER MEET", "127.0.0.1", owner.port, bus_port)
                end = time.monotonic() + 60
                while any(
                    node.execute_command("CLUSTER INFO")["cluster_state"] != "ok" for node in (first, second)
                ):
                    assert time.monotonic() < end
                    time.sleep(0.01)
            yield empty, owner

    def test_any_node_may_be_named_and_a_lost_one_is_found_again(
        self, nodes: tuple[RedisNode, RedisNode]
    ) -> None:
        empty, owner = nodes
        with opened(empty.url) as store:
            epoch = acquire(store)
            for number in range(3):
                write_and_commit(store, number, 3, epoch)
            check(store, 2)
            owner.kill()
            with pytest.raises(StoreUnavailable):
                write_and_commit(store, 3, 3, epoch)
            owner.restart()
            self.succeeds_at_last(lambda: acquire(store))
            epoch = acquire(store)
            number = store.versions("job")[-1].version + 1  # the last second may be lost
            write_and_commit(store, number, 3, epoch)
            check(store, number)

    @staticmethod
    def succeeds_at_last(operation: Callable[[], object]) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                operation()
            except StoreUnavailable:
                time.sleep(0.02)
            else:
                return
        operation()
