"""A stored version on its way to a driver: piece by piece, so that the controller need not hold it whole."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

from broker_fl.errors import RequestRefused, StoreUnavailable
from broker_fl.roles.controller.job.versions import VersionRecord, Versions
from broker_fl.roles.controller.requests.desk import refused_by
from broker_fl.roles.controller.services import Services
from broker_fl.wire import messages as m
from broker_fl.wire.chunks import checksum, num_chunks
from broker_fl.wire.frames import pack_chunk

log = logging.getLogger(__name__)
CHUNK_BYTES = 1 << 20

Pieces = Iterable[bytes | memoryview]


def find_version(
    versions: Versions, version: int | None, *, may_change: bool
) -> tuple[VersionRecord, Pieces]:
    """A version that is kept, and its bytes in order; None is the newest.

    They are read from the store one by one when they are wanted, and all at once if the job ``may_change``:
    a version could be dropped meanwhile.

    Raises:
        RequestRefused: it is not kept.
        StoreUnavailable: the store does not answer, or has something else; also while pieces are read.
    """
    if not may_change:
        return versions.stream(version)
    record, model = versions.read(version)
    return record, [model.buffer.data]


def send_version(services: Services, request: m.ReadModel, versions: Versions, *, may_change: bool) -> None:
    """Answer a request for a version; on a sender's thread.

    A version that is gone by then is told to the driver; so is a store that fails on the way, when the driver
    has a part already.
    """
    exchange, keys = services.topology.answers, [services.topology.driver_key(request.driver)]
    try:
        record, pieces = find_version(versions, request.version, may_change=may_change)
        _publish(services, request, record, pieces)
    except (RequestRefused, StoreUnavailable) as error:
        log.info("request %s of driver %s: %s", request.KIND, request.driver, error)
        refused = refused_by(request, error, again=isinstance(error, StoreUnavailable))
        services.transport.publish(exchange, keys, refused.pack())


def _publish(services: Services, request: m.ReadModel, record: VersionRecord, pieces: Pieces) -> None:
    exchange, keys = services.topology.answers, [services.topology.driver_key(request.driver)]
    manifest = m.ModelManifest(
        version=record.version,
        spec=record.spec.to_wire(),
        spec_digest=record.spec.digest,
        digest=record.digest,
        num_bytes=record.spec.num_bytes,
        chunk_bytes=CHUNK_BYTES,
    )
    answer = m.ModelFollows(request=request.request, job=request.job, model=manifest)
    services.transport.publish(exchange, keys, answer.pack())
    count = num_chunks(record.spec.num_bytes, CHUNK_BYTES)
    for index, payload in enumerate(_cut(pieces, CHUNK_BYTES)):
        header = m.ModelChunk(
            job=request.job,
            version=record.version,
            index=index,
            count=count,
            encoding=manifest.encoding,
            checksum=checksum(payload),
        )
        body = pack_chunk(header.KIND, header.model_dump(), payload)
        services.transport.publish(exchange, keys, body)


def _cut(pieces: Pieces, size: int) -> Iterator[memoryview]:
    """The same bytes in chunks of ``size``; at least one. What fits as it is is not copied."""
    rest, is_empty = b"", True
    for piece in pieces:
        view = memoryview(rest + bytes(piece) if rest else piece)
        end = len(view) - len(view) % size
        for start in range(0, end, size):
            yield view[start : start + size]
            is_empty = False
        rest = bytes(view[end:])
    if rest or is_empty:
        yield memoryview(rest)
