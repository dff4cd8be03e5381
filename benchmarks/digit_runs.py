"""Networks that learn scikit-learn's digits, alike for all experiments with the same seed."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from broker_fl import Model
from broker_fl.apps import load_app
from broker_fl.frameworks import LocalTask
from broker_fl.interfaces import Learner, Metrics, TaskContext, Update
from broker_fl.model import Arrays
from broker_fl.partition import dirichlet

DIGITS = Path(__file__).parents[1] / "examples" / "digits.py"
ALPHA = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A network, and how long it is trained."""

    title: str
    learners: int
    rounds: int
    parameters: Mapping[str, Any]


class Seeded:
    """A learner whose batches are drawn by a seed of the experiment, too."""

    def __init__(self, learner: Learner, seed: int) -> None:
        self._learner = learner
        self._seed = seed

    def train(self, model: Arrays, task: TaskContext) -> Update:
        """As the learner itself, in another order."""
        name = f"{task.learner}-{self._seed}"
        drawn = int(np.random.default_rng([task.round, *name.encode()]).integers(2**31))
        parameters = {**task.parameters, "seed": drawn}
        return self._learner.train(model, LocalTask(round=task.round, learner=name, parameters=parameters))

    def evaluate(self, model: Arrays, task: TaskContext) -> Metrics:
        """As the learner itself."""
        return self._learner.evaluate(model, task)


@dataclass(frozen=True, slots=True)
class Run:
    """One seed of an experiment."""

    learners: Mapping[str, Learner]
    initial: Model
    judge: Learner
    """Has the held-out images."""


def digits_run(experiment: Experiment, seed: int, order: int) -> Run:
    """Of the example, with another initial model."""
    app = load_app(f"{DIGITS}:make_learner").module
    train, test = app.load()
    parts = _parts(train.digits, experiment.learners, seed)
    learners = {
        f"learner-{index}": Seeded(app.Digits(app.Examples(*(array[part] for array in train))), order)
        for index, part in enumerate(parts)
    }
    rng, signs = np.random.default_rng(seed), np.array([-1, 1], np.float32)
    initial = {
        name: array * rng.choice(signs, array.shape) if array.ndim > 1 else array
        for name, array in app.initial_model().items()
    }
    return Run(learners, Model.of(initial), app.Digits(test))


def cnn_run(experiment: Experiment, seed: int, order: int) -> Run:
    """A million parameters: two convolutions and two dense layers, in PyTorch."""
    import torch
    from torch import nn
    from torch.utils.data import TensorDataset

    from broker_fl.frameworks.torch import TorchLearner

    def network() -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(64 * 4 * 4, 950), nn.ReLU(), nn.Linear(950, 10)),
        )

    def learner(images: Any, digits: Any) -> TorchLearner:
        data = TensorDataset(torch.from_numpy(images).reshape(-1, 1, 8, 8), torch.from_numpy(digits))
        return TorchLearner(
            network(), data, optimizer=functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)
        )

    torch.set_num_threads(1)
    train, test = load_app(f"{DIGITS}:make_learner").module.load()
    parts = _parts(train.digits, experiment.learners, seed)
    learners = {
        f"learner-{index}": Seeded(learner(*(array[part] for array in train)), order)
        for index, part in enumerate(parts)
    }
    judge = learner(*test)
    return Run(learners, Model.of(judge.initial_model()), judge)


def _parts(labels: Any, count: int, seed: int) -> Sequence[Any]:
    return dirichlet(labels, count, alpha=ALPHA, seed=seed, min_examples=10)
