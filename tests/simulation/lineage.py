"""One job's versions, and what each of them was made of: read from the numbers alone.

Each training adds a vector of its own to the model that it was given: 1 at its learner's place, and its own
number beside it. So from two versions that follow one another can be read which trainings are in the second
and with which weight, whatever the controller says of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from broker_fl.aggregation.staleness import discount
from broker_fl.model import Array
from broker_fl.wire.job import JobSpec
from broker_fl.wire.rules import FedAsync, FedAvgM, FedBuff
from tests.simulation.kernel import Violation

NUM_VALUES = 1_200
"""Of a model: three chunks of the smallest size."""
TOLERANCE = 1e-9
Weights = dict[int, float]
"""Training → its weight in the sum."""


def check(truth: bool, what: str) -> None:
    """Raise a ``Violation`` if it is not true."""
    if not truth:
        raise Violation(what)


def step_of(learner: int, number: int) -> Array:
    """What a training adds."""
    step = np.zeros(NUM_VALUES)
    step[2 * learner], step[2 * learner + 1] = 1.0, number
    step[-1] = number
    return step


@dataclass(frozen=True, slots=True)
class Training:
    """One call of ``train`` that came to its end."""

    number: int
    learner: int
    job: str
    base: int
    """The version that it began from, and its values."""
    given: Array = field(repr=False, compare=False)
    weight: int
    is_usable: bool

    @property
    def step(self) -> Array:
        """What it has added."""
        return step_of(self.learner, self.number)


class Lineage:
    """The versions of one job as they were committed."""

    def __init__(self, job: str, spec: JobSpec, num_learners: int) -> None:
        self.job = job
        self.spec = spec
        self.models: list[Array] = []
        self.weights: list[Weights] = []
        self.has_lost = False
        """Whether the store has ever forgotten a version: what was trained from it may count in the one that
        took its number, so that from then on nothing is read from the values."""
        self._num_learners = num_learners
        self._numbers: dict[bytes, int] = {}
        self._moments: list[Array] = [np.zeros(NUM_VALUES)]

    def base_of(self, values: Array) -> int:
        """The number of a version."""
        version = self._numbers.get(values.tobytes())
        if version is None:
            raise Violation(f"a learner was given a model of {self.job} that is no version of it")
        return version

    def cut(self, num_left: int) -> None:
        """The store has forgotten the newest versions."""
        del self.models[num_left:], self.weights[num_left:], self._moments[max(1, num_left) :]
        self.has_lost = True

    def add(
        self, data: bytes, trainings: Mapping[int, Training], counted: Mapping[int, object]
    ) -> list[Training]:
        """A version was committed; what it is made of comes back."""
        values = np.frombuffer(data, np.float64, NUM_VALUES)  # what the rule keeps comes behind
        found: list[Training] = []
        weights: Weights = {}
        if self.models and not self.has_lost:
            candidates = [
                one for one in trainings.values() if one.job == self.job and one.number not in counted
            ]
            found = self._made_of(values, trainings, candidates)
            weights = self._weights(found)
            self._is_exact(values, found, weights)
        key = values.tobytes()
        check(self.has_lost or key not in self._numbers, f"{self.job}: a version is equal to an earlier one")
        self._numbers[key] = len(self.models)
        self.models.append(values)
        self.weights.append(weights)
        return found

    @property
    def _name(self) -> str:
        """Of the version that is looked at."""
        return f"version {len(self.models)} of {self.job}"

    # ------------------------------------------------------------ what is in it

    def _made_of(
        self, values: Array, trainings: Mapping[int, Training], candidates: Sequence[Training]
    ) -> list[Training]:
        rule, change = self.spec.rule, values - self.models[-1]
        if isinstance(rule, FedAsync):
            return [self._mixed_in(rule, change, candidates)]
        if isinstance(rule, FedAvgM):
            change = change / rule.learning_rate - rule.momentum * self._moments[-1]
        found = [self._added_by(learner, change, trainings) for learner in range(self._num_learners)]
        return [one for one in found if one is not None]

    def _mixed_in(self, rule: FedAsync, change: Array, candidates: Sequence[Training]) -> Training:
        """The one training that explains the change."""
        for one in reversed(candidates):
            share = self._share(rule, one)
            if np.allclose(share * (one.given + one.step - self.models[-1]), change, TOLERANCE, TOLERANCE):
                return one
        raise Violation(f"no training that is in no version yet explains {self._name}")

    def _share(self, rule: FedAsync | FedBuff, one: Training) -> float:
        alpha = rule.alpha if isinstance(rule, FedAsync) else 1.0
        return alpha * discount(rule.staleness)(max(0, self._age(one)))

    def _age(self, one: Training) -> int:
        return len(self.models) - 1 - one.base

    def _added_by(self, learner: int, change: Array, trainings: Mapping[int, Training]) -> Training | None:
        """A learner's update, from its places in the change."""
        share, total = change[2 * learner], change[2 * learner + 1]
        if abs(share) < TOLERANCE:
            check(abs(total) < 1e-6, f"{self._name} has half an update of l{learner}")
            return None
        one = trainings.get(round(total / share))
        if one is None or one.learner != learner:
            raise Violation(f"{self._name} has an update {total / share} of l{learner}: there is none")
        return one

    # ------------------------------------------------------------ whether it is just that

    def _weights(self, found: Sequence[Training]) -> Weights:
        rule = self.spec.rule
        limit = getattr(self.spec.protocol, "max_staleness", None)
        check(bool(found), f"nothing is in {self._name}")
        for one in found:
            check(
                self.has_lost or limit is None or self._age(one) <= limit,
                f"{one} is too old for {self._name}",
            )
        if isinstance(rule, FedAsync | FedBuff):
            return {one.number: self._share(rule, one) for one in found}
        for one in found:
            check(self._age(one) == 0, f"{one} is in {self._name}")
        return {one.number: float(one.weight) for one in found}

    def _is_exact(self, values: Array, found: Sequence[Training], weights: Weights) -> None:
        rule, before = self.spec.rule, self.models[-1]
        if isinstance(rule, FedAsync):
            (one,) = found
            share = weights[one.number]
            expected = (1 - share) * before + share * (one.given + one.step)
        elif isinstance(rule, FedBuff):
            check(len(found) == rule.buffer_size, f"{len(found)} updates are in {self._name}")
            moved = sum((weights[one.number] * one.step for one in found), np.zeros(NUM_VALUES))
            expected = before + rule.learning_rate / len(found) * moved
        else:
            updates = (weights[one.number] * (one.given + one.step) for one in found)
            expected = sum(updates, np.zeros(NUM_VALUES)) / sum(weights.values())
        if isinstance(rule, FedAvgM):
            self._moments.append(rule.momentum * self._moments[-1] + expected - before)
            expected = before + rule.learning_rate * self._moments[-1]
        same = np.allclose(values, expected, rtol=1e-12, atol=1e-12)
        check(same, f"{self._name} is not what {found} make")
