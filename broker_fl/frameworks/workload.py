"""What a task asks of a framework adapter: the parameters that all adapters read, checked."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np

from broker_fl.errors import SettingError
from broker_fl.interfaces import Parameters, TaskContext
from broker_fl.wire.rules import PROXIMAL_MU


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """How much to train, and how."""

    epochs: int = 1
    steps: int | None = None
    """Optimiser steps; where it is given, ``epochs`` does not count."""
    batch_size: int | None = None
    """None: what the learner itself has."""
    learning_rate: float | None = None
    """None: what the learner's optimiser has."""
    proximal_mu: float = 0.0
    """FedProx's μ: how strongly training is held at the model that was received; 0 does not hold it."""
    seed: int | None = None
    """Of this learner in this round, below 2³¹: made of the job's ``seed``, the round, the learner's id."""

    @classmethod
    def of(cls, task: TaskContext) -> Workload:
        """Read the parameters named as the fields; None means not given.

        Raises:
            SettingError: a value is not of its type or out of range.
        """
        given = task.parameters
        seed = whole(given, "seed", 0)
        return cls(
            epochs=whole(given, "epochs", 1) or 1,
            steps=whole(given, "steps", 1),
            batch_size=whole(given, "batch_size", 1),
            learning_rate=_positive(given, "learning_rate"),
            proximal_mu=_proximal_mu(given),
            seed=None if seed is None else _mix(seed, task),
        )


def whole(given: Parameters, name: str, least: int) -> int | None:
    """The parameter ``name``, a whole number; None if it is not given.

    Raises:
        SettingError: it is none, or below ``least``.
    """
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SettingError(f"parameter {name!r} is {value!r}; it must be a whole number of at least {least}")
    return value


def _positive(given: Parameters, name: str) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool | str) or not (math.isfinite(value) and value > 0):
        raise SettingError(f"parameter {name!r} is {value!r}; it must be a number above 0")
    return float(value)


def _proximal_mu(given: Parameters) -> float:
    value = given.get(PROXIMAL_MU)
    if value is None:
        return 0.0
    if isinstance(value, bool | str) or not (math.isfinite(value) and value >= 0):
        raise SettingError(f"parameter {PROXIMAL_MU!r} is {value!r}; it must be a number of at least 0")
    return float(value)


def _mix(seed: int, task: TaskContext) -> int:
    parts = [seed, task.round, zlib.crc32(task.learner.encode())]
    return int(np.random.SeedSequence(parts).generate_state(1)[0]) >> 1
