"""Results and sums of groups on their way in: pages and chunks put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from broker_fl.aggregation.sums import sum_spec
from broker_fl.coordination.shares import Share
from broker_fl.errors import FrameRefused, UpdateRefused
from broker_fl.model import Model, ModelSpec
from broker_fl.roles.controller.job.halves import Halves
from broker_fl.wire.chunks import Assembly
from broker_fl.wire.encodings import encoding
from broker_fl.wire.job import Transfer
from broker_fl.wire.messages import GroupResult, UpdateChunk

ENCODING = "raw"
"""Of sums: they do not fit into narrower types."""
MAX_PAGES = 200
MAX_PAGES_BYTES = 64 << 20
"""Of the pages of one share, of which not all are there; 50,000 learners with 100 metrics take 46 MB."""
MAX_HALF_SHARES = 2
"""Of one group that are put together at a time; the oldest is forgotten, and comes again when asked for."""


@dataclass(slots=True)
class SumUpload:
    """One sum that is arriving."""

    share: Share
    assembly: Assembly
    first_at: float
    last_at: float
    num_messages: int = 0
    num_free: int = 0
    """Pages and chunks that may come once more because they were asked for."""


class ShareReceiver:
    """Of one job's open round."""

    def __init__(self, spec: ModelSpec, transfer: Transfer) -> None:
        """``spec`` is the model's."""
        self._spec = sum_spec(spec)
        self._chunk_bytes = transfer.chunk_bytes
        self.sum_bytes = encoding(ENCODING).num_bytes(self._spec)
        self._pages: dict[str, dict[str, dict[int, GroupResult]]] = {}
        """Group → share → page."""
        self._sizes: dict[tuple[str, str], dict[int, int]] = {}
        """Of these pages, in bytes; by group and share."""
        self._uploads: dict[tuple[str, str], SumUpload] = {}
        """By group and share."""
        self._halves = Halves[tuple[str, str]](self.sum_bytes, transfer.upload_budget_bytes)
        self.num_repeated = 0
        """Pages and chunks that were here already and were not asked for again."""

    def page(self, result: GroupResult) -> Share | None:
        """Take a page in; the share, once all of its pages are there.

        Raises:
            FrameRefused: it contradicts an earlier page, or there are too many, or too large ones.
        """
        if result.num_pages > MAX_PAGES:
            raise FrameRefused(
                f"a result of a group in {result.num_pages} pages; at most {MAX_PAGES} are taken"
            )
        if (upload := self._uploads.get((result.group, result.share))) is not None:
            self._repeats(upload)
        shares = self._pages.setdefault(result.group, {})
        pages = shares.setdefault(result.share, {})
        while len(shares) > MAX_HALF_SHARES:
            self._forget_pages(result.group, next(iter(shares)))
        first = next(iter(pages.values()), result)
        if (first.task, first.num_pages, first.update) != (result.task, result.num_pages, result.update):
            self._forget_pages(result.group, result.share)
            raise FrameRefused(
                f"pages of share {result.share!r} of group {result.group!r} contradict one another"
            )
        if result.num_pages > 1:
            self._note_size(result)
        self.num_repeated += result.page in pages
        pages[result.page] = result
        if len(pages) < result.num_pages:
            return None
        self._forget_pages(result.group, result.share)
        return Share.of([pages[number] for number in range(result.num_pages)])

    def _note_size(self, result: GroupResult) -> None:
        sizes = self._sizes.setdefault((result.group, result.share), {})
        sizes[result.page] = len(result.pack())
        if sum(sizes.values()) > MAX_PAGES_BYTES:
            self._forget_pages(result.group, result.share)
            raise FrameRefused(
                f"the pages of share {result.share!r} of group {result.group!r} take more than "
                f"{MAX_PAGES_BYTES} bytes"
            )

    def _forget_pages(self, group: str, share: str) -> None:
        self._pages[group].pop(share, None)
        self._sizes.pop((group, share), None)

    def expect(self, share: Share, now: float) -> SumUpload:
        """Make room for a share's sum.

        Raises:
            UpdateRefused: what it announces is no sum of this job's model.
        """
        manifest = share.update
        if manifest is None:
            raise UpdateRefused("the task asked for an update, the result of the group came without one")
        if manifest.spec_digest != self._spec.digest or manifest.form != "sum":
            raise UpdateRefused(
                f"the group's update is no sum of the model that was given (form {manifest.form!r}, or the "
                "digest of its spec differs)"
            )
        announced = f"{manifest.encoding} in {manifest.num_bytes} bytes by {manifest.chunk_bytes}"
        wanted = f"{ENCODING} in {self.sum_bytes} bytes by {self._chunk_bytes}"
        if announced != wanted:
            raise UpdateRefused(f"the sum is announced as {announced}; the task asked for {wanted}")
        if (upload := self._uploads.get(share.key)) is None:
            assembly = Assembly(self.sum_bytes, self._chunk_bytes)
            upload = self._uploads[share.key] = SumUpload(share, assembly, now, now)
        return upload

    def admits(self, chunk: UpdateChunk, num_bytes: int, has_turn: Callable[[str], bool]) -> bool:
        """As ``UpdateReceiver.admits``, of groups."""
        key = chunk.learner, chunk.share
        if (upload := self._uploads.get(key)) is None:
            return True
        if self._halves.admits(key, upload.assembly, num_bytes, lambda other: has_turn(other[0])):
            return True
        self._repeats(upload)
        return False

    def add(self, chunk: UpdateChunk, payload: memoryview, now: float) -> SumUpload | None:
        """Take a chunk in; None if nobody waits for it.

        Raises:
            FrameRefused: it does not fit; the sum is as it was.
        """
        upload = self._uploads.get((chunk.learner, chunk.share))
        if upload is None or upload.share.task != chunk.task:
            return None
        if chunk.encoding != ENCODING:
            raise FrameRefused(f"the chunk is {chunk.encoding!r}, the task asked for {ENCODING!r}")
        num_missing = upload.assembly.num_missing
        upload.assembly.add(chunk.index, chunk.count, chunk.checksum, payload)
        if upload.assembly.num_missing < num_missing:
            upload.last_at = now
        else:
            self._repeats(upload)
        upload.num_messages += 1
        return upload

    def asked(self, group: str) -> None:
        """The group is asked for what it has done: what of it is here already may come once more."""
        for upload in self._uploads.values():
            if upload.share.group == group:
                upload.num_free = len(upload.share.pages) + upload.assembly.count

    def _repeats(self, upload: SumUpload) -> None:
        if upload.num_free:
            upload.num_free -= 1
        else:
            self.num_repeated += 1

    def of(self, chunk: UpdateChunk) -> Share | None:
        """The share that a chunk belongs to, if one is awaited."""
        upload = self._uploads.get((chunk.learner, chunk.share))
        return upload.share if upload is not None else None

    def model(self, upload: SumUpload) -> Model:
        """What a complete upload holds; the upload has it no more."""
        return encoding(ENCODING).decode(upload.assembly.take(), self._spec)

    def drop(self, share: Share) -> None:
        """Forget a share's sum."""
        self._uploads.pop(share.key, None)

    def clear(self) -> None:
        """Forget all."""
        self._pages.clear()
        self._sizes.clear()
        self._uploads.clear()

    def active(self, group: str, since: float) -> bool:
        """Whether a chunk of the group that was missing has arrived at ``since`` or later."""
        return any(one.share.group == group and one.last_at >= since for one in self._uploads.values())
