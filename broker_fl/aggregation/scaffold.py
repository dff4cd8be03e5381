"""SCAFFOLD (Karimireddy et al. 2020).

"SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML. Algorithm 1, lines 16 and 17, with
option II on the learners' side (``frameworks/control.py``):

    ``x ← x + η_g / |S| Σ_{i∈S} Δy_i``        ``c ← c + |S| / N · (1 / |S|) Σ_{i∈S} Δc_i``

``S`` are the learners that delivered, and weigh alike; ``η_g`` is ``learning_rate``. ``N`` are the learners
that are there when the round ends, whether they were asked or not, and those that have contributed to the
job before. They may come and go: what is kept between rounds is ``Σ_i c_i`` over all who
contributed, so that ``c``, this sum by the ``N`` of the moment, is always the mean of their variates, in
which who has not contributed yet counts as zero.

The server's and the learners' variates must not part: an update that was lost changes neither. Who has
contributed in which round is kept, too, and tells each learner which of its variates counts. A learner that
has lost its own (it was started anew) says so: then all begin at zero again.

Only float tensors that are trained have a variate other than zero; integers and the job's ``buffers`` take
the mean, without ``η_g``. Memory: three models, and one between rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from broker_fl.aggregation import kernels
from broker_fl.aggregation.changes import ChangeSum
from broker_fl.aggregation.weighting import weight_of
from broker_fl.errors import AggregationError, UpdateRefused
from broker_fl.interfaces import Combined, Contribution, Given
from broker_fl.model import Array, Arrays, Model, ModelSpec
from broker_fl.wire import control, rules

_SUM, _IDS, _ROUNDS, _COUNT = "sum/", "contributors/ids", "contributors/rounds", "num_learners"
_ID_BYTES = 64  # the longest identifier


@dataclass(frozen=True, slots=True)
class Variates:
    """What the server knows of all variates."""

    total: Mapping[str, Array]
    """``Σ c_i``, by the names of the model's float tensors."""
    rounds: Mapping[str, int] = field(default_factory=dict)
    """Learner → the round that its variate is from; it is zero for those that are not here."""
    num_learners: int = 1
    """``N``."""

    @classmethod
    def of(cls, memory: Model | None, spec: ModelSpec) -> Variates:
        """Read the rule's memory; None where all variates are zero."""
        if memory is None:
            return cls(control.zeros(spec))
        ids = memory[_IDS].reshape(-1).view(f"S{_ID_BYTES}") if memory[_IDS].size else ()
        learners = [one.decode() for one in ids]
        total = {one.name: memory[_SUM + one.name] for one in control.variate_spec(spec).tensors}
        rounds = dict(zip(learners, memory[_ROUNDS].tolist(), strict=True))
        return cls(total, rounds, int(memory[_COUNT]))

    def memory(self) -> Model:
        """As it is stored with a version."""
        ids = np.array(sorted(self.rounds), f"S{_ID_BYTES}")
        return Model.of(
            {
                **{_SUM + name: array for name, array in self.total.items()},
                _IDS: ids.view(np.uint8).reshape(-1, _ID_BYTES),
                _ROUNDS: np.array([self.rounds[learner] for learner in sorted(self.rounds)], np.int64),
                _COUNT: np.array(self.num_learners, np.int64),
            }
        )

    def mean(self) -> dict[str, Array]:
        """``c``, which goes out with the next task."""
        return {name: array / array.dtype.type(self.num_learners) for name, array in self.total.items()}


class Scaffold:
    """Averaging with control variates."""

    def __init__(self, settings: rules.Scaffold) -> None:
        self._learning_rate = settings.learning_rate

    def begin(self, given: Given) -> ScaffoldRound:
        """Begin a round."""
        return ScaffoldRound(given, self._learning_rate)


class ScaffoldRound:
    """One round's sums of ``Δy_i`` and ``Δc_i``."""

    def __init__(self, given: Given, learning_rate: float) -> None:
        self._given = given
        self._learning_rate = learning_rate
        self._changes = ChangeSum(given)
        self._before = Variates.of(given.memory, given.spec)
        self._total = {name: array.copy() for name, array in self._before.total.items()}
        self._contributors: list[str] = []
        self._somebody_lost = False

    @property
    def total_weight(self) -> float:
        """``|S|`` so far."""
        return self._changes.total_weight

    def fold(self, contribution: Contribution) -> float:
        """Add ``Δy_i`` and ``Δc_i``; the weight 1 comes back.

        Raises:
            UpdateRefused: no examples, another spec, or values that are not finite; nothing was changed.
        """
        weight = weight_of(contribution, "equal")
        self._changes.check(contribution.model, weight)
        change = contribution.control
        if change is None:
            self._somebody_lost = True
        else:
            self._check(change)
            for name, array in change.items():
                kernels.add_scaled(self._total[name].reshape(-1), array.reshape(-1), 1.0)
        self._changes.add(contribution.model, scale=1.0, weight=weight)
        self._contributors.append(contribution.learner)
        return weight

    def _check(self, change: Arrays) -> None:
        """One learner's huge values must not cost the others their variates."""
        if change.keys() != self._total.keys():
            raise UpdateRefused("the update's control variate has other tensors than the model")
        for name, array in change.items():
            total = self._total[name]
            bound = kernels.magnitude(total.reshape(-1)) + kernels.magnitude(array.reshape(-1))
            if not bound < np.finfo(total.dtype).max:
                raise UpdateRefused(
                    f"the control variate of tensor {name!r} has values that are not finite, or huge"
                )

    def result(self) -> Combined:
        """``x + η_g / |S| Σ Δy_i``, and ``Σ c_i`` in the memory.

        Raises:
            AggregationError: no update was folded, or a value is not finite.
        """
        if not self._contributors:
            raise AggregationError("no update was folded, so there is nothing to combine")
        self._changes.rescale(self._learning_rate / len(self._contributors))
        model = self._changes.moved()
        if self._somebody_lost:
            return Combined(model=model)
        rounds = {**self._before.rounds, **dict.fromkeys(self._contributors, self._given.round)}
        num_learners = len(rounds.keys() | set(self._given.learners()))
        return Combined(model=model, memory=Variates(self._total, rounds, num_learners).memory())
