"""Handwritten digits with a small neural network in plain numpy.

broker-fl run examples/digits.py:make_learner --learners 10 --rounds 20
"""

from __future__ import annotations

import numpy as np
from digits_data import Examples, load, part, part_of

from broker_fl.frameworks import train_alone
from broker_fl.interfaces import LearnerContext, Metrics, TaskContext, Update
from broker_fl.model import Array, Arrays

HIDDEN = 64


class Digits:
    """A learner: owns some examples, and trains the network on them by stochastic gradient descent."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def train(self, model: Arrays, task: TaskContext) -> Update:
        batch_size = int(task.parameters.get("batch_size") or 16)
        learning_rate = np.float32(task.parameters.get("learning_rate") or 0.2)
        rng = np.random.default_rng([task.round, *task.learner.encode()])
        images, digits = self.examples
        starts = range(0, len(digits), batch_size)
        epochs = int(task.parameters.get("epochs", 5) or 0)
        if epochs < 1:
            raise ValueError(f"epochs is {epochs}; train at least 1")
        steps = int(task.parameters.get("steps") or epochs * len(starts))
        order = rng.permutation(len(digits))
        for step in range(steps):
            if step and step % len(starts) == 0:
                order = rng.permutation(len(digits))
            start = starts[step % len(starts)]
            batch = order[start : start + batch_size]
            for name, gradient in gradients(model, images[batch], digits[batch]).items():
                model[name][...] -= learning_rate * gradient
            task.progress((step + 1) / steps)
        return Update(
            model=model,
            num_examples=len(digits),
            num_steps=steps,
            num_epochs=steps / len(starts),
            metrics=measure(model, self.examples),
        )

    def evaluate(self, model: Arrays, task: TaskContext) -> Metrics:
        return {**measure(model, self.examples), "num_examples": len(self.examples.digits)}


def make_learner(context: LearnerContext) -> Digits:
    return Digits(part_of(context))


def initial_model() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {
        "hidden.weight": rng.normal(0, np.sqrt(2 / 64), (64, HIDDEN)).astype(np.float32),
        "hidden.bias": np.zeros(HIDDEN, np.float32),
        "output.weight": rng.normal(0, np.sqrt(2 / HIDDEN), (HIDDEN, 10)).astype(np.float32),
        "output.bias": np.zeros(10, np.float32),
    }


# ---------------------------------------------------------------- the network


def forward(model: Arrays, images: Array) -> tuple[Array, Array]:
    """Hidden activations (ReLU) and, for each image, the probabilities of the ten digits."""
    hidden = np.maximum(images @ model["hidden.weight"] + model["hidden.bias"], 0)
    scores = hidden @ model["output.weight"] + model["output.bias"]
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return hidden, exponentials / exponentials.sum(axis=1, keepdims=True)


def gradients(model: Arrays, images: Array, digits: Array) -> dict[str, Array]:
    """Of the mean cross-entropy, by backpropagation."""
    hidden, error = forward(model, images)
    error[np.arange(len(digits)), digits] -= 1
    error /= len(digits)
    hidden_error = (error @ model["output.weight"].T) * (hidden > 0)
    return {
        "hidden.weight": images.T @ hidden_error,
        "hidden.bias": hidden_error.sum(axis=0),
        "output.weight": hidden.T @ error,
        "output.bias": error.sum(axis=0),
    }


def measure(model: Arrays, examples: Examples) -> dict[str, float]:
    _, probabilities = forward(model, examples.images)
    right = probabilities[np.arange(len(examples.digits)), examples.digits]
    hits = probabilities.argmax(axis=1) == examples.digits
    return {"accuracy": float(hits.mean()), "loss": float(-np.log(np.maximum(right, 1e-12)).mean())}


# ---------------------------------------------------------------- what the federation is compared with


def test_metrics(model: Arrays) -> dict[str, float]:
    """Accuracy and loss on the held-out digits."""
    return measure(model, load()[1])


def central_training(rounds: int = 20) -> Arrays:
    """As many epochs as the federation does, with all data in one place."""
    return train_alone(Digits(load()[0]), initial_model(), rounds=rounds)


def alone(index: int, count: int = 10, rounds: int = 20) -> Arrays:
    """The same, with one learner's part of the data only."""
    return train_alone(Digits(part(index, count)), initial_model(), rounds=rounds)
