"""The lease, and what an older epoch cannot do any more."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from broker_fl.errors import Fenced, StoreUnavailable
from broker_fl.interfaces import Store
from tests.contract.stores.places import Place, RedisPlace, wait_until
from tests.contract.stores.writing import JOB, acquire, commit, everything, read, version, write


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
