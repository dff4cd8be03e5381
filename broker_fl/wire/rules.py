"""Settings of the aggregation rules in ``aggregation/``; each is described in ``docs/rules.md``."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from broker_fl.wire.fields import Count, Name, Parameters, Positive
from broker_fl.wire.settings import Above0, Setting, Share

PROXIMAL_MU = "proximal_mu"
"""The task parameter that brings a learner FedProx's ``mu``."""


class Weighted(Setting):
    """What rules have in common that weigh updates."""

    weighting: Literal["examples", "steps", "equal"] = "examples"
    """By examples trained on, by optimiser steps done, or each learner alike."""


class Summable(Weighted):
    """Base of the rules that are a plain weighted sum of values: sums of sums are the same.

    The members of a group can take part in their jobs alone, since a group sends one sum for all of them.
    """


class FedAvg(Summable):
    """Weighted mean of the updates (McMahan et al. 2017)."""

    name: Literal["fedavg"] = "fedavg"


class FedProx(Summable):
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


class Scaffold(Setting):
    """Learners correct gradients by control variates, and so do not drift (Karimireddy et al. 2020)."""

    name: Literal["scaffold"] = "scaffold"
    learning_rate: Above0 = 1.0
    """Of the server, ``η_g`` in the paper."""


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

    def num_combined(self, num_updates: int) -> int:
        """Of how many whole updates the version is, where so many were delivered."""
        return num_updates


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

    def num_combined(self, num_updates: int) -> int:
        return 1


class MultiKrum(Robust):
    """Mean of the updates that Krum scores best (Blanchard et al. 2017)."""

    name: Literal["multi_krum"] = "multi_krum"
    num_selected: Positive | None = None
    """How many are averaged, ``m`` in the paper; None takes as many as may be: n - max_attackers - 2."""
    formula: ClassVar[str] = "2 f + 3, and f + num_selected + 2"

    def updates_needed(self) -> int:
        return max(2 * self.max_attackers + 3, self.max_attackers + 2 + (self.num_selected or 1))

    def num_combined(self, num_updates: int) -> int:
        return self.num_selected or max(1, num_updates - self.max_attackers - 2)


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
    smoothing: Annotated[float, Field(gt=0, le=0.01)] = 1e-6
    """Updates nearer to the point than this share of the median distance count as lying on it."""
    max_iterations: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Each costs the square of the number of updates, whatever the size of the model."""
    tolerance: Share = 1e-6
    """It is over when the updates' pulls, unit vectors by weight, add up to no more than this."""


class NormClipping(Setting):
    """Mean of the updates' differences to the given model, each cut to a length (Sun et al. 2019)."""

    name: Literal["norm_clipping"] = "norm_clipping"
    max_norm: Above0
    """Longest Euclidean length of a difference, ``M`` in the paper."""
    weighting: Literal["equal", "examples"] = "equal"
    """``examples``, the paper's, takes the learners' word for how much each of them weighs."""


class TreeBagging(Setting):
    """The boosted trees that learners added to the ensemble are all added to it (``XGBoostLearner``)."""

    name: Literal["tree_bagging"] = "tree_bagging"


class Constant(Setting):
    """``s(τ) = 1``: an update counts alike however old the version is that it was trained from."""

    name: Literal["constant"] = "constant"


class Hinge(Setting):
    """``s(τ) = 1`` up to ``τ = b``, then ``1 / (a (τ - b) + 1)`` (Xie et al. 2019, section 5.2)."""

    name: Literal["hinge"] = "hinge"
    a: Above0 = 10.0
    b: Annotated[float, Field(ge=0)] = 4.0


class Polynomial(Setting):
    """``s(τ) = (τ + 1)^-a`` (Xie et al. 2019, section 5.2)."""

    name: Literal["polynomial"] = "polynomial"
    a: Above0 = 0.5


Staleness = Annotated[Constant | Hinge | Polynomial, Field(discriminator="name")]


class PerUpdate(Setting):
    """Base of the rules of the asynchronous protocol."""

    name: str
    updates_are_changes: ClassVar[bool] = False
    """Whether learners send what they changed in float tensors, in the place of their values."""
    stores_updates: ClassVar[bool] = False
    """Whether the newest update of each learner is in the store, for as long as the job runs."""

    def updates_per_version(self) -> int:
        """How many updates make a version."""
        return 1


class FedAsync(PerUpdate):
    """Each update is mixed into the newest version, the older its base the less (Xie et al. 2019)."""

    name: Literal["fedasync"] = "fedasync"
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Share of a fresh update in the new version."""
    staleness: Staleness = Polynomial()


class FedBuff(PerUpdate):
    """The changes of ``buffer_size`` updates, averaged, make a version (Nguyen et al. 2022).

    Learners send what they changed, not the model, since they began from different versions.
    """

    name: Literal["fedbuff"] = "fedbuff"
    buffer_size: Positive = 10
    """Updates that make a version, ``K`` in the paper; each is of another learner."""
    learning_rate: Above0 = 1.0
    """Of the server, ``η_g`` in the paper."""
    staleness: Staleness = Polynomial()
    updates_are_changes: ClassVar[bool] = True

    def updates_per_version(self) -> int:
        return self.buffer_size


class FedRec(PerUpdate):
    """Weighted mean of every learner's newest update, which takes the place of its last (MetisFL)."""

    name: Literal["fedrec"] = "fedrec"
    weighting: Literal["examples", "steps", "equal"] = "examples"
    """By examples trained on, by optimiser steps done, or each learner alike."""
    stores_updates: ClassVar[bool] = True


class OwnRule(Setting):
    """A rule of the user's own: a class in the app file that the controller was started with."""

    name: Literal["own"] = "own"
    rule: Name
    """Name of the class."""
    settings: Parameters = Field(default={})
    """What it is made with: ``Class(**settings)``."""


AsynchronousRule = FedAsync | FedBuff | FedRec
MeanRule = FedAvg | FedProx | FedAvgM | FedAdagrad | FedAdam | FedYogi | FedNova | Scaffold | QFedAvg
RobustRule = Median | TrimmedMean | Krum | MultiKrum | Bulyan | GeometricMedian | NormClipping
AnyRule = MeanRule | RobustRule | TreeBagging | AsynchronousRule | OwnRule
