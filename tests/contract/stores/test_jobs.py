"""What a store keeps of a job beside its versions: state, updates and events, until it is deleted."""

from __future__ import annotations

import pytest

from broker_fl.errors import StoreUnavailable
from broker_fl.interfaces import Store
from tests.contract.stores.places import Place, RedisPlace
from tests.contract.stores.writing import JOB, commit, read, version, write


class TestJobs:
    def test_a_state_is_replaced_as_a_whole(self, place: Place, store: Store, epoch: int) -> None:
        store.save_job("b", b"\x00 long \xff", epoch=epoch)
        store.save_job("a", b"", epoch=epoch)
        store.save_job("b", b"short", epoch=epoch)
        assert place.open().jobs() == {"a": b"", "b": b"short"}

    def test_there_are_none_at_first(self, store: Store) -> None:
        assert store.jobs() == {}


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
