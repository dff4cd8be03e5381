"""Data in batches, and what is told of them while ``fit`` runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from broker_fl.errors import SettingError
from broker_fl.frameworks.keras.backend import keras
from broker_fl.frameworks.workload import Workload
from broker_fl.interfaces import TaskContext

Data = Any
"""Inputs and targets, ``(x, y)``, as arrays; or a ``tf.data.Dataset`` or ``PyDataset`` of such batches."""
DEFAULT_BATCH_SIZE = 32


class Shuffled(keras.utils.PyDataset):  # type: ignore[misc]
    """Arrays in batches, in a new order each epoch that only the seed decides, whatever others draw."""

    def __init__(self, data: Data, work: Workload) -> None:
        super().__init__()
        self._data = data
        self._batch_size = work.batch_size or DEFAULT_BATCH_SIZE
        self._rng = np.random.default_rng(work.seed)
        self._order = self._rng.permutation(len(data[1]))

    def __len__(self) -> int:
        return math.ceil(len(self._order) / self._batch_size)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        chosen = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        inputs, targets = keras.tree.map_structure(lambda array: array[chosen], tuple(self._data))
        return inputs, targets

    def on_epoch_end(self) -> None:
        self._order = self._rng.permutation(len(self._order))


class Pace(keras.callbacks.Callback):  # type: ignore[misc]
    """Tells the task after each batch, and ends training at the step limit."""

    def __init__(self, task: TaskContext, work: Workload, batches_of_a_step: int = 1) -> None:
        super().__init__()
        self.limit = work.steps and work.steps * batches_of_a_step
        """In batches."""
        self.examples: list[int] = []
        """Of each epoch, the last one maybe not whole."""
        self._task = task
        self._work = work
        self._batches_before = 0
        self._batches = 0

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._batches = self._batches_before + batch + 1
        if self.limit is not None and self._batches >= self.limit:
            self.model.stop_training = True
        self._tell()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._batches_before = self._batches
        self.examples.append(self._count())

    def on_test_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._batches = batch + 1
        self._tell()

    def on_test_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self.examples.append(self._count())

    @property
    def num_batches(self) -> int:
        """Of all epochs together."""
        return self._batches

    @property
    def num_examples(self) -> int:
        """Different examples, as far as one can tell: those of the longest epoch."""
        return max(self.examples)

    def part_of_epoch(self) -> float:
        """How much of the first epoch is done; 0 of a stream, of which nobody knows how long it is."""
        per_epoch = self.params.get("steps")
        return min(1.0, self._batches / per_epoch) if per_epoch else 0.0

    def _tell(self) -> None:
        per_epoch = self.params.get("steps")  # None for a stream of unknown length
        total = self.limit or self._work.epochs * (per_epoch or 0)
        self._task.progress(min(1.0, self._batches / total) if total else 0.0)

    def _count(self) -> int:
        """Examples since the epoch began: what Keras weighed its mean loss by."""
        loss = next(metric for metric in self.model.metrics if metric.name == "loss")
        return round(float(loss.count))


def as_arguments(data: Data, batch_size: int) -> dict[str, Any]:
    """The data as ``evaluate`` of Keras takes them."""
    if isinstance(data, tuple | list):
        return {"x": data[0], "y": data[1], "batch_size": batch_size}
    return {"x": data}


def not_empty(name: str, data: Data) -> Data:
    """The data, if there are any.

    Raises:
        SettingError: arrays that are no pair, or empty.
    """
    if isinstance(data, tuple | list):
        if len(data) != 2:
            raise SettingError(f"{name} has {len(data)} parts; give inputs and targets, (x, y)")
        if len(data[1]) == 0:
            raise SettingError(f"{name} is empty")
    return data
