"""Steps of which tests of stores are made."""

from __future__ import annotations

from broker_fl.interfaces import Store, StoredVersion

JOB = "job-1"


def acquire(store: Store, owner: str) -> int:
    epoch = store.acquire_lease(owner, 30)
    assert epoch is not None
    return epoch


def version(number: int, num_chunks: int, manifest: bytes | None = None) -> StoredVersion:
    manifest = b"manifest \x00\n %d" % number if manifest is None else manifest
    return StoredVersion(version=number, manifest=manifest, num_chunks=num_chunks)


def write(store: Store, number: int, *chunks: bytes, epoch: int, job: str = JOB) -> None:
    for index, chunk in enumerate(chunks):
        store.write_chunk(job, number, index, memoryview(chunk), epoch=epoch)


def commit(
    store: Store, number: int, *chunks: bytes, epoch: int, keep: int = 3, job: str = JOB
) -> StoredVersion:
    write(store, number, *chunks, epoch=epoch, job=job)
    stored = version(number, len(chunks))
    store.commit_version(job, stored, b"state %d" % number, epoch=epoch, keep=keep)
    return stored


def read(store: Store, number: int, job: str = JOB) -> list[bytes]:
    (found,) = [stored for stored in store.versions(job) if stored.version == number]
    return [store.read_chunk(job, number, index) for index in range(found.num_chunks)]


def everything(store: Store, job: str = JOB) -> object:
    versions = store.versions(job)
    return (
        store.jobs(),
        versions,
        [read(store, stored.version) for stored in versions],
        store.read_events(job, after=0, limit=1000),
        [(name, store.read_update(job, name, 0)) for name in store.updates(job)],
    )
