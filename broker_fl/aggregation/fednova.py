"""FedNova (Wang et al. 2020).

"Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization", NeurIPS.

Equation (7) with ``η d_k = (x_t − x_k) / ‖a_k‖₁``, the change for each unit of local work::

    x_{t+1} = x_t + τ_eff Σ_k p_k (x_k − x_t) / ‖a_k‖₁        p_k = n_k / n, examples
    τ_eff = Σ_k p_k ‖a_k‖₁

so that with equal work it is FedAvg, and with unequal work still goes towards the same optimum. With plain
SGD ``‖a_k‖₁ = τ_k``, the steps; with local momentum ρ (section 4)
``‖a_k‖₁ = [τ_k − ρ (1 − ρ^τ_k) / (1 − ρ)] / (1 − ρ)``.

It streams. Memory: the given model and one sum. Integer and boolean tensors and the job's ``buffers`` take
the mean by ``p_k``.
"""

from __future__ import annotations

from broker_fl.aggregation import fused
from broker_fl.aggregation.changes import ChangeSum
from broker_fl.aggregation.weighting import steps_of, weight_of
from broker_fl.interfaces import Combined, Contribution, Given


class FedNova:
    """The mean of normalised changes."""

    def __init__(self, momentum: float = 0.0) -> None:
        """Take ρ, the momentum of the learners' own optimiser."""
        self._momentum = momentum

    def begin(self, given: Given) -> FedNovaRound:
        """Begin a round."""
        return FedNovaRound(given, self._momentum)


class FedNovaRound:
    """One round's ``Σ n_k (x_k − x_t) / ‖a_k‖₁`` and ``Σ n_k ‖a_k‖₁``."""

    def __init__(self, given: Given, momentum: float) -> None:
        self._sum = ChangeSum(given)
        self._momentum = momentum
        self._total_work = 0.0

    @property
    def total_weight(self) -> float:
        """``n``: examples of all updates folded so far."""
        return self._sum.total_weight

    def fold(self, contribution: Contribution) -> float:
        """Add ``n_k (x_k − x_t) / ‖a_k‖₁``; ``n_k`` comes back.

        Raises:
            UpdateRefused: no examples, no steps, another spec, or values that are not finite; nothing was
                changed.
        """
        weight = weight_of(contribution, "examples")
        work = local_work(steps_of(contribution), self._momentum)
        self._sum.check(contribution.model, weight)
        self._sum.add(contribution.model, scale=weight / work, weight=weight)
        self._total_work += weight * work
        return weight

    def result(self) -> Combined:
        """``x_{t+1}``.

        Raises:
            AggregationError: no update was folded, or a value is not finite.
        """
        for change in self._sum.totals():
            n = self.total_weight
            fused.evaluate("change * factor", change, change=change, factor=self._total_work / n / n)
        return Combined(model=self._sum.moved())


def local_work(num_steps: int, momentum: float) -> float:
    """``‖a_k‖₁``."""
    rho = momentum
    return (num_steps - rho * (1.0 - rho**num_steps) / (1.0 - rho)) / (1.0 - rho)
