"""Float tensors that are not trained: rules that do more than average take their mean all the same."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_fl.interfaces import Contribution, Given, Metrics, TaskContext, Update
from broker_fl.model import FLOATS, Arrays, Model, ModelSpec
from broker_fl.simulation import Federation
from broker_fl.wire.job import JobSpec
from tests.unit.aggregation.cohorts import check_floats, cohorts, reals, rule_of

RULES: list[dict[str, Any]] = [
    {"name": "fedavgm", "learning_rate": 0.7},
    {"name": "fedadagrad"},
    {"name": "fedadam"},
    {"name": "fedyogi"},
    {"name": "fednova"},
    {"name": "qfedavg", "learning_rate": 0.1},
    {"name": "scaffold", "learning_rate": 0.5},
    {"name": "fedbuff", "learning_rate": 0.5},
]
EQUAL = {"scaffold", "fedbuff"}


def without(model: Model, names: set[str]) -> Model:
    return Model.of({name: array for name, array in model.items() if name not in names})


def combine(
    rule: dict[str, Any], start: Model, updates: list[Contribution], buffers: set[str]
) -> list[Model]:
    """Model and memory of a round, in which FedBuff's updates are what learners send: changes."""
    accumulator = rule_of(**rule).begin(Given(spec=start.spec, model=lambda: start, buffers=buffers))
    for update in updates:
        control: dict[str, Any] | None = None
        if rule["name"] == "scaffold":
            control = {
                name: np.zeros_like(a, "f8" if a.dtype == "f8" else "f4") for name, a in reals32(start)
            }
        one = Contribution(
            learner=update.learner,
            model=update.model,
            num_examples=update.num_examples,
            num_steps=update.num_steps,
            evaluation=update.evaluation,
            control=control,
        )
        accumulator.fold(one)
    combined = accumulator.result()
    return [combined.model, *([combined.memory] if combined.memory and rule["name"] != "scaffold" else [])]


def reals32(model: Model) -> list[tuple[str, Any]]:
    return [(name, array) for name, array in model.items() if array.dtype.name in FLOATS]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["name"]))
@given(cohort=cohorts(), chance=st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_buffers_take_the_weighted_mean_and_the_others_are_as_if_there_were_none(
    rule: dict[str, Any], cohort: Any, chance: random.Random
) -> None:
    start, [updates] = cohort
    floats = [tensor.name for tensor in start.spec.tensors if tensor.dtype in FLOATS]
    buffers = {name for name in floats if name != "t0" and chance.random() < 0.7}
    model, *memory = combine(rule, start, updates, buffers)
    bare_updates = [
        Contribution(
            learner=one.learner,
            model=without(one.model, buffers),
            num_examples=one.num_examples,
            num_steps=one.num_steps,
            evaluation=one.evaluation,
        )
        for one in updates
    ]
    bare, *bare_memory = combine(rule, without(start, buffers), bare_updates, set())
    weights = np.array([1 if rule["name"] in EQUAL else one.num_examples for one in updates], np.float64)
    for name in start:
        if name in buffers:
            values = np.stack([one.model[name].astype(np.float64) for one in updates])
            mean = Model.of({name: np.tensordot(weights / weights.sum(), values, 1)})
            check_floats(without(model, set(start) - {name}), reals(mean), scale=10.0)
        else:
            np.testing.assert_allclose(
                model[name].astype(np.float64), bare[name].astype(np.float64), rtol=1e-5, atol=1e-6
            )
    for kept, expected in zip(memory, bare_memory, strict=True):
        assert kept.spec.num_elements == expected.spec.num_elements, "buffers have no moments"


class Normalises:
    """Finds a variance of 0.1 wherever it looks, and a running mean of 3."""

    def train(self, model: Arrays, task: TaskContext) -> Update:
        found = {
            "w": model["w"] + 1,
            "bn.running_var": np.full(3, 0.1, np.float32),
            "state": model["state"] * 0 + 3,
        }
        return Update(model=found, num_examples=1, num_steps=1)

    def evaluate(self, model: Arrays, task: TaskContext) -> Metrics:
        return {"loss": 1.0}


@pytest.mark.parametrize(
    "rule", [rule for rule in RULES if rule["name"] != "scaffold"], ids=lambda rule: str(rule["name"])
)
def test_in_a_job_a_variance_is_what_learners_found_also_of_updates_that_are_stale(
    rule: dict[str, Any],
) -> None:
    """Of the asynchronous rule two of four learners make a version, the others' are from older ones."""
    is_async = rule["name"] == "fedbuff"
    settings: dict[str, Any] = {
        "rule": {**rule, "buffer_size": 2} if is_async else rule,
        "protocol": {"name": "asynchronous", "min_learners": 4} if is_async else {"min_learners": 4},
        "termination": {"versions": 5},
        "buffers": ["*running_var", "state"],
    }
    start = {
        "w": np.zeros(2, np.float32),
        "bn.running_var": np.ones(3, np.float32),
        "state": np.zeros(2, np.float32),
    }
    with Federation({name: Normalises() for name in "abcd"}) as federation:
        job = federation.submit(JobSpec.model_validate(settings), start)
        assert job.wait().state == "done"
        model = job.model()
    np.testing.assert_allclose(model["bn.running_var"], 0.1, rtol=1e-6)
    np.testing.assert_allclose(model["state"], 3.0, rtol=1e-6)
    assert (model["w"] > 0).all()


def test_the_defaults_are_what_the_frameworks_call_their_statistics_and_only_floats_match() -> None:
    names = {
        "features.1.running_mean": "float32",
        "features.1.running_var": "float64",
        "features.1.num_batches_tracked": "int64",
        "batch_normalization/moving_mean": "float32",
        "batch_normalization/moving_variance": "float32",
        "batch_stats/BatchNorm_0/var": "bfloat16",
        "state/var": "float32",
        "features.1.weight": "float32",
    }
    model = ModelSpec.from_wire([(name, dtype, (2,)) for name, dtype in names.items()])
    expected = set(names) - {"features.1.num_batches_tracked", "features.1.weight"}
    assert JobSpec().buffers_of(model) == expected
    assert JobSpec.model_validate({"buffers": ()}).buffers_of(model) == frozenset()
