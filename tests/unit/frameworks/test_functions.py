from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from broker_fl.errors import SettingError
from broker_fl.frameworks import FunctionLearner, LocalTask, ProximalTerm, train_alone
from broker_fl.frameworks.workload import Workload
from broker_fl.interfaces import Learner, Metrics, Parameters, TaskContext, Update
from broker_fl.model import Arrays


def train(model: Arrays, task: TaskContext) -> Update:
    task.progress(0.5)
    return Update(model={"x": model["x"] + task.round}, num_examples=2, num_steps=3, num_epochs=1.5)


def evaluate(model: Arrays, task: TaskContext) -> Metrics:
    return {"sum": float(model["x"].sum())}


def test_two_functions_are_a_learner() -> None:
    learner: Learner = FunctionLearner(train, evaluate)
    task = LocalTask(round=3)
    update = learner.train({"x": np.ones(2)}, task)
    assert update.model["x"].tolist() == [4, 4]
    assert (update.num_examples, update.num_steps, update.num_epochs) == (2, 3, 1.5)
    assert learner.evaluate({"x": np.ones(2)}, task) == {"sum": 2.0}
    assert task.fraction == 0.5
    assert not hasattr(learner, "initial_model")


def test_a_third_function_gives_the_initial_model() -> None:
    assert FunctionLearner(train, evaluate, lambda: {"x": np.ones(1)}).initial_model()["x"].tolist() == [1]


def test_training_alone_goes_through_the_rounds() -> None:
    start = {"x": np.zeros(1)}
    assert train_alone(FunctionLearner(train, evaluate), start, rounds=4)["x"].tolist() == [6]


def test_training_alone_leaves_the_model_it_starts_from() -> None:
    def in_place(model: Arrays, task: TaskContext) -> Update:
        model["x"][...] += 1
        return Update(model=model, num_examples=1)

    start = {"x": np.zeros(1)}
    assert train_alone(FunctionLearner(in_place, evaluate), start, rounds=2)["x"].tolist() == [2]
    assert start["x"].tolist() == [0]


def test_what_is_not_given_has_its_default() -> None:
    assert Workload.of(LocalTask()) == Workload()
    assert Workload.of(LocalTask(parameters={"epochs": None, "seed": None})) == Workload()


def test_what_is_given_is_read() -> None:
    work = Workload.of(LocalTask(parameters={"epochs": 2, "steps": 3, "batch_size": 4, "learning_rate": 1}))
    assert work == Workload(epochs=2, steps=3, batch_size=4, learning_rate=1.0)


def test_seeds_differ_between_learners_and_rounds_and_are_the_same_again() -> None:
    def seed(round: int, learner: str) -> int | None:
        return Workload.of(LocalTask(round=round, learner=learner, parameters={"seed": 7})).seed

    assert len({seed(0, "a"), seed(1, "a"), seed(0, "b"), seed(1, "b")}) == 4
    assert seed(1, "a") == seed(1, "a")


@pytest.mark.parametrize(
    "parameters",
    [
        {"epochs": 0},
        {"epochs": 1.5},
        {"epochs": True},
        {"epochs": "3"},
        {"steps": 0},
        {"batch_size": 0},
        {"learning_rate": 0},
        {"learning_rate": float("nan")},
        {"learning_rate": "0.1"},
        {"learning_rate": True},
        {"seed": -1},
        {"proximal_mu": -0.1},
        {"proximal_mu": float("inf")},
        {"proximal_mu": True},
    ],
)
def test_a_wrong_parameter_is_named_with_its_value(parameters: Parameters) -> None:
    [(name, value)] = parameters.items()
    with pytest.raises(SettingError, match=f"parameter '{name}' is {value!r}; it must be a"):
        Workload.of(LocalTask(parameters=parameters))


def test_importing_the_library_imports_no_framework() -> None:
    program = (
        "import sys, broker_fl, broker_fl.frameworks, broker_fl.apps, broker_fl.partition;"
        "drivers = {'torch', 'tensorflow', 'keras', 'sklearn', 'jax', 'xgboost', 'pika', 'redis'};"
        "print(sorted(drivers & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=110
    )
    assert done.stdout.strip() == "[]"


def test_a_function_of_ones_own_has_the_proximal_term_of_fedprox() -> None:
    """The gradient is that of the loss, by differences; the received model is a copy, which stays."""
    received = {"w": np.array([1.0, -2.0]), "b": np.array(0.5, np.float32)}
    term = ProximalTerm(received, LocalTask(parameters={"proximal_mu": 0.3}))
    received["w"][...] = 99
    w, step = np.array([2.0, 1.0]), 1e-6
    assert term.loss({"w": w}) == pytest.approx(0.3 / 2 * (1 + 9))
    slopes = [(term.loss({"w": w + step * unit}) - term.loss({"w": w})) / step for unit in np.eye(2)]
    np.testing.assert_allclose(term.gradient("w", w), slopes, rtol=1e-5)
    assert term.gradient("b", np.array(1.0, np.float32)).dtype == np.float32


def test_without_the_parameter_there_is_no_proximal_term() -> None:
    term = ProximalTerm({"w": np.ones(2)}, LocalTask())
    assert term.loss({"w": np.zeros(2)}) == 0
    assert term.gradient("w", np.zeros(2)).tolist() == [0, 0]
