"""Rows of arrays in batches, and the count of what was done: for adapters that draw their own batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from broker_fl.frameworks.workload import Workload
from broker_fl.interfaces import TaskContext

Rows = npt.NDArray[np.intp]


class Batches:
    """Row numbers in batches, in a new order each pass that only the seed decides, until the work is done.

    The task is told after each batch, on the thread that draws the next one.
    """

    def __init__(self, num_rows: int, batch_size: int, work: Workload, task: TaskContext) -> None:
        """Of ``num_rows`` rows; the last batch of a pass may be smaller than the others."""
        self.shuffle = True
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.num_batches = 0
        """That were worked on."""
        self.num_drawn = 0
        """Rows that were worked on, each as often as it was."""
        self._rng = np.random.default_rng(work.seed)
        self._task = task
        self._to_draw = work.epochs * num_rows
        if work.steps is not None:
            passes, rest = divmod(work.steps, -(-num_rows // batch_size))
            self.end_after(passes * num_rows + rest * batch_size)

    def end_after(self, num_drawn: int) -> None:
        """Make so many rows all there is to do; the last batch is cut to fit."""
        self._to_draw = num_drawn

    @property
    def num_examples(self) -> int:
        """Different rows that were worked on."""
        return min(self.num_drawn, self.num_rows)

    @property
    def num_epochs(self) -> float:
        """Passes over the rows, parts of one included."""
        return self.num_drawn / self.num_rows

    def __iter__(self) -> Iterator[Rows]:
        while self.num_drawn < self._to_draw:
            order = self._rng.permutation(self.num_rows) if self.shuffle else np.arange(self.num_rows)
            for rows in self._cut(order[: self._to_draw - self.num_drawn]):
                yield rows
                self.num_drawn += len(rows)
                self.num_batches += 1
                self._task.progress(self.num_drawn / self._to_draw)

    def _cut(self, order: Rows) -> Iterator[Rows]:
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]
