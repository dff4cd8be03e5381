"""What a driver asks for: the settings of one job, as they stand in a job file and in a ``submit`` message.

Unknown settings are refused here, unlike unknown fields elsewhere on the wire: a setting that is silently
ignored gives a model that nobody asked for.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from broker_fl.wire.fields import ChunkBytes, Count, Identifier, Name, Parameters, Positive


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


class FedAvg(Setting):
    """Weighted mean of the updates (McMahan et al. 2017)."""

    name: Literal["fedavg"] = "fedavg"
    weighting: Literal["examples"] = "examples"


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
    rule: FedAvg = FedAvg()
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
