"""SCAFFOLD's control variates: whether the server's are the sum of those that counted, each once, and whether
each learner corrects by the server's and its own.

``c_k⁺`` of a training is told from all others as its step is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from broker_fl.model import Array, Arrays
from broker_fl.wire.rules import FedAvg
from tests.simulation.kernel import Violation
from tests.simulation.readings import check, step_of
from tests.simulation.references import NUM_VALUES, Training, is_close

Sums = Mapping[int, int]
"""Learner → the training of which its variate is."""


def variate_of(learner: int, number: int) -> Array:
    """``c_k⁺`` of a training."""
    return 0.5 * step_of(FedAvg(), learner, number)


class Book:
    """The variates of one job, with each of its versions."""

    def __init__(self, num_learners: int) -> None:
        self._num_learners = num_learners
        self._sums: list[Sums] = [{}]
        self._counts: list[int] = [1]

    def begin_from(self, other: Book, version: int) -> None:
        """The job began from another one's version, by the same rule."""
        self._sums, self._counts = [other._sums[version]], [other._counts[version]]

    def committed(self, found: Sequence[Training], memory: Arrays | None, name: str) -> None:
        """A version was stored, with what its rule keeps."""
        if any(one.is_lost for one in found):
            check(memory is None, f"{name}: a variate was lost, and the others are kept")
            self._sums.append({})
            self._counts.append(1)
            return
        now = {**self._sums[-1], **{one.learner: one.number for one in found}}
        if memory is None:
            raise Violation(f"{name} was stored without variates")
        check(
            is_close(np.asarray(memory["sum/w"]), _sum(now)), f"{name}: its variates are not those of {now}"
        )
        count = int(memory["num_learners"])
        check(len(now) <= count <= self._num_learners, f"{name}: {count} learners, variates of {now}")
        self._sums.append(now)
        self._counts.append(count)

    def is_lost(self, learner: int, version: int, own: Sequence[int]) -> bool:
        """Whether the learner's variate that counts is of a training before its process began."""
        counted = self._sums[version].get(learner)
        return counted is not None and counted not in own

    def check_correction(self, learner: int, version: int, own: Sequence[int], correction: Array) -> None:
        """Hold what a learner is to add to its gradients against ``c - c_k``."""
        sums, what = self._sums[version], f"l{learner} corrects from version {version}"
        if self.is_lost(learner, version, own):
            check(not correction.any(), f"{what} without its variate")
            return
        counted = sums.get(learner)
        mine = variate_of(learner, counted) if counted is not None else np.zeros(NUM_VALUES)
        expected = _sum(sums) / self._counts[version] - mine
        check(is_close(correction, expected), f"{what} by others than those of {sums}")


def _sum(sums: Sums) -> Array:
    return sum((variate_of(learner, number) for learner, number in sums.items()), np.zeros(NUM_VALUES))
