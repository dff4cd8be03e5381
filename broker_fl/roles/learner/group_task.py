"""A group's work: tasks of many learners, done one by one, whose updates are folded into sums as they come.

``GroupTask`` is what a group has of one task. Its learners wait, are worked on, and are done; those that are
done since the last share make up the next one, which is closed when nobody is left, or when the deadline
comes near.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from broker_fl.aggregation.sums import WeightedSum
from broker_fl.aggregation.weighting import weight_of
from broker_fl.coordination.checking import problem_of_training
from broker_fl.errors import BrokerFLError, FrameRefused, TaskCancelled, UpdateRefused
from broker_fl.interfaces import Contribution, Learner, Update
from broker_fl.model import Model
from broker_fl.roles.learner.failures import describe
from broker_fl.roles.learner.incoming import IncomingModel
from broker_fl.roles.learner.shares import Done, FinishedShare, OpenShare
from broker_fl.roles.learner.tasks import NUM_EXAMPLES, Context, check_update, checked_metrics
from broker_fl.roles.runtime import THREADS, Runtime
from broker_fl.wire.messages import Task, TaskStatus, Terms

log = logging.getLogger(__name__)
SHARE_BEFORE_DEADLINE = 0.8
"""Of a task's deadline: then what is done is sent, so that a slow learner does not cost the others their
round.
"""

_SAME = ("model", "train", "evaluate", "encoding", "form", "buffers", "weighting", "control", "chunk_bytes")
"""What each message of one task has to say alike; parameters are a learner's own."""


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


class GroupTask:
    """What a group has of one task. ``lock`` guards it: the loop adds learners, workers take them."""

    def __init__(self, group: str, task: Task, incoming: IncomingModel, runtime: Runtime = THREADS) -> None:
        self._runtime = runtime
        self.group = group
        self.newest = task
        """As it was taken, but for what the message that came last may change: where its results go, and
        whether they are asked for.
        """
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

    def lacking(self, learners: Iterable[str]) -> list[str]:
        """Those of the learners that have not got it, each once."""
        with self.lock:
            return [learner for learner in dict.fromkeys(learners) if learner not in self._tasks]

    def check(self, task: Task) -> None:
        """Hold a further message of the task against the one by which it was taken: all of its learners are
        worked on with one model, for one sum.

        Raises:
            FrameRefused: they differ in what has to be the same.
        """
        first = self.newest
        differing = [name for name in _SAME if getattr(task, name) != getattr(first, name)]
        if _lasting(task.terms) != _lasting(first.terms):
            differing.append("terms")
        if differing:
            raise FrameRefused(
                f"{', '.join(differing)}: not as in the message by which the group took this task first"
            )

    def renew(self, task: Task) -> None:
        """Take from a message what may change: where and how its results are sent, and until when."""
        later = {name: getattr(task, name) for name in ("inbox", "upload", "deadline_s")}
        self.newest = self.newest.model_copy(update=later)

    def add(self, task: Task) -> bool:
        """Take the learners in that have not got it yet; whether there were any."""
        with self.lock:
            self.renew(task)
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
            self.fail(held.learner, describe(error, self.incoming.spec.places))
            return False

    def fail(self, learner: str, reason: str) -> None:
        """Note that a learner cannot do it."""
        with self.lock:
            self._open.failed[learner] = reason

    def _train(self, held: MemberTask, learner: Learner) -> tuple[Done, Model | None]:
        started, task = self._runtime.steady_s(), held.task
        if self.incoming.model is None:
            raise BrokerFLError("the model is not there")
        lent = self.incoming.model.copy()  # the learner may write to it
        given = dict(lent)
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
            queue_s=max(0.0, started - self._began),
            evaluate_s=evaluated - started if task.evaluate else 0.0,
            train_s=self._runtime.steady_s() - evaluated if task.train else 0.0,
        )
        done.check(task.task)
        # Arrays of its own are copied: other learners of the group may write to them at the same time.
        model = Model.of(update.model, lent.spec, lent.buffer) if update is not None else None
        return done, model

    def _fold(self, done: Done, model: Model | None, task: Task) -> None:
        """Add an update to the sum, if it would count by itself."""
        with self.lock:
            weight = 0.0
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
                weight = weight_of(contribution, task.weighting)
            self._open.add(done, model, weight)

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
        """Close the open share. If that fails, so have its learners: the group goes on."""
        if not len(self._open) or self.cancelled:
            return None
        opened, self._open = self._open, OpenShare(WeightedSum(self.incoming.spec))
        name = self._runtime.unique()[:16]
        try:
            share = opened.close(name, self.group, self.newest, self.incoming.receive_s)
        except Exception as error:
            log.exception("group %s cannot send what came of task %s", self.group, self.newest.task)
            failed = opened.all_failed(f"the group's share could not be made: {describe(error)}")
            share = failed.close(name, self.group, self.newest, self.incoming.receive_s)
        self.shares.append(share)
        return share

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


def _lasting(terms: Terms | None) -> Terms | None:
    """But for the cohort, of which some may have left and others come since."""
    return None if terms is None else terms.model_copy(update={"cohort": 0})
