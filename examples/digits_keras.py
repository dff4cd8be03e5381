"""Handwritten digits with Keras on TensorFlow: a small network with batch normalisation.

broker-fl run examples/digits_keras.py:make_learner --learners 10 --rounds 20
"""

from __future__ import annotations

import keras
from digits_data import Examples, load, part, part_of

from broker_fl.frameworks import LocalTask, train_alone
from broker_fl.frameworks.keras import KerasLearner
from broker_fl.interfaces import LearnerContext
from broker_fl.model import Arrays


def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            *(layers.Conv2D(16, 3, padding="same", use_bias=False), layers.BatchNormalization(momentum=0.9)),
            *(layers.ReLU(), layers.MaxPooling2D()),
            *(layers.Conv2D(32, 3, padding="same", use_bias=False), layers.BatchNormalization(momentum=0.9)),
            *(layers.ReLU(), layers.MaxPooling2D()),
            *(layers.Flatten(), layers.Dense(10)),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.SGD(0.05, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def learner(examples: Examples) -> KerasLearner:
    return KerasLearner(network(), (examples.images.reshape(-1, 8, 8, 1), examples.digits))


def make_learner(context: LearnerContext) -> KerasLearner:
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


def _train(learner: KerasLearner, rounds: int) -> Arrays:
    return train_alone(learner, learner.initial_model(), rounds=rounds, parameters={"seed": 0})
