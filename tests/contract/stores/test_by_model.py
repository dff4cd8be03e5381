"""Whatever is done to a store, in any order, it answers as a store of a few dicts does."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from broker_fl.errors import Fenced, StoreUnavailable
from broker_fl.interfaces import Store, StoredVersion
from broker_fl.stores import memory
from broker_fl.stores.redis import RedisStore
from broker_fl.stores.sqlite import SQLiteStore
from tests.simulation.storage import MemoryStore

JOBS = ("a", "b")
NAMES = ("a:0", "a:1", "b:0")
Chunks = dict[int, bytes]


class DictStore:
    """The contract, without durability, threads or time: a lease ends when it is released."""

    chunk_bytes = 1 << 20

    def __init__(self) -> None:
        self.epoch = 0
        self.holder: str | None = None
        self.states: dict[str, bytes] = {}
        self.staged: dict[tuple[str, int, int], Chunks] = {}
        self.committed: dict[str, dict[int, tuple[StoredVersion, Chunks]]] = {job: {} for job in JOBS}
        self.logs: dict[str, dict[int, bytes]] = {job: {} for job in JOBS}
        self.pieces: dict[tuple[str, str, int], bytes] = {}

    def _fence(self, epoch: int) -> None:
        if epoch < self.epoch:
            raise Fenced

    def acquire_lease(self, owner: str, ttl_s: float) -> int | None:
        if self.holder not in (None, owner):
            return None
        self.holder = owner
        self.epoch += 1
        return self.epoch

    def renew_lease(self, epoch: int, ttl_s: float) -> None:
        self._fence(epoch)

    def release_lease(self, epoch: int) -> None:
        if epoch == self.epoch:
            self.holder = None

    def save_job(self, job: str, state: bytes, *, epoch: int) -> None:
        self._fence(epoch)
        self.states[job] = state

    def jobs(self) -> dict[str, bytes]:
        return self.states

    def delete_job(self, job: str, *, epoch: int) -> None:
        self._fence(epoch)
        self.states.pop(job, None)
        self.staged = {key: chunks for key, chunks in self.staged.items() if key[0] != job}
        self.committed[job], self.logs[job] = {}, {}
        self.pieces = {key: piece for key, piece in self.pieces.items() if key[0] != job}

    def _newest(self, job: str) -> int:
        return max(self.committed[job], default=-1)

    def write_chunk(self, job: str, version: int, index: int, data: memoryview, *, epoch: int) -> None:
        self._fence(epoch)
        if version > self._newest(job):
            self.staged.setdefault((job, version, epoch), {})[index] = bytes(data)

    def commit_version(
        self, job: str, version: StoredVersion, state: bytes, *, epoch: int, keep: int
    ) -> None:
        self._fence(epoch)
        kept, number = self.committed[job], version.version
        if number == self._newest(job) + 1:
            chunks = self.staged.get((job, number, epoch), {})
            if not set(range(version.num_chunks)) <= set(chunks):
                raise StoreUnavailable
            kept[number] = version, {i: chunks[i] for i in range(version.num_chunks)}
        elif number not in kept or number != self._newest(job) or kept[number][0] != version:
            raise StoreUnavailable
        self.states[job] = state
        self.committed[job] = {n: kept[n] for n in kept if n > number - keep}

    def versions(self, job: str) -> list[StoredVersion]:
        return [version for version, _ in self.committed[job].values()]

    def read_chunk(self, job: str, version: int, index: int) -> bytes:
        return self.committed[job][version][1][index]

    def write_update(self, job: str, name: str, index: int, data: memoryview, *, epoch: int) -> None:
        self._fence(epoch)
        self.pieces[job, name, index] = bytes(data)

    def read_update(self, job: str, name: str, index: int) -> bytes:
        return self.pieces[job, name, index]

    def updates(self, job: str) -> list[str]:
        return sorted({name for of, name, _ in self.pieces if of == job})

    def drop_updates(self, job: str, names: Sequence[str], *, epoch: int) -> None:
        self._fence(epoch)
        gone = {key for key in self.pieces if key[0] == job and key[1] in names}
        self.pieces = {key: piece for key, piece in self.pieces.items() if key not in gone}

    def append_events(self, job: str, events: Sequence[bytes], *, first: int, epoch: int) -> None:
        self._fence(epoch)
        last = self.num_events(job)
        self.logs[job].update({n: event for n, event in enumerate(events, first) if n > last})

    def read_events(self, job: str, *, after: int, limit: int) -> list[bytes]:
        return [event for number, event in self.logs[job].items() if number > after][:limit]

    def num_events(self, job: str) -> int:
        return max(self.logs[job], default=0)

    def close(self) -> None:
        pass


def outcome(operation: Callable[[], Any]) -> Any:
    try:
        return operation()
    except (Fenced, StoreUnavailable, KeyError) as error:
        return type(error)


jobs = st.sampled_from(JOBS)
small = st.binary(max_size=5)
ages = st.sampled_from([0, 0, 0, 0, 1])


class StoreMachine(RuleBasedStateMachine):
    open_store: Callable[[], Store]

    @initialize()
    def start(self) -> None:
        self.real = type(self).open_store()
        self.model: Store = DictStore()
        self.epoch = 0
        self.take("first")

    def teardown(self) -> None:
        self.real.close()

    def both(self, operation: Callable[[Store], Any]) -> Any:
        expected = outcome(lambda: operation(self.model))
        assert outcome(lambda: operation(self.real)) == expected
        return expected

    @rule(owner=st.sampled_from(["first", "second"]))
    def take(self, owner: str) -> None:
        self.epoch = self.both(lambda store: store.acquire_lease(owner, 600)) or self.epoch

    @rule(age=ages)
    def release(self, age: int) -> None:
        self.both(lambda store: store.release_lease(self.epoch - age))

    @rule(age=ages)
    def renew(self, age: int) -> None:
        # Not once it was released: the model does not know who let it go.
        if age or self.model.holder is not None:  # type: ignore[attr-defined]
            self.both(lambda store: store.renew_lease(self.epoch - age, 600))

    @rule(job=jobs, state=small, age=ages)
    def save(self, job: str, state: bytes, age: int) -> None:
        self.both(lambda store: store.save_job(job, state, epoch=self.epoch - age))

    @rule(job=jobs, age=ages)
    def delete(self, job: str, age: int) -> None:
        self.both(lambda store: store.delete_job(job, epoch=self.epoch - age))

    def number(self, job: str, ahead: int) -> int:
        return max([v.version for v in self.model.versions(job)], default=-1) + ahead

    def put(self, job: str, number: int, index: int, data: bytes) -> None:
        self.both(lambda store: store.write_chunk(job, number, index, memoryview(data), epoch=self.epoch))

    @rule(job=jobs, ahead=st.sampled_from([1, 1, 1, 1, 0, 2]), index=st.integers(0, 3), data=small)
    def write(self, job: str, ahead: int, index: int, data: bytes) -> None:
        self.put(job, max(self.number(job, ahead), 0), index, data)

    @precondition(lambda self: self.epoch > 1)
    @rule(job=jobs, index=st.integers(0, 3), data=small)
    def write_late(self, job: str, index: int, data: bytes) -> None:
        number = self.number(job, 1)
        with contextlib.suppress(Fenced):  # now, or at its commit: what counts is that nobody ever sees it
            self.real.write_chunk(job, number, index, memoryview(data), epoch=self.epoch - 1)

    @rule(
        job=jobs,
        ahead=st.sampled_from([1, 1, 1, 1, 1, 0, -1, 2]),
        num_chunks=st.integers(0, 3),
        manifest=st.sampled_from([b"", b"m 1 "]),
        keep=st.integers(1, 3),
        age=ages,
    )
    def commit(self, job: str, ahead: int, num_chunks: int, manifest: bytes, keep: int, age: int) -> None:
        number = max(self.number(job, ahead), 0)
        version = StoredVersion(version=number, manifest=manifest, num_chunks=num_chunks)
        state = secrets.token_bytes(4)
        self.both(lambda store: store.commit_version(job, version, state, epoch=self.epoch - age, keep=keep))

    @rule(job=jobs, chunks=st.lists(small, max_size=3), keep=st.integers(1, 3))
    def write_and_commit(self, job: str, chunks: list[bytes], keep: int) -> None:
        number = self.number(job, 1)
        for index, data in enumerate(chunks):
            self.put(job, number, index, data)
        version = StoredVersion(version=number, manifest=b"m", num_chunks=len(chunks))
        self.both(lambda store: store.commit_version(job, version, b"s", epoch=self.epoch, keep=keep))

    @rule(job=jobs, name=st.sampled_from(NAMES), index=st.integers(0, 1), data=small, age=ages)
    def store_update(self, job: str, name: str, index: int, data: bytes, age: int) -> None:
        epoch = self.epoch - age
        self.both(lambda store: store.write_update(job, name, index, memoryview(data), epoch=epoch))

    @rule(job=jobs, names=st.lists(st.sampled_from(NAMES), max_size=3), age=ages)
    def drop(self, job: str, names: list[str], age: int) -> None:
        self.both(lambda store: store.drop_updates(job, names, epoch=self.epoch - age))

    @rule(job=jobs, events=st.lists(small, max_size=3), behind=st.integers(-1, 3), age=ages)
    def append(self, job: str, events: list[bytes], behind: int, age: int) -> None:
        first = max(1, self.model.num_events(job) + 1 - behind)
        self.both(lambda store: store.append_events(job, events, first=first, epoch=self.epoch - age))

    @rule(job=jobs, after=st.integers(0, 9), limit=st.integers(0, 4))
    def page(self, job: str, after: int, limit: int) -> None:
        self.both(lambda store: store.read_events(job, after=after, limit=limit))

    @invariant()
    def all_that_can_be_read_is_the_same(self) -> None:
        self.both(lambda store: store.jobs())
        for job in JOBS:
            self.compare(job)

    def compare(self, job: str) -> None:
        self.both(lambda store: store.num_events(job))
        self.both(lambda store: store.updates(job))
        self.both(lambda store: [store.read_update(job, name, 0) for name in store.updates(job)])
        versions = self.both(lambda store: store.versions(job))
        for number in {version.version for version in versions} | {0}:
            for index in range(4):
                self.compare_chunk(job, number, index)

    def compare_chunk(self, job: str, number: int, index: int) -> None:
        self.both(lambda store: store.read_chunk(job, number, index))


@pytest.mark.parametrize("kind", ["sqlite", "memory", "redis", "simulated"])
def test_a_store_answers_like_its_model(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    def open_sqlite() -> Store:
        return SQLiteStore(":memory:", federation="f")

    def open_redis() -> Store:
        return RedisStore(url, federation=f"{federation}-{secrets.token_hex(4)}")

    def open_simulated() -> Store:
        return MemoryStore(time.time)

    if kind == "redis":
        url, federation = request.getfixturevalue("redis_url"), request.getfixturevalue("federation")

    class Machine(StoreMachine):
        open_store = staticmethod(
            {
                "sqlite": open_sqlite,
                "memory": memory.MemoryStore,
                "redis": open_redis,
                "simulated": open_simulated,
            }[kind]
        )

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=50, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
