"""Where a federation's state lives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVersion:
    """A model version in the store: an opaque manifest, and how many chunks it has."""

    version: int
    manifest: bytes
    num_chunks: int


class Store(Protocol):
    """Where a federation's state lives. Writes carry the controller's epoch; an older one is fenced.

    A model version is chunks first, then one atomic step that makes manifest, newest version and job
    state visible together. All methods may be called from any thread. All raise ``StoreUnavailable``
    when the store does not answer or cannot write, and may then be called again; after ``write_chunk``
    and ``commit_version`` that means: again from the first chunk.
    """

    @property
    def chunk_bytes(self) -> int:
        """Of the pieces that it writes fastest."""
        ...

    def acquire_lease(self, owner: str, ttl_s: float) -> int | None:
        """Become the federation's controller: a new epoch, greater than all before.

        None while another holds the lease. The owner itself gets it at once, and fences its former
        epoch: a restarted controller need not wait, and two controllers must not have one name.
        """
        ...

    def renew_lease(self, epoch: int, ttl_s: float) -> None:
        """Hold on to the lease, or take it again if it ran out and nobody else took it.

        Raises:
            Fenced: it has passed to another epoch.
        """
        ...

    def release_lease(self, epoch: int) -> None:
        """Let the lease go, so that another controller need not wait for it to run out."""
        ...

    def save_job(self, job: str, state: bytes, *, epoch: int) -> None:
        """Replace the job's state.

        Raises:
            Fenced: a newer epoch exists; nothing was written.
        """
        ...

    def jobs(self) -> dict[str, bytes]:
        """State of every job, by id."""
        ...

    def delete_job(self, job: str, *, epoch: int) -> None:
        """Delete all that is stored of a job, in one step: state, versions, chunks, updates and events.

        Nothing happens if there is nothing of it. A store that is full takes it.

        Raises:
            Fenced: a newer epoch exists; nothing was deleted.
        """
        ...

    def write_chunk(self, job: str, version: int, index: int, data: memoryview, *, epoch: int) -> None:
        """Write a piece of a version that is not committed yet; invisible until then.

        ``data`` is not kept, unless it is read-only: nobody writes to that memory any more.

        Pieces of a version that is committed already are left alone. A store may send without waiting:
        its errors come at the latest from ``commit_version``.

        Raises:
            Fenced: a newer epoch exists. Nothing that anybody can see was written.
        """
        ...

    def commit_version(
        self,
        job: str,
        version: StoredVersion,
        state: bytes,
        *,
        epoch: int,
        keep: int,
    ) -> None:
        """Make the version the job's newest and replace the job's state, in one atomic step.

        The version must be the newest one plus 1, or 0 for the first; its chunks, written under this
        same epoch. To commit the newest version again, unchanged, is no error: its success may not have
        been heard of. All but the newest ``keep`` versions are dropped.

        Raises:
            Fenced: a newer epoch exists; nothing was written.
            StoreUnavailable: a chunk is missing, or the version does not follow the newest; nothing was
                committed.
        """
        ...

    def versions(self, job: str) -> list[StoredVersion]:
        """The versions that are kept, oldest first."""
        ...

    def read_chunk(self, job: str, version: int, index: int) -> bytes:
        """One piece of a committed version.

        Raises:
            KeyError: the version is not kept (any more).
        """
        ...

    def write_update(self, job: str, name: str, index: int, data: memoryview, *, epoch: int) -> None:
        """Write a piece of a learner's update that is stored beside the versions; over what was there.

        It can be read at once: what counts is only which names the job's state goes by.

        Raises:
            Fenced: a newer epoch exists; nothing was written.
        """
        ...

    def read_update(self, job: str, name: str, index: int) -> bytes:
        """One piece of a stored update.

        Raises:
            KeyError: it is not there (any more).
        """
        ...

    def updates(self, job: str) -> list[str]:
        """Names of the stored updates, sorted, also of those of which only a part was written."""
        ...

    def drop_updates(self, job: str, names: Sequence[str], *, epoch: int) -> None:
        """Delete stored updates, in one step; nothing happens to those that are not there.

        Raises:
            Fenced: a newer epoch exists; nothing was deleted.
        """
        ...

    def append_events(self, job: str, events: Sequence[bytes], *, first: int, epoch: int) -> None:
        """Append packed events, numbered ``first``, ``first + 1``, …; numbers up to the last are left alone.

        Raises:
            Fenced: a newer epoch exists; nothing was written.
        """
        ...

    def read_events(self, job: str, *, after: int, limit: int) -> list[bytes]:
        """Up to ``limit`` events with numbers above ``after``, in order."""
        ...

    def num_events(self, job: str) -> int:
        """Number of the job's last event; 0 if it has none."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...
