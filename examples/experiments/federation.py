"""What the experiments have in common: a learner that does as much work as it is told, and a job whose every
version is tested.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from broker_fl import JobSpec
from broker_fl.apps import load_app
from broker_fl.frameworks import ControlVariate, ProximalTerm
from broker_fl.frameworks.batches import Batches
from broker_fl.frameworks.workload import Workload
from broker_fl.interfaces import Learner, Metrics, TaskContext, Update
from broker_fl.model import Arrays
from broker_fl.record.history import History
from broker_fl.simulation import Federation, World

BATCH_SIZE = 16
digits = load_app(str(Path(__file__).parents[1] / "digits.py") + ":make_learner").module
"""``examples/digits.py``: the network, its gradients, the data."""


class Site:
    """A learner that reads its work from the task: epochs or steps, FedProx's term, SCAFFOLD's correction."""

    def __init__(self, chosen: npt.NDArray[np.int64]) -> None:
        """It owns the ``chosen`` training examples."""
        train, _ = digits.load()
        self.images, self.labels = train.images[chosen], train.digits[chosen]

    def train(self, model: Arrays, task: TaskContext) -> Update:
        work = Workload.of(task)
        batches = Batches(len(self.labels), work.batch_size or BATCH_SIZE, work, task)
        near, control = ProximalTerm(model, task), ControlVariate(task)
        learning_rate = np.float32(work.learning_rate or 0.1)
        for rows in batches:
            for name, gradient in digits.gradients(model, self.images[rows], self.labels[rows]).items():
                whole = gradient + near.gradient(name, model[name])
                model[name][...] -= learning_rate * control.corrected(name, whole)
        return Update(
            model=model,
            num_examples=len(self.labels),
            num_steps=batches.num_batches,
            num_epochs=batches.num_epochs,
            control=control.result(),
        )

    def evaluate(self, model: Arrays, task: TaskContext) -> Metrics:
        return {**digits.measure(model, (self.images, self.labels)), "num_examples": len(self.labels)}


def labels() -> npt.NDArray[np.int64]:
    """Of the training examples, to split them by."""
    found: npt.NDArray[np.int64] = digits.load()[0].digits
    return found


def sites(parts: Iterable[npt.NDArray[np.int64]]) -> dict[str, Learner]:
    """A learner for each part of the training examples."""
    return {f"site-{number:02}": Site(part) for number, part in enumerate(parts, start=1)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Of a job: what happened, and how good each version is on the held-out digits."""

    history: History
    reason: str
    """Why the job ended, as it says itself."""
    time_s: list[float]
    """When each version was there, in seconds since the job was submitted; version 0 at 0."""
    accuracy: list[float]
    """Of each version."""


def run(learners: Mapping[str, Learner], settings: Mapping[str, Any], world: World | None = None) -> Outcome:
    """Run one job to its end.

    Raises:
        RuntimeError: the job failed.
    """
    spec = JobSpec.model_validate({"evaluate": False, "keep_versions": 100_000, **settings})
    with Federation(learners, world=world) as federation:
        job = federation.submit(spec, digits.initial_model())
        end = job.wait()
        if end.state != "done":
            raise RuntimeError(f"the job {end.state}: {end.reason}")
        history = job.history()
        versions = sorted(history.versions)
        accuracy = [digits.test_metrics(job.model(version))["accuracy"] for version in versions]
    began = history.submitted_s or 0.0
    time_s = [(history.versions[version].committed_s or began) - began for version in versions]
    return Outcome(history=history, reason=end.reason, time_s=time_s, accuracy=accuracy)
