"""Optimisers on the server (Reddi et al. 2021).

"Adaptive Federated Optimization", ICLR, Algorithm 2: what the cohort changed takes the place of a gradient.

::

    Δ_t = Σ_k p_k (x_k − x_t)                                p_k by the job's ``weighting``
    m_t = β₁ m_{t−1} + (1 − β₁) Δ_t
    v_t = v_{t−1} + Δ_t²                                     FedAdagrad
    v_t = β₂ v_{t−1} + (1 − β₂) Δ_t²                         FedAdam
    v_t = v_{t−1} − (1 − β₂) Δ_t² sign(v_{t−1} − Δ_t²)       FedYogi
    x_{t+1} = x_t + η m_t / (√v_t + τ)

with ``m_{−1} = 0``, ``v_{−1} = τ²``, and without Adam's correction of the first steps, which the algorithm
does not have. FedAvgM (Hsu et al. 2019, "Measuring the Effects of Non-Identical Data Distribution for
Federated Visual Classification") keeps only a momentum: ``m_t = β m_{t−1} + Δ_t``, ``x_{t+1} = x_t + η m_t``.

They stream. Memory within a round: the given model and one sum; between rounds: one model (FedAvgM) or two.
Integer and boolean tensors, and the job's ``buffers`` (batch-norm statistics, which an optimiser's step could
make negative), take the weighted mean and have no momentum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from broker_fl.aggregation import fused, kernels
from broker_fl.aggregation.changes import ChangeSum
from broker_fl.aggregation.sums import length, sum_dtype
from broker_fl.aggregation.weighting import Weighting, weight_of
from broker_fl.errors import AggregationError
from broker_fl.interfaces import Combined, Contribution, Given
from broker_fl.model import Array, Model, ModelSpec, Run, TensorSpec

Moments = Mapping[str, Array]
"""Of one run, by name; a step writes the new values into them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimiser:
    """One equation of the above."""

    start: Mapping[str, float]
    """The moments that it keeps, and what they are before the first round."""
    step: Callable[[Array, Moments], None]
    """Turns ``Δ_t`` into ``x_{t+1} − x_t``, in place."""


def fedavgm(learning_rate: float, momentum: float) -> Optimiser:
    """Momentum only."""

    def step(change: Array, moments: Moments) -> None:
        m = moments["m"]
        fused.evaluate("beta * m + change", m, m=m, change=change, beta=momentum)
        fused.evaluate("eta * m", change, m=m, eta=learning_rate)

    return Optimiser(start={"m": 0.0}, step=step)


def fedadagrad(learning_rate: float, beta1: float, tau: float) -> Optimiser:
    """All squares so far count alike."""
    return _adaptive("v + change * change", learning_rate, beta1, 0.0, tau)


def fedadam(learning_rate: float, beta1: float, beta2: float, tau: float) -> Optimiser:
    """Squares are forgotten exponentially."""
    return _adaptive("beta2 * v + rest2 * change * change", learning_rate, beta1, beta2, tau)


def fedyogi(learning_rate: float, beta1: float, beta2: float, tau: float) -> Optimiser:
    """The second moment moves by an amount that does not depend on how large it is."""
    sign = "where(v > change * change, one, where(v < change * change, -one, zero))"
    return _adaptive(f"v - rest2 * change * change * {sign}", learning_rate, beta1, beta2, tau)


def _adaptive(second_moment: str, eta: float, beta1: float, beta2: float, tau: float) -> Optimiser:
    scalars = {"beta2": beta2, "rest2": 1.0 - beta2, "one": 1.0, "zero": 0.0}

    def step(change: Array, moments: Moments) -> None:
        m, v = moments["m"], moments["v"]
        fused.evaluate("beta * m + rest * change", m, m=m, change=change, beta=beta1, rest=1.0 - beta1)
        fused.evaluate(second_moment, v, v=v, change=change, **scalars)
        fused.evaluate("eta * m / (sqrt(v) + tau)", change, m=m, v=v, eta=eta, tau=tau)

    return Optimiser(start={"m": 0.0, "v": tau * tau}, step=step)


class FedOpt:
    """Moves the model that was given by an optimiser's step."""

    def __init__(self, optimiser: Optimiser, weighting: Weighting = "examples") -> None:
        self._optimiser = optimiser
        self._weighting = weighting

    def begin(self, given: Given) -> FedOptRound:
        """Begin a round."""
        return FedOptRound(given, self._optimiser, self._weighting)


class FedOptRound:
    """One round's ``Σ n_k (x_k − x_t)``."""

    def __init__(self, given: Given, optimiser: Optimiser, weighting: Weighting) -> None:
        self._sum = ChangeSum(given)
        self._before = given.memory
        self._optimiser = optimiser
        self._weighting = weighting

    @property
    def total_weight(self) -> float:
        """``n``: of all updates folded so far."""
        return self._sum.total_weight

    def fold(self, contribution: Contribution) -> float:
        """Add ``n_k (x_k − x_t)``; ``n_k`` comes back.

        Raises:
            UpdateRefused: no weight, another spec, or values that are not finite; the sum is unchanged.
        """
        weight = weight_of(contribution, self._weighting)
        self._sum.check(contribution.model, weight)
        self._sum.add(contribution.model, scale=weight, weight=weight)
        return weight

    def result(self) -> Combined:
        """``x_{t+1}``, and the moments for the next round.

        Raises:
            AggregationError: no update was folded, or a value is not finite.
        """
        changes = self._sum.totals()
        memory = moments_after(self._before, self._sum.trained_runs, self._optimiser.start)
        for place, change in enumerate(changes):
            kernels.divide(change, self._sum.total_weight)
            self._optimiser.step(change, {name: memory[f"{name}.{place}"] for name in self._optimiser.start})
        if not all(kernels.all_finite(memory.run(run)) for run in memory.spec.runs):
            raise AggregationError("the optimiser's moments overflow: the updates changed the model too much")
        return Combined(model=self._sum.moved(), memory=memory)


def moments_after(before: Model | None, runs: Sequence[Run], start: Mapping[str, float]) -> Model:
    """The moments of the round before, to be written to; those of a first round if another rule left others.

    Each is one flat tensor per run of trained tensors: ``m.0``, ``m.1``, …, ``v.0``, …
    """
    tensors = {
        f"{name}.{place}": (np.dtype(sum_dtype(run)).name, length(run), value)
        for name, value in start.items()
        for place, run in enumerate(runs)
    }
    memory_spec = ModelSpec(tuple(TensorSpec(key, kind, (size,)) for key, (kind, size, _) in tensors.items()))
    if before is not None and before.spec.digest == memory_spec.digest:
        return before.copy()
    memory = Model.blank(memory_spec)
    for key, (_, _, value) in tensors.items():
        memory[key][...] = value
    return memory
