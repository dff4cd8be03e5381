"""Rules through a whole federation: what a job makes of them, and what a restart leaves of a memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from broker_fl.interfaces import Contribution, Metrics, TaskContext, Update
from broker_fl.model import Array, Arrays, Model
from broker_fl.simulation import Federation
from broker_fl.wire.fields import MAX_PARAMETERS
from broker_fl.wire.job import JobSpec
from tests.unit.aggregation.cohorts import Reals, reals
from tests.unit.aggregation.test_fednova import reference as fednova
from tests.unit.aggregation.test_fedopt import reference as fedopt
from tests.unit.aggregation.test_qfedavg import reference as qfedavg
from tests.unit.roles.stage import Stage, done, eventually, kinds

ROUNDS = 4
RULES: list[dict[str, Any]] = [
    {"name": "fedavgm", "learning_rate": 0.5, "momentum": 0.7},
    {"name": "fedadagrad", "learning_rate": 0.2, "beta1": 0.0, "tau": 0.01},
    {"name": "fedadam", "learning_rate": 0.2, "beta1": 0.9, "beta2": 0.99, "tau": 0.01},
    {"name": "fedyogi", "learning_rate": 0.2, "beta1": 0.9, "beta2": 0.99, "tau": 0.01},
    {"name": "fednova", "momentum": 0.0},
    {"name": "qfedavg", "q": 2.0, "learning_rate": 0.1},
]


class Pulls:
    """Goes ``num_steps`` steps towards its target; loses half the square of the distance."""

    def __init__(self, target: float, num_examples: int, num_steps: int) -> None:
        self.target = target
        self.num_examples = num_examples
        self.num_steps = num_steps
        self.parameters: list[dict[str, Any]] = []

    def train(self, model: Arrays, task: TaskContext) -> Update:
        """Plain gradient steps of 0.1."""
        self.parameters.append(dict(task.parameters))
        after = {name: self._pulled(array) for name, array in model.items()}
        return Update(model=after, num_examples=self.num_examples, num_steps=self.num_steps)

    def _pulled(self, array: Array) -> Array:
        if array.dtype.kind == "i":
            return np.asarray(array + self.num_steps)
        pulled = self.target + (array - self.target) * 0.9**self.num_steps
        return np.asarray(pulled, array.dtype)

    def evaluate(self, model: Arrays, task: TaskContext) -> Metrics:
        """The loss of the model that was given."""
        return {"loss": sum(float(((a - self.target) ** 2).sum()) / 2 for a in reals(model).values())}

    def contribution(self, x: Reals) -> Contribution:
        """The same without a federation, in float64."""
        return Contribution(
            learner="reference",
            model=Model.of({name: self._pulled(array) for name, array in x.items()}),
            num_examples=self.num_examples,
            num_steps=self.num_steps,
            evaluation=self.evaluate(x, None),  # type: ignore[arg-type]
        )


def start() -> dict[str, Array]:
    return {
        "w": np.linspace(-1, 1, 7).astype(np.float32),
        "n": np.array([0, 4]),
        "b": np.linspace(0, 2, 3),
    }


def learners() -> dict[str, Pulls]:
    return {"a": Pulls(1.0, 10, 1), "b": Pulls(-2.0, 30, 5), "c": Pulls(0.5, 60, 3)}


def job_spec(rule: dict[str, Any], **settings: Any) -> JobSpec:
    protocol = {"min_learners": 3}
    return JobSpec.model_validate(
        {"rule": rule, "protocol": protocol, "termination": {"rounds": ROUNDS}, **settings}
    )


def expected(rule: dict[str, Any]) -> Reals:
    """What the papers' equations make of it, in float64."""
    options = {name: value for name, value in rule.items() if name != "name"}
    states = [reals(start())]
    rounds: list[list[Contribution]] = []
    for _ in range(ROUNDS):
        rounds.append([learner.contribution(states[-1]) for learner in learners().values()])
        if rule["name"] == "fednova":
            states.append(fednova(states[-1], rounds[-1], 0.0))
        elif rule["name"] == "qfedavg":
            states.append(qfedavg(states[-1], rounds[-1], rule["q"], equal=False))
        else:  # with a memory: from the first round on
            states.append(fedopt(rule["name"], options, states[0], rounds)[-1])
    return states[-1]


def near(found: Model, exact: Reals) -> None:
    for name, array in exact.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5)
    # 1, 5 and 3 more in each round, by 10, 30 and 60 examples: 3.4, rounded.
    np.testing.assert_array_equal(found["n"], np.array([0, 4]) + 3 * ROUNDS)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["name"]))
def test_a_job_ends_with_the_model_of_the_reference(rule: dict[str, Any]) -> None:
    with Federation(learners()) as federation:
        job = federation.submit(job_spec(rule), start())
        assert job.wait().state == "done"
        near(job.model(), expected(rule))


@pytest.mark.parametrize("rule", RULES[:4], ids=lambda rule: str(rule["name"]))
def test_a_rules_memory_survives_the_controller(tmp_path: Path, rule: dict[str, Any]) -> None:
    """Killed with two versions made and two to come; the second controller has only what was stored."""

    class Waits(Pulls):
        def train(self, model: Arrays, task: TaskContext) -> Update:
            if task.round == 2:
                eventually(lambda: len(controllers) == 2, "a second controller")
            return super().train(model, task)

    with Stage(tmp_path, heartbeat_s=0.3, lease_ttl_s=0.6) as stage:
        controllers = [stage.controller()]
        stage.host({**learners(), "a": Waits(1.0, 10, 1)})
        job = stage.driver.submit(job_spec(rule), start())
        eventually(lambda: kinds(job).count("version_committed") == 2, "two versions")
        stage.kill(controllers[0])
        controllers.append(stage.controller())
        done(job)
        assert "job_resumed" in kinds(job)
        near(job.model(), expected(rule))


def test_two_jobs_at_once_have_a_memory_each() -> None:
    with Federation(learners(), num_workers=3) as federation:
        rules = RULES[:3]
        jobs = [federation.submit(job_spec(rule), start()) for rule in rules]
        for job, rule in zip(jobs, rules, strict=True):
            assert job.wait().state == "done"
            near(job.model(), expected(rule))


def test_fedprox_tells_the_learners_its_mu_besides_what_the_job_tells_them() -> None:
    sites = learners()
    with Federation(sites) as federation:
        spec = job_spec({"name": "fedprox", "mu": 0.01}, parameters={"epochs": 2})
        assert federation.submit(spec, start()).wait().state == "done"
    assert sites["a"].parameters == [{"epochs": 2, "proximal_mu": 0.01}] * ROUNDS


@pytest.mark.parametrize(
    ("given", "where", "words"),
    [
        ({"rule": {"name": "fedsgd"}}, "rule", "'fedavg', 'fedprox'"),
        ({"rule": {"name": "fedavg", "weighting": "loss"}}, "rule.fedavg.weighting", "'steps' or 'equal'"),
        ({"rule": {"name": "fedprox"}}, "rule.fedprox.mu", "required"),
        ({"rule": {"name": "fedprox", "mu": 0.0}}, "rule.fedprox.mu", "greater than 0"),
        ({"rule": {"name": "fedavgm", "momentum": 1.0}}, "rule.fedavgm.momentum", "less than 1"),
        ({"rule": {"name": "fedavgm", "beta1": 0.9}}, "rule.fedavgm.beta1", "Extra inputs"),
        ({"rule": {"name": "fedadam", "beta2": -0.1}}, "rule.fedadam.beta2", "greater than or equal to 0"),
        ({"rule": {"name": "fedyogi", "tau": 0.0}}, "rule.fedyogi.tau", "greater than 0"),
        ({"rule": {"name": "fedadagrad", "beta2": 0.9}}, "rule.fedadagrad.beta2", "Extra inputs"),
        ({"rule": {"name": "fedadam", "learning_rate": -1.0}}, "rule.fedadam.learning_rate", "greater than"),
        ({"rule": {"name": "fednova", "momentum": 1.5}}, "rule.fednova.momentum", "less than 1"),
        ({"rule": {"name": "qfedavg", "q": -1.0, "learning_rate": 0.1}}, "rule.qfedavg.q", "greater than"),
        ({"rule": {"name": "qfedavg"}}, "rule.qfedavg.learning_rate", "required"),
        ({"rule": {"name": "qfedavg", "learning_rate": 0.1}, "evaluate": False}, "", "needs 'evaluate'"),
        (
            {"rule": {"name": "fedprox", "mu": 0.1}, "parameters": {"proximal_mu": 0.2}},
            "",
            "give one of them",
        ),
        (
            {
                "rule": {"name": "fedprox", "mu": 0.1},
                "parameters": {f"p{i}": 0 for i in range(MAX_PARAMETERS)},
            },
            "",
            "one parameter more",
        ),
    ],
    ids=lambda given: str(given)[:60],
)
def test_a_wrong_setting_of_a_rule_is_refused_at_submission(given: Any, where: str, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(given)
    errors = caught.value.errors()
    assert any(".".join(map(str, e["loc"])).startswith(where) and words in e["msg"] for e in errors), errors
