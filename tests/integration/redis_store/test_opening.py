"""A Redis that is closed to us or set up wrongly."""

from __future__ import annotations

import socket
import tempfile
import time
from contextlib import closing
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from broker_fl.doctor import check_redis
from broker_fl.errors import AccessDenied, SettingError, StoreUnavailable
from broker_fl.stores import open_store
from broker_fl.stores.redis import RedisStore
from broker_fl.topology import RedisKeys
from broker_fl.workers.servers import RedisNode
from broker_fl.workers.servers.process import free_port
from tests.integration.redis_store.writing import (
    MIB,
    F,
    acquire,
    check,
    commit,
    opened,
    write,
    write_and_commit,
)
from tests.servers.redis_account import documented_rules


def test_a_server_may_be_reached_through_a_socket_of_the_file_system() -> None:
    with tempfile.TemporaryDirectory(prefix="bfl-") as short:  # of a socket's path, 107 characters count
        path = f"{short}/redis.sock"
        with (
            RedisNode(f"{short}/redis", settings={"unixsocket": path}),
            opened(f"unix://{path}?db=0") as store,
        ):
            write_and_commit(store, 0, 2, acquire(store))
            check(store, 0)


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
        assert time.monotonic() - start < 14, "it waits for 15 s if it is not told otherwise"

    @pytest.mark.parametrize(
        "url",
        ["redis://:secret@host:port/0", "redis://:secret@host:99999999/0", "redis://localhost/0?db=secret"],
    )
    def test_a_url_that_makes_no_sense(self, url: str) -> None:
        with pytest.raises(SettingError, match="not a usable Redis URL") as caught:
            open_store(url, federation=F)
        assert "secret" not in str(caught.value)


class TestPermissions:
    NEEDED = " ".join(documented_rules(F))

    def user(self, admin: Any, rules: str) -> str:
        admin.execute_command("ACL", "SETUSER", "fl", "reset", "on", ">secret", *rules.split())
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

    @pytest.mark.parametrize("neighbour", ["other", "ff", "f-2"])
    def test_who_has_the_account_of_one_federation_reaches_nothing_of_another(
        self, private_redis: RedisNode, admin: Any, neighbour: str
    ) -> None:
        theirs = RedisKeys(neighbour)
        with closing(RedisStore(private_redis.url, federation=neighbour)) as store:
            epoch = acquire(store)
            write_and_commit(store, 0, 1, epoch)
            store.append_events("job", [b"theirs"], first=1, epoch=epoch)
        kept = {key: admin.dump(key) for key in admin.keys("*")}
        (chunk,) = (key for key in kept if key.startswith(theirs.chunks("job").encode()))
        with Redis.from_url(self.user(admin, self.NEEDED)) as thief:
            by_script = thief.script_load("return redis.call('HGETALL', 'bfl:{' .. ARGV[1] .. '}:jobs')")
            attempts: list[tuple[str | bytes | int, ...]] = [
                ("GET", chunk),
                ("HGETALL", theirs.jobs),
                ("HGETALL", theirs.versions("job")),
                ("XRANGE", theirs.events("job"), "-", "+"),
                ("XADD", theirs.events("job"), "9-0", "e", "forged"),
                ("HSET", theirs.controller, "epoch", 10**9),
                ("UNLINK", theirs.versions("job")),
                ("DEL", theirs.lease),
                ("EVALSHA", by_script, 0, neighbour),
                ("EVALSHA", by_script, 1, theirs.jobs, neighbour),
            ]
            for words in attempts:
                with pytest.raises(ResponseError, match=r"(?i)no permission|can't access"):
                    thief.execute_command(*words)
            assert thief.evalsha(by_script, 0, F) == [], "the script is one that works, on keys of its own"
        assert {key: admin.dump(key) for key in admin.keys("*")} == kept


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
