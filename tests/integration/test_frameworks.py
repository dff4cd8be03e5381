"""Every framework's learner as a whole federation, on real data, beside plain training on all of it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
import pytest
import torch
import xgboost
from jax import numpy as jnp
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from torch import nn
from torch.utils.data import TensorDataset

from broker_fl import opaque
from broker_fl.apps import load_app
from broker_fl.frameworks import LocalTask, train_alone
from broker_fl.frameworks.jax import JaxLearner, Variables, sgd
from broker_fl.frameworks.keras import KerasLearner
from broker_fl.frameworks.sklearn import SklearnLearner
from broker_fl.frameworks.torch import TorchLearner
from broker_fl.frameworks.xgboost import XGBoostLearner, to_booster
from broker_fl.interfaces import Learner, LearnerContext, Parameters
from broker_fl.model import Arrays, Model
from broker_fl.partition import dirichlet
from broker_fl.simulation import Federation
from broker_fl.wire.events import TaskFinished, TaskSent
from broker_fl.wire.job import JobSpec, Termination
from broker_fl.wire.protocols import SemiSynchronous, Synchronous
from broker_fl.wire.rules import AnyRule, FedAdam, FedAvg, TreeBagging

torch.set_num_threads(1)
Part = tuple[Any, Any]
NUM_LEARNERS = 4


@cache
def split(name: str) -> tuple[Part, Part]:
    """Training examples and the fourth of all that no learner sees; features have mean 0 and variance 1."""
    inputs, targets = (load_digits if name == "digits" else load_breast_cancer)(return_X_y=True)
    parts = train_test_split(inputs, targets, test_size=0.25, stratify=targets, random_state=0)
    mean, std = parts[0].mean(axis=0), parts[0].std(axis=0) + 1e-6
    train, test = (((part - mean) / std).astype(np.float32) for part in parts[:2])
    return (train, parts[2].astype(np.int64)), (test, parts[3].astype(np.int64))


# ---------------------------------------------------------------- one learner of each framework


def torch_learner(part: Part) -> Learner:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    data = TensorDataset(*map(torch.from_numpy, part))
    return TorchLearner(module, data, optimizer=partial(torch.optim.SGD, lr=0.1))


def keras_learner(part: Part) -> Learner:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    first = [layers.Dense(32, use_bias=False), layers.BatchNormalization(momentum=0.9), layers.ReLU()]
    model = keras.Sequential([layers.Input((64,)), *first, layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
    return KerasLearner(model, part)


def jax_loss(variables: Variables, inputs: Any, targets: Any, key: Any) -> Any:
    """A hidden layer with batch normalisation, as the others have."""
    params, state = variables
    hidden = inputs @ params["hidden"]
    mean, var = (hidden.mean(0), hidden.var(0)) if key is not None else (state["mean"], state["var"])
    hidden = (hidden - mean) / jnp.sqrt(var + 1e-5) * params["scale"] + params["shift"]
    scores = jax.nn.relu(hidden) @ params["output"] + params["bias"]
    loss = -jax.nn.log_softmax(scores)[jnp.arange(len(targets)), targets].mean()
    after = {"mean": 0.9 * state["mean"] + 0.1 * mean, "var": 0.9 * state["var"] + 0.1 * var}
    return loss, (after, {"accuracy": (scores.argmax(1) == targets).mean()})


JAX_OPTIMIZER = partial(sgd, learning_rate=0.1)


def jax_learner(part: Part) -> Learner:
    keys = jax.random.split(jax.random.key(0))
    params = {
        "hidden": jax.random.normal(keys[0], (64, 32)) / 8,
        "scale": jnp.ones(32),
        "shift": jnp.zeros(32),
        "output": jax.random.normal(keys[1], (32, 10)) / 6,
        "bias": jnp.zeros(10),
    }
    state = {"mean": jnp.zeros(32), "var": jnp.ones(32)}
    return JaxLearner(Variables(params, state), jax_loss, part, optimizer=JAX_OPTIMIZER)


def mlp_learner(part: Part) -> Learner:
    network = MLPClassifier((32,), solver="sgd", learning_rate_init=0.1, random_state=0)
    return SklearnLearner(network, part, classes=range(10))


def linear_learner(part: Part) -> Learner:
    estimator = SGDClassifier(loss="log_loss", learning_rate="invscaling", eta0=0.05, power_t=0.25)
    return SklearnLearner(estimator, part, classes=range(10))


TREES = {"objective": "binary:logistic", "max_depth": 3, "nthread": 1}


def xgboost_learner(part: Part) -> Learner:
    return XGBoostLearner(TREES, part, capacity_bytes=200_000)


# ---------------------------------------------------------------- the federations


@dataclass(frozen=True, kw_only=True)
class Case:
    make: Callable[[Part], Learner]
    rounds: int
    parameters: Parameters
    rule: AnyRule = field(default_factory=FedAvg)
    data: str = "digits"


CASES = {
    "torch": Case(make=torch_learner, rounds=10, parameters={"epochs": 2}),
    "keras": Case(make=keras_learner, rounds=10, parameters={"epochs": 2}),
    "jax": Case(make=jax_learner, rounds=10, parameters={"epochs": 2}),
    "sklearn, network": Case(make=mlp_learner, rounds=10, parameters={"epochs": 2}),
    "sklearn, linear": Case(make=linear_learner, rounds=10, parameters={"epochs": 2}),
    "xgboost": Case(
        make=xgboost_learner,
        rounds=10,
        parameters={"num_local_round": 2, "learning_rate": 0.3 / NUM_LEARNERS},
        rule=TreeBagging(),
        data="breast cancer",
    ),
}


def federate(case: Case) -> Model:
    train, _ = split(case.data)
    chosen = dirichlet(train[1], NUM_LEARNERS, alpha=0.5, seed=0, min_examples=20)
    learners = {f"l{i}": case.make((train[0][rows], train[1][rows])) for i, rows in enumerate(chosen)}
    spec = JobSpec(
        protocol=Synchronous(min_learners=NUM_LEARNERS, quorum=NUM_LEARNERS),
        rule=case.rule,
        termination=Termination(rounds=case.rounds),
        parameters={"seed": 0, **case.parameters},
        evaluate=False,
    )
    with Federation(learners) as federation:
        job = federation.submit(spec, first_model(case))
        job.wait()
        return job.model()


def first_model(case: Case) -> Arrays:
    model: Arrays = case.make(split(case.data)[0]).initial_model()  # type: ignore[attr-defined]
    return model


def central(case: Case) -> Arrays:
    """As many passes, or rounds of XGBoost's own boosting, with all data in one place."""
    train, _ = split(case.data)
    if case.data == "digits":
        return train_alone(
            case.make(train), first_model(case), rounds=case.rounds, parameters={"seed": 0, **case.parameters}
        )
    settings = {**TREES, "base_score": 0.5, "learning_rate": 0.3}
    booster = xgboost.train(settings, xgboost.DMatrix(*train), num_boost_round=2 * case.rounds)
    model = first_model(case)
    opaque.write(bytes(booster.save_raw("json")), model["booster"])
    return model


@pytest.mark.parametrize("name", CASES)
def test_a_federation_reaches_what_training_on_all_data_reaches(name: str) -> None:
    case = CASES[name]
    tester = case.make(split(case.data)[1])
    start, federated = first_model(case), federate(case)
    accuracy = {
        kind: tester.evaluate(model, LocalTask())["accuracy"]
        for kind, model in (("start", start), ("federated", federated), ("central", central(case)))
    }
    assert [key for key in start if np.array_equal(start[key], federated[key])] == []  # all of it moved
    assert accuracy["start"] < 0.7
    assert accuracy["central"] > 0.9
    assert accuracy["federated"] >= accuracy["central"] - 0.03


@pytest.mark.parametrize("name", ["torch", "keras", "jax"])
def test_batch_normalisation_keeps_a_variance_under_an_optimiser_on_the_server(name: str) -> None:
    """Its statistics are averaged: an optimiser's step beyond the mean makes a variance negative."""
    case = replace(CASES[name], rule=FedAdam(learning_rate=0.03), rounds=12)
    model = federate(case)
    for tensor in JobSpec().buffers_of(model.spec):
        assert "mean" in tensor or (model[tensor] > 0).all(), tensor
    assert len(JobSpec().buffers_of(model.spec)) == 2
    assert case.make(split(case.data)[1]).evaluate(model, LocalTask())["accuracy"] > 0.85


def test_a_boosted_model_of_a_federation_is_an_ordinary_booster() -> None:
    booster = to_booster(federate(CASES["xgboost"]))
    inputs, targets = split("breast cancer")[1]
    assert booster.num_boosted_rounds() == 10 * 2 * NUM_LEARNERS
    again = xgboost.Booster(model_file=booster.save_raw("ubj"))
    found = again.predict(xgboost.DMatrix(inputs))
    assert np.array_equal(found, booster.predict(xgboost.DMatrix(inputs)))
    assert ((found > 0.5) == targets).mean() > 0.9


STEPPING = [name for name in CASES if name != "xgboost"]
"""Frameworks that train in optimiser steps."""


@pytest.mark.parametrize("name", STEPPING)
def test_every_framework_is_measured_and_does_the_steps_that_it_is_asked_for(name: str) -> None:
    """MetisFL's adapter for PyTorch reports no times, and its semi-synchronous rounds come down to a step."""
    case = CASES[name]
    train, _ = split(case.data)
    chosen = dirichlet(train[1], 2, alpha=100.0, seed=0)
    learners = {f"l{i}": case.make((train[0][rows], train[1][rows])) for i, rows in enumerate(chosen)}
    spec = JobSpec(
        protocol=SemiSynchronous(lam=1.0, min_learners=2),
        termination=Termination(rounds=3),
        parameters={"seed": 0, "epochs": 2},
        evaluate=False,
    )
    with Federation(learners, num_workers=1) as federation:
        job = federation.submit(spec, first_model(case))
        assert job.wait().state == "done"
        events = list(job.events(follow=False))
    asked = [event for event in events if isinstance(event, TaskSent) and event.workload]
    assert {learner for event in asked for learner in event.learners} == {"l0", "l1"}
    steps = {(event.round, name): event.workload["steps"] for event in asked for name in event.learners}
    finished = {(e.round, e.learner): e for e in events if isinstance(e, TaskFinished)}
    for key, number in steps.items():
        assert finished[key].num_steps == number, "the round would have refused it"
        assert finished[key].timings.train_s > 0
    assert all(finished[0, name].num_epochs == 2.0 for name in learners)
    assert max(int(str(number)) for number in steps.values()) > 3, "about an epoch of the slower, not a step"


@pytest.mark.parametrize("name", ["torch", "keras", "sklearn", "jax", "xgboost"])
def test_the_example_in_the_documentation_is_an_app_that_learns(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    page = (Path(__file__).parents[2] / "docs" / "writing-a-learner.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    [example] = [block for block in blocks if f"from broker_fl.frameworks.{name} import" in block]
    file = tmp_path / f"{name}_app.py"
    file.write_text(example, encoding="utf-8")
    app = load_app(f"{file}:make_learner")
    sites = {f"l{i}": app.make(LearnerContext(learner=f"l{i}", index=i, count=3)) for i in range(3)}
    spec = JobSpec(
        protocol=Synchronous(min_learners=3),
        rule=TreeBagging() if name == "xgboost" else FedAvg(),
        termination=Termination(rounds=3),
        parameters={"seed": 0, "epochs": 3},
        evaluate=False,
    )
    start = app.initial_model()
    with Federation(sites) as federation:
        job = federation.submit(spec, start)
        job.wait()
        model = job.model()
    before, after = (sites["l0"].evaluate(arrays, LocalTask()) for arrays in (start, model))
    assert after["accuracy"] > max(0.8, before["accuracy"])
