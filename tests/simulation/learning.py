"""The learners: what they add tells their trainings apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from broker_fl.interfaces import TaskContext, Update
from broker_fl.model import Arrays
from tests.simulation.references import loss_of
from tests.simulation.variates import variate_of

if TYPE_CHECKING:
    from tests.simulation.processes import Process
    from tests.simulation.world import World


class CountingLearner:
    """One of a process; it remembers what it has trained, and is made anew with its process."""

    def __init__(self, world: World, process: Process, number: int) -> None:
        self._world = world
        self._process = process
        self._number = number
        self._own: list[int] = []

    def train(self, model: Arrays, task: TaskContext) -> Update:
        world, draw = self._world, self._world.kernel.draw
        values = np.array(model["w"])
        with world.kernel.watched():
            world.audit.given(self._number, task, values, self._own)
        for part in (0.3, 0.7):
            self._process.sleep(draw.expovariate(2.0 / world.scenario.train_s))
            task.progress(part)
        if world.are_faults_on and world.kernel.unlucky(world.scenario.fail):
            raise RuntimeError("out of luck")
        is_usable = not (world.are_faults_on and world.kernel.unlucky(world.scenario.refuse))
        with world.kernel.watched():
            training = world.audit.trained(
                self._number, task, values, self._own, draw.randint(1, 5), is_usable
            )
        return Update(
            model={"w": training.trained if is_usable else values + np.nan},
            num_examples=training.weight,
            num_steps=training.num_steps,
            num_epochs=training.num_steps / 4,
            control={"w": variate_of(self._number, training.number)} if task.control is not None else None,
        )

    def evaluate(self, model: Arrays, task: TaskContext) -> Mapping[str, float]:
        self._process.sleep(self._world.kernel.draw.random() * 0.1)
        values = np.asarray(model["w"])
        return {"last": float(values[-1]), "loss": loss_of(self._number, values), "num_examples": 1}
