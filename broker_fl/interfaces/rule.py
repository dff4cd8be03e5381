"""How a round's updates become the next version."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from broker_fl.interfaces.learner import Metrics
from broker_fl.model import Arrays, Model, ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """One learner's update on its way into the sum."""

    learner: str
    model: Model
    """Nobody writes to it any more, so a rule may keep it. Its arrays are read-only, however the update came;
    ``model.own()`` is a copy that may be written to.
    """
    num_examples: int
    num_steps: int = 0
    staleness: int = 0
    """How many versions were committed since the one that it was trained from; in a round always 0."""
    metrics: Metrics = field(default_factory=dict)
    """Of training."""
    evaluation: Metrics = field(default_factory=dict)
    """Of the version that the learner was given, on its data."""
    control: Arrays | None = None
    """SCAFFOLD: what changed in the learner's control variate; None if it had lost it, and in other jobs."""
    magnitudes: Sequence[float] | None = None
    """Where the values were looked at as they arrived, and all are finite: of each of the model's runs, what
    no absolute value exceeds.
    """
    handed: bool = False
    """Whether ``model`` is the learner's own memory, handed over within the process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a round begins from."""

    spec: ModelSpec
    model: Callable[[], Model]
    """The version that the cohort was given; fetched when it is asked for, and not to be written to."""
    memory: Model | None = None
    """What the rule kept from the round before (momentum, control variates); None in the first round."""
    buffers: Set[str] = frozenset()
    """Names of the float tensors that are not trained, such as running variances (``JobSpec.buffers``)."""
    round: int = 0
    learners: Callable[[], Sequence[str]] = tuple
    """All that are there at the moment, whether they were asked or not."""
    updates: Mapping[str, Contribution] = field(default_factory=dict)
    """The newest of each learner that ``Combined.updates`` ever had, by learner; one is read from the store
    when it is asked for, without its metrics.
    """
    carried: object = None
    """What the rule carried on from the round before; None after a restart of the controller, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """What came of a round."""

    model: Model
    memory: Model | None = None
    """What the rule wants to have in the next round; stored together with the version."""
    updates: Sequence[Contribution] = ()
    """Updates of this round that are stored as well, each in the place of its learner's last (asynchronous
    protocol).
    """
    used: Mapping[str, float] | None = None
    """Shares of the learners in the model, for rules that choose among updates: 0 for one that was left out.
    None: all are in it by their weights.
    """
    carried: object = None
    """What the next round can use and could also make anew: it stays in memory and is not stored."""


class Accumulator(Protocol):
    """Takes a round's contributions one by one."""

    @property
    def total_weight(self) -> float:
        """Of all that was folded; 0 before the first."""
        ...

    def fold(self, contribution: Contribution) -> float:
        """Take one contribution in; its weight comes back.

        A rule that streams keeps nothing of it; one that needs all updates at once says so in its docstring.

        Raises:
            UpdateRefused: spec, weight or values are not usable; nothing was changed.
        """
        ...

    def result(self) -> Combined:
        """The combined model; the accumulator is used up.

        Raises:
            AggregationError: too little was folded, or the result is not finite.
        """
        ...


@runtime_checkable
class SumAccumulator(Accumulator, Protocol):
    """An accumulator that is a plain weighted sum, so that it takes sums of others: those of groups."""

    def fold_sum(self, total: Model, weight: float) -> None:
        """Take in ``Σ wⱼ xⱼ`` (a model of ``aggregation.sums.sum_spec``), ``weight`` being ``Σ wⱼ``.

        Raises:
            UpdateRefused: another spec, or values that are not finite; nothing was changed.
        """
        ...


@runtime_checkable
class LazyAccumulator(Accumulator, Protocol):
    """An accumulator that adds several contributions in one pass, which some may wait for."""

    def settle(self) -> None:
        """Add what waits: nothing else is to be done at the moment. What comes of the round is the same."""
        ...


class Rule(Protocol):
    """How a round's updates become the next version."""

    def begin(self, given: Given) -> Accumulator:
        """Begin a round."""
        ...
