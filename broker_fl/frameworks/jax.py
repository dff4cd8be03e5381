"""JAX: a learner made of a pytree of arrays, a loss and data; the two conversions, for other loops.

A model here is the leaves of the pytree under names made of their paths: see ``pytree.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from broker_fl.errors import SettingError
from broker_fl.frameworks.batches import Batches
from broker_fl.frameworks.fit import fitting
from broker_fl.frameworks.workload import Workload
from broker_fl.interfaces import Metrics, TaskContext, Update
from broker_fl.model import Array, Arrays, ModelSpec

try:
    import jax
except ModuleNotFoundError as error:
    raise SettingError("JAX is not installed: pip install 'broker-fl[jax]'") from error

from jax import numpy as jnp

from broker_fl.frameworks.pytree import Layout, Named, Tree, described, from_arrays, placed, to_arrays

__all__ = ["JaxLearner", "Optimizer", "Variables", "from_arrays", "sgd", "to_arrays"]

Data = tuple[Tree, Tree]
"""Inputs and targets, ``(x, y)``: arrays, or pytrees of arrays, with one row for each example."""

DEFAULT_BATCH_SIZE = 32


class Variables(NamedTuple):
    """A model with a part that no gradient trains, such as the running statistics of batch normalisation."""

    params: Tree
    state: Tree


class Optimizer(Protocol):
    """What every optimizer of Optax is."""

    @property
    def init(self) -> Callable[[Any], Any]:
        """Parameters → the optimizer's state."""
        ...

    @property
    def update(self) -> Callable[..., tuple[Any, Any]]:
        """Gradients, state, parameters → what to add to the parameters, and the next state."""
        ...


class _Sgd(NamedTuple):
    init: Callable[[Any], Any]
    update: Callable[..., tuple[Any, Any]]


def sgd(learning_rate: float) -> Optimizer:
    """Plain stochastic gradient descent."""

    def update(gradients: Any, state: Any, _params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(lambda gradient: -learning_rate * gradient, gradients), state

    return _Sgd(lambda params: (), update)


DEFAULT_OPTIMIZER = partial(sgd, learning_rate=0.01)


# ---------------------------------------------------------------- the learner


class JaxLearner:
    """Trains a pytree with plain mini-batch steps, compiled once for each shape of batch.

    The job's parameters ``epochs``, ``steps``, ``batch_size``, ``learning_rate``, ``seed`` and, for FedProx,
    ``proximal_mu`` are read where they are given; SCAFFOLD's control variates are kept. The optimizer begins
    afresh with each task.
    """

    def __init__(
        self,
        model: Tree | Variables,
        loss: Callable[..., Any],
        train_data: Data,
        test_data: Data | None = None,
        *,
        optimizer: Callable[..., Optimizer] = DEFAULT_OPTIMIZER,
        device: str = "cpu",
    ) -> None:
        """Learners that are given the same ``loss`` and ``optimizer`` objects share what is compiled.

        Args:
            model: the parameters, all of floating-point type, or ``Variables``; the ``initial_model``.
            loss: ``loss(params, inputs, targets)`` gives the mean over the batch, or a pair of it and a dict
                of other means. Of ``Variables``: ``loss(variables, inputs, targets, key)`` gives a pair of
                the mean and a pair ``(state, metrics)``; ``key`` is what dropout draws from, None in
                evaluation, where the state that comes back does not matter.
            train_data: see ``Data``; shuffled and cut into batches of the job's ``batch_size``, or of 32.
            test_data: what ``evaluate`` uses; without it, the training data.
            optimizer: makes one, as those of Optax do: called with ``learning_rate`` if the job gives it,
                otherwise with nothing: ``partial(optax.adam, learning_rate=1e-3)``. It sees the parameters as
                a dict by name.
            device: ``"cpu"``, ``"gpu"``, ``"gpu:1"``, …; ``"auto"`` takes a GPU where there is one.

        Raises:
            SettingError: there are no data, no such device, or a parameter that no gradient can train.
        """
        self._device = _device(device)
        self._loss = loss
        self._optimizer = optimizer
        self._train_data = _usable("train_data", train_data)
        self._test_data = self._train_data if test_data is None else _usable("test_data", test_data)
        split = isinstance(model, Variables)
        params, self._params = Layout.of(model.params if split else model, "params" if split else "")
        state, self._state = Layout.of(model.state, "state") if split else (None, {})
        for name, leaf in self._params.items():
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise SettingError(
                    f"leaf {name!r} of the pytree is {leaf.dtype}: no gradient can train it; give "
                    f"Variables(params, state), and put it into the state"
                )
        self._layouts = (params, state)
        self._spec = ModelSpec.of({n: described(leaf) for n, leaf in {**self._params, **self._state}.items()})

    def initial_model(self) -> dict[str, Array]:
        """A copy of the leaves."""
        return {name: np.array(leaf) for name, leaf in {**self._params, **self._state}.items()}

    def train(self, model: Arrays, task: TaskContext) -> Update:
        """Train from ``model``; the result is written into the arrays that came, which saves a copy."""
        work = Workload.of(task)
        params, state = self._received(model)
        optimizer, step = _compiled_step(self._loss, *self._layouts, self._optimizer, work.learning_rate)
        remembered = jax.device_put(optimizer.init(params), self._device)
        received = jax.tree.map(jnp.copy, params) if work.proximal_mu else None
        control = self._correction(task)
        total = None if control is None else {name: jnp.zeros_like(c) for name, c in control.items()}
        key = jax.device_put(jax.random.key(_seed(work)), self._device)
        batches, means = Batches(_num_rows(self._train_data), self._batch_size(work), work, task), _Means()
        for rows in batches:
            batch = _rows(self._train_data, rows)
            now = jax.random.fold_in(key, batches.num_batches)
            (params, state, remembered, total), found = step(
                (params, state, remembered, total), batch, now, (received, work.proximal_mu), control
            )
            means.add(len(rows), found)
        for name, leaf in {**params, **state}.items():
            np.copyto(model[name], np.asarray(leaf), casting="no")
        return Update(
            model=model,
            num_examples=batches.num_examples,
            num_steps=batches.num_batches,
            num_epochs=batches.num_epochs,
            metrics=means.result(),
            control=_mean(total, batches.num_batches),
        )

    def evaluate(self, model: Arrays, task: TaskContext) -> Metrics:
        """``loss``, and what else the loss function tells."""
        params, state = self._received(model)
        measure = _compiled_measure(self._loss, *self._layouts)
        num_rows = _num_rows(self._test_data)
        batches, means = Batches(num_rows, self._batch_size(Workload.of(task)), Workload(), task), _Means()
        batches.shuffle = False
        for rows in batches:
            means.add(len(rows), measure(params, state, _rows(self._test_data, rows)))
        return {**means.result(), "num_examples": num_rows}

    def _correction(self, task: TaskContext) -> Named | None:
        """SCAFFOLD's ``c − c_k`` of the parameters; float64 as far as JAX has it."""
        if (given := task.control) is None:
            return None
        return {name: jax.device_put(jnp.asarray(given[name]), self._device) for name in self._params}

    def _received(self, model: Arrays) -> tuple[Named, Named]:
        given = fitting(model, self._spec, "pytree")
        params = {name: placed(given[name], self._device) for name in self._params}
        return params, {name: placed(given[name], self._device) for name in self._state}

    def _batch_size(self, work: Workload) -> int:
        return work.batch_size or DEFAULT_BATCH_SIZE


def _mean(total: Named | None, num_steps: int) -> dict[str, Array] | None:
    return None if total is None else {name: np.asarray(one / num_steps) for name, one in total.items()}


class _Means:
    """Means over examples. Each step's values are read while the next one runs: JAX is one step ahead."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._num_examples = 0
        self._last: tuple[int, Mapping[str, Any]] = (0, {})

    def add(self, num_examples: int, values: Mapping[str, Any]) -> None:
        last, self._last = self._last, (num_examples, values)
        self._num_examples += last[0]
        for name, value in last[1].items():
            self._sums[name] = self._sums.get(name, 0.0) + last[0] * float(value)

    def result(self) -> dict[str, float]:
        self.add(0, {})
        return {name: total / self._num_examples for name, total in self._sums.items()}


# ---------------------------------------------------------------- what is compiled


@lru_cache(maxsize=32)
def _compiled_step(
    loss: Callable[..., Any],
    params_layout: Layout,
    state_layout: Layout | None,
    make_optimizer: Callable[..., Optimizer],
    learning_rate: float | None,
) -> tuple[Optimizer, Callable[..., Any]]:
    """One optimiser step. FedProx adds ``μ (w − w_t)`` to the gradient; the metric ``loss`` is without it.
    SCAFFOLD adds ``c − c_k``, and sums the gradients as they were before.
    """
    optimizer = make_optimizer(**({} if learning_rate is None else {"learning_rate": learning_rate}))
    objective = _objective(loss, params_layout, state_layout)

    def step(carried: Any, batch: Data, key: Any, proximal: Any, control: Any) -> Any:
        params, state, remembered, total = carried
        received, mu = proximal
        (value, (state, metrics)), gradients = jax.value_and_grad(objective, has_aux=True)(
            params, state, batch, key
        )
        if control is not None:
            total = {name: total[name] + g for name, g in gradients.items()}
            gradients = {name: g + control[name].astype(g.dtype) for name, g in gradients.items()}
        if received is not None:
            gradients = {name: g + mu * (params[name] - received[name]) for name, g in gradients.items()}
        changes, remembered = optimizer.update(gradients, remembered, params)
        params = {name: (p + changes[name]).astype(p.dtype) for name, p in params.items()}
        return (params, state, remembered, total), {"loss": value, **metrics}

    return optimizer, jax.jit(step, donate_argnums=0)


@lru_cache(maxsize=32)
def _compiled_measure(
    loss: Callable[..., Any], params_layout: Layout, state_layout: Layout | None
) -> Callable[..., Any]:
    objective = _objective(loss, params_layout, state_layout)

    def measure(params: Named, state: Named, batch: Data) -> dict[str, Any]:
        value, (_, metrics) = objective(params, state, batch, None)
        return {"loss": value, **metrics}

    return jax.jit(measure)


def _objective(
    loss: Callable[..., Any], params_layout: Layout, state_layout: Layout | None
) -> Callable[..., Any]:
    """The loss as a function of the named arrays: value, (state, metrics)."""
    if state_layout is None:
        return partial(_plain, loss, params_layout)
    return partial(_with_state, loss, params_layout, state_layout)


def _plain(loss: Any, layout: Layout, params: Named, state: Named, batch: Data, _key: Any) -> Any:
    found = loss(layout.tree(params), *batch)
    value, metrics = found if isinstance(found, tuple) else (found, {})
    return value, (state, metrics)


def _with_state(
    loss: Any, params_layout: Layout, state_layout: Layout, *arguments: Any
) -> tuple[Any, tuple[Named, Any]]:
    params, state, batch, key = arguments
    before = state_layout.tree(state)
    value, (after, metrics) = loss(Variables(params_layout.tree(params), before), *batch, key)
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (before, after)]
    if shapes[0] != shapes[1]:
        raise SettingError(f"the loss gave back a state of shapes {shapes[1]} instead of {shapes[0]}")
    values = state_layout.values(after)
    return value, ({name: jnp.asarray(values[name], state[name].dtype) for name in state}, metrics)


def _seed(work: Workload) -> int:
    return int(np.random.default_rng().integers(1 << 31)) if work.seed is None else work.seed


def _rows(data: Data, rows: Any) -> Data:
    inputs, targets = jax.tree.map(lambda array: array[rows], data)
    return inputs, targets


def _num_rows(data: Data) -> int:
    return len(jax.tree.leaves(data)[0])


def _usable(name: str, data: Data) -> Data:
    if len(data) != 2:
        raise SettingError(f"{name} has {len(data)} parts; give inputs and targets, (x, y)")
    inputs, targets = jax.tree.map(np.asarray, tuple(data))
    sizes = {array.shape[0] if array.ndim else 0 for array in jax.tree.leaves((inputs, targets))}
    if sizes <= {0}:
        raise SettingError(f"{name} is empty")
    if len(sizes) > 1:
        raise SettingError(
            f"the arrays of {name} have {sorted(sizes)} rows; give one row of each for every example"
        )
    return inputs, targets


def _device(name: str) -> jax.Device:
    if name == "auto":
        return jax.local_devices()[0]
    platform, _, index = name.partition(":")
    try:
        return jax.local_devices(backend=platform)[int(index or 0)]
    except (RuntimeError, ValueError, IndexError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise SettingError(
            f"device {name!r} cannot be used ({reason}); 'auto' takes what there is"
        ) from error
