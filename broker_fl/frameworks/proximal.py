"""FedProx's proximal term, for learners that compute their own gradients.

Li et al. 2020, "Federated Optimization in Heterogeneous Networks", MLSys, Algorithm 2: instead of its loss
``F_k(w)`` a learner minimises ``F_k(w) + μ/2 ‖w − w_t‖²``, where ``w_t`` is the model that it received.
``TorchLearner``, ``KerasLearner`` and ``JaxLearner`` do so by themselves.
"""

from __future__ import annotations

import numpy as np

from broker_fl.frameworks.workload import Workload
from broker_fl.interfaces import TaskContext
from broker_fl.model import Array, Arrays


class ProximalTerm:
    """``μ/2 ‖w − w_t‖²``; nothing at all where the task does not ask for it.

    ::

        term = ProximalTerm(model, task)  # before the arrays of ``model`` are written to
        for x, y in batches:
            w -= learning_rate * (gradient_of_loss(w, x, y) + term.gradient("w", w))
    """

    def __init__(self, received: Arrays, task: TaskContext) -> None:
        """Read μ from the parameter ``proximal_mu``, and keep a copy of ``received`` if there is one.

        Raises:
            SettingError: it is not a number of at least 0.
        """
        self.mu = Workload.of(task).proximal_mu
        self._received = {name: np.array(array) for name, array in received.items()} if self.mu else {}

    def gradient(self, name: str, values: Array) -> Array:
        """``μ (w − w_t)`` of one array, in its type."""
        if not self.mu:
            return np.zeros_like(values)
        return np.asarray(values.dtype.type(self.mu) * (values - self._received[name]), values.dtype)

    def loss(self, values: Arrays) -> float:
        """``μ/2 ‖w − w_t‖²`` over those arrays."""
        if not self.mu:
            return 0.0
        changes = (values[name].astype(np.float64) - self._received[name] for name in values)
        return self.mu / 2 * sum(float((change**2).sum()) for change in changes)
