"""Versions on their way to a group."""

from __future__ import annotations

from collections.abc import Collection

from broker_fl.model import Model, ModelSpec
from broker_fl.roles.runtime import THREADS, Runtime
from broker_fl.wire.chunks import Assembly
from broker_fl.wire.encodings import encoding
from broker_fl.wire.messages import ModelChunk, ModelManifest


class IncomingModel:
    """A version on its way to a group: put together once, for all tasks that bring it."""

    def __init__(
        self,
        manifest: ModelManifest,
        max_bytes: int,
        runtime: Runtime = THREADS,
        kept: Collection[str] = (),
    ) -> None:
        """Make room for it; the tensors that are ``kept`` are not encoded.

        Raises:
            FrameRefused: the announcement contradicts itself, or the model is larger than ``max_bytes``.
        """
        self.manifest = manifest
        self.spec: ModelSpec = manifest.model_spec(max_bytes=max_bytes, kept=kept)
        self._encoding = encoding(manifest.encoding, kept)
        self.model: Model | None = None
        self.receive_s = 0.0
        self._assembly = Assembly(manifest.num_bytes, manifest.chunk_bytes)
        self._runtime = runtime
        self._began = runtime.steady_s()

    def receive(self, chunk: ModelChunk, payload: memoryview) -> bool:
        """Take in a part; True when that made it whole.

        Raises:
            FrameRefused: the part does not fit; nothing changed.
        """
        if self.model is not None or chunk.encoding != self.manifest.encoding:
            return False
        if not self._assembly.add(chunk.index, chunk.count, chunk.checksum, payload):
            return False
        self.model = self._encoding.decode(self._assembly.buffer, self.spec)
        self.receive_s = self._runtime.steady_s() - self._began
        return True

    @property
    def progress(self) -> float:
        """The share of the chunks that are there."""
        return 1.0 - self._assembly.num_missing / self._assembly.count
