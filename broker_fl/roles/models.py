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
        packed: bytes = msgpack.packb(fields)
        return packed

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


class Versions:
    """The versions of one job, read and written by the controller of one epoch."""

    def __init__(self, store: Store, job: str, epoch: int) -> None:
        self._store = store
        self._job = job
        self._epoch = epoch

    def write(self, record: VersionRecord, model: Model, state: bytes, *, keep: int) -> None:
        """Store a version and the job's state that goes with it; visible all at once, or not at all.

        Raises:
            Fenced: another controller has taken over.
            StoreUnavailable: the store does not answer or cannot write; may be tried again.
        """
        count = num_chunks(model.spec.num_bytes, STORE_CHUNK_BYTES)
        view = memoryview(model.buffer.data)
        for index in range(count):
            piece = view[index * STORE_CHUNK_BYTES : (index + 1) * STORE_CHUNK_BYTES]
            self._store.write_chunk(self._job, record.version, index, piece, epoch=self._epoch)
        stored = StoredVersion(version=record.version, manifest=record.pack(), num_chunks=count)
        self._store.commit_version(self._job, stored, state, epoch=self._epoch, keep=keep)

    def records(self) -> list[VersionRecord]:
        """The versions that are kept, oldest first."""
        return [VersionRecord.unpack(stored.manifest) for stored in self._store.versions(self._job)]

    def read(self, version: int | None = None) -> tuple[VersionRecord, Model]:
        """A version that is kept; None is the newest.

        Raises:
            RequestRefused: it is not kept; says which are.
            StoreUnavailable: the store does not answer, or what it has is not what was stored.
        """
        stored = self._store.versions(self._job)
        found = next((one for one in reversed(stored) if version is None or one.version == version), None)
        if found is None:
            kept = ", ".join(str(one.version) for one in stored) or "none"
            raise RequestRefused(f"job {self._job!r} has no version {version}; kept are: {kept}")
        record = VersionRecord.unpack(found.manifest)
        model = self._assemble(found, record.spec)
        if model.digest != record.digest:
            raise StoreUnavailable(f"{self._name(found)} is corrupt in the store: its digest differs")
        return record, model

    def _assemble(self, stored: StoredVersion, spec: ModelSpec) -> Model:
        buffer = np.empty(spec.num_bytes, np.uint8)
        try:
            for index in range(stored.num_chunks):
                data = self._store.read_chunk(self._job, stored.version, index)
                buffer[index * STORE_CHUNK_BYTES :][: len(data)] = np.frombuffer(data, np.uint8)
        except (KeyError, ValueError) as error:
            raise StoreUnavailable(f"{self._name(stored)} is not whole in the store: {error}") from error
        return Model(spec, buffer)

    def _name(self, stored: StoredVersion) -> str:
        return f"version {stored.version} of job {self._job!r}"
