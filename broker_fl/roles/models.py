"""Model versions in the store: cut into chunks on the way in, put together on the way out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from broker_fl.errors import RequestRefused, StoreUnavailable
from broker_fl.interfaces import Store, StoredVersion
from broker_fl.model import Model, ModelSpec
from broker_fl.wire.chunks import num_chunks
from broker_fl.wire.messages import VersionSummary

STORE_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRecord:
    """What is kept of a version besides its values."""

    version: int
    spec: ModelSpec
    digest: str
    committed_at: float
    metrics: dict[str, float]

    def pack(self) -> bytes:
        """The record as the store's manifest."""
        fields: dict[str, Any] = {
            "version": self.version,
            "spec": self.spec.to_wire(),
            "digest": self.digest,
            "committed_at": self.committed_at,
            "metrics": self.metrics,
        }
        return msgpack.packb(fields)

    @classmethod
    def unpack(cls, data: bytes) -> VersionRecord:
        """Read what ``pack`` wrote."""
        fields = msgpack.unpackb(data, use_list=False)
        return cls(**{**fields, "spec": ModelSpec.from_wire(fields["spec"])})

    def summary(self) -> VersionSummary:
        """The version's line in a list of versions."""
        return VersionSummary(
            version=self.version,
            num_bytes=self.spec.num_bytes,
            num_parameters=self.spec.num_elements,
            digest=self.digest,
            committed_at=self.committed_at,
            metrics=self.metrics,
        )


def write_version(store: Store, job: str, record: VersionRecord, model: Model, state: bytes, epoch: int, keep: int) -> None:
    """Store a version and the job's state that goes with it; visible all at once, or not at all.

    Raises:
        Fenced: another controller has taken over.
        StoreUnavailable: the store does not answer or cannot write; may be tried again.
    """
    count = num_chunks(model.spec.num_bytes, STORE_CHUNK_BYTES)
    view = memoryview(model.buffer)
    for index in range(count):
        piece = view[index * STORE_CHUNK_BYTES : (index + 1) * STORE_CHUNK_BYTES]
        store.write_chunk(job, record.version, index, piece, epoch=epoch)
    stored = StoredVersion(version=record.version, manifest=record.pack(), num_chunks=count)
    store.commit_version(job, stored, state, epoch=epoch, keep=keep)


def read_records(store: Store, job: str) -> list[VersionRecord]:
    """The versions that are kept, oldest first."""
    return [VersionRecord.unpack(stored.manifest) for stored in store.versions(job)]


def read_version(store: Store, job: str, version: int | None = None) -> tuple[VersionRecord, Model]:
    """A version that is kept; None is the newest.

    Raises:
        RequestRefused: it is not kept; says which are.
        StoreUnavailable: the store does not answer, or what it has is not what was stored.
    """
    stored = store.versions(job)
    found = next((one for one in reversed(stored) if version is None or one.version == version), None)
    if found is None:
        kept = ", ".join(str(one.version) for one in stored) or "none"
        raise RequestRefused(f"job {job!r} has no version {version}; kept are: {kept}")
    record = VersionRecord.unpack(found.manifest)
    buffer = np.empty(record.spec.num_bytes, np.uint8)
    try:
        for index in range(found.num_chunks):
            data = store.read_chunk(job, found.version, index)
            buffer[index * STORE_CHUNK_BYTES :][: len(data)] = np.frombuffer(data, np.uint8)
    except (KeyError, ValueError) as error:
        raise StoreUnavailable(f"version {found.version} of job {job!r} is not whole in the store: {error}") from error
    model = Model(record.spec, buffer)
    if model.digest != record.digest:
        raise StoreUnavailable(f"version {found.version} of job {job!r} is corrupt in the store: its digest differs")
    return record, model
