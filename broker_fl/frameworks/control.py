"""SCAFFOLD's correction of gradients, for learners that compute their own.

Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML,
Algorithm 1: each local step is ``y ← y − η_l (g(y) − c_k + c)`` (line 10). Of option II in line 12,
``c_k⁺ = c_k − c + (x − y) / (K η_l)``, is taken what it comes to with such steps, the mean of ``g(y)`` over
them: so it holds for optimisers with momentum as well. ``TorchLearner`` and ``KerasLearner`` do so by
themselves.
"""

from __future__ import annotations

import numpy as np

from broker_fl.interfaces import TaskContext
from broker_fl.model import Array


class ControlVariate:
    """``c − c_k``; nothing at all where the task does not ask for it.

    ::

        control = ControlVariate(task)
        for x, y in batches:
            w -= learning_rate * control.corrected("w", gradient(w, x, y))
        return Update(model={"w": w}, num_examples=len(data), control=control.result())
    """

    def __init__(self, task: TaskContext) -> None:
        self._correction = task.control
        self._sums: dict[str, Array] = {}
        self._num_steps: dict[str, int] = {}

    def corrected(self, name: str, gradient: Array) -> Array:
        """``g − c_k + c`` of one array, in its type; to be called once a step for each that is trained."""
        if self._correction is None:
            return gradient
        correction = self._correction[name]
        self._sums[name] = self._sums.get(name, 0) + np.asarray(gradient, correction.dtype)
        self._num_steps[name] = self._num_steps.get(name, 0) + 1
        return np.asarray(gradient + correction, gradient.dtype)

    def result(self) -> dict[str, Array] | None:
        """``c_k⁺``, for ``Update.control``; None where the task does not ask for it."""
        if self._correction is None:
            return None
        return {
            name: np.asarray(total / self._num_steps[name], total.dtype) for name, total in self._sums.items()
        }
