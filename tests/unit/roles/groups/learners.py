"""Learners of groups, and what came of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from broker_fl.interfaces import TaskContext, Update
from broker_fl.model import Arrays
from broker_fl.roles.driver import Job
from broker_fl.wire import events as e
from tests.unit.roles.stage import Adds


class Draws:
    """Trains to values that no float32 sum of which is exact, and says how it went."""

    def __init__(self, seed: int) -> None:
        self.num_examples = 1 + seed % 7
        self.w = np.random.default_rng(seed).standard_normal(3).astype(np.float32)

    def train(self, model: Arrays, task: TaskContext) -> Update:
        after = {name: np.asarray(array, array.dtype) for name, array in model.items()}
        after["w"] = model["w"] * np.float32(0.9) + self.w
        return Update(
            model=after,
            num_examples=self.num_examples,
            num_steps=2,
            num_epochs=1.0,
            metrics={"loss": float(self.w[0])},
        )

    def evaluate(self, model: Arrays, task: TaskContext) -> Mapping[str, float]:
        return {"norm": float(np.linalg.norm(model["w"])), "num_examples": self.num_examples}


class Fails(Adds):
    """Cannot train."""

    def train(self, model: Arrays, task: TaskContext) -> Update:
        raise ValueError("no data here")


class Diverges(Adds):
    """Its values are not finite."""

    def train(self, model: Arrays, task: TaskContext) -> Update:
        return Update(model={name: array * np.nan for name, array in model.items()}, num_examples=1)


def named(group: str, count: int) -> dict[str, Adds]:
    return {f"{group}-{index}": Adds(float(index), num_examples=index + 1) for index in range(count)}


def of(job: Job, kind: type[e.Event]) -> list[e.Event]:
    return [event for event in job.events(follow=False) if isinstance(event, kind)]


def mean_of(*learners: Adds) -> float:
    total = sum(one.num_examples for one in learners)
    return sum(one.amount * one.num_examples for one in learners) / total
