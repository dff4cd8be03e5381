"""What a learner keeps between tasks for SCAFFOLD: its control variate ``c_k``, of each job.

Whether an update counted is known to the controller alone. So the variate of each round is kept beside the
one before until a later task says which of them counts.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import numpy as np

from broker_fl.model import Array, Arrays
from broker_fl.wire.messages import TaskRef

MAX_JOBS = 8
"""Variates are kept of so many jobs, those used last; a job whose variate is gone begins anew with zero."""

Variate = dict[str, Array]


class Variates:
    """Of one learner. Memory: up to two models for each job."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, dict[int, Variate]] = OrderedDict()

    def begin(self, task: TaskRef, counted: int, server: Arrays) -> ControlledTask:
        """For a task: ``server`` is ``c``; ``counted`` the round that ``c_k`` is from, -1 if it is zero."""
        kept = self._kept.setdefault(task.job, {})
        self._kept.move_to_end(task.job)
        while len(self._kept) > MAX_JOBS:
            self._kept.popitem(last=False)
        for round in [one for one in kept if one != counted and one < task.round]:
            del kept[round]  # closed without it
        own = (
            {name: np.zeros_like(array) for name, array in server.items()}
            if counted < 0
            else kept.get(counted)
        )
        return ControlledTask(server=dict(server), own=own, kept=kept, round=task.round)


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlledTask:
    """The variates of one task."""

    server: Variate
    """``c``."""
    own: Variate | None
    """``c_k``; None if it is lost."""
    kept: dict[int, Variate]
    round: int

    @property
    def manifest(self) -> Literal["change", "lost"]:
        """What the update's manifest says of it."""
        return "lost" if self.own is None else "change"

    def correction(self) -> Variate:
        """``c - c_k``, for every gradient; zero without ``c_k``."""
        own = self.own if self.own is not None else self.server
        return {name: array - own[name] for name, array in self.server.items()}

    def change(self, given: Arrays | None) -> Variate:
        """``Δc = c_k⁺ - c_k``, with ``c_k⁺`` from ``train``; zero for arrays without, and if ``c_k`` is lost.

        Raises:
            TypeError, ValueError: it gave nothing, or not arrays as those of the model.
        """
        if given is None:
            raise TypeError(
                "the job's rule 'scaffold' needs control variates, which the learner does not do: train must "
                "return Update(control=...), for which broker_fl.frameworks has ControlVariate"
            )
        if unknown := sorted(given.keys() - self.server.keys()):
            raise ValueError(f"control has {unknown[0]!r}, which is not a float tensor of the model")
        return {name: self._change(name, array, given) for name, array in self.server.items()}

    def _change(self, name: str, like: Array, given: Arrays) -> Array:
        if self.own is None or name not in given:
            return np.zeros_like(like)
        after = np.asarray(given[name], like.dtype)
        if after.shape != like.shape:
            raise ValueError(f"control of tensor {name!r} has shape {after.shape} instead of {like.shape}")
        return after - self.own[name]

    def keep(self, sent: Arrays) -> None:
        """Keep ``c_k + Δc``, with ``Δc`` as it was sent: rounded, if its encoding rounds."""
        if self.own is not None:
            self.kept[self.round] = {name: array + sent[name] for name, array in self.own.items()}
