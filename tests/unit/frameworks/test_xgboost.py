from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import xgboost

from broker_fl import opaque
from broker_fl.errors import SettingError, TaskCancelled
from broker_fl.frameworks import LocalTask
from broker_fl.frameworks.xgboost import XGBoostLearner, empty_model, to_booster
from broker_fl.interfaces import Learner, Parameters
from broker_fl.model import Model, ModelError
from tests.unit.frameworks.recording import Recording

NUM = 130
BINARY = {"objective": "binary:logistic", "max_depth": 3, "nthread": 1}
CLASSES = {**BINARY, "objective": "multi:softprob", "num_class": 3}
SQUARES = {**BINARY, "objective": "reg:squarederror", "base_score": 1.0}


def examples(settings: dict[str, Any]) -> tuple[Any, Any]:
    inputs = np.random.default_rng(1).standard_normal((NUM, 6))
    if settings is SQUARES:
        return inputs, inputs[:, 0] ** 2
    classes = inputs[:, :3].argmax(axis=1)
    return inputs, classes if settings is CLASSES else classes > 0


def learner(settings: dict[str, Any] | None = None, **options: Any) -> XGBoostLearner:
    settings = settings or BINARY
    return XGBoostLearner(settings, examples(settings), **{"capacity_bytes": 100_000} | options)


def test_the_first_model_has_no_trees_and_needs_no_data() -> None:
    model = empty_model({**BINARY, "base_score": 0.2}, 6)
    booster = to_booster(model)
    assert model["booster"].shape == (8 + (4 << 20),)
    assert (booster.num_boosted_rounds(), booster.num_features()) == (0, 6)
    np.testing.assert_allclose(booster.predict(xgboost.DMatrix(np.zeros((2, 6)))), 0.2, rtol=1e-6)


@pytest.mark.parametrize("settings", [BINARY, CLASSES, SQUARES], ids=["binary", "multi", "regression"])
def test_a_task_adds_the_trees_that_xgboost_itself_would_and_sends_only_those(
    settings: dict[str, Any],
) -> None:
    """From a model that has trees already; beside xgboost.train, which goes on from it."""
    site: Learner = learner(settings)
    given = xgboost.train(
        {"base_score": 0.5, **settings}, xgboost.DMatrix(*examples(settings)), num_boost_round=2
    )
    model = Model.of(learner(settings).initial_model())
    opaque.write(bytes(given.save_raw("json")), model["booster"])
    parameters = {"num_local_round": 3, "learning_rate": 0.2, "seed": 1}
    update = site.train(model.copy(), LocalTask(parameters=parameters))
    expected = xgboost.train(
        {**settings, "learning_rate": 0.2},
        xgboost.DMatrix(*examples(settings)),
        num_boost_round=3,
        xgb_model=given,
    )
    sent = to_booster(update.model)
    assert sent.get_dump(with_stats=True) == expected[2:].get_dump(with_stats=True)
    assert (update.num_examples, update.num_steps, update.num_epochs) == (NUM, 3, 3)
    assert update.metrics["loss"] < site.evaluate(model, LocalTask())["loss"]


def test_the_targets_of_one_learner_do_not_move_the_base_score() -> None:
    inputs = examples(BINARY)[0]
    few = XGBoostLearner(BINARY, (inputs, np.arange(NUM) < 5), capacity_bytes=100_000)
    update = few.train(few.initial_model(), LocalTask())
    shape = json.loads(opaque.read(update.model["booster"]))["learner"]["learner_model_param"]
    assert shape["base_score"] == "[5E-1]"
    assert shape["boost_from_average"] == "0"


def test_the_result_is_in_the_array_that_came_and_nothing_is_kept() -> None:
    site = learner()
    model = Model.of(site.initial_model())
    update = site.train(dict(model), LocalTask())
    assert Model.of(update.model).buffer is model.buffer
    again = site.train(site.initial_model(), LocalTask())
    assert Model.of(again.model).digest == model.digest != Model.of(site.initial_model()).digest


@pytest.mark.parametrize(
    ("parameters", "num_trees"),
    [({}, 1), ({"epochs": 3}, 3), ({"epochs": 3, "steps": 2}, 2), ({"steps": 2, "num_local_round": 4}, 4)],
)
def test_a_step_is_a_tree_and_a_pass_over_all_data(parameters: Parameters, num_trees: int) -> None:
    site = learner()
    update = site.train(site.initial_model(), LocalTask(parameters=parameters))
    assert (update.num_steps, update.num_epochs) == (num_trees, num_trees)
    assert to_booster(update.model).num_boosted_rounds() == num_trees


def test_the_seed_decides_the_result() -> None:
    site = learner({**BINARY, "subsample": 0.5})

    def digest(seed: int, learner_id: str = "a") -> str:
        task = LocalTask(learner=learner_id, parameters={"num_local_round": 3, "seed": seed})
        return Model.of(site.train(site.initial_model(), task).model).digest

    assert digest(1) == digest(1)
    assert len({digest(1), digest(2), digest(1, "b")}) == 3


def test_evaluation_has_the_metrics_of_xgboost() -> None:
    inputs, targets = examples(BINARY)
    site = XGBoostLearner(
        {**BINARY, "eval_metric": ["error", "auc"]}, (inputs, targets), (inputs[:50], targets[:50])
    )
    update = site.train(site.initial_model(), LocalTask(parameters={"epochs": 5}))
    found = site.evaluate(update.model, LocalTask())
    assert set(found) == {"loss", "error", "auc", "accuracy", "num_examples"}
    assert found["loss"] == found["error"] == pytest.approx(1 - found["accuracy"], abs=1e-6)
    guessed = to_booster(update.model).predict(xgboost.DMatrix(inputs[:50])) > 0.5
    assert (found["accuracy"], found["num_examples"]) == ((guessed == targets[:50]).mean(), 50)
    model = learner(CLASSES).initial_model()
    assert learner(CLASSES).evaluate(model, LocalTask())["loss"] == pytest.approx(np.log(3), rel=1e-5)
    assert set(learner(SQUARES).evaluate(learner(SQUARES).initial_model(), LocalTask())) == {
        *("loss", "rmse", "num_examples")
    }


def test_progress_is_told_after_each_tree_and_cancelling_leaves_a_learner_that_works_on() -> None:
    site, task = learner(), Recording(parameters={"num_local_round": 4})
    site.train(site.initial_model(), task)
    assert task.told == [0.25, 0.5, 0.75, 1]
    model = site.initial_model()
    cancelled = Recording(cancel_after=3, parameters={"num_local_round": 50})
    with pytest.raises(TaskCancelled):
        site.train(model, cancelled)
    assert len(cancelled.told) == 3
    assert Model.of(model).digest == Model.of(site.initial_model()).digest
    assert site.train(model, LocalTask()).num_steps == 1


def test_trees_that_do_not_fit_say_what_to_do() -> None:
    site = learner(capacity_bytes=2_000)
    task = LocalTask(parameters={"num_local_round": 20})
    with pytest.raises(
        SettingError, match=r"trees of one task are too large: \d+ bytes .* 2000; start the job"
    ):
        site.train(site.initial_model(), task)
    with pytest.raises(ModelError, match=r"bytes do not fit into a tensor with room for 100"):
        learner(capacity_bytes=100)


def test_wrong_settings_are_named() -> None:
    inputs, targets = examples(BINARY)
    for options, message in (
        ({"settings": {"objective": "nonsense"}}, "XGBoost does not take these settings: .*nonsense"),
        ({"settings": {**BINARY, "max_depth": -3}}, "XGBoost does not take these settings: .*max_depth"),
        ({"train_data": (inputs[:0], targets[:0])}, "train_data is empty"),
        ({"train_data": (inputs, targets[1:])}, "XGBoost does not take train_data: "),
        ({"train_data": xgboost.DMatrix(inputs)}, "train_data has no targets: make the DMatrix with label="),
        ({"test_data": (inputs, targets, None)}, "test_data has 3 parts"),
    ):
        given: dict[str, Any] = {"settings": BINARY, "train_data": (inputs, targets)} | options
        with pytest.raises(SettingError, match=message):
            XGBoostLearner(**given)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"num_local_round": 0}, "parameter 'num_local_round' is 0; it must be a whole number of at least 1"),
        ({"batch_size": 8}, "the job asks for batch_size 8: boosting has all data in each step"),
        ({"proximal_mu": 0.1}, r"the job asks for proximal_mu 0\.1: boosting"),
    ],
)
def test_a_parameter_that_cannot_be_followed_is_refused(parameters: Parameters, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        learner().train(learner().initial_model(), LocalTask(parameters=parameters))


def test_a_model_that_does_not_fit_is_named() -> None:
    site = learner()
    with pytest.raises(ModelError, match="the model has 5 features, and this learner's data 6"):
        site.evaluate(empty_model(BINARY, 5), LocalTask())
    with pytest.raises(ModelError, match="there is no tensor 'booster'; there are w"):
        site.evaluate({"w": np.zeros(3)}, LocalTask())
    averaged = site.initial_model()
    averaged["booster"][8:60] //= 2
    with pytest.raises(ModelError, match=r"XGBoost cannot read tensor 'booster': .*rule 'tree_bagging'\?"):
        site.evaluate(averaged, LocalTask())
