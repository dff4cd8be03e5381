from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.linear_model import Perceptron, SGDClassifier, SGDOneClassSVM, SGDRegressor
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier, MLPRegressor

from broker_fl.errors import SettingError, TaskCancelled
from broker_fl.frameworks import LocalTask
from broker_fl.frameworks.sklearn import SklearnLearner, build, load_arrays, to_arrays
from broker_fl.interfaces import Learner, Parameters
from broker_fl.model import Model, ModelError
from tests.unit.frameworks.recording import Recording

NUM = 130
CLASSES = ["left", "right", "up"]


def logistic(**options: Any) -> SGDClassifier:
    return SGDClassifier(**{"loss": "log_loss", "learning_rate": "constant", "eta0": 0.05} | options)


def network(**options: Any) -> MLPClassifier:
    return MLPClassifier(**{"hidden_layer_sizes": (16,), "random_state": 0} | options)


def examples(num: int = NUM) -> tuple[Any, Any]:
    inputs = np.random.default_rng(1).standard_normal((num, 6))
    return inputs, np.array(CLASSES)[inputs[:, :3].argmax(axis=1)]


def learner(estimator: Any = None, **options: Any) -> SklearnLearner:
    return SklearnLearner(estimator or logistic(), examples(), classes=CLASSES, **options)


def train(site: SklearnLearner, **parameters: Any) -> Any:
    return site.train(site.initial_model(), LocalTask(parameters={"seed": 0, **parameters}))


ESTIMATORS = [
    logistic(),
    logistic(loss="hinge", learning_rate="optimal", alpha=0.01),
    Perceptron(),
    network(learning_rate_init=0.01),
    network(solver="sgd", learning_rate_init=0.1, activation="tanh"),
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_training_learns_and_evaluation_says_so(estimator: Any) -> None:
    site = learner(estimator)
    before = site.evaluate(site.initial_model(), LocalTask())
    update = train(site, epochs=10)
    after = site.evaluate(update.model, LocalTask())
    assert isinstance(site, Learner)
    assert before["accuracy"] < 0.6 < 0.85 < after["accuracy"]
    assert after["loss"] < before["loss"]
    assert after["num_examples"] == update.num_examples == NUM
    assert update.metrics == {"loss": after["loss"], "accuracy": after["accuracy"]}


@pytest.mark.parametrize(
    ("estimator", "names"),
    [
        (logistic(), ["coef_", "intercept_", "t_"]),
        (network(), ["coefs_.0", "coefs_.1", "intercepts_.0", "intercepts_.1", "t_"]),
    ],
)
def test_every_array_travels_and_comes_back_bit_by_bit(estimator: Any, names: list[str]) -> None:
    sent, received = build(estimator, 6, classes=CLASSES), build(estimator, 6, classes=CLASSES)
    for _ in range(3):
        sent.partial_fit(*examples())
    arrays = Model.of(to_arrays(sent))
    load_arrays(received, arrays)
    assert list(arrays) == names
    assert arrays["t_"].dtype == np.int64
    assert received.t_ == sent.t_
    assert Model.of(to_arrays(received)).digest == arrays.digest
    assert np.array_equal(received.predict(examples()[0]), sent.predict(examples()[0]))
    sent.partial_fit(*examples())
    assert Model.of(to_arrays(received)).digest == arrays.digest  # nothing is shared


def test_what_is_built_without_data_is_what_fit_would_begin_from() -> None:
    """A network's weights are drawn as fit draws them; a linear model is zeros with no example counted."""
    inputs, targets = examples()
    slow = network(solver="sgd", learning_rate_init=1e-300, max_iter=1, early_stopping=False)
    with pytest.warns(UserWarning, match="Maximum iterations"):
        slow.fit(inputs, targets)
    built = build(network(), 6, classes=CLASSES)
    for mine, theirs in zip(built.coefs_ + built.intercepts_, slow.coefs_ + slow.intercepts_, strict=True):
        assert np.array_equal(mine, theirs)
    assert built.t_ == 0
    arrays = to_arrays(build(logistic(), 6, classes=CLASSES))
    assert {name: array.sum() for name, array in arrays.items()} == {"coef_": 0, "intercept_": 0, "t_": 1}
    assert build(logistic(), 6, classes=CLASSES, dtype=np.float32).coef_.dtype == np.float32


@pytest.mark.parametrize(
    ("estimator", "in_one_go"),
    [(logistic(shuffle=False), NUM), (network(solver="sgd", shuffle=False), 10)],
    ids=["linear", "network"],
)
def test_training_is_that_of_scikit_learn(estimator: Any, in_one_go: int) -> None:
    """The same bits as its own partial_fit gives, called by hand."""
    site, alone = learner(estimator), build(estimator, 6, classes=CLASSES)
    found = train(site, epochs=2, batch_size=10)
    inputs, targets = examples()
    for _ in range(2):
        for start in range(0, NUM, in_one_go):
            part = slice(start, start + in_one_go)
            alone.partial_fit(inputs[part], targets[part])
    for name, array in to_arrays(alone).items():
        np.testing.assert_allclose(found.model[name], array, rtol=1e-12, atol=1e-14)


def test_a_learner_that_lacks_a_class_fits_the_others_models() -> None:
    inputs, targets = examples()
    mine = targets != "up"
    site = SklearnLearner(logistic(), (inputs[mine], targets[mine]), (inputs, targets), classes=CLASSES)
    update = train(site, epochs=3)
    assert update.model["coef_"].shape == (3, 6)
    assert 0.4 < site.evaluate(update.model, LocalTask())["accuracy"] < 0.8


def test_steps_of_a_linear_model_are_examples_and_of_a_network_batches() -> None:
    for site, steps, drawn in (
        (learner(), 13, 13),
        (learner(network()), 3, 30),
        (learner(network()), 15, 150),
    ):
        update = train(site, steps=steps, batch_size=10, epochs=9)
        assert (update.num_steps, update.num_epochs) == (steps, drawn / NUM)
        assert update.num_examples == min(drawn, NUM)
    assert (train(learner(), epochs=2).num_steps, train(learner(network()), epochs=2).num_steps) == (260, 10)
    assert train(learner(), epochs=2).num_epochs == 2


def test_the_counter_goes_on_from_the_model_that_came() -> None:
    """With the schedule 'optimal', steps become smaller from task to task."""
    site = learner(logistic(learning_rate="optimal", alpha=0.01))
    start = site.initial_model()
    first = train(site, epochs=1)
    late = {**{name: array.copy() for name, array in start.items()}, "t_": np.array(100_001)}
    second = site.train(late, LocalTask(parameters={"seed": 0}))
    assert (first.model["t_"], second.model["t_"]) == (1 + NUM, 100_001 + NUM)
    assert abs(second.model["coef_"]).max() < abs(first.model["coef_"]).max() / 10


def test_nothing_is_kept_from_task_to_task_and_the_seed_decides_the_result() -> None:
    for estimator in (logistic(), network(), network(solver="sgd")):
        site = learner(estimator)
        start = Model.of(site.initial_model())

        def digest(seed: int, site: SklearnLearner = site, start: Model = start, **more: float) -> str:
            task = LocalTask(parameters={"epochs": 2, "seed": seed, "batch_size": 10, **more})
            return Model.of(site.train(start.copy(), task).model).digest

        first = digest(1)
        assert len({first, digest(2), digest(1, learning_rate=0.2)}) == 3
        assert digest(1) == first


def test_the_result_is_in_the_arrays_that_came() -> None:
    site = learner()
    model = Model.of(site.initial_model())
    update = site.train(dict(model), LocalTask())
    assert Model.of(update.model).buffer is model.buffer
    assert abs(model["coef_"]).sum() > 0


def test_progress_is_told_after_each_batch_and_cancelling_leaves_a_learner_that_works_on() -> None:
    site = learner(network())
    task = Recording(parameters={"epochs": 2, "batch_size": 65})
    site.train(site.initial_model(), task)
    assert task.told == [0.25, 0.5, 0.75, 1]
    cancelled = Recording(cancel_after=3, parameters={"epochs": 50})
    with pytest.raises(TaskCancelled):
        site.train(site.initial_model(), cancelled)
    assert len(cancelled.told) == 3
    assert train(site).num_steps == 5
    evaluation = Recording()
    site.evaluate(site.initial_model(), evaluation)
    assert evaluation.told == [1]


def test_regression_has_the_mean_squared_error() -> None:
    inputs = examples()[0]
    for estimator, targets in (
        (SGDRegressor(), inputs @ np.arange(6) + 1),
        (
            MLPRegressor(hidden_layer_sizes=(32,), random_state=0, learning_rate_init=0.01),
            inputs @ np.ones((6, 2)),
        ),
    ):
        site = SklearnLearner(estimator, (inputs, targets))
        before = site.evaluate(site.initial_model(), LocalTask())
        update = train(site, epochs=40)
        after = site.evaluate(update.model, LocalTask())
        own = build(estimator, 6, num_outputs=targets.ndim)
        load_arrays(own, update.model)
        assert after == {
            "loss": pytest.approx(((own.predict(inputs) - targets) ** 2).mean()),
            "num_examples": NUM,
        }
        assert after["loss"] < before["loss"] / 10


def test_losses_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import hinge_loss, log_loss

    inputs, targets = examples()
    for classes in (CLASSES, ["right", "up"]):
        kept = np.isin(targets, classes)
        x, y = inputs[kept], targets[kept]
        for loss in ("log_loss", "hinge"):
            site = SklearnLearner(logistic(loss=loss), (x, y), classes=classes)
            model = train(site, epochs=1).model
            own = build(logistic(loss=loss), 6, classes=classes)
            load_arrays(own, model)
            expected = log_loss(y, own.predict_proba(x)) if loss == "log_loss" else None
            if loss == "hinge":
                expected = hinge_loss(y, own.decision_function(x), labels=classes)
            assert site.evaluate(model, LocalTask())["loss"] == pytest.approx(expected)


def test_sparse_inputs_stay_sparse() -> None:
    inputs, targets = examples()
    site = SklearnLearner(logistic(shuffle=False), (csr_matrix(inputs), targets), classes=CLASSES)
    alone = build(logistic(shuffle=False), 6, classes=CLASSES)
    update = train(site, epochs=1, batch_size=50)
    alone.partial_fit(csr_matrix(inputs), targets)
    np.testing.assert_allclose(update.model["coef_"], alone.coef_, rtol=1e-12)
    assert site.evaluate(update.model, LocalTask())["accuracy"] == alone.score(inputs, targets)


def test_a_fitted_estimator_is_where_it_begins() -> None:
    fitted = logistic().fit(*examples())
    assert np.array_equal(learner(fitted).initial_model()["coef_"], fitted.coef_)
    with pytest.raises(
        SettingError, match=r"is fitted to the classes .*'up'\], and classes are \['left', 'up'\]"
    ):
        build(fitted, 6, classes=["left", "up"])


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (logistic(average=True), "SGDClassifier has average=True: its average is a second set of weights"),
        (logistic(early_stopping=True), "cannot be trained in steps: early_stopping"),
        (logistic(class_weight="balanced"), "cannot be trained in steps: class_weight 'balanced'"),
        (logistic(alpha=-1.0), "cannot be trained in steps: The 'alpha' parameter"),
        (network(solver="lbfgs"), "no classifier or regressor with partial_fit .*solver='sgd'"),
        (network(solver="sgd", learning_rate="adaptive"), "learning_rate='adaptive', which its optimizer"),
        (network(early_stopping=True), "cannot be trained in steps: partial_fit does not support early_stop"),
        (GaussianNB(), "GaussianNB does not learn by stochastic gradient descent"),
        (SGDOneClassSVM(), "SGDOneClassSVM is no classifier or regressor"),
    ],
    ids=str,
)
def test_an_estimator_that_will_not_do_is_refused_at_once(estimator: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        learner(estimator)


def test_wrong_data_are_named() -> None:
    inputs, targets = examples()
    for options, message in (
        ({"train_data": (inputs[:0], targets[:0])}, "train_data is empty"),
        ({"train_data": (inputs, targets[1:])}, r"inputs of shape \(130, 6\) and targets of shape \(129,\)"),
        ({"test_data": (inputs, targets, None)}, "test_data has 3 parts"),
        ({"classes": ["left", "up"]}, "targets that are not in classes: right"),
        ({"classes": None}, "SGDClassifier needs classes: .*given: None"),
        ({"classes": ["left"]}, r"needs classes: .*given: \['left'\]"),
    ):
        given: dict[str, Any] = {"train_data": (inputs, targets), "classes": CLASSES} | options
        with pytest.raises(SettingError, match=message):
            SklearnLearner(logistic(), **given)


@pytest.mark.parametrize(
    ("estimator", "parameters", "message"),
    [
        (
            logistic(learning_rate="optimal"),
            {"learning_rate": 0.5},
            r"learning_rate 0\.5, but SGDClassifier sets",
        ),
        (network(), {"proximal_mu": 0.1}, r"proximal_mu 0\.1 \(FedProx\), and MLPClassifier computes"),
    ],
)
def test_a_parameter_that_cannot_be_followed_is_refused(
    estimator: Any, parameters: Parameters, message: str
) -> None:
    site = learner(estimator)
    with pytest.raises(SettingError, match=message):
        site.train(site.initial_model(), LocalTask(parameters=parameters))


def test_a_model_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    estimator = build(logistic(), 6, classes=CLASSES)
    arrays = {**to_arrays(estimator), "coef_": np.ones((1, 6))}
    with pytest.raises(
        ModelError, match=r"does not fit this SGDClassifier: tensor 'coef_' has shape \(1, 6\)"
    ):
        load_arrays(estimator, arrays)
    assert not estimator.coef_.any()
