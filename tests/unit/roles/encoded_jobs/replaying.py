"""Learners that change a model by known amounts, and what comes of it, computed a second time by hand."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from broker_fl.interfaces import TaskContext, Update
from broker_fl.model import Array, Arrays, Model
from broker_fl.roles.driver import Job
from broker_fl.roles.learner.residuals import Residuals
from broker_fl.wire.encodings import encoding
from broker_fl.wire.messages import TaskRef

SIZE = 600
ROUNDS = 6


def initial() -> dict[str, Array]:
    return {"w": np.linspace(-1, 1, SIZE, dtype=np.float32), "n": np.array([1, 2], np.int32)}


def step(learner: str, round: int) -> Array:
    """What this learner changes in ``w`` in this round."""
    return np.random.default_rng([*learner.encode(), round]).normal(0, 0.1, SIZE).astype(np.float32)


class Wanders:
    """Changes each element by another amount in every round; in ``ill`` rounds its metric is NaN."""

    def __init__(self, *ill: int) -> None:
        self.ill = ill
        self.num_trained = 0

    def train(self, model: Arrays, task: TaskContext) -> Update:
        self.num_trained += 1
        metrics = {"loss": float("nan") if task.round in self.ill else 0.5}
        model["w"][...] += step(
            task.learner, task.round
        )  # in place: the given version must be kept elsewhere
        return Update(model=model, num_examples=1, metrics=metrics)

    def evaluate(self, model: Arrays, task: TaskContext) -> Mapping[str, float]:
        return {"first": float(model["w"][0])}


def replay(
    name: str,
    learners: Iterable[str],
    missing: Iterable[tuple[str, int]] = (),
    anew: Mapping[str, int] | None = None,
) -> Array:
    """``w`` after all rounds, by FedAvg; ``missing`` updates did not count, ``anew`` says before which round
    a learner was started anew.
    """
    state = {learner: Residuals() for learner in learners}
    counted = dict.fromkeys(state, -1)
    w = initial()["w"].astype(np.float64)
    for round in range(ROUNDS):
        arrived = []
        for learner in state:
            if (anew or {}).get(learner) == round:
                state[learner] = Residuals()
            given = w.astype(np.float32)
            change = Model.of({"w": (given + step(learner, round)) - given, "n": np.zeros(2, np.int32)})
            task = TaskRef(job="replay", round=round)
            encoded = state[learner].encode(change, encoding(name), task, counted[learner])
            if (learner, round) not in missing:
                arrived.append(encoding(name).decode(encoded, change.spec)["w"].astype(np.float64))
                counted[learner] = round
        w = w + sum(arrived) / len(arrived)
    return w


def check(job: Job, expected: Array, atol: float = 1e-5) -> None:
    final = job.model()
    np.testing.assert_allclose(final["w"], expected, atol=atol)
    np.testing.assert_array_equal(final["n"], [1, 2])


def of(job: Job, kind: type[Any]) -> list[Any]:
    return [event for event in job.events(follow=False) if isinstance(event, kind)]


class Waits(Wanders):
    """Trains when it is let; it may change nothing then."""

    def __init__(self, *, moves: bool = False) -> None:
        super().__init__()
        self.moves = moves
        self.turns = threading.Semaphore(0)
        self.at_work = threading.Event()

    def train(self, model: Arrays, task: TaskContext) -> Update:
        self.at_work.set()
        while not self.turns.acquire(timeout=0.01):
            task.progress(0.5)
        return super().train(model, task) if self.moves else Update(model=model, num_examples=1)
