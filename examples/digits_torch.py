"""Handwritten digits with PyTorch: a small convolutional network with batch normalisation.

broker-fl run examples/digits_torch.py:make_learner --learners 10 --rounds 20
"""

from __future__ import annotations

from functools import partial

import torch
from digits_data import Examples, load, part, part_of
from torch import nn
from torch.utils.data import TensorDataset

from broker_fl.frameworks import LocalTask, train_alone
from broker_fl.frameworks.torch import TorchLearner
from broker_fl.interfaces import LearnerContext
from broker_fl.model import Arrays

torch.set_num_threads(1)  # so small a network is only slowed down by more, and learners share the processor


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 2 * 2, 10)),
    )


def dataset(examples: Examples) -> TensorDataset:
    images = torch.from_numpy(examples.images).reshape(-1, 1, 8, 8)
    return TensorDataset(images, torch.from_numpy(examples.digits))


def learner(examples: Examples) -> TorchLearner:
    optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    return TorchLearner(network(), dataset(examples), optimizer=optimizer)


def make_learner(context: LearnerContext) -> TorchLearner:
    return learner(part_of(context))


# ---------------------------------------------------------------- what the federation is compared with


def test_metrics(model: Arrays) -> dict[str, float]:
    """Accuracy and loss on the held-out digits."""
    found = learner(load()[1]).evaluate(model, LocalTask())
    return {"accuracy": found["accuracy"], "loss": found["loss"]}


def central_training(rounds: int = 20) -> Arrays:
    """As many epochs as the federation does, with all data in one place."""
    return _train(learner(load()[0]), rounds)


def alone(index: int, count: int = 10, rounds: int = 20) -> Arrays:
    """The same, with one learner's part of the data only."""
    return _train(learner(part(index, count)), rounds)


def _train(learner: TorchLearner, rounds: int) -> Arrays:
    return train_alone(learner, learner.initial_model(), rounds=rounds, parameters={"seed": 0})
