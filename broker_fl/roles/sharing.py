"""A group's work: tasks of many learners, done one by one, whose updates are folded into sums as they come.

``GroupTask`` is what a group has of one task. Its learners wait, are worked on, and are done; those that are
done since the last share make up the next one, which is closed when nobody is left, or when the deadline
comes near.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from broker_fl.aggregation.sums import WeightedSum
from broker_fl.aggregation.weighting import weight_of
from broker_fl.coordination.checking import problem_of_training
from broker_fl.errors import BrokerFLError, TaskCancelled, UpdateRefused
from broker_fl.interfaces import Contribution, Learner, Transport, Update
from broker_fl.model import Array, Model, ModelSpec
from broker_fl.roles.runtime import THREADS, Runtime
from broker_fl.roles.tasks import NUM_EXAMPLES, Context, check_update, checked_metrics, describe
from broker_fl.roles.usage import peak_bytes
from broker_fl.wire.chunks import Assembly, cut
from broker_fl.wire.encodings import encoding
from broker_fl.wire.frames import pack_chunk
from broker_fl.wire.messages import (
    GroupResult,
    ModelChunk,
    ModelManifest,
    Task,
    TaskStatus,
    UpdateChunk,
    UpdateManifest,
)

SHARE_BEFORE_DEADLINE = 0.8
"""Of a task's deadline: then what is done is sent, so that a slow learner does not cost the others their
round.
"""
PAGE_BYTES = 1_000_000
"""About what a page of a result takes."""
_ROW_BYTES = 100
_VALUE_BYTES = 10


class IncomingModel:
    """A version on its way to a group: put together once, for all tasks that bring it."""

    def __init__(self, manifest: ModelManifest, max_bytes: int, runtime: Runtime = THREADS) -> None:
        """Make room for it.

        Raises:
            FrameRefused: the announcement contradicts itself, or the model is larger than ``max_bytes``.
        """
        self.manifest = manifest
        self.spec: ModelSpec = manifest.model_spec(max_bytes=max_bytes)
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
        self.model = encoding(self.manifest.encoding).decode(self._assembly.buffer, self.spec)
        self.receive_s = self._runtime.steady_s() - self._began
        return True

    @property
    def progress(self) -> float:
        """The share of the chunks that are there."""
        return 1.0 - self._assembly.num_missing / self._assembly.count


@dataclass(slots=True)
class MemberTask:
    """A task in the hands of one member."""

    task: Task
    learner: str
    whole: GroupTask
    progress: float = 0.0

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants the result any more."""
        return self.whole.cancelled


@dataclass(slots=True)
class Done:
    """What came of a member's task; its update is in the sum already."""

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

    def __len__(self) -> int:
        return len(self.done) + len(self.failed)


class GroupTask:
    """What a group has of one task. ``lock`` guards it: the loop adds learners, workers take them."""

    def __init__(self, group: str, task: Task, incoming: IncomingModel, runtime: Runtime = THREADS) -> None:
        self._runtime = runtime
        self.group = group
        self.newest = task
        """As it came last: where its results go, and whether they are asked for."""
        self.incoming = incoming
        self.cancelled = False
        self.shares: list[FinishedShare] = []
        self.is_sent = False
        """Whether a sum was, once at least."""
        self.worked_s = 0.0
        self.lock = threading.Lock()
        self._tasks: dict[str, Task] = {}
        """Learner → the message that gave it the task; parameters may differ."""
        self._waiting: deque[str] = deque()
        self._num_working = 0
        self._began = self._runtime.steady_s()
        self._open = OpenShare(WeightedSum(incoming.spec))

    def add(self, task: Task) -> bool:
        """Take the learners in that have not got it yet; whether there were any."""
        with self.lock:
            self.newest = task
            new = [learner for learner in dict.fromkeys(task.learners) if learner not in self._tasks]
            self._tasks.update(dict.fromkeys(new, task))
            self._waiting.extend(new)
            if new:
                self._began = self._runtime.steady_s()
            return bool(new)

    def take(self, busy: set[str]) -> MemberTask | None:
        """The next learner to be worked on that is not ``busy``; None if there is none at the moment."""
        with self.lock:
            for _ in range(min(len(self._waiting), len(busy) + 1)):
                learner = self._waiting.popleft()
                if learner not in busy:
                    self._num_working += 1
                    return MemberTask(self._tasks[learner], learner, self)
                self._waiting.append(learner)
        return None

    def work(self, held: MemberTask, made: Callable[[], Learner]) -> bool:
        """Evaluate, train, and fold the update into the open share's sum; a failure is noted, and False
        comes back.

        Raises:
            TaskCancelled: it is no longer wanted.
        """
        try:
            done, model = self._train(held, made())
            self._fold(done, model, held.task)
            return True
        except BaseException as error:
            if self.cancelled:
                raise TaskCancelled(str(held.task.task)) from error
            self.fail(held.learner, describe(error))
            return False

    def fail(self, learner: str, reason: str) -> None:
        """Note that a learner cannot do it."""
        with self.lock:
            self._open.failed[learner] = reason

    def _train(self, held: MemberTask, learner: Learner) -> tuple[Done, Model | None]:
        started, task = self._runtime.steady_s(), held.task
        if self.incoming.model is None:
            raise BrokerFLError("the model is not there")
        given = dict(self.incoming.model.copy())  # the learner may write to it
        context = Context(held)
        context.progress(0.0)
        evaluation = checked_metrics(learner.evaluate(given, context), "evaluate") if task.evaluate else {}
        evaluated = self._runtime.steady_s()
        update: Update | None = None
        if task.train:
            update = learner.train(given, context)
            check_update(update)
        done = Done(
            learner=held.learner,
            num_examples=int(update.num_examples) if update is not None else 0,
            num_steps=int(update.num_steps) if update is not None else 0,
            num_epochs=float(update.num_epochs) if update is not None else 0.0,
            metrics=checked_metrics(update.metrics, "train") if update is not None else {},
            evaluation_examples=max(0, int(evaluation.pop(NUM_EXAMPLES, 0))),
            evaluation=evaluation,
            queue_s=started - self._began,
            evaluate_s=evaluated - started if task.evaluate else 0.0,
            train_s=self._runtime.steady_s() - evaluated if task.train else 0.0,
        )
        model = Model.of(update.model, self.incoming.spec) if update is not None else None
        return done, model

    def _fold(self, done: Done, model: Model | None, task: Task) -> None:
        """Add an update to the sum, if it would count by itself."""
        with self.lock:
            if model is not None:
                steps = task.parameters.get("steps")
                if (problem := problem_of_training(done.metrics, done.num_steps, None, steps)) is not None:
                    raise UpdateRefused(problem)
                contribution = Contribution(
                    learner=done.learner,
                    model=model,
                    num_examples=done.num_examples,
                    num_steps=done.num_steps,
                )
                self._open.total.add(model, weight_of(contribution, task.weighting))
            self._open.done.append(done)

    def worked(self, seconds: float) -> FinishedShare | None:
        """A learner's turn is over; the share that became complete by it, or is due, comes back."""
        with self.lock:
            self._num_working -= 1
            self.worked_s += seconds
            left_s = self._left_s()
            is_due = left_s is not None and left_s <= 0 and not self.shares
            return self._finish() if is_due or not (self._waiting or self._num_working) else None

    def due_s(self) -> float | None:
        """In how many seconds what is done is to be sent, whoever is missing; None if there is no such
        time, or it has passed and nothing is done: who is done first is sent by ``worked``.
        """
        left_s = self._left_s()
        if left_s is None or self.shares or self.cancelled or self.is_idle:
            return None
        return left_s if left_s > 0 or len(self._open) else None

    def _left_s(self) -> float | None:
        """Until the deadline is near; None if there is none."""
        deadline_s = self.newest.deadline_s
        if deadline_s is None:
            return None
        return SHARE_BEFORE_DEADLINE * deadline_s - (self._runtime.steady_s() - self._began)

    def share_if_due(self) -> FinishedShare | None:
        """What is done, if the deadline is near."""
        due_s = self.due_s()
        if due_s is None or due_s > 0:
            return None
        with self.lock:
            return self._finish()

    def _finish(self) -> FinishedShare | None:
        """Close the open share."""
        if not len(self._open) or self.cancelled:
            return None
        opened, self._open = self._open, OpenShare(WeightedSum(self.incoming.spec))
        share = self._close(opened)
        self.shares.append(share)
        return share

    def _close(self, opened: OpenShare) -> FinishedShare:
        total, manifest = None, None
        if self.newest.train and opened.done:
            model = opened.total.total()
            used = encoding(self.newest.encoding)
            total = used.encode(model)
            manifest = UpdateManifest.of(
                model.spec, form="sum", encoding=self.newest.encoding, chunk_bytes=self.newest.chunk_bytes
            )
        share = self._runtime.unique()[:16]
        learners = (*(done.learner for done in opened.done), *opened.failed)
        return FinishedShare(share, learners, self._pages(share, opened, manifest), total)

    def _pages(
        self, share: str, opened: OpenShare, manifest: UpdateManifest | None
    ) -> tuple[GroupResult, ...]:
        names = {name for done in opened.done for name in (*done.metrics, *done.evaluation)}
        rows = max(1, PAGE_BYTES // (_ROW_BYTES + _VALUE_BYTES * len(names)))
        failures = list(opened.failed.items())
        rows_of_failures = max(1, PAGE_BYTES // (_ROW_BYTES + 1_000))
        done_pages = [opened.done[at : at + rows] for at in range(0, len(opened.done), rows)]
        failed_pages = [
            failures[at : at + rows_of_failures] for at in range(0, len(failures), rows_of_failures)
        ]
        num_pages = max(len(done_pages), len(failed_pages))
        return tuple(
            GroupResult(
                group=self.group,
                task=self.newest.task,
                share=share,
                page=page,
                num_pages=num_pages,
                failed=tuple(learner for learner, _ in _at(failed_pages, page)),
                reasons=tuple(reason for _, reason in _at(failed_pages, page)),
                update=manifest,
                receive_s=self.incoming.receive_s,
                peak_memory_bytes=peak_bytes(),
                **_columns(_at(done_pages, page)),
            )
            for page in range(num_pages)
        )

    @property
    def num_waiting(self) -> int:
        """Learners that nobody has begun with."""
        return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits and nobody is worked on."""
        with self.lock:
            return not self._waiting and not self._num_working

    def cancel(self) -> None:
        """Nobody wants it any more."""
        with self.lock:
            self.cancelled = True
            self._waiting.clear()

    def status(self) -> TaskStatus:
        """For heartbeats."""
        with self.lock:
            num = len(self._tasks)
            if self.incoming.model is None:
                phase, progress = "receiving", self.incoming.progress
            elif not self._waiting and not self._num_working:
                phase, progress = "finished", 1.0
            else:
                phase = "training" if self.newest.train else "evaluating"
                progress = 1.0 - (len(self._waiting) + self._num_working) / max(1, num)
            return TaskStatus(
                task=self.newest.task,
                phase=phase,  # type: ignore[arg-type]
                progress=progress,
                num_learners=num,
            )


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
        "queue_s": _column(max(0.0, done.queue_s) for done in rows),
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
