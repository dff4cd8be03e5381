"""scikit-learn: a learner made of an estimator with ``partial_fit`` and data; the two conversions.

Estimators are the linear models that learn by stochastic gradient descent (``SGDClassifier``,
``SGDRegressor``, ``Perceptron`` and their like) and the networks ``MLPClassifier`` and ``MLPRegressor``.

A model here is every array that they learn, ``coef_`` and ``intercept_`` or ``coefs_.0``, …,
``intercepts_.0``, …, and their counter of examples ``t_``, on which schedules of the learning rate depend. It
travels as an int64: rules make integers the learners' mean, so that a schedule goes on from where the average
learner got to, and no rule takes a counter for a weight.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from broker_fl.errors import SettingError
from broker_fl.frameworks.batches import Batches
from broker_fl.frameworks.fit import fitting
from broker_fl.frameworks.workload import Workload
from broker_fl.interfaces import Metrics, TaskContext, Update
from broker_fl.model import Array, Arrays, ModelSpec

try:
    from sklearn.base import is_classifier, is_regressor
    from sklearn.neural_network import MLPClassifier, MLPRegressor
except ModuleNotFoundError as error:
    raise SettingError("scikit-learn is not installed: pip install 'broker-fl[sklearn]'") from error

Data = tuple[Any, Any]
"""Inputs ``(n, features)``, dense or a sparse matrix, and targets ``(n,)``; for ``MLPRegressor`` they may be
``(n, outputs)``.
"""

LINEAR_BATCH_SIZE = 256
"""Examples between two reports; a linear model does a step for each example, whatever the batch."""
MLP_BATCH_SIZE = 32
MEASURED_AT_ONCE = 4096
SCHEDULES_WITH_RATE = ("constant", "invscaling", "adaptive")


# ---------------------------------------------------------------- conversions


def build(
    estimator: Any,
    num_features: int,
    *,
    classes: Sequence[Any] | Array | None = None,
    num_outputs: int = 1,
    dtype: type[np.floating[Any]] = np.float64,
) -> Any:
    """A copy of ``estimator`` with all its arrays in place, which needs no data; a fitted one stays as it is.

    Linear models begin with zeros; networks as their ``random_state`` says.

    Args:
        estimator: one with ``partial_fit``.
        num_features: of the inputs.
        classes: of a classifier: all that any learner has.
        num_outputs: of a regressor.
        dtype: of the inputs, float32 or float64; the arrays have it, too.

    Raises:
        SettingError: it cannot learn in steps, or keeps something beside its arrays; or no classes are given.
    """
    _check(estimator, classes)
    built = copy.deepcopy(estimator)
    if hasattr(built, "t_"):
        return _fitted(built, classes)
    targets = np.zeros((1, num_outputs) if num_outputs > 1 else 1)
    _make_arrays(built, np.zeros((1, num_features), dtype), targets, classes)
    if isinstance(built, MLPClassifier | MLPRegressor):
        built.set_params(learning_rate_init=estimator.learning_rate_init, batch_size=estimator.batch_size)
        built.t_ = 0
        _forget_optimizer(built)
    elif hasattr(built, "coef_") and hasattr(built, "t_"):
        built.coef_, built.intercept_ = np.zeros_like(built.coef_), np.zeros_like(built.intercept_)
        built.t_ = 1.0
    else:
        raise SettingError(
            f"{_name(estimator)} does not learn by stochastic gradient descent, so its arrays cannot be "
            f"averaged: take SGDClassifier, SGDRegressor, Perceptron, MLPClassifier or MLPRegressor"
        )
    return built


def _make_arrays(
    estimator: Any, inputs: Array, targets: Array, classes: Sequence[Any] | Array | None
) -> None:
    """By a step on one example; ``targets`` are a regressor's."""
    try:
        if isinstance(estimator, MLPClassifier | MLPRegressor):
            # One as small as this leaves every weight as it was drawn.
            estimator.set_params(learning_rate_init=np.finfo(np.float64).tiny, batch_size="auto")
        if is_classifier(estimator):
            known = np.unique(np.asarray(classes))
            estimator.partial_fit(inputs, known[:1], classes=known)
        else:
            estimator.partial_fit(inputs, targets)
    except ValueError as error:
        raise SettingError(f"{_name(estimator)} cannot be trained in steps: {error}") from error


def _fitted(estimator: Any, classes: Sequence[Any] | Array | None) -> Any:
    if is_classifier(estimator) and not np.array_equal(estimator.classes_, np.unique(np.asarray(classes))):
        raise SettingError(
            f"{_name(estimator)} is fitted to the classes {estimator.classes_.tolist()}, and classes are "
            f"{np.unique(np.asarray(classes)).tolist()}: give the same, or an estimator that is not fitted"
        )
    return estimator


def to_arrays(estimator: Any, out: Arrays | None = None) -> dict[str, Array]:
    """A copy of every array of a built or fitted estimator.

    With ``out``, values are written into those arrays, and they are what is returned.
    """
    arrays = _arrays(estimator)
    if out is None:
        return {name: array.copy() for name, array in arrays.items()}
    for name, array in arrays.items():
        np.copyto(out[name], array, casting="no")
    return dict(out)


def load_arrays(estimator: Any, arrays: Arrays) -> None:
    """Copy ``arrays`` into a built or fitted estimator.

    Raises:
        ModelError: names, shapes or element types are not those of the estimator; nothing was changed.
    """
    given = fitting(arrays, ModelSpec.of(_arrays(estimator)), _name(estimator))
    if isinstance(estimator, MLPClassifier | MLPRegressor):
        for kind in ("coefs_", "intercepts_"):
            setattr(estimator, kind, [given[f"{kind}.{i}"].copy() for i in range(estimator.n_layers_ - 1)])
        estimator.t_ = int(given["t_"])
    else:
        estimator.coef_, estimator.intercept_ = given["coef_"].copy(), given["intercept_"].copy()
        estimator.t_ = float(given["t_"])


def _arrays(estimator: Any) -> dict[str, Array]:
    if isinstance(estimator, MLPClassifier | MLPRegressor):
        found = {
            f"{kind}.{number}": array
            for kind in ("coefs_", "intercepts_")
            for number, array in enumerate(getattr(estimator, kind))
        }
    else:
        found = {"coef_": estimator.coef_, "intercept_": estimator.intercept_}
    return {**found, "t_": np.array(round(estimator.t_), np.int64)}


def _check(estimator: Any, classes: Sequence[Any] | Array | None) -> None:
    """Refuse what has no steps, and what has a state that would stay behind."""
    name = _name(estimator)
    if not (is_classifier(estimator) or is_regressor(estimator)) or not hasattr(estimator, "partial_fit"):
        raise SettingError(
            f"{name} is no classifier or regressor with partial_fit (a network has it with solver='sgd' or "
            f"'adam'): it cannot be trained in steps"
        )
    if is_classifier(estimator) and (classes is None or len(np.unique(np.asarray(classes))) < 2):
        raise SettingError(
            f"{name} needs classes: all, two or more, that any learner has, so that every model has the same "
            f"shape; given: {classes!r}"
        )
    if getattr(estimator, "average", False):
        raise SettingError(
            f"{name} has average={estimator.average!r}: its average is a second set of weights, which would "
            f"not travel; the federation averages anyway: leave it out"
        )
    schedule = getattr(estimator, "learning_rate", "constant")
    is_network = isinstance(estimator, MLPClassifier | MLPRegressor)
    if is_network and estimator.solver == "sgd" and schedule != "constant":
        raise SettingError(
            f"{name} has learning_rate={schedule!r}, which its optimizer follows from task to task, and that "
            f"does not travel: take learning_rate='constant'"
        )


def _forget_optimizer(network: Any) -> None:
    """The next ``partial_fit`` makes one; scikit-learn has no public way to say so."""
    vars(network).pop("_optimizer", None)
    network.loss_curve_ = []


def _name(estimator: Any) -> str:
    return type(estimator).__name__


# ---------------------------------------------------------------- the learner


class SklearnLearner:
    """Trains an estimator with ``partial_fit``, batch by batch.

    The job's parameters ``epochs``, ``steps``, ``batch_size``, ``learning_rate`` and ``seed`` are read where
    they are given. A linear model does an optimiser step for each example, a network one for each batch;
    ``steps`` and ``num_steps`` count those. A network's optimizer starts afresh with each task.
    """

    def __init__(
        self,
        estimator: Any,
        train_data: Data,
        test_data: Data | None = None,
        *,
        classes: Sequence[Any] | Array | None = None,
    ) -> None:
        """Take a copy of ``estimator``.

        Args:
            estimator: see ``build``; with ``shuffle=False`` examples are taken in their order.
            train_data: see ``Data``. Inputs other than float32 become float64.
            test_data: what ``evaluate`` uses; without it, the training data.
            classes: of a classifier: all that any learner has, the same for all learners. This one's data
                may lack some.

        Raises:
            SettingError: there are no data, a target is not in ``classes``, or the estimator will not do.
        """
        _check(estimator, classes)
        self._classes = np.unique(np.asarray(classes)) if is_classifier(estimator) else None
        self._train_data = _usable("train_data", train_data, self._classes)
        self._test_data = (
            self._train_data if test_data is None else _usable("test_data", test_data, self._classes)
        )
        inputs, targets = self._train_data
        self._estimator = build(
            estimator,
            inputs.shape[1],
            classes=self._classes,
            num_outputs=1 if targets.ndim == 1 else targets.shape[1],
            dtype=inputs.dtype.type,
        )
        self._is_network = isinstance(self._estimator, MLPClassifier | MLPRegressor)
        self._shuffle = bool(self._estimator.shuffle)
        self._estimator.shuffle = False  # batches come shuffled, from a generator of their own
        self._rate_name = "learning_rate_init" if self._is_network else "eta0"
        self._own_rate = getattr(self._estimator, self._rate_name, None)

    def initial_model(self) -> dict[str, Array]:
        """A copy of the estimator's arrays."""
        return to_arrays(self._estimator)

    def train(self, model: Arrays, task: TaskContext) -> Update:
        """Train from ``model``; the result is written into the arrays that came, which saves a copy.

        The metrics are those of the trained model on the training data.
        """
        work = Workload.of(task)
        if work.proximal_mu:
            raise SettingError(
                f"the job asks for proximal_mu {work.proximal_mu} (FedProx), and {_name(self._estimator)} "
                f"computes its gradients itself: take another rule, or a framework whose learner has the term"
            )
        load_arrays(self._estimator, model)
        self._begin(work)
        inputs, targets = self._train_data
        batches = self._batches(work, task)
        for rows in batches:
            self._step(inputs[rows], targets[rows])
        return Update(
            model=to_arrays(self._estimator, out=model),
            num_examples=batches.num_examples,
            num_steps=batches.num_batches if self._is_network else batches.num_drawn,
            num_epochs=batches.num_epochs,
            metrics=self._measure(self._train_data, None),
        )

    def evaluate(self, model: Arrays, task: TaskContext) -> Metrics:
        """``accuracy`` and ``loss``: cross-entropy where there are probabilities, else the hinge loss; of a
        regressor the mean squared error.
        """
        load_arrays(self._estimator, model)
        return {**self._measure(self._test_data, task), "num_examples": self._test_data[0].shape[0]}

    def _begin(self, work: Workload) -> None:
        """The learning rate that the job asks for, and an optimizer that remembers nothing."""
        if work.learning_rate is not None and not self._has_rate():
            raise SettingError(
                f"the job asks for learning_rate {work.learning_rate}, but {_name(self._estimator)} sets its "
                f"own: give it learning_rate='constant', or leave learning_rate out of the job"
            )
        if self._own_rate is not None:
            setattr(self._estimator, self._rate_name, work.learning_rate or self._own_rate)
        if self._is_network:
            _forget_optimizer(self._estimator)

    def _has_rate(self) -> bool:
        """Whether the rate can be set; the schedule 'optimal' and passive-aggressive steps have none."""
        if self._is_network:
            return True
        return self._own_rate is not None and self._estimator.learning_rate in SCHEDULES_WITH_RATE

    def _batches(self, work: Workload, task: TaskContext) -> Batches:
        num_rows = self._train_data[0].shape[0]
        default = MLP_BATCH_SIZE if self._is_network else LINEAR_BATCH_SIZE
        batches = Batches(num_rows, work.batch_size or default, work, task)
        batches.shuffle = self._shuffle
        if work.steps is not None and not self._is_network:
            batches.end_after(work.steps)  # a step of a linear model is one example
        return batches

    def _step(self, inputs: Any, targets: Array) -> None:
        if self._is_network:
            self._estimator.batch_size = len(targets)
        self._estimator.partial_fit(inputs, targets)

    def _measure(self, data: Data, task: TaskContext | None) -> dict[str, float]:
        inputs, targets = data
        sums: dict[str, float] = {}
        for start in range(0, len(targets), MEASURED_AT_ONCE):
            part = slice(start, start + MEASURED_AT_ONCE)
            for name, values in self._values(inputs[part], targets[part]).items():
                sums[name] = sums.get(name, 0.0) + float(values.sum(dtype=np.float64))
            if task is not None:
                task.progress(min(1.0, part.stop / len(targets)))
        return {name: total / len(targets) for name, total in sums.items()}

    def _values(self, inputs: Any, targets: Array) -> dict[str, Array]:
        """Of each example."""
        if self._classes is None:
            squared = (self._estimator.predict(inputs) - targets) ** 2
            return {"loss": squared if squared.ndim == 1 else squared.mean(axis=1)}
        right = np.searchsorted(self._classes, targets)
        each = np.arange(len(right))
        if hasattr(self._estimator, "predict_proba"):
            scores = self._estimator.predict_proba(inputs)
            loss = -np.log(np.maximum(scores[each, right], np.finfo(scores.dtype).eps))
        else:
            scores = self._estimator.decision_function(inputs)
            if scores.ndim == 1:
                scores = np.stack([-scores, scores], axis=1) / 2
            others = scores.copy()
            others[each, right] = -np.inf
            loss = np.maximum(0, 1 - scores[each, right] + others.max(axis=1))
        return {"loss": loss, "accuracy": scores.argmax(axis=1) == right}


def _usable(name: str, data: Data, classes: Array | None) -> Data:
    if len(data) != 2:
        raise SettingError(f"{name} has {len(data)} parts; give inputs and targets, (x, y)")
    inputs, targets = data
    inputs = inputs.tocsr() if hasattr(inputs, "tocsr") else np.asarray(inputs)
    if inputs.dtype != np.float32:
        inputs = inputs.astype(np.float64)
    targets = np.asarray(targets)
    if inputs.ndim != 2 or inputs.shape[0] != targets.shape[0]:
        raise SettingError(
            f"{name} has inputs of shape {inputs.shape} and targets of shape {targets.shape}; give one "
            f"row of inputs for each target"
        )
    if not len(targets):
        raise SettingError(f"{name} is empty")
    if classes is not None and len(unknown := np.setdiff1d(targets, classes)):
        raise SettingError(f"{name} has targets that are not in classes: {', '.join(map(str, unknown[:5]))}")
    return inputs, targets
