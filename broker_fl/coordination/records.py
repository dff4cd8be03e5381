"""What a job sees of its learners over time: selectors, pacing and protocols go by it."""

from __future__ import annotations

from broker_fl.interfaces import Metrics, Record
from broker_fl.wire.messages import Result

SMOOTHING = 0.5
"""Of an earlier mean that is kept when a new time comes."""


class Records:
    """Writes the records of one job; a learner gets one with its first task."""

    def __init__(self, records: dict[str, Record], smoothing: float = SMOOTHING) -> None:
        self._records = records
        self._smoothing = smoothing

    def of(self, learner: str) -> Record:
        """The learner's record, made if there is none."""
        record = self._records.get(learner)
        if record is None:
            record = self._records[learner] = Record()
        return record

    def given(self, learner: str, round: int) -> None:
        """It is sent a task."""
        record = self.of(learner)
        record.num_tasks += 1
        record.last_round = round

    def finished(self, result: Result, task_s: float) -> None:
        """Its result is there, ``task_s`` after the task was sent."""
        self.finished_as(
            result.learner,
            task_s,
            train_s=result.timings.train_s,
            num_examples=result.num_examples,
            num_steps=result.num_steps,
            num_epochs=result.num_epochs,
            evaluation=result.evaluation,
        )

    def finished_as(  # noqa: PLR0913 - what a result says
        self,
        learner: str,
        task_s: float,
        *,
        train_s: float,
        num_examples: float,
        num_steps: float,
        num_epochs: float,
        evaluation: Metrics,
    ) -> None:
        """The same, of a result whose values stand in columns."""
        record = self.of(learner)
        record.task_s = self._mean(record.task_s, task_s)
        if num_examples:
            record.num_examples = int(num_examples)
        if num_steps and train_s:
            record.step_s = self._mean(record.step_s, train_s / num_steps)
        if num_epochs and train_s:
            record.epoch_s = self._mean(record.epoch_s, train_s / num_epochs)
        if evaluation:
            record.evaluation = evaluation

    def counted(self, learner: str) -> None:
        """Its update is taken."""
        record = self.of(learner)
        record.num_updates += 1
        record.num_failures = 0

    def failed(self, learner: str) -> None:
        """Nothing came of its task, or nothing usable."""
        self.of(learner).num_failures += 1

    def late(self, learner: str, task_s: float, steps: int) -> None:
        """Nothing came within ``task_s``: its task takes at least so long, and each of its ``steps`` (0: not
        known how many) its part of that.
        """
        record = self.of(learner)
        record.num_failures += 1
        record.task_s = self._mean(record.task_s, max(record.task_s, task_s))
        if steps and record.step_s and (step_s := task_s / steps) > record.step_s:
            slower = self._mean(record.step_s, step_s)
            record.epoch_s *= slower / record.step_s
            record.step_s = slower

    def _mean(self, before: float, new: float) -> float:
        return self._smoothing * before + (1.0 - self._smoothing) * new if before else new
