"""What each rule makes of a round's updates: from the papers, in plain NumPy; no line is the library's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from broker_fl.model import Array
from broker_fl.wire import rules
from broker_fl.wire.job import JobSpec

NUM_VALUES = 1_200
"""Of a model: three chunks of the smallest size."""
Choosers = rules.Krum | rules.MultiKrum
"""Whose versions may come out the same whether an update was among those that were left out or not."""
Adaptive = rules.FedAdagrad | rules.FedAdam | rules.FedYogi
_TOLERANCE = 1e-12
_PULL = 1e-5
"""What is left of unit vectors that balance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One call of ``train`` that came to its end."""

    number: int
    learner: int
    job: str
    base: int
    """The version that it began from, and its values."""
    given: Array = field(repr=False, compare=False)
    step: Array = field(repr=False, compare=False)
    """What it has added."""
    weight: int
    num_steps: int
    is_usable: bool
    is_lost: bool = False
    """SCAFFOLD: whether its learner had lost the variate that counts."""

    @property
    def trained(self) -> Array:
        """What the update holds."""
        return self.given + self.step


def loss_of(learner: int, values: Array) -> float:
    """What a learner finds when it evaluates a model."""
    return 1.0 + learner + min(10.0, abs(float(values[-1])))


def weight_of(rule: Any, one: Training) -> float:
    """What an update counts, by the job's ``weighting``."""
    match "examples" if isinstance(rule, rules.FedNova) else getattr(rule, "weighting", "equal"):
        case "examples":
            return float(one.weight)
        case "steps":
            return float(one.num_steps)
        case _:
            return 1.0


class Reference:
    """The rule of a job with rounds, and what it keeps from one to the next."""

    def __init__(self, spec: JobSpec) -> None:
        self.rule: Any = spec.rule
        self._kept = [(np.zeros(NUM_VALUES), np.full(NUM_VALUES, getattr(self.rule, "tau", 0.0) ** 2))]
        """Moments ``m`` and ``v``, with each version."""

    def begin_from(self, other: Reference, version: int) -> None:
        """Go on with what another job's rule kept."""
        if isinstance(self.rule, rules.FedAvgM | Adaptive):
            self._kept = [other._kept[version]]

    def makes(self, values: Array, before: Array, found: Sequence[Training]) -> bool:
        """Whether just these updates make the version."""
        if isinstance(self.rule, rules.Robust) and len(found) < self.rule.updates_needed():
            return False
        if isinstance(self.rule, rules.GeometricMedian):
            return _is_median(values, [one.trained for one in found])
        if isinstance(self.rule, Choosers):
            rows = np.array([one.trained for one in found])
            return any(is_close(values, mean) for mean in _nearest(self.rule, rows))
        return is_close(values, self.version(before, found))

    def version(self, before: Array, found: Sequence[Training]) -> Array:
        """What the rule makes of these updates."""
        weights = np.array([weight_of(self.rule, one) for one in found])
        rows = np.array([one.trained for one in found])
        change = rows - before
        match self.rule:
            case rules.FedNova():
                moved = _normalised(self.rule, change, found)
            case rules.QFedAvg():
                moved = _fair(self.rule, change, weights, before, found)
            case rules.NormClipping():
                lengths = np.linalg.norm(change, axis=1)
                moved = weights / weights.sum() / np.maximum(1.0, lengths / self.rule.max_norm) @ change
            case rules.Median():
                moved = np.median(change, axis=0)
            case rules.TrimmedMean(max_attackers=f):
                moved = np.sort(change, axis=0)[f : len(rows) - f].mean(axis=0)
            case _:  # Bulyan without attackers, too: all are selected, and none is left out
                moved = self._stepped(weights @ change / weights.sum())
        return np.asarray(before + moved)

    def _stepped(self, mean: Array) -> Array:
        """How far the server goes for a mean change."""
        match self.rule:
            case rules.FedAvgM():
                return np.asarray(self.rule.learning_rate * self._moments(mean)[0])
            case rules.FedAdagrad() | rules.FedAdam() | rules.FedYogi():
                m, v = self._moments(mean)
                return np.asarray(self.rule.learning_rate * m / (np.sqrt(v) + self.rule.tau))
            case rules.Scaffold():
                return np.asarray(self.rule.learning_rate * mean)
            case _:
                return mean

    def _moments(self, change: Array) -> tuple[Array, Array]:
        rule, (m, v) = self.rule, self._kept[-1]
        if isinstance(rule, rules.FedAvgM):
            return rule.momentum * m + change, v
        squared = change**2
        m = rule.beta1 * m + (1 - rule.beta1) * change
        match rule:
            case rules.FedAdagrad():
                return m, v + squared
            case rules.FedAdam():
                return m, rule.beta2 * v + (1 - rule.beta2) * squared
            case _:
                return m, v - (1 - rule.beta2) * squared * np.sign(v - squared)

    def without_momentum(self, change: Array) -> Array:
        """FedAvgM: the mean change of a round, of the change that came of it."""
        return np.asarray(change / self.rule.learning_rate - self.rule.momentum * self._kept[-1][0])

    def commit(self, before: Array, found: Sequence[Training]) -> None:
        """The next round goes on from here."""
        if isinstance(self.rule, rules.FedAvgM | Adaptive):
            weights = np.array([weight_of(self.rule, one) for one in found])
            mean = weights @ np.array([one.trained - before for one in found]) / weights.sum()
            self._kept.append(self._moments(mean))


def is_close(values: Array, expected: Array) -> bool:
    """Equal but for rounding."""
    return bool((np.abs(values - expected) <= _TOLERANCE * (1.0 + np.abs(expected))).all())


def _normalised(rule: rules.FedNova, changes: Array, found: Sequence[Training]) -> Array:
    """FedNova: ``τ_eff Σ p_k Δ_k / ‖a_k‖₁``."""
    rho = rule.momentum
    shares = np.array([one.weight for one in found]) / sum(one.weight for one in found)
    works = np.array(  # ‖a_k‖₁: an early step's gradient goes on in the momentum of those that are left
        [sum((1 - rho**left) / (1 - rho) for left in range(1, one.num_steps + 1)) for one in found]
    )
    return np.asarray((shares @ works) * (shares / works) @ changes)


def _fair(
    rule: rules.QFedAvg, changes: Array, weights: Array, before: Array, found: Sequence[Training]
) -> Array:
    """q-FedAvg: ``Σ p_k F_k^q L Δ_k / Σ p_k h_k``."""
    losses = np.array([loss_of(one.learner, before) + 1e-10 for one in found])
    inverse, power = 1.0 / rule.learning_rate, losses**rule.q
    lengths = (inverse * changes**2 * inverse).sum(axis=1)
    h = rule.q * losses ** (rule.q - 1) * lengths + inverse * power
    return np.asarray((weights * power * inverse) @ changes / (weights @ h))


def _scores(rows: Array, f: int) -> Array:
    """Krum's ``s(i)``."""
    squared = ((rows[:, None, :] - rows[None, :, :]) ** 2).sum(axis=2)
    num_neighbours = min(max(1, len(rows) - f - 2), len(rows) - 1)
    return np.asarray(np.sort(squared, axis=1)[:, 1 : 1 + num_neighbours].sum(axis=1))


def _nearest(rule: rules.Krum | rules.MultiKrum, rows: Array) -> Iterator[Array]:
    """Means of the updates of the lowest scores; several, where rounding decides which these are: two that
    are each other's nearest have the same.
    """
    found = _scores(rows, rule.max_attackers)
    count = rule.num_combined(len(rows))
    most = np.sort(found)[count - 1] * (1 + 1e-9)
    for best in combinations(np.flatnonzero(found <= most), count):
        yield rows[list(best)].mean(axis=0)


def _is_median(values: Array, updates: Sequence[Array]) -> bool:
    """Geometric median: unit vectors towards the updates balance, but for those that it lies on."""
    away = np.array(updates) - values
    lengths = np.linalg.norm(away, axis=1)
    apart = lengths > 1e-6 * lengths.max()
    pull = np.linalg.norm((away[apart] / lengths[apart, None]).sum(axis=0))
    return bool(pull <= np.count_nonzero(~apart) + _PULL * len(updates))
