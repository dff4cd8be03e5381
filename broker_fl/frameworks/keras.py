"""Keras 3 on TensorFlow: a learner made of a compiled model and data; the two conversions, for other loops.

A model here is ``model.weights``, so that the moving statistics of batch normalisation travel with the rest.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

from broker_fl.errors import SettingError
from broker_fl.frameworks.fit import fitting
from broker_fl.frameworks.workload import Workload
from broker_fl.interfaces import Metrics, TaskContext, Update
from broker_fl.model import Array, Arrays, ModelError, ModelSpec, TensorSpec

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start would fill the screen; read at import
try:
    import keras
except ModuleNotFoundError as error:
    raise SettingError("Keras or TensorFlow is not installed: pip install 'broker-fl[tensorflow]'") from error
if keras.backend.backend() != "tensorflow":
    raise SettingError(
        f"Keras uses {keras.backend.backend()} here; set the environment variable KERAS_BACKEND=tensorflow"
    )

Data = Any
"""Inputs and targets, ``(x, y)``, as arrays; or a ``tf.data.Dataset`` or ``PyDataset`` of such batches."""

DEFAULT_BATCH_SIZE = 32


# ---------------------------------------------------------------- conversions


def to_arrays(model: keras.Model, out: Arrays | None = None) -> dict[str, Array]:
    """A copy of every weight of ``model``, by a name that is the same wherever the model was built.

    With ``out``, values are written into those arrays, and they are what is returned.
    """
    if out is None:
        return {name: np.array(_as_array(weight)) for name, weight in _weights(model).items()}
    for name, weight in _weights(model).items():
        np.copyto(out[name], _as_array(weight), casting="no")
    return dict(out)


def load_arrays(model: keras.Model, arrays: Arrays) -> None:
    """Copy ``arrays`` into the weights of ``model``.

    Raises:
        ModelError: names, shapes or element types are not those of the model; nothing was changed.
    """
    weights = _weights(model)
    expected = ModelSpec(tuple(_describe(name, weight) for name, weight in weights.items()))
    given = fitting(arrays, expected, "Keras model")
    for name, weight in weights.items():
        weight.assign(given[name])


def _weights(model: keras.Model) -> dict[str, Any]:
    """The weights by their paths, with the numbers in automatic names counted anew.

    Keras numbers layers through the whole process: the second model that is built has ``dense_2`` where the
    first had ``dense``. Here the first at its place is always ``dense``, the next one ``dense_1``.
    """
    if not model.built:
        raise ModelError("the Keras model has no weights yet: give it an Input, or call build()")
    found: dict[str, Any] = {}
    names: dict[tuple[str, str], str] = {}
    numbers: dict[tuple[str, str], int] = {}
    for weight in model.weights:
        path = ""
        for part in weight.path.split("/"):
            if (path, part) not in names:
                base = re.sub(r"(_\d+)+$", "", part)
                number = numbers[path, base] = numbers.get((path, base), -1) + 1
                names[path, part] = f"{base}_{number}" if number else base
            path = f"{path}/{names[path, part]}" if path else names[path, part]
        while path in found:  # two weights with one path
            path += "_again"
        found[path] = weight
    return found


def _describe(name: str, weight: Any) -> TensorSpec:
    return TensorSpec(name, keras.backend.standardize_dtype(weight.dtype), tuple(weight.shape))


def _as_array(weight: Any) -> Array:
    return np.asarray(weight.value.numpy())


# ---------------------------------------------------------------- the learner


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
        _weights(model)
        model.optimizer.build(model.trainable_variables)
        self._model = model
        self._fresh_optimizer = [np.array(_as_array(value)) for value in model.optimizer.variables]
        self._proximal: _Proximal | None = None
        self._control: _Control | None = None
        self._train_data = _not_empty("train_data", train_data)
        self._test_data = self._train_data if test_data is None else _not_empty("test_data", test_data)

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
        pace = _Pace(task, work, self._batches_of_a_step(work))
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
        pace = _Pace(task, Workload())
        data = _as_arguments(self._test_data, work.batch_size or DEFAULT_BATCH_SIZE)
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
            return {"x": _Shuffled(self._train_data, work), "shuffle": False}
        is_stream = hasattr(self._train_data, "element_spec")  # a tf.data.Dataset is shuffled by its owner
        return {"x": self._train_data, "shuffle": not is_stream}

    def _num_epochs(self, pace: _Pace, work: Workload) -> float:
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
            self._proximal = _Proximal(self._model)
        return self._proximal.hold(mu)

    def _corrected_by(self, correction: Arrays | None) -> AbstractContextManager[None]:
        """SCAFFOLD with this ``c − c_k``, until it is left."""
        if correction is None:
            return nullcontext()
        if self._control is None:
            self._control = _Control(self._model)
        return self._control.correct(correction)

    def _mean_gradients(self, task: TaskContext, pace: _Pace) -> dict[str, Array] | None:
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


class _Proximal:
    """FedProx: ``μ/2 ‖w − w_t‖²`` as a regularizer of each trained weight, beside the one it may have.

    As with every regularizer of Keras, the metric ``loss`` of training is with it; of evaluation it is
    without, since μ is 0 there. What Keras compiled before knows nothing of it and is compiled anew, once.
    """

    def __init__(self, model: keras.Model) -> None:
        self._mu = keras.Variable(0.0, trainable=False, name="proximal_mu")
        self._received = [
            # Of an array: made of the weight itself, it would be the same variable.
            (weight, keras.Variable(np.zeros(weight.shape), dtype=weight.dtype, trainable=False))
            for weight in model.trainable_variables
        ]
        for weight, received in self._received:
            weight.regularizer = self._regularizer(weight.regularizer, received)
        model.train_function = model.test_function = None

    @contextmanager
    def hold(self, mu: float) -> Iterator[None]:
        """Hold training at the weights of this moment."""
        for weight, received in self._received:
            received.assign(weight.value)
        self._mu.assign(mu)
        try:
            yield
        finally:
            self._mu.assign(0.0)

    def _regularizer(self, own: Callable[[Any], Any] | None, received: Any) -> Callable[[Any], Any]:
        def penalty(weight: Any) -> Any:
            change = keras.ops.cast(keras.ops.subtract(weight, received), "float32")
            term = self._mu * 0.5 * keras.ops.sum(keras.ops.square(change))
            return term if own is None else keras.ops.cast(own(weight), "float32") + term

        return penalty


class _Control:
    """SCAFFOLD's ``c − c_k``, added to the gradients on their way into the optimizer; see ``control.py``.

    What Keras compiled before knows nothing of it and is compiled anew, once; without a job of SCAFFOLD it
    adds zeros.
    """

    def __init__(self, model: keras.Model) -> None:
        self._apply = model.optimizer.apply
        self._terms = {
            name: (_like(weight), _like(weight))
            for name, weight in _weights(model).items()
            if weight.trainable
        }
        names = {id(weight): name for name, weight in _weights(model).items()}
        self._names = [names[id(weight)] for weight in model.trainable_variables]
        model.optimizer.apply = self._apply_corrected
        model.train_function = None

    @contextmanager
    def correct(self, correction: Arrays) -> Iterator[None]:
        """Correct all gradients by this."""
        for name, (term, total) in self._terms.items():
            term.assign(correction[name])
            total.assign(np.zeros(total.shape))
        try:
            yield
        finally:
            for term, _ in self._terms.values():
                term.assign(np.zeros(term.shape))

    def result(self, num_batches: int) -> dict[str, Array]:
        """The mean of the gradients, as they were before."""
        return {name: _as_array(total) / num_batches for name, (_, total) in self._terms.items()}

    def _apply_corrected(self, gradients: Any, variables: Any = None) -> Any:
        corrected = map(self._corrected, self._names, gradients)
        return self._apply(list(corrected), variables)

    def _corrected(self, name: str, gradient: Any) -> Any:
        if gradient is None:  # the loss does not depend on this weight
            return None
        (term, total), dense = self._terms[name], keras.ops.convert_to_tensor(gradient)
        total.assign_add(keras.ops.cast(dense, total.dtype))
        return dense + keras.ops.cast(term, dense.dtype)


def _like(weight: Any) -> Any:
    """Zeros in the type of a variate."""
    dtype = "float64" if keras.backend.standardize_dtype(weight.dtype) == "float64" else "float32"
    return keras.Variable(np.zeros(weight.shape), dtype=dtype, trainable=False)


class _Shuffled(keras.utils.PyDataset):  # type: ignore[misc]
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


class _Pace(keras.callbacks.Callback):  # type: ignore[misc]
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


def _as_arguments(data: Data, batch_size: int) -> dict[str, Any]:
    if isinstance(data, tuple | list):
        return {"x": data[0], "y": data[1], "batch_size": batch_size}
    return {"x": data}


def _not_empty(name: str, data: Data) -> Data:
    if isinstance(data, tuple | list):
        if len(data) != 2:
            raise SettingError(f"{name} has {len(data)} parts; give inputs and targets, (x, y)")
        if len(data[1]) == 0:
            raise SettingError(f"{name} is empty")
    return data
