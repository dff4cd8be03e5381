"""The learner made of a compiled model and data."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from broker_fl.errors import SettingError
from broker_fl.frameworks.keras.backend import keras
from broker_fl.frameworks.keras.feed import DEFAULT_BATCH_SIZE, Data, Pace, Shuffled, as_arguments, not_empty
from broker_fl.frameworks.keras.terms import Control, Proximal
from broker_fl.frameworks.keras.weights import as_array, load_arrays, to_arrays, weights_of
from broker_fl.frameworks.workload import Workload
from broker_fl.interfaces import Metrics, TaskContext, Update
from broker_fl.model import Array, Arrays


class KerasLearner:
    """Trains a compiled Keras model with ``fit``.

    The job's parameters ``epochs``, ``steps``, ``batch_size``, ``learning_rate``, ``seed`` and, for FedProx,
    ``proximal_mu`` are read where they are given; SCAFFOLD's control variates are kept. The optimizer begins
    each task as it was compiled: its state neither travels nor stays.
    """

    def __init__(self, model: keras.Model, train_data: Data, test_data: Data | None = None) -> None:
        """Take over ``model``, which no other learner may share.

        Args:
            model: built, and compiled with optimizer, loss and metrics; its weights of this moment are the
                ``initial_model``.
            train_data: see ``Data``. Arrays are shuffled and cut into batches of the job's ``batch_size``, or
                of 32.
            test_data: what ``evaluate`` uses; without it, the training data.

        Raises:
            SettingError: the model is not compiled or not built, or there are no data.
        """
        if not model.compiled:
            raise SettingError(
                "the Keras model is not compiled: call model.compile(optimizer, loss, metrics) first"
            )
        weights_of(model)
        model.optimizer.build(model.trainable_variables)
        self._model = model
        self._fresh_optimizer = [np.array(as_array(value)) for value in model.optimizer.variables]
        self._proximal: Proximal | None = None
        self._control: Control | None = None
        self._train_data = not_empty("train_data", train_data)
        self._test_data = self._train_data if test_data is None else not_empty("test_data", test_data)

    def initial_model(self) -> dict[str, Array]:
        """A copy of the model's weights."""
        return to_arrays(self._model)

    def train(self, model: Arrays, task: TaskContext) -> Update:
        """Train from ``model``; the result is written into the arrays that came, which saves a copy."""
        work = Workload.of(task)
        data = self._training_data(work)
        load_arrays(self._model, model)
        self._reset_optimizer(work)
        if work.seed is not None:
            self._reseed(work.seed)
        pace = Pace(task, work, self._batches_of_a_step(work))
        # An epoch has at least one batch: with as many epochs as batches, their limit is what ends it.
        with self._held_by(work.proximal_mu), self._corrected_by(task.control):
            history = self._model.fit(**data, epochs=pace.limit or work.epochs, callbacks=[pace], verbose=0)
        return Update(
            model=to_arrays(self._model, out=model),
            num_examples=pace.num_examples,
            num_epochs=self._num_epochs(pace, work),
            num_steps=int(self._model.optimizer.iterations),
            metrics={name: float(values[-1]) for name, values in history.history.items()},
            control=self._mean_gradients(task, pace),
        )

    def evaluate(self, model: Arrays, task: TaskContext) -> Metrics:
        """Loss and the compiled metrics."""
        load_arrays(self._model, model)
        work = Workload.of(task)
        pace = Pace(task, Workload())
        data = as_arguments(self._test_data, work.batch_size or DEFAULT_BATCH_SIZE)
        found = self._model.evaluate(**data, callbacks=[pace], verbose=0, return_dict=True)
        return {**{name: float(value) for name, value in found.items()}, "num_examples": pace.num_examples}

    def _batches_of_a_step(self, work: Workload) -> int:
        """More than one where the optimizer gathers gradients first."""
        at_once = self._model.steps_per_execution
        if work.steps is not None and at_once != 1:
            raise SettingError(
                f"the job asks for steps {work.steps}, but the model is compiled with steps_per_execution="
                f"{at_once}, so that it cannot end between two: compile it with 1, or ask for epochs"
            )
        return self._model.optimizer.gradient_accumulation_steps or 1

    def _training_data(self, work: Workload) -> dict[str, Any]:
        if work.batch_size is not None and not isinstance(self._train_data, tuple | list):
            raise SettingError(
                f"the job asks for batch_size {work.batch_size}, but train_data comes in batches of its own: "
                f"give the learner arrays (x, y), or leave batch_size out of the job"
            )
        if isinstance(self._train_data, tuple | list):
            return {"x": Shuffled(self._train_data, work), "shuffle": False}
        is_stream = hasattr(self._train_data, "element_spec")  # a tf.data.Dataset is shuffled by its owner
        return {"x": self._train_data, "shuffle": not is_stream}

    def _num_epochs(self, pace: Pace, work: Workload) -> float:
        """Passes over the data; one that the step limit ended counts by its examples."""
        if not work.steps:
            return float(len(pace.examples))
        *whole, last = pace.examples
        if whole:
            return len(whole) + min(1.0, last / whole[0])
        if isinstance(self._train_data, tuple | list):
            return last / len(self._train_data[1])
        return pace.part_of_epoch()

    def _held_by(self, mu: float) -> AbstractContextManager[None]:
        """FedProx with this μ, until it is left."""
        if not mu:
            return nullcontext()
        if self._proximal is None:
            self._proximal = Proximal(self._model)
        return self._proximal.hold(mu)

    def _corrected_by(self, correction: Arrays | None) -> AbstractContextManager[None]:
        """SCAFFOLD with this ``c − c_k``, until it is left."""
        if correction is None:
            return nullcontext()
        if self._control is None:
            self._control = Control(self._model)
        return self._control.correct(correction)

    def _mean_gradients(self, task: TaskContext, pace: Pace) -> dict[str, Array] | None:
        return (
            None if self._control is None or task.control is None else self._control.result(pace.num_batches)
        )

    def _reset_optimizer(self, work: Workload) -> None:
        optimizer = self._model.optimizer
        for variable, value in zip(optimizer.variables, self._fresh_optimizer, strict=True):
            variable.assign(value)
        if work.learning_rate is not None:
            try:
                optimizer.learning_rate = work.learning_rate
            except TypeError as error:
                raise SettingError(
                    f"the job asks for learning_rate {work.learning_rate}, but the model is compiled with a "
                    f"schedule: compile it with a number, or leave learning_rate out of the job"
                ) from error

    def _reseed(self, seed: int) -> None:
        """Set what dropout and its like draw from; the generators of the process are left to others."""
        states = [v for v in self._model.variables if v.path.endswith("seed_generator_state")]
        for number, state in enumerate(states):
            state.assign(np.array([seed, number], dtype=keras.backend.standardize_dtype(state.dtype)))
