"""What is told of a task that failed in the user's code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from broker_fl.interfaces import Metrics, TaskContext, Update
from broker_fl.model import Arrays
from broker_fl.simulation import Federation
from tests.unit.roles.stage import spec

HERE = Path(__file__).name
THERE = ": the job's model has no such tensor, but bias, weights; "
DIFFER = "the job's app and this learner's seem to differ"


class OfAnotherApp:
    """Its model has a tensor ``mean``, which the job's has not."""

    def __init__(self, asks: str) -> None:
        self.asks = asks
        self.data = {"weights": np.zeros(3), "rows": np.zeros(2)}

    def train(self, model: Arrays, task: TaskContext) -> Update:
        return Update(model=model, num_examples=1)

    def evaluate(self, model: Arrays, task: TaskContext) -> Metrics:
        data, velocity = self.data, {"bias": 0.0}
        match self.asks:
            case "model":
                return {"error": float(abs(model["mean"][0]))}
            case "each":
                return {name: float(model[name][0]) for name in ("bias", "mean")}
            case "parameters":
                return {"error": float(str(task.parameters["mean"]))}
            case "state":
                return {"error": sum(velocity[name] for name in model)}
            case _:
                return {"error": float(data["mean"][0])}


def reason_of(asks: str, groups: int | None = None) -> str:
    """Why a job of another app fails."""
    model = {"bias": np.zeros(1, "f4"), "weights": np.zeros(3, "f4")}
    with Federation({"a": OfAnotherApp(asks)}, groups=groups) as federation:
        end = federation.submit(spec(rounds=1), model).wait()
    assert end.state == "failed"
    assert f"KeyError: '{'weights' if asks == 'state' else 'mean'}' ({HERE}:" in end.reason
    return end.reason


@pytest.mark.parametrize(("asks", "groups"), [("model", None), ("each", None), ("model", 1)])
def test_a_learner_of_another_app_says_what_the_jobs_model_has(asks: str, groups: int | None) -> None:
    assert reason_of(asks, groups).count(THERE + DIFFER) == 1


@pytest.mark.parametrize("asks", ["parameters", "data", "state"])
def test_what_is_no_tensor_is_no_other_app(asks: str) -> None:
    assert DIFFER not in reason_of(asks)
