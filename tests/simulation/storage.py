"""The store: one in memory that can lose what no disk had yet, and a controller's line to it, which fails.

``MemoryStore`` passes the contract suite; every eighth world has ``SQLiteStore`` in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from broker_fl.errors import Fenced, StoreUnavailable
from broker_fl.interfaces import Store, StoredVersion
from tests.simulation.kernel import Kernel
from tests.simulation.processes import Process

T = TypeVar("T")
Undo = Callable[[], object]
UNSYNCED_S = 1.0
"""What is older is on the disk."""


class MemoryStore:
    """See ``Store``. What was written since the last commit or lease is lost by ``cut_power``, in part.

    ``forgets_versions``: commits too are on the disk within a second only, as with ``appendfsync everysec``.
    """

    chunk_bytes = 1 << 20

    def __init__(self, clock: Callable[[], float], *, forgets_versions: bool = False) -> None:
        self._clock = clock
        self._forgets_versions = forgets_versions
        self._epoch = 0
        self._owner = ""
        self._expires_s = 0.0
        self._jobs: dict[str, bytes] = {}
        self._staged: dict[tuple[str, int, int], dict[int, bytes]] = {}
        self._versions: dict[str, dict[int, tuple[StoredVersion, dict[int, bytes]]]] = {}
        self._updates: dict[str, dict[str, dict[int, bytes]]] = {}
        self._events: dict[str, dict[int, bytes]] = {}
        self._undo: list[tuple[float, Undo]] = []

    def cut_power(self, choose: Callable[[int, int], int]) -> int:
        """Lose the newest of the writes that were not on the disk yet; how many is chosen."""
        newest = [undo for at_s, undo in self._undo if at_s >= self._clock() - UNSYNCED_S]
        number = choose(0, len(newest))
        for undo in reversed(newest[len(newest) - number :]):
            undo()
        self._undo.clear()
        return number

    def _later(self, undo: Undo) -> None:
        self._undo.append((self._clock(), undo))

    def _fence(self, epoch: int) -> None:
        if epoch < self._epoch:
            raise Fenced(f"the lease has passed from epoch {epoch} to {self._epoch}")

    def acquire_lease(self, owner: str, ttl_s: float) -> int | None:
        if self._owner != owner and self._expires_s > self._clock():
            return None
        self._epoch, self._owner, self._expires_s = self._epoch + 1, owner, self._clock() + ttl_s
        self._undo.clear()
        return self._epoch

    def renew_lease(self, epoch: int, ttl_s: float) -> None:
        self._fence(epoch)
        self._expire_at(self._clock() + ttl_s)

    def release_lease(self, epoch: int) -> None:
        if epoch == self._epoch:
            self._expire_at(0.0)

    def _expire_at(self, time_s: float) -> None:
        before, self._expires_s = self._expires_s, time_s
        self._later(lambda: setattr(self, "_expires_s", before))

    def save_job(self, job: str, state: bytes, *, epoch: int) -> None:
        self._fence(epoch)
        before = self._jobs.get(job)
        self._jobs[job] = state
        self._later(lambda: self._jobs.pop(job) if before is None else self._jobs.update({job: before}))

    def jobs(self) -> dict[str, bytes]:
        return dict(self._jobs)

    def delete_job(self, job: str, *, epoch: int) -> None:
        self._fence(epoch)
        self._jobs.pop(job, None)
        self._staged = {key: chunks for key, chunks in self._staged.items() if key[0] != job}
        for of_jobs in (self._versions, self._updates, self._events):
            of_jobs.pop(job, None)
        self._undo.clear()

    def _newest(self, job: str) -> int:
        return max(self._versions.get(job, ()), default=-1)

    def write_chunk(self, job: str, version: int, index: int, data: memoryview, *, epoch: int) -> None:
        self._fence(epoch)
        if version > self._newest(job):
            chunks = self._staged.setdefault((job, version, epoch), {})
            chunks[index] = bytes(data)
            self._later(lambda: chunks.pop(index, None))

    def commit_version(
        self, job: str, version: StoredVersion, state: bytes, *, epoch: int, keep: int
    ) -> None:
        self._fence(epoch)
        kept, number, newest = dict(self._versions.get(job, {})), version.version, self._newest(job)
        if number == newest + 1:
            chunks = self._staged.get((job, number, epoch), {})
            if not set(range(version.num_chunks)) <= set(chunks):
                raise StoreUnavailable(f"version {number} of job {job!r} is not whole")
            kept[number] = version, {index: chunks[index] for index in range(version.num_chunks)}
        elif number != newest or kept[number][0] != version:
            raise StoreUnavailable(f"version {number} of job {job!r} does not follow the newest, {newest}")
        before = self._jobs.get(job), self._versions.get(job, {}), self._staged
        self._jobs[job] = state
        self._versions[job] = {one: kept[one] for one in kept if one > number - keep}
        self._staged = {key: one for key, one in self._staged.items() if key[0] != job or key[1] > number}
        if self._forgets_versions:
            self._later(lambda: self._uncommit(job, *before))
        else:
            self._undo.clear()

    def _uncommit(
        self,
        job: str,
        state: bytes | None,
        versions: dict[int, tuple[StoredVersion, dict[int, bytes]]],
        staged: dict[tuple[str, int, int], dict[int, bytes]],
    ) -> None:
        self._versions[job], self._staged = versions, staged
        if state is None:
            del self._jobs[job]
        else:
            self._jobs[job] = state

    def versions(self, job: str) -> list[StoredVersion]:
        return [version for version, _ in self._versions.get(job, {}).values()]

    def read_chunk(self, job: str, version: int, index: int) -> bytes:
        return self._versions.get(job, {})[version][1][index]

    def write_update(self, job: str, name: str, index: int, data: memoryview, *, epoch: int) -> None:
        self._fence(epoch)
        stored = self._updates.setdefault(job, {})
        before = stored.get(name, {})
        stored[name] = {**before, index: bytes(data)}
        self._later(lambda: stored.update({name: before}) if before else stored.pop(name, None))

    def read_update(self, job: str, name: str, index: int) -> bytes:
        return self._updates.get(job, {})[name][index]

    def updates(self, job: str) -> list[str]:
        return sorted(self._updates.get(job, {}))

    def drop_updates(self, job: str, names: Sequence[str], *, epoch: int) -> None:
        self._fence(epoch)
        stored = self._updates.get(job, {})
        dropped = {name: stored.pop(name) for name in names if name in stored}
        self._later(lambda: stored.update(dropped))

    def append_events(self, job: str, events: Sequence[bytes], *, first: int, epoch: int) -> None:
        self._fence(epoch)
        log, last = self._events.setdefault(job, {}), self.num_events(job)
        added = [number for number in range(first, first + len(events)) if number > last]
        log.update({number: events[number - first] for number in added})
        self._later(lambda: [log.pop(number, None) for number in added])

    def read_events(self, job: str, *, after: int, limit: int) -> list[bytes]:
        log = self._events.get(job, {})
        return [log[number] for number in sorted(log) if number > after][: max(limit, 0)]

    def num_events(self, job: str) -> int:
        return max(self._events.get(job, ()), default=0)

    def close(self) -> None:
        """Nothing is held."""


@dataclass(slots=True, kw_only=True)
class StoreFaults:
    """How likely each call meets with something; until the faults end."""

    refuse: float = 0.0
    """It fails, and nothing was done."""
    silence: float = 0.0
    """It was done, and the answer is lost."""
    outage: float = 0.0
    """It was done and answered, and then the store is gone for a while."""
    crash: float = 0.0
    """The controller dies, before or after it was done."""


class StoreServer:
    """Where the store runs."""

    def __init__(self, kernel: Kernel, store: Store, faults: StoreFaults) -> None:
        self.kernel = kernel
        self.store = store
        self.faults = faults
        self.is_up = True
        self.on_loss: Undo = lambda: None

    def outage(self, down_s: float) -> None:
        """It does not answer for a while; without power it may forget what it had not put on its disk."""
        if not self.is_up:
            return
        self.is_up = False
        lost = ""
        if isinstance(self.store, MemoryStore) and self.kernel.unlucky(0.5):
            lost = f", {self.store.cut_power(self.kernel.draw.randint)} writes are lost"
            self.on_loss()
        self.kernel.note("store", "DOWN", f"for {down_s:.1f} s{lost}")
        self.kernel.after(down_s, self._start)

    def _start(self) -> None:
        self.is_up = True
        self.kernel.note("store", "STARTED")


class StoreLine:
    """See ``Store``: one controller's connection; each call takes its time, and may fail or be its last."""

    chunk_bytes = MemoryStore.chunk_bytes

    def __init__(self, server: StoreServer, process: Process, audit: Any) -> None:
        self._server = server
        self._process = process
        self._audit = audit
        self._cut_until = 0.0

    def cut(self, down_s: float) -> None:
        """Lose it for so long; the store is there for others."""
        kernel = self._server.kernel
        kernel.note(self._process.name, "PARTED", f"from the store for {down_s:.1f} s")
        self._cut_until = max(self._cut_until, kernel.now + down_s)

    def _call(self, name: str, call: Callable[[Store], T], **told: object) -> T:
        server, process, kernel, faults = (
            self._server,
            self._process,
            self._server.kernel,
            self._server.faults,
        )
        process.sleep(kernel.draw.random() * 0.002)
        fate = kernel.draw.random()
        if not server.is_up or kernel.now < self._cut_until or fate < faults.refuse:
            kernel.note(process.name, "store fails", name, told)
            raise StoreUnavailable("the store is away")
        fate -= faults.refuse
        if fate < faults.crash / 2:
            kernel.note(process.name, "dies before", name, told)
            process.kill()
        try:
            result = call(server.store)
        except (Fenced, StoreUnavailable) as error:
            kernel.note(process.name, "store", name, told, repr(error))
            raise
        kernel.note(process.name, "store", name, told)
        with kernel.watched():
            self._audit.stored(name, told, result)
        if fate < faults.crash:
            kernel.note(process.name, "dies after", name, told)
            process.kill()
        if kernel.unlucky(faults.outage):
            server.outage(kernel.draw.random() * 10.0)
        process.sleep(kernel.draw.random() * 0.002)
        if fate - faults.crash < faults.silence:
            kernel.note(process.name, "not heard of", name, told)
            raise StoreUnavailable("the store's answer did not come")
        return result

    def acquire_lease(self, owner: str, ttl_s: float) -> int | None:
        return self._call("acquire_lease", lambda store: store.acquire_lease(owner, ttl_s))

    def renew_lease(self, epoch: int, ttl_s: float) -> None:
        self._call("renew_lease", lambda store: store.renew_lease(epoch, ttl_s), epoch=epoch)

    def release_lease(self, epoch: int) -> None:
        self._call("release_lease", lambda store: store.release_lease(epoch))

    def save_job(self, job: str, state: bytes, *, epoch: int) -> None:
        self._call(
            "save_job",
            lambda store: store.save_job(job, state, epoch=epoch),
            job=job,
            epoch=epoch,
            state=Hidden(state),
        )

    def jobs(self) -> dict[str, bytes]:
        return self._call("jobs", lambda store: store.jobs())

    def delete_job(self, job: str, *, epoch: int) -> None:
        self._call("delete_job", lambda store: store.delete_job(job, epoch=epoch), job=job, epoch=epoch)

    def write_chunk(self, job: str, version: int, index: int, data: memoryview, *, epoch: int) -> None:
        self._call(
            "write_chunk",
            lambda store: store.write_chunk(job, version, index, data, epoch=epoch),
            job=job,
            epoch=epoch,
            version=version,
        )

    def commit_version(
        self, job: str, version: StoredVersion, state: bytes, *, epoch: int, keep: int
    ) -> None:
        self._call(
            "commit_version",
            lambda store: store.commit_version(job, version, state, epoch=epoch, keep=keep),
            job=job,
            epoch=epoch,
            version=version.version,
            state=Hidden(state),
        )

    def versions(self, job: str) -> list[StoredVersion]:
        return self._call("versions", lambda store: store.versions(job))

    def read_chunk(self, job: str, version: int, index: int) -> bytes:
        return self._call("read_chunk", lambda store: store.read_chunk(job, version, index))

    def write_update(self, job: str, name: str, index: int, data: memoryview, *, epoch: int) -> None:
        self._call(
            "write_update",
            lambda store: store.write_update(job, name, index, data, epoch=epoch),
            job=job,
            epoch=epoch,
        )

    def read_update(self, job: str, name: str, index: int) -> bytes:
        return self._call("read_update", lambda store: store.read_update(job, name, index))

    def updates(self, job: str) -> list[str]:
        return self._call("updates", lambda store: store.updates(job))

    def drop_updates(self, job: str, names: Sequence[str], *, epoch: int) -> None:
        self._call(
            "drop_updates",
            lambda store: store.drop_updates(job, names, epoch=epoch),
            job=job,
            epoch=epoch,
        )

    def append_events(self, job: str, events: Sequence[bytes], *, first: int, epoch: int) -> None:
        self._call(
            "append_events",
            lambda store: store.append_events(job, events, first=first, epoch=epoch),
            job=job,
            epoch=epoch,
            first=first,
            number=len(events),
        )

    def read_events(self, job: str, *, after: int, limit: int) -> list[bytes]:
        return self._call("read_events", lambda store: store.read_events(job, after=after, limit=limit))

    def num_events(self, job: str) -> int:
        return self._call("num_events", lambda store: store.num_events(job))

    def close(self) -> None:
        """The server goes on."""


class Hidden(bytes):
    """Bytes that are not written into the history."""

    def __repr__(self) -> str:
        return "…"
