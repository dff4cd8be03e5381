"""What a learner is, and what it is told. Metrics and parameters as they are everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from broker_fl.model import Arrays

Metrics = Mapping[str, float]
Parameters = Mapping[str, str | int | float | bool | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What ``train`` gives back."""

    model: Arrays
    """The trained arrays, all of them (not the difference): the names, shapes and types that came in.

    They may be those that came, or any others. What counts is what is in them when ``train`` returns; the
    learner may go on using them. They are copied then, unless they are all those that came and the learner
    has kept no reference to any: so that is what costs least.
    """
    num_examples: int
    """Examples trained on; the update's weight in FedAvg. At least 1."""
    num_steps: int = 0
    """Optimiser steps done; 0 where nothing counts them."""
    num_epochs: float = 0.0
    """Passes over the local data that were done, parts of one included; 0 where nothing counts them."""
    metrics: Metrics = field(default_factory=dict)
    control: Arrays | None = None
    """Where the task has a ``control``: for each array that was trained, by name, the mean of its gradients
    over the steps, without the correction (SCAFFOLD's ``c_k⁺``).
    """


class TaskContext(Protocol):
    """What a learner is told about the task it works on, and how it answers while it works."""

    @property
    def job(self) -> str:
        """Name of the job."""
        ...

    @property
    def round(self) -> int:
        """Of the job, counted from 0."""
        ...

    @property
    def learner(self) -> str:
        """Id of this learner."""
        ...

    @property
    def parameters(self) -> Parameters:
        """The job's parameters: epochs, learning rate, whatever the app reads."""
        ...

    @property
    def control(self) -> Arrays | None:
        """What to add to each gradient, by the names of the model's float arrays: SCAFFOLD's ``c − c_k``.
        None under other rules.
        """
        ...

    def progress(self, fraction: float) -> None:
        """Say how far the work is, 0 to 1; heartbeats carry it on.

        Raises:
            TaskCancelled: the controller no longer wants the result; let it pass.
        """
        ...


@runtime_checkable
class Learner(Protocol):
    """One owner of data. No base class is needed.

    An optional third method, ``initial_model() -> Arrays``, gives the model that a job starts from. Optional
    ``attributes``, a dict, are told to the controller, which may select by them: ``num_examples``, for one.
    """

    def train(self, model: Arrays, task: TaskContext) -> Update:
        """Train from ``model`` on local data. The arrays are the learner's own: they may be written to."""
        ...

    def evaluate(self, model: Arrays, task: TaskContext) -> Metrics:
        """Metrics of ``model`` on local data; the key ``num_examples``, if given, is their weight in the
        mean.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerContext:
    """What a factory ``make_learner(context)`` is told about the learner that it makes."""

    learner: str
    """Its id."""
    index: int = 0
    """Its place among the learners of this process, or of this simulation: 0 … count - 1."""
    count: int = 1
