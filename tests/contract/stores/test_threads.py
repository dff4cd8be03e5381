"""Several threads and controllers at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from broker_fl.errors import Fenced
from broker_fl.interfaces import Store
from tests.contract.stores.places import Place, wait_until
from tests.contract.stores.writing import JOB, acquire, commit, read


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
