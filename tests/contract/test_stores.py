"""What every store promises: the docstrings of ``interfaces.Store``, one test each."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest

from broker_fl.errors import Fenced, StoreUnavailable
from broker_fl.interfaces import Store, StoredVersion
from broker_fl.stores.memory import MemoryStore
from broker_fl.stores.redis import RedisStore
from broker_fl.stores.sqlite import SQLiteStore
from broker_fl.topology import RedisKeys

JOB = "job-1"


class Place(Protocol):
    """Where a store is: two controllers each open it once."""

    def open(self) -> Store: ...

    def expire_lease(self) -> None:
        """Let the time pass that the lease in force was taken for."""
        ...


class SQLitePlace:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._now = 1_000_000.0
        self._opened: list[Store] = []

    def open(self) -> Store:
        self._opened.append(SQLiteStore(self._path, federation="f", clock=lambda: self._now))
        return self._opened[-1]

    def expire_lease(self) -> None:
        self._now += 3600

    def close(self) -> None:
        for store in self._opened:
            store.close()


class MemoryPlace:
    """Both controllers are given the same one."""

    def __init__(self) -> None:
        self._now = 0.0
        self._store = MemoryStore(lambda: self._now)

    def open(self) -> Store:
        return self._store

    def expire_lease(self) -> None:
        self._now += 3600

    def close(self) -> None:
        self._store.close()


class RedisPlace:
    def __init__(self, url: str, federation: str) -> None:
        self._url = url
        self._keys = RedisKeys(federation)
        self._opened: list[RedisStore] = []

    def open(self) -> Store:
        self._opened.append(RedisStore(self._url, federation=self._keys.federation))
        return self._opened[-1]

    def expire_lease(self) -> None:
        # The expiry is the server's own; only the length of the lease is not waited for.
        client = self._opened[0]._client
        client.pexpire(self._keys.lease, 1)
        wait_until(lambda: not client.exists(self._keys.lease))

    def keys_of(self, job: str) -> list[str]:
        """What the server has under the job's name."""
        found = self._opened[0]._client.scan_iter(count=1000)
        return [key.decode() for key in found if job in key.decode().split(":")]

    def close(self) -> None:
        client = self._opened[0]._client
        for key in client.scan_iter(match=f"bfl:{{{self._keys.federation}}}*", count=1000):
            client.unlink(key)
        for store in self._opened:
            store.close()


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


@pytest.fixture(params=["sqlite", "memory", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path, federation: str) -> Iterator[Place]:
    found: SQLitePlace | MemoryPlace | RedisPlace
    if request.param == "sqlite":
        found = SQLitePlace(tmp_path / "store.db")
    elif request.param == "memory":
        found = MemoryPlace()
    else:
        found = RedisPlace(request.getfixturevalue("redis_url"), federation)
    yield found
    found.close()


@pytest.fixture
def store(place: Place) -> Store:
    return place.open()


@pytest.fixture
def epoch(store: Store) -> int:
    return acquire(store, "first")


def acquire(store: Store, owner: str) -> int:
    epoch = store.acquire_lease(owner, 30)
    assert epoch is not None
    return epoch


def version(number: int, num_chunks: int, manifest: bytes | None = None) -> StoredVersion:
    manifest = b"manifest \x00\n %d" % number if manifest is None else manifest
    return StoredVersion(version=number, manifest=manifest, num_chunks=num_chunks)


def write(store: Store, number: int, *chunks: bytes, epoch: int, job: str = JOB) -> None:
    for index, chunk in enumerate(chunks):
        store.write_chunk(job, number, index, memoryview(chunk), epoch=epoch)


def commit(
    store: Store, number: int, *chunks: bytes, epoch: int, keep: int = 3, job: str = JOB
) -> StoredVersion:
    write(store, number, *chunks, epoch=epoch, job=job)
    stored = version(number, len(chunks))
    store.commit_version(job, stored, b"state %d" % number, epoch=epoch, keep=keep)
    return stored


def read(store: Store, number: int, job: str = JOB) -> list[bytes]:
    (found,) = [stored for stored in store.versions(job) if stored.version == number]
    return [store.read_chunk(job, number, index) for index in range(found.num_chunks)]


def everything(store: Store, job: str = JOB) -> object:
    versions = store.versions(job)
    return (
        store.jobs(),
        versions,
        [read(store, stored.version) for stored in versions],
        store.read_events(job, after=0, limit=1000),
        [(name, store.read_update(job, name, 0)) for name in store.updates(job)],
    )


class TestLease:
    def test_it_gives_an_epoch_greater_than_all_before(self, store: Store) -> None:
        epochs = []
        for owner in ("a", "b", "c"):
            epochs.append(acquire(store, owner))
            store.release_lease(epochs[-1])
        assert epochs == sorted(set(epochs))
        assert epochs[0] >= 1

    def test_nobody_else_gets_it_while_it_is_held(self, place: Place, store: Store, epoch: int) -> None:
        other = place.open()
        assert other.acquire_lease("second", 30) is None
        store.renew_lease(epoch, 30)
        assert other.acquire_lease("second", 30) is None

    def test_its_owner_gets_it_again_with_a_new_epoch(self, place: Place, epoch: int) -> None:
        assert acquire(place.open(), "first") > epoch

    def test_it_runs_out_and_its_former_owner_is_fenced(self, place: Place, store: Store, epoch: int) -> None:
        place.expire_lease()
        assert acquire(place.open(), "second") > epoch
        with pytest.raises(Fenced, match=rf"epoch {epoch} to {epoch + 1}"):
            store.renew_lease(epoch, 30)

    def test_it_can_be_renewed_after_it_ran_out_if_nobody_took_it(
        self, place: Place, store: Store, epoch: int
    ) -> None:
        place.expire_lease()
        store.renew_lease(epoch, 30)
        assert place.open().acquire_lease("second", 30) is None

    def test_a_short_one_runs_out_by_itself(self, request: pytest.FixtureRequest, place: Place) -> None:
        store = place.open()
        assert store.acquire_lease("first", 0.05) == 1
        if not isinstance(place, RedisPlace):
            place.expire_lease()
        wait_until(lambda: store.acquire_lease("second", 30) == 2)

    def test_released_it_is_free_at_once(self, place: Place, store: Store, epoch: int) -> None:
        store.release_lease(epoch)
        assert acquire(place.open(), "second") > epoch

    def test_releasing_one_that_has_passed_on_does_not_take_it_from_its_holder(
        self, place: Place, store: Store, epoch: int
    ) -> None:
        place.expire_lease()
        acquire(place.open(), "second")
        store.release_lease(epoch)
        assert store.acquire_lease("third", 30) is None

    def test_of_many_at_once_one_gets_it(self, place: Place) -> None:
        stores = [place.open() for _ in range(8)]
        barrier = threading.Barrier(len(stores))

        def race(number: int) -> int | None:
            barrier.wait(60)
            return stores[number].acquire_lease(f"owner-{number}", 30)

        with ThreadPoolExecutor(len(stores)) as pool:
            epochs = list(pool.map(race, range(len(stores))))
        assert [epoch for epoch in epochs if epoch is not None] == [1]


WRITES: dict[str, Callable[[Store, int], None]] = {
    "renew_lease": lambda store, epoch: store.renew_lease(epoch, 30),
    "save_job": lambda store, epoch: store.save_job(JOB, b"old", epoch=epoch),
    "write_chunk": lambda store, epoch: store.write_chunk(JOB, 1, 0, memoryview(b"old"), epoch=epoch),
    "commit_version": lambda store, epoch: store.commit_version(
        JOB, version(1, 0), b"old", epoch=epoch, keep=1
    ),
    "write_update": lambda store, epoch: store.write_update(JOB, "a:1", 0, memoryview(b"old"), epoch=epoch),
    "delete_job": lambda store, epoch: store.delete_job(JOB, epoch=epoch),
    "drop_updates": lambda store, epoch: store.drop_updates(JOB, ["a:1"], epoch=epoch),
    "append_events": lambda store, epoch: store.append_events(JOB, [b"old"], first=2, epoch=epoch),
}


class TestFencing:
    @pytest.mark.parametrize("name", WRITES)
    def test_an_older_epoch_can_write_nothing(
        self, place: Place, store: Store, epoch: int, name: str
    ) -> None:
        commit(store, 0, b"chunk", epoch=epoch)
        store.append_events(JOB, [b"event"], first=1, epoch=epoch)
        store.write_update(JOB, "a:1", 0, memoryview(b"update"), epoch=epoch)
        place.expire_lease()
        acquire(place.open(), "second")
        before = everything(store)
        with pytest.raises(Fenced):
            WRITES[name](store, epoch)
        assert everything(store) == before

    @pytest.mark.parametrize("name", WRITES)
    def test_the_epoch_that_ran_out_may_write_until_another_begins(
        self, place: Place, store: Store, epoch: int, name: str
    ) -> None:
        commit(store, 0, b"chunk", epoch=epoch)
        place.expire_lease()
        WRITES[name](store, epoch)

    def test_a_newer_epoch_than_the_store_knows_fences_the_older(self, store: Store, epoch: int) -> None:
        store.save_job(JOB, b"new", epoch=epoch + 5)
        with pytest.raises(Fenced):
            store.save_job(JOB, b"old", epoch=epoch)
        store.release_lease(epoch + 5)
        assert acquire(store, "second") == epoch + 6

    def test_chunks_of_a_fenced_controller_never_get_into_a_version(
        self, place: Place, store: Store, epoch: int
    ) -> None:
        write(store, 0, b"old 0", b"old 1", b"old 2", epoch=epoch)
        place.expire_lease()
        other = place.open()
        newer = acquire(other, "second")
        write(other, 0, b"new 0", epoch=newer)
        with pytest.raises(StoreUnavailable, match="1 of 2 chunks"):
            other.commit_version(JOB, version(0, 2), b"state", epoch=newer, keep=1)
        other.write_chunk(JOB, 0, 1, memoryview(b"new 1"), epoch=newer)
        with contextlib.suppress(Fenced):  # now, or by the commit
            write(store, 0, b"old 0", epoch=epoch)
        with pytest.raises(Fenced):
            store.commit_version(JOB, version(0, 3), b"state", epoch=epoch, keep=1)
        other.commit_version(JOB, version(0, 2), b"state", epoch=newer, keep=1)
        assert read(other, 0) == [b"new 0", b"new 1"]


class TestJobs:
    def test_a_state_is_replaced_as_a_whole(self, place: Place, store: Store, epoch: int) -> None:
        store.save_job("b", b"\x00 long \xff", epoch=epoch)
        store.save_job("a", b"", epoch=epoch)
        store.save_job("b", b"short", epoch=epoch)
        assert place.open().jobs() == {"a": b"", "b": b"short"}

    def test_there_are_none_at_first(self, store: Store) -> None:
        assert store.jobs() == {}


class TestVersions:
    def test_a_committed_version_is_read_as_it_was_written(
        self, place: Place, store: Store, epoch: int
    ) -> None:
        stored = commit(store, 0, b"a" * 1000, b"\x00\r\n", b"c", epoch=epoch)
        for reader in (store, place.open()):
            assert reader.versions(JOB) == [stored]
            assert read(reader, 0) == [b"a" * 1000, b"\x00\r\n", b"c"]
            assert reader.jobs() == {JOB: b"state 0"}

    def test_nothing_of_a_version_is_seen_before_it_is_committed(
        self, place: Place, store: Store, epoch: int
    ) -> None:
        write(store, 0, b"chunk", epoch=epoch)
        for reader in (store, place.open()):
            assert reader.versions(JOB) == []
            with pytest.raises(KeyError):
                reader.read_chunk(JOB, 0, 0)

    def test_chunks_may_come_in_any_order_and_again(self, store: Store, epoch: int) -> None:
        for index, data in [(2, b"c"), (0, b"wrong"), (1, b"b"), (0, b"a")]:
            store.write_chunk(JOB, 0, index, memoryview(data), epoch=epoch)
        store.commit_version(JOB, version(0, 3), b"", epoch=epoch, keep=1)
        assert read(store, 0) == [b"a", b"b", b"c"]

    def test_the_memory_of_a_chunk_may_be_used_again_at_once(self, store: Store, epoch: int) -> None:
        buffer = np.zeros(300_000, np.float32)
        for index in range(5):
            buffer[:] = index
            store.write_chunk(JOB, 0, index, buffer.data, epoch=epoch)
        buffer[:] = np.nan
        store.commit_version(JOB, version(0, 5), b"", epoch=epoch, keep=1)
        for index, chunk in enumerate(read(store, 0)):
            assert chunk == np.full(300_000, index, np.float32).tobytes()

    def test_an_empty_model_has_no_chunks(self, store: Store, epoch: int) -> None:
        stored = commit(store, 0, epoch=epoch)
        assert store.versions(JOB) == [stored]
        with pytest.raises(KeyError):
            store.read_chunk(JOB, 0, 0)

    def test_a_chunk_may_be_empty_and_so_may_the_manifest(self, store: Store, epoch: int) -> None:
        write(store, 0, b"", b"x", b"", epoch=epoch)
        store.commit_version(JOB, version(0, 3, b""), b"", epoch=epoch, keep=1)
        assert read(store, 0) == [b"", b"x", b""]
        assert store.versions(JOB) == [version(0, 3, b"")]

    def test_a_missing_chunk_commits_nothing_and_can_be_made_up_for(self, store: Store, epoch: int) -> None:
        commit(store, 0, b"a", epoch=epoch)
        before = everything(store)
        store.write_chunk(JOB, 1, 1, memoryview(b"y"), epoch=epoch)
        with pytest.raises(StoreUnavailable, match="1 of 2 chunks"):
            store.commit_version(JOB, version(1, 2), b"new", epoch=epoch, keep=1)
        assert everything(store) == before
        store.write_chunk(JOB, 1, 0, memoryview(b"x"), epoch=epoch)
        store.commit_version(JOB, version(1, 2), b"new", epoch=epoch, keep=1)
        assert read(store, 1) == [b"x", b"y"]

    @pytest.mark.parametrize("number", [0, 1, 4, 7])
    def test_a_version_that_does_not_follow_the_newest_is_refused(
        self, store: Store, epoch: int, number: int
    ) -> None:
        for n in range(3):
            commit(store, n, b"a", epoch=epoch)
        before = everything(store)
        with pytest.raises(StoreUnavailable, match="does not follow the newest, 2"):
            commit(store, number, b"b", epoch=epoch)
        assert everything(store) == before

    def test_the_first_version_is_0(self, store: Store, epoch: int) -> None:
        with pytest.raises(StoreUnavailable, match="does not follow"):
            commit(store, 1, b"b", epoch=epoch)
        assert store.versions(JOB) == []

    def test_a_commit_may_be_repeated_by_one_who_did_not_hear_of_its_success(
        self, place: Place, store: Store, epoch: int
    ) -> None:
        commit(store, 0, b"a", epoch=epoch)
        commit(store, 1, b"b", epoch=epoch)
        before = everything(store)
        commit(store, 1, b"b", epoch=epoch)
        store.commit_version(JOB, version(1, 1), b"state 1", epoch=epoch, keep=3)
        commit(place.open(), 1, b"b", epoch=epoch)
        assert everything(store) == before

    def test_a_committed_version_does_not_change(self, store: Store, epoch: int) -> None:
        commit(store, 0, b"a", b"b", epoch=epoch)
        before = everything(store)
        write(store, 0, b"x", b"y", b"z", epoch=epoch)
        with pytest.raises(StoreUnavailable, match="does not follow"):
            store.commit_version(JOB, version(0, 2, b"other"), b"new", epoch=epoch, keep=1)
        with pytest.raises(StoreUnavailable, match="does not follow"):
            store.commit_version(JOB, version(0, 3), b"new", epoch=epoch, keep=1)
        assert everything(store) == before
        with pytest.raises(KeyError):
            store.read_chunk(JOB, 0, 2)

    def test_only_the_newest_are_kept(self, store: Store, epoch: int) -> None:
        stored = [commit(store, n, b"%d" % n, epoch=epoch, keep=3) for n in range(6)]
        assert store.versions(JOB) == stored[3:]
        assert [read(store, n) for n in (3, 4, 5)] == [[b"3"], [b"4"], [b"5"]]
        for n in range(3):
            with pytest.raises(KeyError, match=rf"chunk 0 of version {n}"):
                store.read_chunk(JOB, n, 0)

    def test_how_many_are_kept_may_change(self, store: Store, epoch: int) -> None:
        for n in range(4):
            commit(store, n, b"%d" % n, epoch=epoch, keep=9)
        commit(store, 4, b"4", epoch=epoch, keep=1)
        assert [stored.version for stored in store.versions(JOB)] == [4]
        commit(store, 5, b"5", epoch=epoch, keep=3)
        assert [stored.version for stored in store.versions(JOB)] == [4, 5]

    def test_more_than_ten_are_in_the_order_of_their_numbers(self, store: Store, epoch: int) -> None:
        for n in range(12):
            commit(store, n, b"", epoch=epoch, keep=12)
        assert [stored.version for stored in store.versions(JOB)] == list(range(12))

    def test_a_version_that_is_dropped_cannot_be_read_by_one_who_read_it_before(
        self, place: Place, store: Store, epoch: int
    ) -> None:
        commit(store, 0, b"a", b"b", epoch=epoch)
        reader = place.open()
        assert reader.read_chunk(JOB, 0, 0) == b"a"
        commit(store, 1, b"c", epoch=epoch, keep=1)
        with pytest.raises(KeyError):
            reader.read_chunk(JOB, 0, 1)

    def test_chunks_beyond_the_last_are_not_part_of_it(self, store: Store, epoch: int) -> None:
        write(store, 0, b"a", b"b", b"c", epoch=epoch)
        store.commit_version(JOB, version(0, 1), b"", epoch=epoch, keep=1)
        assert read(store, 0) == [b"a"]
        for index in (1, 2, -1):
            with pytest.raises(KeyError):
                store.read_chunk(JOB, 0, index)

    def test_jobs_have_versions_of_their_own(self, store: Store, epoch: int) -> None:
        commit(store, 0, b"a", epoch=epoch, job="a")
        write(store, 0, b"b", epoch=epoch, job="b")
        commit(store, 1, b"aa", epoch=epoch, job="a", keep=1)
        store.commit_version("b", version(0, 1), b"", epoch=epoch, keep=1)
        assert read(store, 1, "a") == [b"aa"]
        assert read(store, 0, "b") == [b"b"]

    def test_64_mb_come_back_whole(self, store: Store, epoch: int) -> None:
        model = np.random.default_rng(1).bytes(64 << 20)
        pieces = [memoryview(model)[at : at + (1 << 20)] for at in range(0, len(model), 1 << 20)]
        for number in range(2):
            for index, piece in enumerate(pieces):
                store.write_chunk(JOB, number, index, piece, epoch=epoch)
            store.commit_version(JOB, version(number, len(pieces)), b"", epoch=epoch, keep=1)
        assert b"".join(read(store, 1)) == model
        assert len(store.versions(JOB)) == 1

    def test_thousands_of_chunks_are_committed_and_dropped(self, store: Store, epoch: int) -> None:
        for number in range(2):
            write(store, number, *[b"%d" % index for index in range(2500)], epoch=epoch)
            store.commit_version(JOB, version(number, 2500), b"", epoch=epoch, keep=1)
        assert store.read_chunk(JOB, 1, 2499) == b"2499"
        with pytest.raises(KeyError):
            store.read_chunk(JOB, 0, 1000)


class TestUpdates:
    def put(self, store: Store, name: str, *pieces: bytes, epoch: int, job: str = JOB) -> None:
        for index, piece in enumerate(pieces):
            store.write_update(job, name, index, memoryview(piece), epoch=epoch)

    def test_a_piece_is_read_as_it_was_last_written(self, place: Place, store: Store, epoch: int) -> None:
        assert store.updates(JOB) == []
        self.put(store, "b:7", b"x" * 100_000, b"", b"\x00\r\n", epoch=epoch)
        self.put(store, "a:10", b"a", epoch=epoch)
        self.put(store, "a:10", b"\xff again", epoch=epoch)
        for reader in (store, place.open()):
            assert reader.updates(JOB) == ["a:10", "b:7"]
            assert reader.read_update(JOB, "a:10", 0) == b"\xff again"
            assert [reader.read_update(JOB, "b:7", i) for i in range(3)] == [
                b"x" * 100_000,
                b"",
                b"\x00\r\n",
            ]

    def test_what_is_not_there_is_not_read(self, store: Store, epoch: int) -> None:
        self.put(store, "a:1", b"a", epoch=epoch)
        for job, name, index in [(JOB, "a:1", 1), (JOB, "a:2", 0), ("other", "a:1", 0)]:
            with pytest.raises(KeyError):
                store.read_update(job, name, index)

    def test_those_that_are_dropped_are_gone_and_no_others(self, store: Store, epoch: int) -> None:
        for name in ("a:1", "a:11", "b:1"):
            self.put(store, name, b"0", b"1", epoch=epoch)
        self.put(store, "a:1", b"of another job", epoch=epoch, job="other")
        store.drop_updates(JOB, [], epoch=epoch)
        store.drop_updates(JOB, ["a:1", "never written", "b:1"], epoch=epoch)
        store.drop_updates(JOB, ["a:1"], epoch=epoch)
        assert store.updates(JOB) == ["a:11"]
        assert store.read_update(JOB, "a:11", 1) == b"1"
        assert store.read_update("other", "a:1", 0) == b"of another job"
        with pytest.raises(KeyError):
            store.read_update(JOB, "a:1", 1)

    def test_thousands_are_dropped_at_once(self, store: Store, epoch: int) -> None:
        names = [f"learner-{number}:3" for number in range(9_000)]
        for name in names[::500]:
            self.put(store, name, b"0", epoch=epoch)
        store.drop_updates(JOB, names, epoch=epoch)
        assert store.updates(JOB) == []

    def test_versions_and_updates_do_not_meet(self, store: Store, epoch: int) -> None:
        self.put(store, "0", b"update", epoch=epoch)
        commit(store, 0, b"version", epoch=epoch)
        commit(store, 1, b"version", epoch=epoch, keep=1)
        assert store.read_update(JOB, "0", 0) == b"update"
        store.drop_updates(JOB, ["0", "1"], epoch=epoch)
        assert read(store, 1) == [b"version"]


class TestDeletedJob:
    def test_nothing_is_left_of_it_and_all_of_others(self, place: Place, store: Store, epoch: int) -> None:
        for job in (JOB, f"{JOB}0"):
            commit(store, 0, *[b"%d" % index for index in range(1_200)], epoch=epoch, job=job)
            commit(store, 1, b"one", b"two", epoch=epoch, job=job)
            store.append_events(job, [b"event"], first=1, epoch=epoch)
            store.write_update(job, "a:1", 0, memoryview(b"update"), epoch=epoch)
        write(store, 2, b"staged", epoch=epoch)
        reader = place.open()
        assert reader.read_chunk(JOB, 0, 7) == b"7"
        store.delete_job(JOB, epoch=epoch)
        store.delete_job(JOB, epoch=epoch)
        for one in (store, reader):
            assert list(one.jobs()) == [f"{JOB}0"]
            assert (one.versions(JOB), one.updates(JOB), one.num_events(JOB)) == ([], [], 0)
            for number in (0, 1):
                with pytest.raises(KeyError):
                    one.read_chunk(JOB, number, 0)
            assert read(one, 1, f"{JOB}0") == [b"one", b"two"]
            assert one.read_update(f"{JOB}0", "a:1", 0) == b"update"
        if isinstance(place, RedisPlace):
            assert place.keys_of(JOB) == []
        commit(store, 0, b"anew", epoch=epoch)
        assert [found.version for found in reader.versions(JOB)] == [0]
        assert read(store, 0) == [b"anew"]

    def test_what_was_written_for_it_before_does_not_count_after(self, store: Store, epoch: int) -> None:
        write(store, 0, b"old", epoch=epoch)
        store.delete_job(JOB, epoch=epoch)
        with pytest.raises(StoreUnavailable, match="0 of 1 chunks"):
            store.commit_version(JOB, version(0, 1), b"state", epoch=epoch, keep=1)


class TestEvents:
    def test_they_are_numbered_from_1_and_read_in_pages(self, place: Place, store: Store, epoch: int) -> None:
        packed = [b"event %d" % number for number in range(1, 26)]
        store.append_events(JOB, packed[:5], first=1, epoch=epoch)
        store.append_events(JOB, packed[5:], first=6, epoch=epoch)
        reader = place.open()
        assert reader.num_events(JOB) == 25
        assert reader.read_events(JOB, after=0, limit=10) == packed[:10]
        assert reader.read_events(JOB, after=10, limit=10) == packed[10:20]
        assert reader.read_events(JOB, after=20, limit=10) == packed[20:]
        assert reader.read_events(JOB, after=25, limit=10) == []
        assert reader.read_events(JOB, after=0, limit=0) == []

    def test_those_that_are_there_already_are_left_alone(self, store: Store, epoch: int) -> None:
        store.append_events(JOB, [b"1", b"2"], first=1, epoch=epoch)
        store.append_events(JOB, [b"x", b"y", b"3"], first=1, epoch=epoch)
        store.append_events(JOB, [b"z"], first=3, epoch=epoch)
        assert store.read_events(JOB, after=0, limit=10) == [b"1", b"2", b"3"]

    def test_numbers_may_be_left_out_but_not_filled_in_later(self, store: Store, epoch: int) -> None:
        store.append_events(JOB, [b"1"], first=1, epoch=epoch)
        store.append_events(JOB, [b"5"], first=5, epoch=epoch)
        store.append_events(JOB, [b"3"], first=3, epoch=epoch)
        assert store.read_events(JOB, after=1, limit=10) == [b"5"]
        assert store.num_events(JOB) == 5

    def test_a_job_without_any_has_none(self, store: Store, epoch: int) -> None:
        store.append_events(JOB, [], first=1, epoch=epoch)
        assert store.num_events(JOB) == 0
        assert store.read_events("other", after=0, limit=10) == []

    def test_any_bytes_will_do(self, store: Store, epoch: int) -> None:
        store.append_events(JOB, [b"", b"\x00\xff\r\n"], first=1, epoch=epoch)
        assert store.read_events(JOB, after=0, limit=10) == [b"", b"\x00\xff\r\n"]


class TestThreads:
    def test_two_threads_write_two_jobs_at_once(self, store: Store, epoch: int) -> None:
        def run(job: str) -> None:
            for number in range(10):
                commit(
                    store,
                    number,
                    *[f"{job} {number} {i}".encode() * 1000 for i in range(5)],
                    epoch=epoch,
                    job=job,
                )
                store.append_events(job, [b"committed"], first=number + 1, epoch=epoch)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(run, ["a", "b", "c", "d"]))
        for job in "abcd":
            assert [stored.version for stored in store.versions(job)] == [7, 8, 9]
            assert read(store, 9, job) == [f"{job} 9 {i}".encode() * 1000 for i in range(5)]
            assert store.num_events(job) == 10

    def test_a_reader_sees_each_version_whole_or_not_at_all(
        self, place: Place, store: Store, epoch: int
    ) -> None:
        reader = place.open()
        done = threading.Event()
        seen = set()

        def watch() -> None:
            while not done.is_set():
                for stored in reader.versions(JOB)[-1:]:
                    try:
                        assert read(reader, stored.version) == [b"%d" % stored.version * 9999] * 3
                    except (KeyError, ValueError):
                        continue  # dropped meanwhile
                    seen.add(stored.version)

        with ThreadPoolExecutor(1) as pool:
            watching = pool.submit(watch)
            try:
                for number in range(60):
                    commit(store, number, *[b"%d" % number * 9999] * 3, epoch=epoch, keep=2)
                wait_until(lambda: 59 in seen or watching.done())
            finally:
                done.set()
            watching.result(60)
        assert 59 in seen

    def test_of_two_controllers_only_the_newer_gets_anything_committed(
        self, place: Place, store: Store, epoch: int
    ) -> None:
        other = place.open()
        taken_over = threading.Event()

        def former() -> int:
            for number in range(10_000):
                try:
                    commit(store, number, b"former", b"former", epoch=epoch)
                except Fenced:
                    return number
                if number == 5:
                    taken_over.set()
            raise AssertionError("was never fenced")

        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(former)
            assert taken_over.wait(60)
            place.expire_lease()
            newer = acquire(other, "second")
            number = other.versions(JOB)[-1].version + 1
            commit(other, number, b"newer", b"newer", epoch=newer)
            assert running.result(60) == number
        assert read(other, number) == [b"newer", b"newer"]
        assert read(other, number - 1) == [b"former", b"former"]
