"""Versions: whole or not at all, in order, and only the newest."""

from __future__ import annotations

import numpy as np
import pytest

from broker_fl.errors import StoreUnavailable
from broker_fl.interfaces import Store
from tests.contract.stores.places import Place
from tests.contract.stores.writing import JOB, commit, everything, read, version, write


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
