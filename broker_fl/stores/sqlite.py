"""A store in one SQLite file: for one machine, a simulation, or a laptop. It needs no server.

Durability: what was written survives ``kill -9`` at any point. ``commit_version`` and a new lease survive a
power cut too (they wait for the disk, and with them everything written before). What came after the last of
them may be gone after a power cut, as with a Redis that syncs every second; what is left is consistent.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from broker_fl.errors import Fenced, SettingError, StoreUnavailable
from broker_fl.interfaces import StoredVersion

_LAYOUT = 2
"""Kept in ``user_version``; a newer file is refused, an older one gets what it lacks."""

_SCHEMA = """
CREATE TABLE federation (name TEXT NOT NULL);
CREATE TABLE controller (epoch INTEGER NOT NULL, owner TEXT NOT NULL, expires_s REAL NOT NULL);
CREATE TABLE jobs (job TEXT PRIMARY KEY, state BLOB NOT NULL);
CREATE TABLE versions (
    job TEXT, version INTEGER, num_chunks INTEGER NOT NULL, manifest BLOB NOT NULL, PRIMARY KEY (job, version)
);
CREATE TABLE chunks (
    job TEXT, version INTEGER, position INTEGER, epoch INTEGER NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (job, version, position)
);
CREATE TABLE events (job TEXT, number INTEGER, data BLOB NOT NULL, PRIMARY KEY (job, number)) WITHOUT ROWID;
"""
_UPDATES = """
CREATE TABLE updates (
    job TEXT, name TEXT, position INTEGER, data BLOB NOT NULL, PRIMARY KEY (job, name, position)
)
"""
"""Of layout 2."""

_BAD_FILE = {
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_PERM,
}


_NO_ROOM = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
_MAKE_ROOM = "; make room on its disk, raise the limit of file sizes (ulimit -f), or use another folder"

_DEAD_AFTER_TTLS = 3
"""A lease that nobody renews for so long is over, whatever the wall clock says; its holder renews it three
times in its own time, which may be longer than that of who asks.
"""


class SQLiteStore:
    """The store of one federation in the file ``path`` (``":memory:"``: in none), made if it is not there.

    Several processes may open one file; of their controllers the lease serves one.

    Raises:
        SettingError: the file cannot be made or read, is no such store, or is another federation's.
    """

    chunk_bytes = 4 << 20

    def __init__(
        self,
        path: str | Path,
        *,
        federation: str,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
        busy_timeout_s: float = 5.0,
    ) -> None:
        """Open the file; ``clock`` tells the wall clock in seconds, by which the lease runs out, and
        ``steady`` one that is never set.
        """
        self._path = str(path)
        self._clock = clock
        self._steady = steady
        self._foreign: tuple[tuple[int, float] | None, float] = None, 0.0
        self._lock = threading.Lock()
        try:
            if self._path != ":memory:":
                Path(self._path).parent.mkdir(parents=True, exist_ok=True)
                Path(self._path).touch(mode=0o600)  # models are its owner's; SQLite's own files follow
            self._db = sqlite3.connect(
                self._path,
                timeout=busy_timeout_s,
                isolation_level=None,
                check_same_thread=False,
            )
        except (OSError, sqlite3.Error) as error:
            raise SettingError(f"{self._path} cannot be opened as a store: {error}") from error
        try:
            self._prepare(federation, busy_timeout_s)
        except BaseException:
            self._db.close()
            raise

    def _prepare(self, federation: str, busy_timeout_s: float) -> None:
        with self._translated():
            with self._db:  # both looks into one moment of the file
                self._db.execute("BEGIN")
                self._check_layout()
            # Large pages: a chunk is written in few pieces. A 40 MB version that replaces one takes 0.11 s,
            # not 0.22. Debian's default is to overwrite what is deleted, which costs as much as writing.
            self._db.execute("PRAGMA page_size = 32768")
            self._db.execute("PRAGMA secure_delete = OFF")
            self._write_ahead(busy_timeout_s)
        with self._transaction(durable=True):
            layout = self._check_layout()
            if layout == 0:
                self._create(federation)
            if layout < _LAYOUT:
                self._db.execute(_UPDATES)
                self._db.execute(f"PRAGMA user_version = {_LAYOUT}")
            (name,) = self._row("SELECT name FROM federation")
        if name != federation:
            raise SettingError(
                f"{self._path} holds the federation {name!r}, not {federation!r}; name another file"
            )

    def _write_ahead(self, busy_timeout_s: float) -> None:
        # Everywhere else SQLite itself waits while another process has the file locked.
        end = time.monotonic() + busy_timeout_s
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                    raise
                time.sleep(0.01)
            else:
                return

    def _check_layout(self) -> int:
        """Layout of the tables; 0 in a new file."""
        (layout,) = self._row("PRAGMA user_version")
        if not 0 <= layout <= _LAYOUT:
            raise SettingError(
                f"{self._path} has the layout {layout}; this version of broker_fl reads up to {_LAYOUT}"
            )
        if layout == 0 and self._row("SELECT count(*) FROM sqlite_master") != (0,):
            raise SettingError(f"{self._path} is the database of another program; name another file")
        return int(layout)

    def _create(self, federation: str) -> None:
        for statement in _SCHEMA.split(";"):
            self._db.execute(statement)
        self._db.execute("INSERT INTO federation VALUES (?)", (federation,))
        self._db.execute("INSERT INTO controller VALUES (0, '', 0)")

    # ------------------------------------------------------------ lease

    def acquire_lease(self, owner: str, ttl_s: float) -> int | None:
        """Become the federation's controller, if nobody else is."""
        with self._transaction(durable=True):
            epoch, holder, expires_s = self._row("SELECT epoch, owner, expires_s FROM controller")
            if holder != owner and not self._has_run_out(epoch, expires_s, ttl_s):
                return None
            values = (epoch + 1, owner, self._clock() + ttl_s)
            self._db.execute("UPDATE controller SET epoch = ?, owner = ?, expires_s = ?", values)
            return int(epoch) + 1

    def _has_run_out(self, epoch: int, expires_s: float, ttl_s: float) -> bool:
        """Whether another's lease is over: its time has come, or nobody renews it any more, and its time does
        not come because the wall clock was set back.
        """
        if expires_s <= self._clock():
            return True
        (lease, since), now = self._foreign, self._steady()
        if lease != (epoch, expires_s):
            self._foreign = (epoch, expires_s), now
            return False
        return now - since >= _DEAD_AFTER_TTLS * ttl_s

    def renew_lease(self, epoch: int, ttl_s: float) -> None:
        """Hold on to the lease."""
        with self._transaction(epoch):
            self._db.execute("UPDATE controller SET expires_s = ?", (self._clock() + ttl_s,))

    def release_lease(self, epoch: int) -> None:
        """Let the lease go, if it is still this epoch's."""
        with self._transaction():
            self._db.execute("UPDATE controller SET expires_s = 0 WHERE epoch = ?", (epoch,))

    # ------------------------------------------------------------ jobs

    def save_job(self, job: str, state: bytes, *, epoch: int) -> None:
        """Replace the job's state."""
        with self._transaction(epoch):
            self._save_job(job, state)

    def _save_job(self, job: str, state: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO jobs VALUES (?, ?)", (job, state))

    def jobs(self) -> dict[str, bytes]:
        """State of every job, by id."""
        return dict(self._rows("SELECT job, state FROM jobs ORDER BY job"))

    def delete_job(self, job: str, *, epoch: int) -> None:
        """Delete all of a job, in one transaction; the file keeps its size, and uses the room again."""
        with self._transaction(epoch, durable=True):
            for table in ("jobs", "versions", "chunks", "updates", "events"):
                self._db.execute(f"DELETE FROM {table} WHERE job = ?", (job,))  # noqa: S608 - names from here

    # ------------------------------------------------------------ model versions

    def write_chunk(self, job: str, version: int, index: int, data: memoryview, *, epoch: int) -> None:
        """Write a piece of a version that is not committed yet."""
        with self._transaction(epoch):
            newest = self._newest(job)
            if newest is None or version > newest:
                row = (job, version, index, epoch, data)
                self._db.execute("INSERT OR REPLACE INTO chunks VALUES (?, ?, ?, ?, ?)", row)

    def commit_version(
        self, job: str, version: StoredVersion, state: bytes, *, epoch: int, keep: int
    ) -> None:
        """Make the version the newest, replace the job's state and drop old versions, in one transaction."""
        with self._transaction(epoch, durable=True):
            if not self._is_committed(job, version):
                self._check_chunks(job, version, epoch)
                row = (job, version.version, version.num_chunks, version.manifest)
                self._db.execute("INSERT INTO versions VALUES (?, ?, ?, ?)", row)
            self._save_job(job, state)
            self._drop_versions(job, version, keep)

    def _is_committed(self, job: str, version: StoredVersion) -> bool:
        newest = self._newest(job)
        if version.version == (0 if newest is None else newest + 1):
            return False
        if version.version == newest and version == self._versions(job)[-1]:
            return True
        raise StoreUnavailable(
            f"version {version.version} of job {job!r} does not follow the newest, {newest}"
        )

    def _check_chunks(self, job: str, version: StoredVersion, epoch: int) -> None:
        (found,) = self._row(
            "SELECT count(*) FROM chunks WHERE job = ? AND version = ? AND epoch = ? AND position < ?",
            (job, version.version, epoch, version.num_chunks),
        )
        if found != version.num_chunks:
            counts = f"{found} of {version.num_chunks} chunks"
            raise StoreUnavailable(f"version {version.version} of job {job!r} has {counts} in the store")

    def _drop_versions(self, job: str, newest: StoredVersion, keep: int) -> None:
        oldest = newest.version - keep + 1
        self._db.execute("DELETE FROM versions WHERE job = ? AND version < ?", (job, oldest))
        self._db.execute("DELETE FROM chunks WHERE job = ? AND version < ?", (job, oldest))
        self._db.execute(
            "DELETE FROM chunks WHERE job = ? AND version = ? AND position >= ?",
            (job, newest.version, newest.num_chunks),
        )

    def versions(self, job: str) -> list[StoredVersion]:
        """The versions that are kept, oldest first."""
        with self._lock, self._translated():
            return self._versions(job)

    def _versions(self, job: str) -> list[StoredVersion]:
        rows = self._db.execute(
            "SELECT version, manifest, num_chunks FROM versions WHERE job = ? ORDER BY version",
            (job,),
        )
        return [StoredVersion(version=v, manifest=manifest, num_chunks=n) for v, manifest, n in rows]

    def _newest(self, job: str) -> int | None:
        newest: int | None = self._row("SELECT max(version) FROM versions WHERE job = ?", (job,))[0]
        return newest

    def read_chunk(self, job: str, version: int, index: int) -> bytes:
        """One piece of a committed version."""
        rows = self._rows(
            "SELECT data FROM chunks JOIN versions USING (job, version) "
            "WHERE job = ? AND version = ? AND position = ?",
            (job, version, index),
        )
        if not rows:
            raise KeyError(f"the store has no chunk {index} of version {version} of job {job!r}")
        data: bytes = rows[0][0]
        return data

    # ------------------------------------------------------------ learners' updates

    def write_update(self, job: str, name: str, index: int, data: memoryview, *, epoch: int) -> None:
        """Write a piece of a stored update."""
        with self._transaction(epoch):
            self._db.execute("INSERT OR REPLACE INTO updates VALUES (?, ?, ?, ?)", (job, name, index, data))

    def read_update(self, job: str, name: str, index: int) -> bytes:
        """One piece of a stored update."""
        place = (job, name, index)
        rows = self._rows("SELECT data FROM updates WHERE job = ? AND name = ? AND position = ?", place)
        if not rows:
            raise KeyError(f"the store has no piece {index} of the update {name!r} of job {job!r}")
        data: bytes = rows[0][0]
        return data

    def updates(self, job: str) -> list[str]:
        """Names of the stored updates, sorted."""
        rows = self._rows("SELECT DISTINCT name FROM updates WHERE job = ? ORDER BY name", (job,))
        return [name for (name,) in rows]

    def drop_updates(self, job: str, names: Sequence[str], *, epoch: int) -> None:
        """Delete stored updates, in one transaction."""
        with self._transaction(epoch):
            rows = [(job, name) for name in names]
            self._db.executemany("DELETE FROM updates WHERE job = ? AND name = ?", rows)

    # ------------------------------------------------------------ events

    def append_events(self, job: str, events: Sequence[bytes], *, first: int, epoch: int) -> None:
        """Append packed events; numbers up to the last one that is there are left alone."""
        with self._transaction(epoch):
            last = self._num_events(job)
            rows = [(job, number, data) for number, data in enumerate(events, first) if number > last]
            self._db.executemany("INSERT INTO events VALUES (?, ?, ?)", rows)

    def read_events(self, job: str, *, after: int, limit: int) -> list[bytes]:
        """Up to ``limit`` events with numbers above ``after``, in order."""
        rows = self._rows(
            "SELECT data FROM events WHERE job = ? AND number > ? ORDER BY number LIMIT ?",
            (job, after, max(limit, 0)),
        )
        return [data for (data,) in rows]

    def num_events(self, job: str) -> int:
        """Number of the job's last event; 0 if it has none."""
        with self._lock, self._translated():
            return self._num_events(job)

    def _num_events(self, job: str) -> int:
        return int(self._row("SELECT coalesce(max(number), 0) FROM events WHERE job = ?", (job,))[0])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    # ------------------------------------------------------------ SQLite

    def _row(self, statement: str, values: Sequence[object] = ()) -> tuple[Any, ...]:
        row: tuple[Any, ...] = self._db.execute(statement, values).fetchone()
        return row

    def _rows(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._lock, self._translated():
            return self._db.execute(statement, values).fetchall()

    @contextmanager
    def _transaction(self, epoch: int | None = None, *, durable: bool = False) -> Iterator[None]:
        """One write transaction, of the controller ``epoch``; all of it happens, or nothing.

        Raises:
            Fenced: the file has seen a newer epoch.
        """
        with self._lock, self._translated():
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                if epoch is not None:
                    self._fence(epoch)
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _fence(self, epoch: int) -> None:
        (newest,) = self._row("SELECT epoch FROM controller")
        if epoch < newest:
            raise Fenced(f"the lease has passed from epoch {epoch} to {newest}")
        if epoch > newest:
            self._db.execute("UPDATE controller SET epoch = ?", (epoch,))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
            if code in _BAD_FILE:
                raise SettingError(f"{self._path} cannot be used as a store: {error}") from error
            hint = _MAKE_ROOM if code in _NO_ROOM else ""
            raise StoreUnavailable(f"the store {self._path} fails: {error}{hint}") from error
