"""The Redis store and a Redis that is full, read-only, restarted, frozen, closed to us or set up wrongly."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from broker_fl.doctor import check_redis
from broker_fl.errors import AccessDenied, Fenced, SettingError, StoreUnavailable
from broker_fl.interfaces import StoredVersion
from broker_fl.stores import open_store
from broker_fl.stores.redis import RedisStore
from broker_fl.topology import RedisKeys
from broker_fl.workers.servers import RedisNode
from broker_fl.workers.servers.process import free_port

F = "f"
KEYS = RedisKeys(F)
MIB = 1 << 20


@contextmanager
def opened(url: str, timeout_s: float = 15.0) -> Iterator[RedisStore]:
    store = RedisStore(url, federation=F, timeout_s=timeout_s)
    try:
        yield store
    finally:
        store.close()


@pytest.fixture
def admin(private_redis: RedisNode) -> Iterator[Redis]:
    client = Redis.from_url(private_redis.url)
    yield client
    client.close()


@pytest.fixture
def store(private_redis: RedisNode) -> Iterator[RedisStore]:
    with opened(private_redis.url) as store:
        yield store


def acquire(store: RedisStore, owner: str = "first") -> int:
    epoch = store.acquire_lease(owner, 60)
    assert epoch is not None
    return epoch


def write(store: RedisStore, number: int, num_chunks: int, epoch: int) -> None:
    for index in range(num_chunks):
        store.write_chunk("job", number, index, memoryview(content(number, index)), epoch=epoch)


def commit(store: RedisStore, number: int, num_chunks: int, epoch: int) -> None:
    version = StoredVersion(version=number, manifest=b"m", num_chunks=num_chunks)
    store.commit_version("job", version, b"state %d" % number, epoch=epoch, keep=2)


def write_and_commit(store: RedisStore, number: int, num_chunks: int, epoch: int) -> None:
    write(store, number, num_chunks, epoch)
    commit(store, number, num_chunks, epoch)


def content(number: int, index: int) -> bytes:
    return b"%04d%04d" % (number, index) * (MIB // 8)


def check(store: RedisStore, newest: int) -> None:
    """Everything that is kept is whole, and ``newest`` is the newest."""
    versions = store.versions("job")
    assert [version.version for version in versions] == list(range(max(0, newest - 1), newest + 1))
    for version in versions:
        for index in range(version.num_chunks):
            assert store.read_chunk("job", version.version, index) == content(version.version, index)
    assert store.jobs() == {"job": b"state %d" % newest}


def chunk_keys(admin: Any, *, expiring: bool) -> list[bytes]:
    keys = admin.keys(f"{KEYS.chunks('job')}:*".replace("{", "\\{"))
    return sorted(key for key in keys if (admin.pttl(key) >= 0) == expiring)


class TestRefusedAtOnce:
    @pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
    def test_a_server_that_may_evict_models(
        self, private_redis: RedisNode, admin: Redis, policy: str
    ) -> None:
        admin.config_set("maxmemory-policy", policy)
        with pytest.raises(SettingError, match=f"'{policy}'.*maxmemory-policy noeviction"):
            RedisStore(private_redis.url, federation=F)

    @pytest.mark.parametrize("account", ["", ":wrong-secret@", "nobody:wrong-secret@"])
    def test_a_wrong_user_or_password_which_is_never_shown(
        self, private_redis: RedisNode, account: str
    ) -> None:
        url = f"redis://{account}127.0.0.1:{private_redis.port}/0"
        with pytest.raises(AccessDenied, match=rf"redis://127\.0\.0\.1:{private_redis.port}/0") as caught:
            RedisStore(url, federation=F)
        assert "secret" not in str(caught.value)

    def test_a_port_where_nothing_listens(self) -> None:
        with pytest.raises(StoreUnavailable, match="does not answer"):
            RedisStore(f"redis://:secret@127.0.0.1:{free_port()}/0", federation=F)

    def test_a_server_that_is_silent(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            start = time.monotonic()
            with pytest.raises(StoreUnavailable):
                RedisStore(f"redis://127.0.0.1:{deaf.getsockname()[1]}/0", federation=F, timeout_s=0.3)
        assert time.monotonic() - start < 5

    @pytest.mark.parametrize(
        "url",
        ["redis://:secret@host:port/0", "redis://:secret@host:99999999/0", "redis://localhost/0?db=secret"],
    )
    def test_a_url_that_makes_no_sense(self, url: str) -> None:
        with pytest.raises(SettingError, match="not a usable Redis URL") as caught:
            open_store(url, federation=F)
        assert "secret" not in str(caught.value)


class TestPermissions:
    NEEDED = (
        "+info +evalsha +script|load +get +set +exists +persist +unlink +del "
        "+hset +hget +hgetall +hkeys +hincrby +hdel +xadd +xrange +xrevrange +time"
    )

    def user(self, admin: Any, rules: str) -> str:
        admin.execute_command("ACL", "SETUSER", "fl", "reset", "on", ">secret", "~bfl:{f}:*", *rules.split())
        return f"redis://fl:secret@127.0.0.1:{admin.connection_pool.connection_kwargs['port']}/0"

    def test_those_that_doctor_asks_for_are_enough(self, admin: Redis) -> None:
        url = self.user(admin, self.NEEDED)
        with opened(url) as store:
            epoch = acquire(store)
            store.renew_lease(epoch, 60)
            for number in range(4):
                write(store, number, 2, epoch)
                commit(store, number, 1, epoch)
                store.append_events("job", [b"e"], first=number + 1, epoch=epoch)
            check(store, 3)
            assert store.num_events("job") == 4
            assert store.read_events("job", after=0, limit=9) == [b"e"] * 4
            store.release_lease(epoch)
        assert not [finding for finding in check_redis(url, federation=F) if finding.level == "error"]

    @pytest.mark.parametrize("missing", ["-evalsha", "-hset", "-exists"])
    def test_one_that_is_missing_is_an_error_that_points_to_doctor(self, admin: Redis, missing: str) -> None:
        with (
            opened(self.user(admin, f"{self.NEEDED} {missing}")) as store,
            pytest.raises(AccessDenied, match="broker-fl doctor"),
        ):
            acquire(store)

    def test_without_info_a_store_is_not_opened(self, admin: Redis) -> None:
        with pytest.raises(AccessDenied, match="info"):
            RedisStore(self.user(admin, f"{self.NEEDED} -info"), federation=F)

    def test_doctor_names_all_that_are_missing(self, admin: Redis) -> None:
        url = self.user(admin, f"{self.NEEDED} -xadd -unlink -script|load")
        (finding,) = [finding for finding in check_redis(url, federation=F) if finding.level == "error"]
        assert "XADD, SCRIPT LOAD, UNLINK" in finding.what
        assert "+xadd +script|load +unlink" in finding.advice

    def test_keys_of_another_federation_are_denied(self, admin: Redis) -> None:
        url = self.user(admin, self.NEEDED)
        with pytest.raises(AccessDenied, match="keys"):
            RedisStore(url, federation="other")


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
        with opened(private_redis.url, timeout_s=1.0) as store:
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
        with opened(private_redis.url, timeout_s=1.0) as store:
            epoch = acquire(store)
            private_redis.freeze()
            with pytest.raises(StoreUnavailable, match="does not answer"):
                store.save_job("job", b"state 0", epoch=epoch)
            private_redis.thaw()
            store.save_job("job", b"state 1", epoch=epoch)
            assert store.jobs() == {"job": b"state 1"}


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


class TestCluster:
    """Two nodes, of which the second has all keys."""

    @pytest.fixture
    def nodes(self, tmp_path: Path) -> Iterator[tuple[RedisNode, RedisNode]]:
        def node(name: str, bus_port: int) -> RedisNode:
            settings = {
                "cluster-enabled": "yes",
                "cluster-port": str(bus_port),
                "cluster-node-timeout": "1000",
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


class TestDoctor:
    def test_a_good_server_has_no_warnings(self, private_redis: RedisNode) -> None:
        findings = check_redis(private_redis.url, federation=F)
        assert {finding.level for finding in findings} == {"ok"}
        assert all("@" not in finding.what for finding in findings)

    def test_it_leaves_no_key_behind(self, private_redis: RedisNode, admin: Redis) -> None:
        check_redis(private_redis.url, federation=F)
        assert admin.keys("*") == []

    def test_it_says_what_is_wrong(self, private_redis: RedisNode, admin: Redis) -> None:
        admin.config_set("maxmemory-policy", "allkeys-lru")
        admin.config_set("maxmemory", int(admin.info("memory")["used_memory"]) + MIB // 8)
        admin.config_set("appendonly", "no")
        found = {f.what for f in check_redis(private_redis.url, federation=F) if f.level != "ok"}
        assert any("allkeys-lru" in what for what in found)
        assert any("MB maxmemory" in what for what in found)
        assert any("nothing is written to disk" in what for what in found)

    def test_a_replica_is_an_error(self, private_redis: RedisNode, admin: Redis) -> None:
        admin.replicaof("127.0.0.1", free_port())
        findings = check_redis(private_redis.url, federation=F)
        assert any("replica" in f.what for f in findings if f.level == "error")

    def test_no_server_is_an_error(self) -> None:
        (finding,) = check_redis(f"redis://:secret@127.0.0.1:{free_port()}", federation=F)
        assert finding.level == "error"
        assert "secret" not in finding.what
