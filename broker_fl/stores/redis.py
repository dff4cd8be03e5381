"""A store in Redis: standby controllers share it. What it keeps is laid out in ``topology.RedisKeys``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import redis.exceptions
from redis.exceptions import RedisError, ResponseError

from broker_fl.errors import Fenced, SettingError, StoreUnavailable
from broker_fl.interfaces import StoredVersion
from broker_fl.security import Security
from broker_fl.stores import redis_scripts as scripts
from broker_fl.stores.redis_client import connect, follow, place, translated
from broker_fl.stores.redis_stage import WINDOW_BYTES, Stage
from broker_fl.topology import RedisKeys

STAGED_EXPIRES_S = 3600.0
"""Chunks that no commit follows are gone after so long: a controller that died left them."""
_REMEMBERED = 64


class RedisStore:
    """The store of one federation in the Redis at ``url`` (``redis://``, ``rediss://`` or ``unix://``).

    Of a Redis Cluster, any node: the one with the federation's keys is found, also after a failover.

    ``write_chunk`` sends without waiting: its errors, ``Fenced`` too, may come from a later one or from
    ``commit_version``. After ``StoreUnavailable`` from either, all chunks of the version must be
    written again. Nothing is tried twice but reading.

    Raises:
        SettingError: URL or TLS files are not usable, the way there would be in plain text, or the server may
            evict keys.
        AccessDenied: wrong user or password, or the user lacks a permission.
        StoreUnavailable: it does not answer, within 3 seconds.
    """

    chunk_bytes = 1 << 20
    """For values of 4 MiB Redis needs twice the CPU time: it fetches their memory from the system anew."""

    def __init__(
        self, url: str, *, federation: str, timeout_s: float = 15.0, security: Security | None = None
    ) -> None:
        """Connect; an operation fails when the server is silent for ``timeout_s``."""
        self._server = place(url)
        self._client = connect(url, timeout_s=timeout_s, security=security)
        settings = self._client.connection_pool.connection_kwargs
        self._home: dict[str, Any] = {name: settings[name] for name in ("host", "port") if name in settings}
        self._keys = RedisKeys(federation)
        self._scripts = {text: self._client.register_script(text) for text in scripts.ALL}
        self._stages: dict[tuple[str, int, int], Stage] = {}
        self._stages_lock = threading.Lock()
        self._committed: dict[tuple[str, int], str] = {}
        self._held = 0, ""
        """The lease that was last given: the epoch, and to whom."""
        try:
            self._find_node()
            self._refuse_eviction()
        except BaseException:
            self.close()
            raise

    def _find_node(self) -> None:
        """Ask for one of the federation's keys: a node of a cluster that has them not says where they are."""
        self._read(lambda: self._client.hget(self._keys.controller, "epoch"))

    def _refuse_eviction(self) -> None:
        policy = self._read(lambda: self._client.info("memory")).get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            raise SettingError(
                f"{self._server} has maxmemory-policy {policy!r}: when full, it would delete models; set "
                "`maxmemory-policy noeviction` in redis.conf, "
                "or run `redis-cli CONFIG SET maxmemory-policy noeviction`"
            )

    # ------------------------------------------------------------ lease

    def acquire_lease(self, owner: str, ttl_s: float) -> int | None:
        """Become the federation's controller, if nobody else is."""
        status, *value = self._run(scripts.ACQUIRE_LEASE, [self._keys.lease], owner, _ms(ttl_s))
        if status != b"ok":
            return None
        self._held = int(value[0]), owner
        return self._held[0]

    def renew_lease(self, epoch: int, ttl_s: float) -> None:
        """Hold on to the lease."""
        self._write(scripts.RENEW_LEASE, [self._keys.lease], epoch, _ms(ttl_s))

    def release_lease(self, epoch: int) -> None:
        """Let the lease go, if it is still this epoch's."""
        self._write(scripts.RELEASE_LEASE, [self._keys.lease], epoch)

    # ------------------------------------------------------------ jobs

    def save_job(self, job: str, state: bytes, *, epoch: int) -> None:
        """Replace the job's state."""
        self._write(scripts.SAVE_JOB, [self._keys.jobs], epoch, job, state)

    def jobs(self) -> dict[str, bytes]:
        """State of every job, by id."""
        states = self._read(lambda: self._client.hgetall(self._keys.jobs))
        return {job.decode(): state for job, state in sorted(states.items())}

    def delete_job(self, job: str, *, epoch: int) -> None:
        """Delete all of a job, in one script."""
        keys = self._keys
        of_job = [keys.versions(job), keys.chunks(job), keys.updates(job), keys.events(job)]
        self._write(scripts.DELETE_JOB, [keys.jobs, *of_job], epoch, job)
        self._committed = {place: stage for place, stage in self._committed.items() if place[0] != job}
        self._forget(job)

    # ------------------------------------------------------------ model versions

    def write_chunk(self, job: str, version: int, index: int, data: memoryview, *, epoch: int) -> None:
        """Send a piece of a version that is not committed yet."""
        with self._stage(job, version, epoch) as stage:
            if stage.unchecked_bytes >= WINDOW_BYTES:
                _, newest = self._write(scripts.MAY_WRITE, [self._keys.versions(job)], epoch)
                stage.newest, stage.unchecked_bytes = int(newest), 0
            if version > stage.newest:
                stage.write(index, data)

    def commit_version(
        self, job: str, version: StoredVersion, state: bytes, *, epoch: int, keep: int
    ) -> None:
        """Make the version the job's newest, replace the job's state and drop old versions, in one script."""
        keys = [self._keys.jobs, self._keys.versions(job), self._keys.chunks(job)]
        with self._stage(job, version.version, epoch) as stage:
            stage.flush()
            details = (version.version, version.num_chunks, stage.name, version.manifest, keep)
            status, *value = self._write(scripts.COMMIT_VERSION, keys, epoch, job, state, *details)
            if status == b"ok":
                with suppress(RedisError, OSError):  # it is committed; what is left over expires
                    stage.discard(first=version.num_chunks)
        if status == b"missing":
            found = f"{value[0]} of {version.num_chunks} chunks"
            raise StoreUnavailable(f"version {version.version} of job {job!r} has {found} in the store")
        if status == b"gap":
            newest = None if value[0] < 0 else value[0]
            raise StoreUnavailable(
                f"version {version.version} of job {job!r} does not follow the newest, {newest}"
            )
        self._forget(job, version.version)

    def versions(self, job: str) -> list[StoredVersion]:
        """The versions that are kept, oldest first."""
        fields = self._read(lambda: self._client.hgetall(self._keys.versions(job)))
        found = [
            (int(number), value.split(b" ", 2)) for number, value in fields.items() if number != b"newest"
        ]
        return [
            StoredVersion(version=number, manifest=manifest, num_chunks=int(count))
            for number, (count, _, manifest) in sorted(found)
        ]

    def read_chunk(self, job: str, version: int, index: int) -> bytes:
        """One piece of a committed version."""
        stage = self._committed.get((job, version))
        data = self._get_chunk(job, version, stage, index)
        if data is None and (found := self._find_stage(job, version)) != stage:
            data = self._get_chunk(job, version, found, index)
        if data is None:
            raise KeyError(f"the store has no chunk {index} of version {version} of job {job!r}")
        return data

    def _get_chunk(self, job: str, version: int, stage: str | None, index: int) -> bytes | None:
        if stage is None:
            return None
        data: bytes | None = self._read(
            lambda: self._client.get(self._keys.chunk(job, version, stage, index))
        )
        return data

    def _find_stage(self, job: str, version: int) -> str | None:
        """The name under which the version's chunks were committed; it never changes, so it is remembered."""
        value: bytes | None = self._read(lambda: self._client.hget(self._keys.versions(job), str(version)))
        if value is None:
            self._committed.pop((job, version), None)
            return None
        if len(self._committed) >= _REMEMBERED:
            self._committed.clear()
        stage = value.split(b" ", 2)[1].decode()
        self._committed[job, version] = stage
        return stage

    # ------------------------------------------------------------ chunks on their way

    @contextmanager
    def _stage(self, job: str, version: int, epoch: int) -> Iterator[Stage]:
        """The attempt under way to write this version; given up if an error comes out of the block."""
        with self._stages_lock, self._translated():
            stage = self._stages.get((job, version, epoch))
            if stage is None:
                prefix = f"{self._keys.chunks(job)}:{version}"
                stage = Stage(self._client, prefix, expires_s=STAGED_EXPIRES_S)
                self._stages[job, version, epoch] = stage
            try:
                yield stage
            except BaseException as error:
                del self._stages[job, version, epoch]
                # A server that answered has not committed. After silence it may have: then the chunks stay,
                # and expire if it has not.
                answered = isinstance(error, (Fenced, ResponseError)) or isinstance(
                    error.__cause__, ResponseError
                )
                _give_up(stage, delete=answered)
                raise

    def _forget(self, job: str, version: int | None = None) -> None:
        """Give up what was staged for versions that can no longer be committed: up to this one, or all."""
        with self._stages_lock:
            for key in [key for key in self._stages if key[0] == job]:
                if version is None or key[1] <= version:
                    _give_up(self._stages.pop(key), delete=version is None or key[1] < version)

    # ------------------------------------------------------------ learners' updates

    def write_update(self, job: str, name: str, index: int, data: memoryview, *, epoch: int) -> None:
        """Write a piece of a stored update, and its name first."""
        keys = [self._keys.updates(job), self._keys.update(job, name)]
        self._write(scripts.WRITE_UPDATE, keys, epoch, name, index, data)

    def read_update(self, job: str, name: str, index: int) -> bytes:
        """One piece of a stored update."""
        data: bytes | None = self._read(lambda: self._client.hget(self._keys.update(job, name), str(index)))
        if data is None:
            raise KeyError(f"the store has no piece {index} of the update {name!r} of job {job!r}")
        return data

    def updates(self, job: str) -> list[str]:
        """Names of the stored updates, sorted."""
        names = self._read(lambda: self._client.hkeys(self._keys.updates(job)))
        return sorted(name.decode() for name in names)

    def drop_updates(self, job: str, names: Sequence[str], *, epoch: int) -> None:
        """Delete stored updates, in one script."""
        self._write(scripts.DROP_UPDATES, [self._keys.updates(job)], epoch, *names)

    # ------------------------------------------------------------ events

    def append_events(self, job: str, events: Sequence[bytes], *, first: int, epoch: int) -> None:
        """Append packed events; numbers up to the last one that is there are left alone."""
        self._write(scripts.APPEND_EVENTS, [self._keys.events(job)], epoch, first, *events)

    def read_events(self, job: str, *, after: int, limit: int) -> list[bytes]:
        """Up to ``limit`` events with numbers above ``after``, in order."""
        if limit < 1:
            return []
        start = f"{max(after, 0) + 1}-0"
        found = self._read(lambda: self._client.xrange(self._keys.events(job), min=start, count=limit))
        return [fields[b"e"] for _, fields in found]

    def num_events(self, job: str) -> int:
        """Number of the job's last event; 0 if it has none."""
        found = self._read(lambda: self._client.xrevrange(self._keys.events(job), count=1))
        return int(found[0][0].partition(b"-")[0]) if found else 0

    def close(self) -> None:
        """Disconnect."""
        with self._stages_lock:
            for stage in self._stages.values():
                _give_up(stage, delete=False)
            self._stages.clear()
        self._client.close()
        self._client.connection_pool.disconnect()

    # ------------------------------------------------------------ Redis

    def _write(
        self, script: str, keys: Sequence[str], epoch: int, *args: str | bytes | memoryview | int
    ) -> list[Any]:
        """Run a script of the controller ``epoch``, once.

        Raises:
            Fenced: Redis has seen a newer epoch; or it has lost this one, and given it once more.
        """
        held, owner = self._held
        answer = self._run(script, keys, f"{epoch} {owner}" if epoch == held else epoch, *args)
        if answer[0] == b"fenced":
            if epoch == answer[1]:
                raise Fenced(f"the store has lost that it gave epoch {epoch}, and gave it to another one")
            raise Fenced(f"the lease has passed from epoch {epoch} to {answer[1]}")
        return answer

    def _run(self, script: str, keys: Sequence[str], *args: str | bytes | memoryview | int) -> list[Any]:
        with self._translated():
            answer: list[Any] = self._scripts[script](keys=[self._keys.controller, *keys], args=args)
        return answer

    def _read(self, operation: Callable[[], Any]) -> Any:
        """Read; once more if the connection turns out to be lost, or the keys to be elsewhere."""
        with translated(self._server):
            try:
                return operation()
            except (redis.exceptions.ConnectionError, redis.exceptions.MovedError) as error:
                follow(self._client, error, self._home)
                return operation()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            with translated(self._server):
                yield
        except StoreUnavailable as error:
            if isinstance(error.__cause__, (redis.exceptions.ConnectionError, redis.exceptions.MovedError)):
                follow(self._client, error.__cause__, self._home)
            raise


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))


def _give_up(stage: Stage, *, delete: bool) -> None:
    with suppress(RedisError, OSError):
        if delete:
            stage.discard()
    stage.close()
