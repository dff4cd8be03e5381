"""Everything a role publishes, in order, on a thread of its own: a full window never holds up who decides.

What stays within the process is handed over as it is (``wire/handed.py``), where the transport does that.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import cast

from broker_fl.errors import BrokerFLError, FrameRefused, TransportClosed
from broker_fl.interfaces import Delivery, HandsOver, Transport
from broker_fl.model import Array
from broker_fl.record.text import size
from broker_fl.roles.progress import Progress
from broker_fl.roles.runtime import THREADS, Runtime, Waiting
from broker_fl.wire.chunks import cut
from broker_fl.wire.frames import pack_chunk
from broker_fl.wire.handed import WHOLE, Handed
from broker_fl.wire.messages import Message, ModelChunk, ModelManifest, Result, UpdateChunk, decode

log = logging.getLogger(__name__)


def handing(transport: Transport) -> HandsOver | None:
    """The transport, if it hands messages over as they are."""
    # ``isinstance`` of a protocol takes as long as handing over.
    return cast("HandsOver", transport) if getattr(transport, "hands_over", False) else None


def read(delivery: Delivery) -> tuple[Message, memoryview | None]:
    """The message that was delivered, and its payload if its kind has one.

    Raises:
        FrameRefused: it came as bytes that are no valid frame, or of a kind that is not known here.
    """
    handed: Handed | None = getattr(delivery, "handed", None)
    return decode(delivery.body) if handed is None else (handed.message, handed.payload)


class Sender:
    """Publishes what is given to it, one after the other. What waits is references to models, not copies."""

    def __init__(self, transport: Transport, name: str, runtime: Runtime = THREADS) -> None:
        self._transport = transport
        self._local = handing(transport)
        self._work: Waiting[Callable[[], object] | None] = runtime.queue()
        self._thread = runtime.thread(self._run, name)
        self._thread.start()

    def post(self, work: Callable[[], object]) -> None:
        """Have ``work``, which publishes, done after what was posted before."""
        self._work.put(work)

    def send(
        self,
        exchange: str,
        keys: Sequence[str],
        message: Message,
        *,
        persistent: bool = False,
        mandatory: bool = False,
    ) -> None:
        """Publish one message to all ``keys``; see ``Transport.publish``."""
        if (local := self._local) is not None:
            self.post(lambda: local.hand_over(exchange, keys, Handed(message), mandatory=mandatory))
            return
        self.post(
            lambda: self._transport.publish(
                exchange, keys, message.pack(), persistent=persistent, mandatory=mandatory
            )
        )

    def stop(self, timeout_s: float) -> None:
        """End the thread when everything posted before is published, or after ``timeout_s``."""
        self._work.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except TransportClosed:
                return
            except BrokerFLError as error:
                log.warning("something was not sent: %s", error)
            except Exception:
                log.exception("something was not sent")  # and what follows is sent all the same
            del work  # which may hold a model, while nothing else is to be sent


def publish_model(
    transport: Transport,
    exchange: str,
    keys: Sequence[str],
    job: str,
    manifest: ModelManifest,
    buffer: Array,
) -> None:
    """Publish the chunks of an encoded model to all ``keys``."""
    for _ in publishing(transport, exchange, keys, job, manifest, buffer):
        pass


def publishing(
    transport: Transport,
    exchange: str,
    keys: Sequence[str],
    job: str,
    manifest: ModelManifest,
    buffer: Array,
) -> Iterator[int]:
    """Publish chunk by chunk; the bytes of each come back when it is on its way.

    Nobody writes to ``buffer`` any more: within the process it may be handed over whole.
    """
    piece = partial(ModelChunk, job=job, version=manifest.version, encoding=manifest.encoding)
    if (local := handing(transport)) is not None:
        local.hand_over(exchange, keys, Handed.over(piece(**WHOLE), buffer))
        yield buffer.nbytes
        return
    for chunk in cut(buffer, manifest.chunk_bytes):
        header = piece(index=chunk.index, count=chunk.count, checksum=chunk.checksum)
        transport.publish(exchange, keys, pack_chunk(header.KIND, header.model_dump(), chunk.payload))
        yield len(chunk.payload)


def publish_outcome(transport: Transport, exchange: str, key: str, result: Result, buffer: Array) -> None:
    """Publish a result, then the chunks of the encoded update that it announces."""
    transport.publish(exchange, [key], result.pack())
    progress = Progress(
        buffer.nbytes,
        time.monotonic,
        lambda done, of: log.info("learner %s has sent %s of %s", result.learner, size(done), size(of)),
    )
    for header, payload in _chunks(result, buffer):
        transport.publish(exchange, [key], pack_chunk(header.KIND, header.model_dump(), payload))
        progress.add(len(payload))


def publish_together(transport: Transport, exchange: str, key: str, result: Result, buffer: Array) -> None:
    """The same as one message, if it fits into one; as it does within the process."""
    local, manifest = handing(transport), result.update
    if local is not None and manifest is not None:
        whole = _piece(result, manifest.encoding)(**WHOLE, result=result)
        local.hand_over(exchange, [key], Handed.over(whole, buffer))
        return
    chunks = list(islice(_chunks(result, buffer), 2))
    if len(chunks) == 1:
        header, payload = chunks[0]
        try:
            body = pack_chunk(header.KIND, {**header.model_dump(), "result": result.model_dump()}, payload)
        except FrameRefused:
            log.debug("so many metrics do not fit into the header of a chunk")
        else:
            transport.publish(exchange, [key], body)
            return
    publish_outcome(transport, exchange, key, result, buffer)


def _chunks(result: Result, buffer: Array) -> Iterator[tuple[UpdateChunk, memoryview]]:
    """Headers and payloads of the chunks of an update."""
    if (manifest := result.update) is None:
        return
    piece = _piece(result, manifest.encoding)
    for chunk in cut(buffer, manifest.chunk_bytes):
        yield piece(index=chunk.index, count=chunk.count, checksum=chunk.checksum), chunk.payload


def _piece(result: Result, encoding: str) -> Callable[..., UpdateChunk]:
    """Makes headers of chunks of the update."""
    return partial(
        UpdateChunk, learner=result.learner, task=result.task, session=result.session, encoding=encoding
    )
