"""Updates on their way in: chunks put together, one buffer for each learner that is uploading."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass

import numpy as np

from broker_fl.aggregation.looks import Look
from broker_fl.errors import FrameRefused, UpdateRefused
from broker_fl.model import Model, ModelSpec, parts
from broker_fl.roles.controller.job.halves import Halves
from broker_fl.wire.chunks import Assembly
from broker_fl.wire.encodings import encoding
from broker_fl.wire.fields import Form
from broker_fl.wire.job import Transfer
from broker_fl.wire.messages import Result, TaskRef, UpdateChunk


@dataclass(slots=True)
class Upload:
    """One update that is arriving."""

    task: TaskRef
    session: str | None
    """Of the learner: two trainings for one task are never mixed."""
    assembly: Assembly
    first_at: float
    last_at: float
    num_messages: int = 0
    num_free: int = 0
    """Parts that may come once more because they were asked for."""
    result: Result | None = None
    look: Look | None = None
    """At the values as they arrive, where the buffer is the model's. What is forgotten and comes once more is
    the same.
    """

    @property
    def complete(self) -> bool:
        """Whether the result and all chunks are there, in whatever order they came."""
        return self.result is not None and self.assembly.complete

    def add(self, chunk: UpdateChunk, payload: memoryview, now: float) -> bool:
        """Take a chunk in, and look at its values while they are in the cache. False: it was here already,
        which is no progress.

        Raises:
            FrameRefused: it does not fit; the upload is as it was.
        """
        assembly, num_missing = self.assembly, self.assembly.num_missing
        assembly.add(chunk.index, chunk.count, chunk.checksum, payload)
        if assembly.num_missing == num_missing:
            return False
        self.last_at = now
        if self.look is not None:
            is_whole = len(payload) == assembly.num_bytes  # if it was handed over, it has no place
            start = 0 if is_whole else chunk.index * assembly.chunk_bytes
            self.look.at(assembly.buffer, start, start + len(payload))
        return True


class UpdateReceiver:
    """The uploads of one job's open round. How much memory one takes follows from the job, not from what is
    sent.
    """

    def __init__(
        self,
        spec: ModelSpec,
        transfer: Transfer,
        form: Form = "values",
        *,
        has_control: bool = False,
        buffers: Set[str] = frozenset(),
        adds_back: bool = False,
    ) -> None:
        """``spec`` is that of the updates: of SCAFFOLD's, with control variates behind the model; ``buffers``
        are the job's. ``adds_back``: what arrives is added to the version that was given.
        """
        self._spec = spec
        self._has_control = has_control
        self._transfer = transfer
        self._form = form
        self._encoding = encoding(transfer.encoding, buffers)
        self.update_bytes = self._encoding.num_bytes(spec)
        self._uploads: dict[str, Upload] = {}
        self.num_repeated = 0
        """Results and chunks that were here already and were not asked for again, and updates that were begun
        anew.
        """
        self._halves = Halves[str](self.update_bytes, transfer.upload_budget_bytes)
        self._looks = transfer.encoding == "raw" and not (adds_back or has_control)

    def expect(self, result: Result, now: float) -> Upload:
        """Note the result that a learner's chunks belong to.

        Raises:
            UpdateRefused: what it announces is not an update of this job's model.
        """
        manifest = result.update
        if manifest is None:
            raise UpdateRefused("the task asked for an update, the result came without one")
        if manifest.spec_digest != self._spec.digest:
            raise UpdateRefused(
                "the update has other tensors than the model that was given (the digest of its spec differs)",
            )
        if manifest.form != self._form:
            raise UpdateRefused(f"the update is sent as {manifest.form}; the task asked for {self._form}")
        if self._has_control != (manifest.control != "none"):
            needs = (
                "needs control variates, which the learner does not do" if self._has_control else "has none"
            )
            raise UpdateRefused(f"the update says control = {manifest.control!r}; the job's rule {needs}")
        announced = f"{manifest.encoding} in {manifest.num_bytes} bytes by {manifest.chunk_bytes}"
        wanted = f"{self._transfer.encoding} in {self.update_bytes} bytes by {self._transfer.chunk_bytes}"
        if announced != wanted:
            raise UpdateRefused(f"the update is announced as {announced}; the task asked for {wanted}")
        upload = self._upload(result, now)
        if upload.result is not None:
            self._repeats(upload)
        if upload.result not in (None, result):  # the same, where learners do not say their session
            self.drop(result.learner)
            upload = self._upload(result, now)
        upload.result = result
        return upload

    def admits(self, chunk: UpdateChunk, num_bytes: int, now: float, has_turn: Callable[[str], bool]) -> bool:
        """Whether there is room for a chunk; where not, it comes again when its learner has a turn."""
        upload = self._upload(chunk, now)
        if self._halves.admits(chunk.learner, upload.assembly, num_bytes, has_turn):
            return True
        self._repeats(upload)
        return False

    def add(self, chunk: UpdateChunk, payload: memoryview, now: float) -> Upload:
        """Take a chunk in.

        Raises:
            FrameRefused: it does not fit; the update is as it was.
        """
        if chunk.encoding != self._transfer.encoding:
            raise FrameRefused(
                f"the chunk is {chunk.encoding!r}, the task asked for {self._transfer.encoding!r}",
            )
        if chunk.session is None and chunk.count > 1:  # it could be of another training than the others
            raise FrameRefused(
                f"a chunk of an update of {chunk.count} chunks needs its learner's session; it has none"
            )
        upload = self._upload(chunk, now)
        if not upload.add(chunk, payload, now):
            self._repeats(upload)
        upload.num_messages += 1
        return upload

    def asked(self, learner: str) -> None:
        """The learner is asked for all of its update: what of it is here already may come once more."""
        if (upload := self._uploads.get(learner)) is not None:
            upload.num_free = 1 + upload.assembly.count

    def _repeats(self, upload: Upload) -> None:
        if upload.num_free:
            upload.num_free -= 1
        else:
            self.num_repeated += 1

    def model(self, upload: Upload) -> Model:
        """What a complete upload holds; the upload has it no more."""
        return self._encoding.decode(upload.assembly.take(), self._spec)

    def drop(self, learner: str) -> None:
        """Forget a learner's upload."""
        self._uploads.pop(learner, None)

    def keep(self, wanted: Callable[[str], bool]) -> None:
        """Forget the uploads of all other learners."""
        self._uploads = {learner: upload for learner, upload in self._uploads.items() if wanted(learner)}

    def clear(self) -> None:
        """Forget all."""
        self._uploads.clear()

    def active(self, learner: str, since: float) -> bool:
        """Whether a chunk of the learner that was missing has arrived at ``since`` or later."""
        upload = self._uploads.get(learner)
        return upload is not None and upload.last_at >= since

    def _upload(self, part: Result | UpdateChunk, now: float) -> Upload:
        upload = self._uploads.get(part.learner)
        if upload is None or (upload.task, upload.session) != (part.task, part.session):
            if upload is not None and upload.task == part.task:
                self.num_repeated += 1
            assembly = Assembly(self.update_bytes, self._transfer.chunk_bytes)
            upload = self._uploads[part.learner] = Upload(part.task, part.session, assembly, now, now)
            upload.look = Look(self._spec) if self._looks else None
        return upload


def added_back(change: Model, base: Model, buffers: Set[str]) -> Model:
    """The model that its learner trained from ``base``; in the place of the change, where that may be written
    to: one more pass over both.

    Of ``buffers`` and integers it holds the values already.
    """
    change = change.own()
    for run, is_trained in parts(change.spec, buffers).items():
        if is_trained:
            values = change.run(run)
            with np.errstate(over="ignore", invalid="ignore"):  # the rule looks whether all is finite
                np.add(values, base.run(run), out=values)
    return change
