"""A store in the memory of its process, for a federation that leaves nothing behind: no file, no server.

Nothing of it survives the process. Versions are not even copied where who writes them promises to leave them
alone from then on.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from broker_fl.errors import Fenced, StoreUnavailable
from broker_fl.interfaces import StoredVersion

Pieces = dict[int, memoryview | bytes]


@dataclass(slots=True)
class _Job:
    """All that is stored of one job."""

    state: bytes | None = None
    staged: dict[tuple[int, int], Pieces] = field(default_factory=dict)
    """Of versions that are not committed, by version and epoch."""
    versions: dict[int, tuple[StoredVersion, Pieces]] = field(default_factory=dict)
    updates: dict[str, dict[int, bytes]] = field(default_factory=dict)
    events: list[bytes] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    """Of the events, which grow and may have gaps."""

    @property
    def newest(self) -> int:
        """Of the committed versions; -1 if there is none."""
        return max(self.versions, default=-1)

    @property
    def num_events(self) -> int:
        """Number of the last event."""
        return self.numbers[-1] if self.numbers else 0


class MemoryStore:
    """See ``Store``. All controllers of the process that are given it share it."""

    chunk_bytes = 1 << 40
    """A version is one piece."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` tells the seconds by which the lease runs out."""
        self._clock = clock
        self._lock = threading.Lock()
        self._epoch = 0
        self._owner = ""
        self._expires_s = 0.0
        self._jobs: dict[str, _Job] = {}

    # ------------------------------------------------------------ lease

    def acquire_lease(self, owner: str, ttl_s: float) -> int | None:
        """Become the federation's controller, if nobody else is."""
        with self._lock:
            if self._owner != owner and self._expires_s > self._clock():
                return None
            self._epoch, self._owner, self._expires_s = self._epoch + 1, owner, self._clock() + ttl_s
            return self._epoch

    def renew_lease(self, epoch: int, ttl_s: float) -> None:
        """Hold on to the lease."""
        with self._lock:
            self._fence(epoch)
            self._expires_s = self._clock() + ttl_s

    def release_lease(self, epoch: int) -> None:
        """Let the lease go, if it is still this epoch's."""
        with self._lock:
            if epoch == self._epoch:
                self._expires_s = 0.0

    def _fence(self, epoch: int) -> None:
        if epoch < self._epoch:
            raise Fenced(f"the lease has passed from epoch {epoch} to {self._epoch}")
        self._epoch = epoch

    @contextmanager
    def _writing(self, job: str, epoch: int) -> Iterator[_Job]:
        """What is kept of the job, for a controller that nobody has followed.

        Raises:
            Fenced: a newer epoch exists.
        """
        with self._lock:
            self._fence(epoch)
            yield self._jobs.setdefault(job, _Job())

    def _reading(self, job: str) -> _Job:
        return self._jobs.get(job) or _Job()

    # ------------------------------------------------------------ jobs

    def save_job(self, job: str, state: bytes, *, epoch: int) -> None:
        """Replace the job's state."""
        with self._writing(job, epoch) as kept:
            kept.state = state

    def jobs(self) -> dict[str, bytes]:
        """State of every job, by id."""
        with self._lock:
            return {job: kept.state for job, kept in sorted(self._jobs.items()) if kept.state is not None}

    def delete_job(self, job: str, *, epoch: int) -> None:
        """Delete all of a job."""
        with self._writing(job, epoch):
            del self._jobs[job]

    # ------------------------------------------------------------ model versions

    def write_chunk(self, job: str, version: int, index: int, data: memoryview, *, epoch: int) -> None:
        """Keep a piece of a version that is not committed yet: ``data`` itself, if it is read-only."""
        piece = data if data.readonly else bytes(data)
        with self._writing(job, epoch) as kept:
            if version > kept.newest:
                kept.staged.setdefault((version, epoch), {})[index] = piece

    def commit_version(
        self, job: str, version: StoredVersion, state: bytes, *, epoch: int, keep: int
    ) -> None:
        """Make the version the newest, replace the job's state and drop old versions."""
        number = version.version
        with self._writing(job, epoch) as kept:
            newest = kept.newest
            if number == newest + 1:
                kept.versions[number] = version, _whole(job, version, kept.staged.get((number, epoch), {}))
            elif number != newest or kept.versions[number][0] != version:
                raise StoreUnavailable(
                    f"version {number} of job {job!r} does not follow the newest, {newest}"
                )
            kept.state = state
            kept.versions = {one: found for one, found in kept.versions.items() if one > number - keep}
            kept.staged = {place: one for place, one in kept.staged.items() if place[0] > number}

    def versions(self, job: str) -> list[StoredVersion]:
        """The versions that are kept, oldest first."""
        with self._lock:
            return [version for version, _ in self._reading(job).versions.values()]

    def read_chunk(self, job: str, version: int, index: int) -> bytes:
        """One piece of a committed version."""
        with self._lock:
            _, pieces = self._reading(job).versions.get(version, (None, {}))
            if index not in pieces:
                raise KeyError(f"the store has no chunk {index} of version {version} of job {job!r}")
            return bytes(pieces[index])

    # ------------------------------------------------------------ learners' updates

    def write_update(self, job: str, name: str, index: int, data: memoryview, *, epoch: int) -> None:
        """Keep a copy of a piece of a stored update: it may be in arrays of the learner's own."""
        piece = bytes(data)
        with self._writing(job, epoch) as kept:
            kept.updates.setdefault(name, {})[index] = piece

    def read_update(self, job: str, name: str, index: int) -> bytes:
        """One piece of a stored update."""
        with self._lock:
            pieces = self._reading(job).updates.get(name, {})
            if index not in pieces:
                raise KeyError(f"the store has no piece {index} of the update {name!r} of job {job!r}")
            return pieces[index]

    def updates(self, job: str) -> list[str]:
        """Names of the stored updates, sorted."""
        with self._lock:
            return sorted(self._reading(job).updates)

    def drop_updates(self, job: str, names: Sequence[str], *, epoch: int) -> None:
        """Delete stored updates."""
        with self._writing(job, epoch) as kept:
            for name in names:
                kept.updates.pop(name, None)

    # ------------------------------------------------------------ events

    def append_events(self, job: str, events: Sequence[bytes], *, first: int, epoch: int) -> None:
        """Append packed events; numbers up to the last one that is there are left alone."""
        with self._writing(job, epoch) as kept:
            known = max(0, kept.num_events - first + 1)
            kept.events += events[known:]
            kept.numbers += range(first + known, first + len(events))

    def read_events(self, job: str, *, after: int, limit: int) -> list[bytes]:
        """Up to ``limit`` events with numbers above ``after``, in order."""
        with self._lock:
            kept = self._reading(job)
            start = bisect_right(kept.numbers, after)
            return kept.events[start : start + max(limit, 0)]

    def num_events(self, job: str) -> int:
        """Number of the job's last event; 0 if it has none."""
        with self._lock:
            return self._reading(job).num_events

    def close(self) -> None:
        """Nothing is held open; who still has the store can go on with it."""


def _whole(job: str, version: StoredVersion, pieces: Pieces) -> Pieces:
    """The pieces of a version, in order.

    Raises:
        StoreUnavailable: one is missing.
    """
    found = {index: pieces[index] for index in range(version.num_chunks) if index in pieces}
    if len(found) != version.num_chunks:
        counts = f"{len(found)} of {version.num_chunks} chunks"
        raise StoreUnavailable(f"version {version.version} of job {job!r} has {counts} in the store")
    return found
