"""What is said of each stored version."""

from __future__ import annotations

import numpy as np

from broker_fl.interfaces import TaskContext, Update
from broker_fl.model import Arrays
from broker_fl.simulation import Federation
from broker_fl.wire.job import JobSpec, Termination


class Counts:
    """Adds one to the weight, and reports it as it was given."""

    def train(self, model: Arrays, task: TaskContext) -> Update:
        model["w"][...] += 1
        return Update(model=model, num_examples=1)

    def evaluate(self, model: Arrays, task: TaskContext) -> dict[str, float]:
        return {"w": float(model["w"][0])}


def test_metrics_of_a_version_are_of_that_version_and_not_of_the_one_before() -> None:
    with Federation({"a": Counts(), "b": Counts()}) as federation:
        job = federation.submit(
            JobSpec(termination=Termination(rounds=5), keep_versions=3), {"w": np.zeros(1, np.float32)}
        )
        finished = job.wait()
        versions = job.versions()
    assert [(version.version, version.metrics) for version in versions] == [
        (3, {"w": 3.0}),
        (4, {"w": 4.0}),
        (5, {"w": 5.0}),
    ]
    assert finished.metrics == {"w": 5.0}
