"""A model on its way to a driver."""

from __future__ import annotations

import queue

from broker_fl.errors import BrokerUnavailable, FrameRefused
from broker_fl.model import Model
from broker_fl.roles.runtime import Runtime, Waiting
from broker_fl.wire import messages as m
from broker_fl.wire.chunks import Assembly
from broker_fl.wire.encodings import encoding

MAX_MODEL_BYTES = 8 << 30


class Download:
    """Of one version."""

    def __init__(self, follows: m.ModelFollows, runtime: Runtime) -> None:
        self.model = (follows.job, follows.model.version)
        self._manifest = follows.model
        self._spec = follows.model.model_spec(max_bytes=MAX_MODEL_BYTES)
        self._assembly = Assembly(follows.model.num_bytes, follows.model.chunk_bytes)
        self._arrived: Waiting[Exception | None] = runtime.queue()

    def add(self, chunk: m.ModelChunk, payload: memoryview) -> None:
        """Take a chunk that came in; one that is there already is ignored."""
        self._assembly.add(chunk.index, chunk.count, chunk.checksum, payload)
        self._arrived.put(None)

    def fail(self, error: Exception) -> None:
        """Raise ``error`` from ``wait``: nothing more comes."""
        self._arrived.put(error)

    def wait(self, timeout_s: float) -> Model:
        """The model, once it is whole.

        Raises:
            BrokerUnavailable: no chunk came for ``timeout_s``.
            FrameRefused: what came is not what was announced.
        """
        while not self._assembly.complete:
            try:
                failure = self._arrived.get(timeout=timeout_s)
            except queue.Empty:
                missing = self._assembly.num_missing
                raise BrokerUnavailable(
                    f"{missing} chunks of the model did not arrive within {timeout_s:g} s",
                ) from None
            if failure is not None:
                raise failure
        model = encoding(self._manifest.encoding).decode(self._assembly.buffer, self._spec)
        if self._manifest.encoding == "raw" and model.digest != self._manifest.digest:
            raise FrameRefused("the model arrived with another digest than was announced")
        return model.own()
