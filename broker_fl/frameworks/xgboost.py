"""XGBoost: a learner that boosts trees on its own data, for the rule ``tree_bagging``.

A model here is one tensor ``booster`` with the JSON of a ``Booster`` (``opaque.py``). It has a fixed
capacity, since all versions of a model have one shape: as many bytes as the last version's trees will need.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from broker_fl import opaque
from broker_fl.errors import SettingError
from broker_fl.frameworks.workload import Workload, whole
from broker_fl.interfaces import Metrics, TaskContext, Update
from broker_fl.model import Array, Arrays, ModelError

try:
    import xgboost
except ModuleNotFoundError as error:
    raise SettingError("XGBoost is not installed: pip install 'broker-fl[xgboost]'") from error

Data = Any
"""Inputs and targets, ``(x, y)``, of any kind that ``DMatrix`` takes; or a ``DMatrix`` with its targets."""
Settings = Mapping[str, Any]
"""XGBoost's parameters: ``objective``, ``max_depth``, ``learning_rate``, …"""

TENSOR = "booster"
DEFAULT_CAPACITY_BYTES = 4 << 20
NUM_LOCAL_ROUND = "num_local_round"
"""The job's parameter: trees, for each class where there are several, that a task adds."""
DEFAULT_BASE_SCORE = 0.5


def empty_model(
    settings: Settings, num_features: int, *, capacity_bytes: int = DEFAULT_CAPACITY_BYTES
) -> dict[str, Array]:
    """The model that a job starts from: no trees yet; it needs no data.

    Args:
        settings: with ``base_score``, or 0.5: all learners have one, whatever their targets.
        num_features: of the inputs.
        capacity_bytes: of the JSON of all trees that there will ever be; one of 15 nodes takes about 1,300.

    Raises:
        SettingError: XGBoost does not take the settings.
    """
    given = {"base_score": DEFAULT_BASE_SCORE, **settings}
    try:
        booster = xgboost.train(given, xgboost.DMatrix(np.zeros((1, num_features)), [0.0]), num_boost_round=0)
    except (ValueError, xgboost.core.XGBoostError) as error:
        raise SettingError(f"XGBoost does not take these settings: {_reason(error)}") from error
    tensor = opaque.empty(capacity_bytes)
    opaque.write(_to_json(booster), tensor)
    return {TENSOR: tensor}


def to_booster(arrays: Arrays, settings: Settings | None = None) -> xgboost.Booster:
    """The model, any version, as an ordinary ``Booster``; ``settings`` are for training on or measuring.

    Raises:
        ModelError: the arrays are no such model.
    """
    if TENSOR not in arrays:
        raise ModelError(f"there is no tensor {TENSOR!r}; there are {', '.join(arrays) or 'none'}")
    try:
        return xgboost.Booster(dict(settings or {}), model_file=bytearray(opaque.read(arrays[TENSOR])))
    except xgboost.core.XGBoostError as error:
        raise ModelError(
            f"XGBoost cannot read tensor {TENSOR!r}: {_reason(error)}; is the job's rule 'tree_bagging'?"
        ) from error


class XGBoostLearner:
    """Adds trees to the model that it is given, and sends only those.

    The job's parameters ``num_local_round``, ``learning_rate`` and ``seed`` are read where they are given;
    without the first, ``steps`` or ``epochs`` say how many trees, since each is a step over all data.
    """

    def __init__(
        self,
        settings: Settings,
        train_data: Data,
        test_data: Data | None = None,
        *,
        capacity_bytes: int = DEFAULT_CAPACITY_BYTES,
    ) -> None:
        """Keep the data as XGBoost does.

        Args:
            settings: see ``Settings``; ``objective`` and ``base_score`` must be those of all learners.
            train_data: see ``Data``.
            test_data: what ``evaluate`` uses; without it, the training data.
            capacity_bytes: see ``empty_model``.

        Raises:
            SettingError: there are no data, or XGBoost does not take data or settings.
        """
        self._settings = {"base_score": DEFAULT_BASE_SCORE, **settings}
        self._objective = str(self._settings.get("objective", "reg:squarederror"))
        self._train_data = _matrix("train_data", train_data)
        self._test_data = self._train_data if test_data is None else _matrix("test_data", test_data)
        self._start = empty_model(self._settings, self._train_data.num_col(), capacity_bytes=capacity_bytes)

    def initial_model(self) -> dict[str, Array]:
        """A model without trees."""
        return {TENSOR: self._start[TENSOR].copy()}

    def train(self, model: Arrays, task: TaskContext) -> Update:
        """Boost on from ``model``; the new trees are written into the array that came, which saves a copy.

        Raises:
            SettingError: they do not fit into it, or the job asks for what boosting does not have.
        """
        work = Workload.of(task)
        num_rounds = _num_rounds(work, task)
        booster = self._load(model, work)
        before = booster.num_boosted_rounds()
        for number in range(num_rounds):
            booster.update(self._train_data, before + number)
            task.progress((number + 1) / num_rounds)
        try:
            opaque.write(_to_json(booster[before:]), model[TENSOR])
        except ModelError as error:
            raise SettingError(
                f"the trees of one task are too large: {error}; start the job from a model with a larger "
                f"capacity_bytes, or take fewer ({NUM_LOCAL_ROUND}) or smaller trees (max_depth)"
            ) from error
        return Update(
            model=model,
            num_examples=self._train_data.num_row(),
            num_steps=num_rounds,
            num_epochs=float(num_rounds),
            metrics=_measure(booster, self._train_data, self._objective),
        )

    def evaluate(self, model: Arrays, task: TaskContext) -> Metrics:
        """XGBoost's metrics, the first of them also as ``loss``; ``accuracy`` if the targets are classes."""
        found = _measure(self._load(model, Workload()), self._test_data, self._objective)
        task.progress(1.0)
        return {**found, "num_examples": self._test_data.num_row()}

    def _load(self, model: Arrays, work: Workload) -> xgboost.Booster:
        settings = dict(self._settings)
        if work.seed is not None:
            settings["seed"] = work.seed
        if work.learning_rate is not None:
            settings.pop("eta", None)
            settings["learning_rate"] = work.learning_rate
        booster = to_booster(model, settings)
        if booster.num_features() != self._train_data.num_col():
            raise ModelError(
                f"the model has {booster.num_features()} features, and this learner's data "
                f"{self._train_data.num_col()}"
            )
        return booster


def _num_rounds(work: Workload, task: TaskContext) -> int:
    for name, value in (("batch_size", work.batch_size), ("proximal_mu", work.proximal_mu or None)):
        if value is not None:
            raise SettingError(
                f"the job asks for {name} {value}: boosting has all data in each step, and no weights to "
                f"hold; leave it out of the job"
            )
    return whole(task.parameters, NUM_LOCAL_ROUND, 1) or work.steps or work.epochs


def _measure(booster: xgboost.Booster, data: xgboost.DMatrix, objective: str) -> dict[str, float]:
    text = booster.eval(data, name="data")  # "[0]\tdata-logloss:0.69\tdata-auc:0.5"
    pairs = [part.removeprefix("data-").rsplit(":", 1) for part in text.split("\t")[1:]]
    found = {name: float(value) for name, value in pairs}
    accuracy = _accuracy(booster.predict(data), data.get_label(), objective)
    return {"loss": next(iter(found.values())), **found, **accuracy}


def _accuracy(predicted: Array, targets: Array, objective: str) -> dict[str, float]:
    if objective.startswith("multi:"):
        guessed = predicted.argmax(axis=1) if predicted.ndim == 2 else predicted
    elif objective.startswith("binary:"):
        guessed = predicted > (0 if objective == "binary:logitraw" else 0.5)
    else:
        return {}
    return {"accuracy": float((guessed == targets).mean())}


def _to_json(booster: xgboost.Booster) -> bytes:
    return bytes(booster.save_raw("json"))


def _matrix(name: str, data: Data) -> xgboost.DMatrix:
    if not isinstance(data, xgboost.DMatrix):
        if len(data) != 2:
            raise SettingError(f"{name} has {len(data)} parts; give inputs and targets, (x, y)")
        try:
            data = xgboost.DMatrix(*data)
        except (ValueError, TypeError, xgboost.core.XGBoostError) as error:
            raise SettingError(f"XGBoost does not take {name}: {_reason(error)}") from error
    matrix: xgboost.DMatrix = data
    if not matrix.num_row():
        raise SettingError(f"{name} is empty")
    if len(matrix.get_label()) == 0:
        raise SettingError(f"{name} has no targets: make the DMatrix with label=")
    return matrix


def _reason(error: Exception) -> str:
    """XGBoost's message without the stack that it adds."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].split("] ")[-1] if lines else type(error).__name__
