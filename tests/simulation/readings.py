"""Which trainings a version is made of, read from its values alone, whatever the controller says of it.

Where a rule is linear, each training adds a vector of its own: 1 at its learner's place, and its own number
beside it; their ratio names it. Other rules get vectors that no mean of others is like, and all that may have
been combined is tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import numpy as np

from broker_fl.aggregation.staleness import discount
from broker_fl.model import Array
from broker_fl.wire import rules
from broker_fl.wire.job import JobSpec
from tests.simulation.kernel import Violation
from tests.simulation.references import (
    NUM_VALUES,
    Adaptive,
    Choosers,
    Reference,
    Training,
    is_close,
    weight_of,
)

TOLERANCE = 1e-9
TRIED = (
    Adaptive
    | rules.QFedAvg
    | rules.Median
    | rules.TrimmedMean
    | Choosers
    | rules.Bulyan
    | rules.GeometricMedian
)
"""Rules that are not linear."""


def check(truth: bool, what: str) -> None:
    """Raise a ``Violation`` if it is not true."""
    if not truth:
        raise Violation(what)


def step_of(rule: object, learner: int, number: int) -> Array:
    """What a training adds."""
    if isinstance(rule, TRIED):
        return np.random.Generator(np.random.PCG64(number)).normal(scale=0.1, size=NUM_VALUES)
    step = np.zeros(NUM_VALUES)
    step[2 * learner], step[2 * learner + 1] = 1.0, number
    step[-1] = number
    return step


@dataclass(frozen=True, slots=True)
class Content:
    """What is in a version."""

    trainings: Sequence[Training]
    weights: Mapping[int, float]
    """Training → what it counts."""
    total: float
    """Of all that the version is a mean of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class New:
    """A version that was committed, and what could be in it."""

    name: str
    number: int
    before: Array
    values: Array
    trainings: Mapping[int, Training]
    candidates: Sequence[Training]
    """Usable trainings of this job that are in no version yet, oldest first."""

    def age(self, one: Training) -> int:
        """How many versions were committed since the one that a training began from."""
        return self.number - 1 - one.base


class Reading(Protocol):
    """Of one job's versions, one after the other."""

    def begin_from(self, other: Reading, version: int) -> None:
        """The job began from another one's version, by the same rule."""
        ...

    def contents(self, new: New) -> list[Content]:
        """What the version is made of; of several, where its values leave that open.

        Raises:
            Violation: of nothing that was trained.
        """
        ...


def reading_of(spec: JobSpec, num_learners: int) -> Reading:
    """The way to read a job's versions."""
    match spec.rule:
        case rules.FedAsync():
            return _Mixed(spec.rule)
        case rules.FedBuff():
            return _Buffered(spec.rule, num_learners)
        case rules.FedRec():
            return _Newest(spec.rule)
        case _:
            return _Round(spec, num_learners)


class _Round:
    """All are trained from the version before."""

    def __init__(self, spec: JobSpec, num_learners: int) -> None:
        self._reference = Reference(spec)
        self._num_learners = num_learners

    def begin_from(self, other: Reading, version: int) -> None:
        if isinstance(other, _Round):
            self._reference.begin_from(other._reference, version)

    def contents(self, new: New) -> list[Content]:
        rule, reference = self._reference.rule, self._reference
        if isinstance(rule, TRIED):
            found = self._tried(new)
        else:
            change = new.values - new.before
            if isinstance(rule, rules.FedAvgM):
                change = reference.without_momentum(change)
            found = [in_places(new, change, self._num_learners)]
            check(
                reference.makes(new.values, new.before, found[0]), f"{new.name} is not what {found[0]} make"
            )
        reference.commit(new.before, found[0])
        return [_content(rule, one) for one in found]

    def _tried(self, new: New) -> list[Sequence[Training]]:
        found: list[Sequence[Training]] = []
        for one in _choices([one for one in new.candidates if new.age(one) == 0]):
            if self._reference.makes(new.values, new.before, one):
                found.append(one)
                if not isinstance(self._reference.rule, Choosers):
                    break
        check(bool(found), f"nothing that was trained makes {new.name} of the one before")
        return found


def _content(rule: Any, found: Sequence[Training]) -> Content:
    weights = {one.number: weight_of(rule, one) for one in found}
    return Content(found, weights, sum(weights.values()))


def _choices(candidates: Sequence[Training]) -> Iterator[list[Training]]:
    """All sets with one training of each learner at most, those of most learners first."""
    by_learner: dict[int, list[Training | None]] = {}
    for one in candidates:
        by_learner.setdefault(one.learner, [None]).insert(0, one)
    sets = [[one for one in chosen if one is not None] for chosen in product(*by_learner.values())]
    return iter(sorted(filter(None, sets), key=len, reverse=True))


def in_places(new: New, change: Array, num_learners: int) -> list[Training]:
    """Those whose numbers are at their learners' places in a sum."""
    found = []
    for learner in range(num_learners):
        share, total = change[2 * learner], change[2 * learner + 1]
        if abs(share) < TOLERANCE:
            check(abs(total) < 1e-6, f"{new.name} has half an update of l{learner}")
            continue
        one = new.trainings.get(round(total / share))
        if one is None or one.learner != learner:
            raise Violation(f"{new.name} has an update {total / share} of l{learner}: there is none")
        found.append(one)
    check(bool(found), f"nothing is in {new.name}")
    return found


class _PerUpdate:
    """Nothing is kept that another job goes on with."""

    def begin_from(self, other: Reading, version: int) -> None:
        pass


class _Mixed(_PerUpdate):
    """FedAsync: one update is mixed into the version before."""

    def __init__(self, rule: rules.FedAsync) -> None:
        self._rule = rule
        self._discount = discount(rule.staleness)

    def contents(self, new: New) -> list[Content]:
        for one in reversed(new.candidates):
            share = self._rule.alpha * self._discount(max(0, new.age(one)))
            if is_close(new.values, (1 - share) * new.before + share * one.trained):
                return [Content([one], {one.number: share}, share)]
        raise Violation(f"no training that is in no version yet explains {new.name}")


class _Buffered(_PerUpdate):
    """FedBuff: the changes of a buffer full of updates are averaged."""

    def __init__(self, rule: rules.FedBuff, num_learners: int) -> None:
        self._rule = rule
        self._discount = discount(rule.staleness)
        self._num_learners = num_learners

    def contents(self, new: New) -> list[Content]:
        found = in_places(new, new.values - new.before, self._num_learners)
        check(len(found) == self._rule.buffer_size, f"{len(found)} updates are in {new.name}")
        weights = {one.number: self._discount(max(0, new.age(one))) for one in found}
        moved = sum((weights[one.number] * one.step for one in found), np.zeros(NUM_VALUES))
        expected = new.before + self._rule.learning_rate / len(found) * moved
        check(is_close(new.values, expected), f"{new.name} is not what {found} make")
        return [Content(found, weights, sum(weights.values()))]


class _Newest(_PerUpdate):
    """FedRec: the mean of each learner's newest update, of which one is new."""

    def __init__(self, rule: rules.FedRec) -> None:
        self._rule = rule
        self._newest: dict[int, Training] = {}
        """By learner."""

    def contents(self, new: New) -> list[Content]:
        for one in reversed(new.candidates):
            newest = {**self._newest, one.learner: one}
            weights = [weight_of(self._rule, each) for each in newest.values()]
            total = sum(
                (weight * each.trained for weight, each in zip(weights, newest.values(), strict=True)),
                np.zeros(NUM_VALUES),
            )
            if is_close(new.values, total / sum(weights)):
                self._newest = newest
                return [Content([one], {one.number: weight_of(self._rule, one)}, sum(weights))]
        raise Violation(f"no training that is in no version yet explains {new.name}")
