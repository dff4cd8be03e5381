"""Model versions in the store: cut into chunks on the way in, put together on the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import msgpack
import numpy as np

from broker_fl import recycled
from broker_fl.errors import RequestRefused, StoreUnavailable, VersionsLost
from broker_fl.interfaces import Combined, Store, StoredVersion
from broker_fl.model import Model, ModelSpec
from broker_fl.wire.chunks import num_chunks
from broker_fl.wire.messages import VersionSummary

FORMER_CHUNK_BYTES = 4 << 20
"""Of versions and updates that do not say theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRecord:
    """What is kept of a version besides its values."""

    version: int
    spec: ModelSpec
    digest: str
    committed_at: float
    memory_spec: ModelSpec | None = None
    """Of what the aggregation rule keeps for the next round, if it keeps anything."""
    chunk_bytes: int = FORMER_CHUNK_BYTES
    """Of the pieces in which it is stored."""

    def pack(self) -> bytes:
        """The record as the store's manifest."""
        fields: dict[str, Any] = {
            "version": self.version,
            "spec": self.spec.to_wire(),
            "digest": self.digest,
            "committed_at": self.committed_at,
            "memory_spec": self.memory_spec.to_wire() if self.memory_spec else None,
            "chunk_bytes": self.chunk_bytes,
        }
        packed: bytes = msgpack.packb(fields)
        return packed

    @classmethod
    def unpack(cls, data: bytes) -> VersionRecord:
        """Read what ``pack`` wrote."""
        fields = msgpack.unpackb(data, use_list=False)
        memory = fields.get("memory_spec")
        fields["spec"] = ModelSpec.from_wire(fields["spec"])
        fields["memory_spec"] = ModelSpec.from_wire(memory) if memory else None
        return cls(**fields)

    def summary(self, metrics: dict[str, float]) -> VersionSummary:
        """The version's line in a list of versions; ``metrics`` are of its evaluation, empty before that."""
        return VersionSummary(
            version=self.version,
            num_bytes=self.spec.num_bytes,
            num_parameters=self.spec.num_elements,
            digest=self.digest,
            committed_at=self.committed_at,
            metrics=metrics,
        )


class Versions:
    """The versions of one job, read and written by the controller of one epoch."""

    def __init__(self, store: Store, job: str, epoch: int) -> None:
        self._store = store
        self._job = job
        self._epoch = epoch

    def write(self, record: VersionRecord, combined: Combined, state: bytes, *, keep: int) -> None:
        """Store a version and the job's state that goes with it; visible all at once, or not at all.

        The rule's memory, where there is one, follows the model in chunks of its own.

        Raises:
            Fenced: another controller has taken over.
            StoreUnavailable: the store does not answer or cannot write; may be tried again.
            VersionsLost: the version before this one is not in the store any more.
        """
        record = replace(record, chunk_bytes=self._store.chunk_bytes)
        # Nobody writes to a version any more; what a rule does with its memory is its own affair.
        stored_pieces = [piece.toreadonly() for piece in pieces(combined.model, record.chunk_bytes)]
        if combined.memory is not None:
            stored_pieces += pieces(combined.memory, record.chunk_bytes)
        for index, piece in enumerate(stored_pieces):
            self._store.write_chunk(self._job, record.version, index, piece, epoch=self._epoch)
        stored = StoredVersion(version=record.version, manifest=record.pack(), num_chunks=len(stored_pieces))
        try:
            self._store.commit_version(self._job, stored, state, epoch=self._epoch, keep=keep)
        except StoreUnavailable:
            self.check_not_lost(record.version - 1)
            raise

    def check_not_lost(self, version: int) -> None:
        """See that the store still has all up to this version. One that lost power, or a replica that took
        over, may have forgotten the last moments.

        Raises:
            StoreUnavailable: the store does not answer.
            VersionsLost: it has not.
        """
        newest = max((stored.version for stored in self._store.versions(self._job)), default=-1)
        if newest < version:
            raise VersionsLost(
                f"the store has lost versions of job {self._job!r}: version {version} was in it, the "
                f"newest is {newest}; whoever starts as controller now goes on from there"
            )

    def records(self) -> list[VersionRecord]:
        """The versions that are kept, oldest first."""
        return [VersionRecord.unpack(stored.manifest) for stored in self._store.versions(self._job)]

    def read(self, version: int | None = None) -> tuple[VersionRecord, Model]:
        """A version that is kept; None is the newest.

        Raises:
            RequestRefused: it is not kept; says which are.
            StoreUnavailable: the store does not answer, or what it has is not what was stored.
        """
        stored = self._stored(version)
        record = VersionRecord.unpack(stored.manifest)
        model = self._assemble(stored, record, record.spec, first=0)
        if model.digest != record.digest:
            raise StoreUnavailable(f"{self._name(stored)} is corrupt in the store: its digest differs")
        return record, model

    def stream(self, version: int | None = None) -> tuple[VersionRecord, Iterator[bytes]]:
        """A version that is kept, and its bytes piece by piece, of which the last one comes if all are right.

        Raises:
            RequestRefused, StoreUnavailable: as ``read``; while iterating, too.
        """
        stored = self._stored(version)
        record = VersionRecord.unpack(stored.manifest)
        return record, self._pieces(stored, record)

    def _pieces(self, stored: StoredVersion, record: VersionRecord) -> Iterator[bytes]:
        count = num_chunks(record.spec.num_bytes, record.chunk_bytes)
        digest = record.spec.running_digest()
        for index in range(count):
            try:
                piece = self._store.read_chunk(self._job, stored.version, index)
            except KeyError as error:
                raise StoreUnavailable(f"{self._name(stored)} is not whole in the store: {error}") from error
            digest.update(piece)
            if index == count - 1 and digest.hexdigest() != record.digest:
                raise StoreUnavailable(f"{self._name(stored)} is corrupt in the store: its digest differs")
            yield piece

    def read_memory(self, version: int) -> Model | None:
        """What the aggregation rule kept when it made this version.

        Raises:
            RequestRefused: the version is not kept.
            StoreUnavailable: the store does not answer, or has only a part of it.
        """
        stored = self._stored(version)
        record = VersionRecord.unpack(stored.manifest)
        if record.memory_spec is None:
            return None
        first = num_chunks(record.spec.num_bytes, record.chunk_bytes)
        return self._assemble(stored, record, record.memory_spec, first=first)

    def _stored(self, version: int | None) -> StoredVersion:
        stored = self._store.versions(self._job)
        found = next((one for one in reversed(stored) if version is None or one.version == version), None)
        if found is None:
            kept = ", ".join(str(one.version) for one in stored) or "none"
            raise RequestRefused(f"job {self._job!r} has no version {version}; kept are: {kept}")
        return found

    def _assemble(
        self, stored: StoredVersion, record: VersionRecord, spec: ModelSpec, *, first: int
    ) -> Model:
        try:
            return assemble(
                spec,
                record.chunk_bytes,
                lambda index: self._store.read_chunk(self._job, stored.version, first + index),
            )
        except (KeyError, ValueError) as error:
            raise StoreUnavailable(f"{self._name(stored)} is not whole in the store: {error}") from error

    def _name(self, stored: StoredVersion) -> str:
        return f"version {stored.version} of job {self._job!r}"


def pieces(model: Model, chunk_bytes: int) -> list[memoryview]:
    """What is stored of a model, in order; nothing is copied."""
    view = memoryview(model.buffer.data)
    count = num_chunks(model.spec.num_bytes, chunk_bytes)
    return [view[index * chunk_bytes : (index + 1) * chunk_bytes] for index in range(count)]


def assemble(spec: ModelSpec, chunk_bytes: int, read: Callable[[int], bytes]) -> Model:
    """The model of which ``read`` gives the pieces, by index; what it raises goes on to the caller.

    Raises:
        ValueError: a piece does not fit.
    """
    buffer = recycled.empty(spec.num_bytes)
    for index in range(num_chunks(spec.num_bytes, chunk_bytes)):
        place = buffer[index * chunk_bytes : (index + 1) * chunk_bytes]
        place[...] = np.frombuffer(read(index), np.uint8)
    return Model(spec, buffer)
