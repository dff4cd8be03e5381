"""Shares of a group's result: what is sent of the learners that are done, with the sum of their updates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from broker_fl.aggregation.sums import WeightedSum
from broker_fl.errors import UpdateRefused
from broker_fl.interfaces import Transport
from broker_fl.model import Array, Model, ModelSpec
from broker_fl.roles.usage import peak_bytes
from broker_fl.wire.chunks import cut
from broker_fl.wire.encodings import encoding
from broker_fl.wire.fields import MAX_METRICS
from broker_fl.wire.frames import pack_chunk
from broker_fl.wire.messages import (
    GroupResult,
    Result,
    Task,
    TaskRef,
    Timings,
    UpdateChunk,
    UpdateManifest,
)

PAGE_BYTES = 1_000_000
"""About what a page of a result takes."""
_ROW_BYTES = 100
_VALUE_BYTES = 10


@dataclass(slots=True)
class Done:
    """What came of a member's task."""

    learner: str
    num_examples: int
    num_steps: int
    num_epochs: float
    metrics: dict[str, float]
    evaluation: dict[str, float]
    evaluation_examples: int
    queue_s: float
    evaluate_s: float
    train_s: float

    def check(self, task: TaskRef) -> None:
        """See to it that it fits into a message: as a column it would cost all others of the share theirs.

        Raises:
            ValueError: it does not: a metric's name is too long, say, or a count too large.
        """
        Result(
            learner=self.learner,
            task=task,
            num_examples=self.num_examples,
            num_steps=self.num_steps,
            num_epochs=self.num_epochs,
            metrics=self.metrics,
            evaluation=self.evaluation,
            evaluation_examples=self.evaluation_examples,
            timings=Timings(queue_s=self.queue_s, evaluate_s=self.evaluate_s, train_s=self.train_s),
        )


@dataclass(slots=True)
class FinishedShare:
    """What is sent of learners that are done; kept so that it can be sent again."""

    id: str
    learners: tuple[str, ...]
    pages: tuple[GroupResult, ...]
    total: Array | None
    """The encoded sum."""


@dataclass(slots=True)
class OpenShare:
    """Learners that are done, or have failed, since the last share was closed."""

    total: WeightedSum
    done: list[Done] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    _metrics: frozenset[str] = frozenset()
    _evaluation: frozenset[str] = frozenset()

    def add(self, done: Done, model: Model | None, weight: float) -> None:
        """Take in a member that is done, and its update, where it has one.

        Raises:
            UpdateRefused: its values cannot be summed, or the learners of the share would report too many
                different metrics; nothing changed.
        """
        metrics, evaluation = self._metrics.union(done.metrics), self._evaluation.union(done.evaluation)
        if (num := max(len(metrics), len(evaluation))) > MAX_METRICS:
            raise UpdateRefused(
                f"with this learner those of the group would report {num} different metrics; at most "
                f"{MAX_METRICS} are sent at a time"
            )
        if model is not None:
            self.total.add(model, weight)
        self.done.append(done)
        self._metrics, self._evaluation = metrics, evaluation

    def all_failed(self, reason: str) -> OpenShare:
        """The same learners, all of whom have failed: nothing of theirs is sent."""
        failed = dict.fromkeys((done.learner for done in self.done), reason) | self.failed
        return OpenShare(WeightedSum(self.total.spec), failed=failed)

    def __len__(self) -> int:
        return len(self.done) + len(self.failed)

    def close(self, share: str, group: str, task: Task, receive_s: float) -> FinishedShare:
        """What is sent of it, under the name ``share``; ``task`` as it came last."""
        total, manifest = None, None
        if task.train and self.done:
            model = self.total.total()
            total = encoding(task.encoding).encode(model)
            manifest = UpdateManifest.of(
                model.spec, form="sum", encoding=task.encoding, chunk_bytes=task.chunk_bytes
            )
        done_pages, failed_pages = self._pages()
        num_pages = max(len(done_pages), len(failed_pages))
        pages = tuple(
            GroupResult(
                group=group,
                task=task.task,
                share=share,
                page=page,
                num_pages=num_pages,
                failed=tuple(learner for learner, _ in _at(failed_pages, page)),
                reasons=tuple(reason for _, reason in _at(failed_pages, page)),
                update=manifest,
                receive_s=receive_s,
                peak_memory_bytes=peak_bytes(),
                **_columns(_at(done_pages, page)),
            )
            for page in range(num_pages)
        )
        return FinishedShare(share, (*(done.learner for done in self.done), *self.failed), pages, total)

    def _pages(self) -> tuple[list[list[Done]], list[list[tuple[str, str]]]]:
        """Learners that are done, and those that have failed with the reason, as many as a page takes."""
        names = {name for done in self.done for name in (*done.metrics, *done.evaluation)}
        rows = max(1, PAGE_BYTES // (_ROW_BYTES + _VALUE_BYTES * len(names)))
        rows_of_failures = max(1, PAGE_BYTES // (_ROW_BYTES + 1_000))
        failures = list(self.failed.items())
        return (
            [self.done[at : at + rows] for at in range(0, len(self.done), rows)],
            [failures[at : at + rows_of_failures] for at in range(0, len(failures), rows_of_failures)],
        )


def refusal(group: str, task: Task, share: str, learners: Iterable[str], reason: str) -> FinishedShare:
    """What is sent of learners whose task the group does not take."""
    nothing = OpenShare(WeightedSum(ModelSpec(())), failed=dict.fromkeys(learners, reason))
    return nothing.close(share, group, task, 0.0)


def publish_sum(transport: Transport, exchange: str, key: str, share: FinishedShare) -> None:
    """Publish the chunks of a share's sum."""
    first = share.pages[0]
    if share.total is None or (manifest := first.update) is None:
        return
    for chunk in cut(share.total, manifest.chunk_bytes):
        header = UpdateChunk(
            learner=first.group,
            task=first.task,
            share=share.id,
            index=chunk.index,
            count=chunk.count,
            encoding=manifest.encoding,
            checksum=chunk.checksum,
        )
        transport.publish(exchange, [key], pack_chunk(header.KIND, header.model_dump(), chunk.payload))


def _at(pages: Sequence[list[Any]], page: int) -> list[Any]:
    return pages[page] if page < len(pages) else []


def _columns(rows: Sequence[Done]) -> dict[str, Any]:
    """What ``GroupColumns`` says of them."""
    return {
        "learners": tuple(done.learner for done in rows),
        "num_examples": _column(done.num_examples for done in rows),
        "num_steps": _column(done.num_steps for done in rows),
        "num_epochs": _column(done.num_epochs for done in rows),
        "evaluation_examples": _column(done.evaluation_examples for done in rows),
        "queue_s": _column(done.queue_s for done in rows),
        "evaluate_s": _column(done.evaluate_s for done in rows),
        "train_s": _column(done.train_s for done in rows),
        "metrics": _metric_columns([done.metrics for done in rows]),
        "evaluation": _metric_columns([done.evaluation for done in rows]),
    }


def _column(values: Iterable[Any]) -> tuple[Any, ...]:
    """As short as it may be: one value if all are the same, none if they are 0."""
    column = tuple(values)
    if column and all(value == column[0] for value in column):
        return column[:1] if column[0] else ()
    return column


def _metric_columns(rows: Sequence[dict[str, float]]) -> dict[str, tuple[float, ...]]:
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: tuple(row.get(name, math.nan) for row in rows) for name in names}
    return {
        name: column[:1] if all(value == column[0] for value in column) else column
        for name, column in columns.items()
    }
