"""One task in a learner's hands: put together, worked on, its result kept until the next one comes."""

from __future__ import annotations

import logging
import math
from collections.abc import Set
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, Protocol

import numpy as np

from broker_fl.errors import FrameRefused, TaskCancelled
from broker_fl.interfaces import Learner, Parameters, Update
from broker_fl.model import Array, Model, ModelSpec, parts
from broker_fl.record.text import size
from broker_fl.roles.learner.failures import describe
from broker_fl.roles.learner.lent import Lent
from broker_fl.roles.learner.residuals import Residuals
from broker_fl.roles.learner.variates import ControlledTask, Variates
from broker_fl.roles.progress import Progress
from broker_fl.roles.runtime import Clock
from broker_fl.roles.usage import peak_bytes
from broker_fl.wire.chunks import Assembly
from broker_fl.wire.control import joined, parted
from broker_fl.wire.encodings import encoding
from broker_fl.wire.messages import ModelChunk, Result, Task, TaskStatus, Timings, UpdateManifest

log = logging.getLogger(__name__)
Phase = Literal["receiving", "queued", "evaluating", "training", "finished", "failed"]
NUM_EXAMPLES = "num_examples"
"""The metric of an evaluation that is its weight."""


@dataclass(slots=True)
class HeldTask:
    """What a learner has of a task. Written by the loop's thread until it is queued, then by the worker's."""

    task: Task
    learner: str
    spec: ModelSpec
    assembly: Assembly
    variates: Variates
    residuals: Residuals
    clock: Clock
    _began_at: float
    _whole_at: float = 0.0
    phase: Phase = "receiving"
    progress: float = 0.0
    cancelled: bool = False
    result: Result | None = None
    update: Array | None = None
    """The encoded update, kept so that it can be sent again; None once it was handed over."""
    is_sent: bool = False
    """Whether the update was, once at least."""
    failure: str = ""
    arrived: Progress | None = None
    """Bytes of the model."""

    @classmethod
    def of(
        cls,
        task: Task,
        learner: str,
        max_bytes: int,
        variates: Variates | None = None,
        residuals: Residuals | None = None,
        clock: Clock | None = None,
    ) -> HeldTask:
        """Make room for the model that the task announces; the learner's own state is that of its seat.

        Raises:
            FrameRefused: the announcement contradicts itself, or the model is larger than ``max_bytes``.
        """
        spec = task.model.model_spec(max_bytes=max_bytes, kept=task.buffers)
        assembly = Assembly(task.model.num_bytes, task.model.chunk_bytes)
        clock = clock or Clock()
        own = variates or Variates(), residuals or Residuals()
        return cls(task, learner, spec, assembly, *own, clock, clock.steady_s())

    @property
    def is_handed_over(self) -> bool:
        """Whether the update is the controller's alone: within a process nothing is lost on the way."""
        return self.is_sent and self.update is None

    def status(self) -> TaskStatus:
        """For heartbeats."""
        phase = "finished" if self.phase == "failed" else self.phase
        return TaskStatus(task=self.task.task, phase=phase, progress=self.progress)

    def receive(self, chunk: ModelChunk, payload: memoryview) -> bool:
        """Take in a part of the model; True when it is whole, and the task is ready to be worked on.

        Raises:
            FrameRefused: the part does not fit; nothing changed.
        """
        if chunk.encoding != self.task.model.encoding:
            raise FrameRefused(
                f"the chunk is {chunk.encoding!r}, the task announced {self.task.model.encoding!r}",
            )
        if self.arrived is None:
            # Nothing of this task in it: in a circle of references its model would wait for the collector.
            tell = partial(_tell_arrived, self.learner, self.task.model.version)
            self.arrived = Progress(self.assembly.num_bytes, self.clock.steady_s, tell)
        self.arrived.add(len(payload))
        if not self.assembly.add(chunk.index, chunk.count, chunk.checksum, payload):
            self.progress = 1.0 - self.assembly.num_missing / self.assembly.count
            return False
        self.progress = 0.0
        self.phase, self._whole_at = "queued", self.clock.steady_s()
        return True

    @property
    def receive_s(self) -> float:
        """From the task's arrival to the model being whole: 0 if both came in one message."""
        return self._whole_at - self._began_at

    def work(self, learner: Learner) -> None:
        """Evaluate and train; leaves result and update, or the reason of the failure.

        Raises:
            TaskCancelled: it is no longer wanted.
        """
        try:
            self._work(learner)
        except TaskCancelled:
            raise
        except BaseException as error:
            if self.cancelled:
                raise TaskCancelled(str(self.task.task)) from error
            self.failure, self.phase = describe(error, self.spec.places), "failed"
        finally:
            self.assembly = Assembly(0, 1)

    def _work(self, learner: Learner) -> None:
        started = self.clock.steady_s()
        base, control = self._received()
        model = base.own()  # the learner may write to it
        lent = Lent(model)
        context = Context(self, control)
        context.progress(0.0)
        evaluation: dict[str, float] = {}
        if self.task.evaluate:
            self.phase = "evaluating"
            evaluation = checked_metrics(learner.evaluate(dict(model), context), "evaluate")
        evaluated = self.clock.steady_s()
        trained: dict[str, Any] = {}
        if self.task.train:
            self.phase = "training"
            given: Model | None = None
            if self.task.form == "changes":
                given = model.copy() if base is model else base
            update = learner.train(dict(model), context)
            self.update = self._encode(update, model, given, control)
            trained = _said_of(update)
            del update  # what it refers to, and nobody else, is not held by the learner
            self._have_alone(lent)
        timings = Timings(
            receive_s=self.receive_s,
            queue_s=started - self._whole_at,
            evaluate_s=evaluated - started,
            train_s=self.clock.steady_s() - evaluated if self.task.train else 0.0,
        )
        self.result = Result(
            learner=self.learner,
            task=self.task.task,
            **trained,
            evaluation_examples=max(0, int(evaluation.pop(NUM_EXAMPLES, 0))),
            evaluation=evaluation,
            timings=timings,
            peak_memory_bytes=peak_bytes(),
            update=self._manifest(self.update, control) if self.update is not None else None,
        )
        self.progress = 1.0
        self.phase = "finished"

    def _received(self) -> tuple[Model, ControlledTask | None]:
        """The model, and the control variates if the job has them."""
        buffer, self.assembly = self.assembly.take(), Assembly(0, 1)
        whole = encoding(self.task.model.encoding, self.task.buffers).decode(buffer, self.spec)
        if self.task.control is None:
            return whole, None
        model, server = parted(whole)
        return model, self.variates.begin(self.task.task, self.task.control, server)

    def _encode(
        self, update: Update, lent: Model, given: Model | None, control: ControlledTask | None
    ) -> Array:
        """The update as it is sent: the trained model, or what changed since the ``given`` one. It is the
        buffer of ``lent``, or new.
        """
        check_update(update)
        buffers = frozenset(self.task.buffers)
        model = Model.of(update.model, lent.spec, lent.buffer)
        used = encoding(self.task.encoding, buffers)
        if given is not None:
            model = _changes(model, given, buffers)
        if self.task.residual is not None:
            return self.residuals.encode(model, used, self.task.task, self.task.residual, buffers)
        if control is None:
            return used.encode(model)
        encoded = used.encode(joined(model, control.change(update.control)))
        control.keep(parted(used.decode(encoded, self.spec))[1])
        return encoded

    def _have_alone(self, lent: Lent) -> None:
        """Copy the update if the learner could write to it later: it waits to be sent, and to be summed."""
        if self.update is lent.model.buffer:
            self.update = None  # one reference less
            self.update = lent.model.buffer if lent.is_back else lent.model.copy().buffer

    def _manifest(self, encoded: Array, control: ControlledTask | None) -> UpdateManifest:
        return UpdateManifest(
            spec_digest=self.spec.digest,
            form=self.task.form,
            control="none" if control is None else control.manifest,
            encoding=self.task.encoding,
            num_bytes=encoded.nbytes,
            chunk_bytes=self.task.chunk_bytes,
        )


def _tell_arrived(learner: str, version: int, num_bytes: int, total_bytes: int) -> None:
    log.info("learner %s has %s of %s of version %d", learner, size(num_bytes), size(total_bytes), version)


class Held(Protocol):
    """What a context needs of the task that it is of."""

    learner: str
    progress: float

    @property
    def task(self) -> Task:
        """As it was given."""
        ...

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants the result any more."""
        ...


class Context:
    """The ``TaskContext`` that a user's learner is given."""

    def __init__(self, held: Held, control: ControlledTask | None = None) -> None:
        self._held = held
        self.control = control.correction() if control is not None else None
        self.job = held.task.task.job
        self.round = held.task.task.round
        self.learner = held.learner
        self.parameters: Parameters = MappingProxyType(dict(held.task.parameters))

    def progress(self, fraction: float) -> None:
        """Say how far the work is.

        Raises:
            TaskCancelled: the controller no longer wants the result.
        """
        self._held.progress = min(1.0, max(0.0, float(fraction)))
        if self._held.cancelled:
            raise TaskCancelled(f"task {self._held.task.task} was cancelled")


def check_update(update: object) -> None:
    """Hold what ``train`` returned against what it should return.

    Raises:
        TypeError, ValueError: it is something else.
    """
    if not isinstance(update, Update):
        raise TypeError(f"train must return broker_fl.Update, not {type(update).__name__}")
    if update.num_examples < 1:
        raise ValueError(f"num_examples of an update is at least 1, not {update.num_examples}")
    for name in ("num_steps", "num_epochs"):
        if not 0 <= (value := getattr(update, name)) < math.inf:
            raise ValueError(f"{name} of an update is at least 0, not {value}")


def _said_of(update: Update) -> dict[str, Any]:
    """What a result says of the training."""
    return {
        "num_examples": int(update.num_examples),
        "num_steps": int(update.num_steps),
        "num_epochs": float(update.num_epochs),
        "metrics": checked_metrics(update.metrics, "train"),
    }


def _changes(trained: Model, given: Model, buffers: Set[str]) -> Model:
    """``trained - given`` of float tensors, in their type; of ``buffers`` and others the trained values. In
    ``given``, where that may be written to.
    """
    changes = given if given.buffer.flags.writeable else Model.blank(given.spec)
    for run, is_trained in parts(trained.spec, buffers).items():
        if is_trained:
            np.subtract(trained.run(run), given.run(run), out=changes.run(run))
        else:
            changes.run(run)[...] = trained.run(run)
    return changes


def checked_metrics(metrics: object, method: str) -> dict[str, float]:
    """Hold metrics that a learner returned against what they should be.

    Raises:
        TypeError: they are not numbers by name.
    """
    try:
        return {str(name): float(value) for name, value in dict(metrics).items()}  # type: ignore[call-overload]
    except (TypeError, ValueError) as error:
        raise TypeError(f"metrics of {method} are numbers by name, not {metrics!r:.200}") from error
