"""What a driver asks for: the settings of one job, as they stand in a job file and in a ``submit`` message.

Unknown settings are refused here, unlike unknown fields elsewhere on the wire: a setting that is silently
ignored gives a model that nobody asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from broker_fl.wire.fields import (
    MAX_PARAMETERS,
    ChunkBytes,
    Count,
    Identifier,
    Name,
    Parameters,
    Positive,
)

PROXIMAL_MU = "proximal_mu"
"""The task parameter that brings a learner FedProx's ``mu``."""


class Setting(BaseModel):
    """Base of all settings: frozen, and nothing unknown is let in."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Synchronous(Setting):
    """Rounds: all of a cohort train from one version, and their updates make the next."""

    name: Literal["synchronous"] = "synchronous"
    quorum: Annotated[float, Field(gt=0, le=1)] | Positive = 1.0
    """How much of the live cohort must deliver for the round to commit: a share (float) or a count (int)."""
    deadline_s: Annotated[float, Field(gt=0)] | None = None
    """After so many seconds the round goes on without its stragglers; None waits for every live learner."""
    min_learners: Positive = 1
    """Live learners that there must be before a round begins."""
    max_retries: Annotated[int, Field(ge=0, le=100)] = 2
    """How often a round that misses its quorum is tried again, with replacements, before the job fails."""
    max_wait_s: Annotated[float, Field(gt=0)] | None = None
    """How long the job waits while there are too few learners, before it fails; None waits for ever."""


Share = Annotated[float, Field(ge=0, lt=1)]
"""Of what was before that is kept: 0 forgets it at once."""
Above0 = Annotated[float, Field(gt=0)]


class Weighted(Setting):
    """What rules have in common that weigh updates."""

    weighting: Literal["examples", "steps", "equal"] = "examples"
    """By examples trained on, by optimiser steps done, or each learner alike."""


class FedAvg(Weighted):
    """Weighted mean of the updates (McMahan et al. 2017)."""

    name: Literal["fedavg"] = "fedavg"


class FedProx(Weighted):
    """FedAvg whose learners add ``mu/2 |w - w_t|²`` to their loss (Li et al. 2020, MLSys).

    Learners get ``mu`` as the task parameter ``proximal_mu``; one that does not read it does plain FedAvg.
    """

    name: Literal["fedprox"] = "fedprox"
    mu: Above0


class FedAvgM(Weighted):
    """FedAvg with momentum on the server (Hsu et al. 2019)."""

    name: Literal["fedavgm"] = "fedavgm"
    learning_rate: Above0 = 1.0
    momentum: Share = 0.9


class FedAdagrad(Weighted):
    """Adagrad on the server (Reddi et al. 2021). The paper tunes ``learning_rate`` for each task."""

    name: Literal["fedadagrad"] = "fedadagrad"
    learning_rate: Above0 = 0.1
    beta1: Share = 0.0
    tau: Above0 = 1e-3
    """How adaptive: the larger, the nearer to plain momentum."""


class FedAdam(Weighted):
    """Adam on the server (Reddi et al. 2021). The paper tunes ``learning_rate`` for each task."""

    name: Literal["fedadam"] = "fedadam"
    learning_rate: Above0 = 0.1
    beta1: Share = 0.9
    beta2: Share = 0.99
    tau: Above0 = 1e-3
    """How adaptive: the larger, the nearer to plain momentum."""


class FedYogi(Weighted):
    """Yogi on the server (Reddi et al. 2021). The paper tunes ``learning_rate`` for each task."""

    name: Literal["fedyogi"] = "fedyogi"
    learning_rate: Above0 = 0.1
    beta1: Share = 0.9
    beta2: Share = 0.99
    tau: Above0 = 1e-3
    """How adaptive: the larger, the nearer to plain momentum."""


class FedNova(Setting):
    """Updates divided by the work behind them, so that none counts more for its steps (Wang et al. 2020)."""

    name: Literal["fednova"] = "fednova"
    momentum: Share = 0.0
    """Of the learners' own optimiser; 0 is plain SGD."""


class QFedAvg(Setting):
    """Learners with a larger loss count more (Li et al. 2020, ICLR); needs their metric ``loss``."""

    name: Literal["qfedavg"] = "qfedavg"
    q: Annotated[float, Field(ge=0, le=100)] = 1.0
    """How much more: 0 is FedAvg."""
    learning_rate: Above0
    """Of the learners: the inverse of the paper's ``L``."""
    weighting: Literal["examples", "equal"] = "examples"
    """What stands for the paper's drawing of learners by their share of examples; ``equal`` if the selector
    does that.
    """


class Robust(Setting):
    """Base of the rules that withstand attackers: learners that may send anything for an update.

    Every update has one vote. How many examples an update was trained on is its learner's own word, with
    which an attacker would have as many votes as it likes.
    """

    name: str
    max_attackers: Count = 1
    """How many of a round's updates may come from attackers: ``f`` in the papers."""
    formula: ClassVar[str] = "2 f + 1"  # how many updates a round needs at least, for people

    def updates_needed(self) -> int:
        """The least number of updates for which the rule holds what its paper promises."""
        return 2 * self.max_attackers + 1


class Median(Robust):
    """Coordinate-wise median (Yin et al. 2018)."""

    name: Literal["median"] = "median"


class TrimmedMean(Robust):
    """Coordinate-wise mean without the ``max_attackers`` smallest and largest values (Yin et al. 2018)."""

    name: Literal["trimmed_mean"] = "trimmed_mean"


class Krum(Robust):
    """The update that is nearest to its nearest others (Blanchard et al. 2017)."""

    name: Literal["krum"] = "krum"
    formula: ClassVar[str] = "2 f + 3"

    def updates_needed(self) -> int:
        return 2 * self.max_attackers + 3


class MultiKrum(Robust):
    """Mean of the updates that Krum scores best (Blanchard et al. 2017)."""

    name: Literal["multi_krum"] = "multi_krum"
    num_selected: Positive | None = None
    """How many are averaged, ``m`` in the paper; None takes as many as may be: n - max_attackers - 2."""
    formula: ClassVar[str] = "2 f + 3, and f + num_selected + 2"

    def updates_needed(self) -> int:
        return max(2 * self.max_attackers + 3, self.max_attackers + 2 + (self.num_selected or 1))


class Bulyan(Robust):
    """Trimmed mean about the median of what Krum selects (El Mhamdi et al. 2018)."""

    name: Literal["bulyan"] = "bulyan"
    formula: ClassVar[str] = "4 f + 3"

    def updates_needed(self) -> int:
        return 4 * self.max_attackers + 3


class GeometricMedian(Robust):
    """Geometric median by the smoothed Weiszfeld algorithm: RFA (Pillutla et al. 2022)."""

    name: Literal["geometric_median"] = "geometric_median"
    weighting: Literal["equal", "examples"] = "equal"
    """``examples``, the paper's, holds while attackers claim less than half of all examples."""
    smoothing: Above0 = 1e-6
    """Distances below this count as this, ``ν`` in the paper."""
    max_iterations: Annotated[int, Field(ge=1, le=1000)] = 10
    """Each goes over all updates once."""
    tolerance: Share = 1e-6
    """It is over when the sum of distances falls by no more than this share of itself."""


class NormClipping(Setting):
    """Mean of the updates' differences to the given model, each cut to a length (Sun et al. 2019)."""

    name: Literal["norm_clipping"] = "norm_clipping"
    max_norm: Above0
    """Longest Euclidean length of a difference, ``M`` in the paper."""
    weighting: Literal["equal", "examples"] = "equal"
    """``examples``, the paper's, takes the learners' word for how much each of them weighs."""


MeanRule = FedAvg | FedProx | FedAvgM | FedAdagrad | FedAdam | FedYogi | FedNova | QFedAvg
RobustRule = Median | TrimmedMean | Krum | MultiKrum | Bulyan | GeometricMedian | NormClipping


class SelectAll(Setting):
    """Every live learner takes part in every round."""

    name: Literal["all"] = "all"


class SelectRandom(Setting):
    """A seeded random choice anew each round: ``fraction`` of the live learners, or ``count`` of them."""

    name: Literal["random"] = "random"
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    count: Positive | None = None
    seed: Count = 0

    @model_validator(mode="after")
    def _one_of_two(self) -> SelectRandom:
        if (self.fraction is None) == (self.count is None):
            raise ValueError("give either 'fraction' or 'count'")
        return self


class MetricTarget(Setting):
    """Stop when the federation's mean of an evaluation metric reaches a value."""

    metric: Name
    value: float
    mode: Literal["max", "min"] = "max"
    """``max``: stop at or above the value; ``min``: stop at or below it."""


class Termination(Setting):
    """When a job is done: at the first of these that comes true."""

    rounds: Positive | None = None
    wall_clock_s: Annotated[float, Field(gt=0)] | None = None
    target: MetricTarget | None = None

    @model_validator(mode="after")
    def _ends_at_all(self) -> Termination:
        if self.rounds is None and self.wall_clock_s is None and self.target is None:
            raise ValueError(
                "give at least one of 'rounds', 'wall_clock_s' and 'target', or the job never ends"
            )
        return self


class Transfer(Setting):
    """How models travel."""

    encoding: Literal["raw", "float32", "float16", "bfloat16"] = "raw"
    """``raw`` is lossless; the others narrow wider floating-point tensors to that type on the wire."""
    chunk_bytes: ChunkBytes = 1 << 20
    upload_budget_bytes: Positive = 256 << 20
    """When a cohort's updates together are larger, learners hold them until the controller asks for each."""


class JobSpec(Setting):
    """One job: what is trained, with whom, how, and until when."""

    name: Identifier = "job"
    protocol: Synchronous = Synchronous()
    rule: MeanRule | RobustRule = Field(default=FedAvg(), discriminator="name")
    selector: SelectAll | SelectRandom = Field(default=SelectAll(), discriminator="name")
    termination: Termination = Termination(rounds=10)
    parameters: Parameters = {}
    """Handed to every learner with its task: epochs, learning rate, whatever the app reads."""
    evaluate: bool = True
    """Learners evaluate the version they are given before they train from it, and the last one after the last
    round.
    """
    transfer: Transfer = Transfer()
    keep_versions: Positive = 3
    """How many of the newest model versions the store keeps."""

    @model_validator(mode="after")
    def _target_is_measured(self) -> JobSpec:
        if self.termination.target is not None and not self.evaluate:
            raise ValueError(
                "'termination.target' needs 'evaluate' to be true: nothing measures the metric otherwise"
            )
        return self

    @model_validator(mode="after")
    def _loss_is_measured(self) -> JobSpec:
        if isinstance(self.rule, QFedAvg) and not self.evaluate:
            raise ValueError(
                "the rule 'qfedavg' needs 'evaluate' to be true: it weighs learners by their loss"
            )
        return self

    @model_validator(mode="after")
    def _one_proximal_term(self) -> JobSpec:
        if isinstance(self.rule, FedProx) and PROXIMAL_MU in self.parameters:
            raise ValueError(f"'rule.mu' and 'parameters.{PROXIMAL_MU}' are the same: give one of them")
        if len(self.task_parameters) > MAX_PARAMETERS:
            raise ValueError(f"'rule.mu' is one parameter more, and there are {MAX_PARAMETERS} already")
        return self

    @property
    def task_parameters(self) -> dict[str, str | int | float | bool | None]:
        """``parameters``, and what the rule has to tell the learners."""
        if isinstance(self.rule, FedProx):
            return {**self.parameters, PROXIMAL_MU: self.rule.mu}
        return dict(self.parameters)

    @model_validator(mode="after")
    def _robust_rule_gets_enough_updates(self) -> JobSpec:
        rule = self.rule
        if not isinstance(rule, Robust):
            return self
        for field, value, num_updates in _fewest_updates(self.protocol, self.selector):
            if num_updates < rule.updates_needed():
                raise ValueError(
                    f"'{field}' = {value:g} is too small: a round could end with too few updates "
                    f"({num_updates}); the rule {rule.name!r} with 'rule.max_attackers' f = "
                    f"{rule.max_attackers} needs {rule.updates_needed()} ({rule.formula})"
                )
        return self


def _fewest_updates(
    protocol: Synchronous, selector: SelectAll | SelectRandom
) -> Iterator[tuple[str, float, int]]:
    """Field, value, and with how few updates it lets a round end."""
    quorum, cohort = protocol.quorum, protocol.min_learners
    if isinstance(quorum, int):
        cohort = max(cohort, quorum)
        yield "protocol.quorum", quorum, quorum
    else:
        yield "protocol.min_learners", cohort, cohort
    if isinstance(selector, SelectRandom):
        if selector.count is not None:
            cohort = min(cohort, selector.count)
            yield "selector.count", selector.count, selector.count
        elif selector.fraction is not None and isinstance(quorum, float):
            cohort = _share(selector.fraction, cohort)
            yield "selector.fraction", selector.fraction, cohort
    if isinstance(quorum, float):
        yield "protocol.quorum", quorum, _share(quorum, cohort)


def _share(share: float, count: int) -> int:
    return max(1, math.ceil(share * count - 1e-9))
