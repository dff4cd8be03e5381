"""A learner made of plain functions."""

from __future__ import annotations

from collections.abc import Callable

from broker_fl.interfaces import Metrics, TaskContext, Update
from broker_fl.model import Arrays


class FunctionLearner:
    """``train`` and ``evaluate`` as two functions (and a third, ``initial_model``, where there is one)."""

    def __init__(
        self,
        train: Callable[[Arrays, TaskContext], Update],
        evaluate: Callable[[Arrays, TaskContext], Metrics],
        initial_model: Callable[[], Arrays] | None = None,
    ) -> None:
        self._train = train
        self._evaluate = evaluate
        if initial_model is not None:
            self.initial_model = initial_model

    def train(self, model: Arrays, task: TaskContext) -> Update:
        """See ``Learner.train``."""
        return self._train(model, task)

    def evaluate(self, model: Arrays, task: TaskContext) -> Metrics:
        """See ``Learner.evaluate``."""
        return self._evaluate(model, task)
