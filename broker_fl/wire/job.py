"""What a driver asks for: the settings of one job, as they stand in a job file and in a ``submit`` message.

Unknown settings are refused here, unlike unknown fields elsewhere on the wire: a setting that is silently
ignored gives a model that nobody asked for. What parts of a job contradict each other is in
``contradictions.py``.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from broker_fl.errors import FrameRefused
from broker_fl.model import FLOATS, MAX_NAME_CHARS, ModelSpec
from broker_fl.wire.coarse import MAX_TOPK
from broker_fl.wire.contradictions import first_contradiction, round_setting_without_rounds
from broker_fl.wire.encodings import ENCODINGS, TOPK_PATTERN, encoding
from broker_fl.wire.fields import ChunkBytes, EncodingName, Form, Identifier, Name, Parameters, Positive
from broker_fl.wire.frames import brief
from broker_fl.wire.pacing import AnyPacing, Fixed
from broker_fl.wire.protocols import AnyProtocol, Asynchronous, SemiSynchronous, Synchronous
from broker_fl.wire.rules import PROXIMAL_MU, AnyRule, FedAvg, FedProx, PerUpdate, Summable
from broker_fl.wire.selectors import AnySelector, SelectAll
from broker_fl.wire.settings import Setting

STATISTICS = (
    *("*running_mean", "*running_var"),
    *("*moving_mean", "*moving_variance"),
    *("state/*", "*batch_stats/*"),
)
"""What batch normalisation calls its statistics in PyTorch, in Keras, and in models of ``JaxLearner``."""
Patterns = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)], ...],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),  # in a job file
    Field(max_length=64),
]
"""Of names, as in a shell: ``*`` and ``?`` stand for any characters, ``[ab]`` for one of these."""


class MetricTarget(Setting):
    """Stop when the federation's mean of an evaluation metric reaches a value, also without any one learner's
    report.
    """

    metric: Name
    value: float
    mode: Literal["max", "min"] = "max"
    """``max``: stop at or above the value; ``min``: stop at or below it."""


class Termination(Setting):
    """When a job is done: at the first of these that comes true."""

    rounds: Positive | None = None
    """Rounds done; an asynchronous job has none."""
    versions: Positive | None = None
    """Versions committed."""
    updates: Positive | None = None
    """Updates that are in a version."""
    wall_clock_s: Annotated[float, Field(gt=0)] | None = None
    target: MetricTarget | None = None

    @model_validator(mode="after")
    def _ends_at_all(self) -> Termination:
        if all(value is None for value in self.__dict__.values()):
            names = ", ".join(map(repr, type(self).model_fields))
            raise ValueError(f"give at least one of {names}, or the job never ends")
        return self


def _of_updates(name: str) -> str:
    try:
        encoding(name)
    except FrameRefused:
        names = ", ".join(map(repr, ENCODINGS))
        raise ValueError(
            f"{brief(name)} is not allowed: it must be one of {names}, or 'topk/N' for one element in N, "
            f"2 to {MAX_TOPK}"
        ) from None
    return name


def _of_versions(name: str) -> str:
    if not encoding(_of_updates(name)).of_versions:
        raise ValueError(f"{brief(name)} is not allowed: it is for updates; a version is sent whole")
    return name


_PATTERN = "|".join(ENCODINGS)


class Transfer(Setting):
    """How models travel."""

    encoding: Annotated[
        EncodingName,
        AfterValidator(_of_updates),
        Field(json_schema_extra={"pattern": f"^({_PATTERN}|{TOPK_PATTERN})$"}),
    ] = "raw"
    """Of updates. ``raw`` is lossless; ``float32``, ``float16`` and ``bfloat16`` narrow wider floating-point
    tensors to that type; ``int8`` and ``topk/N`` are coarse: learners send changes in them, and add what
    was lost to the next ones (error feedback).
    """
    broadcast: (
        Annotated[
            EncodingName,
            AfterValidator(_of_versions),
            Field(json_schema_extra={"pattern": f"^({_PATTERN})$"}),
        ]
        | None
    ) = None
    """Of the versions that learners are given, which are never sent as ``topk``. None: as ``encoding``, but
    lossless where that is coarse.
    """
    form: Form | None = None
    """What updates hold of float tensors: their values, or what training changed in them, which the
    controller adds to the version that was given. None: changes where the rule or an encoding needs them.
    """
    chunk_bytes: ChunkBytes = 1 << 20
    upload_budget_bytes: Positive = 256 << 20
    """When a cohort's updates together are larger, learners hold them until the controller asks for each."""

    @property
    def of_versions(self) -> str:
        """The encoding of what is broadcast."""
        return self.broadcast or ("raw" if encoding(self.encoding).coarse else self.encoding)

    @property
    def needs_changes(self) -> bool:
        """Whether an encoding loses so much that values would not do.

        Of versions, too: values trained from a coarse version would bring its error into the next one, in
        every round. A change is added to the version as it is stored.
        """
        return encoding(self.encoding).coarse or encoding(self.of_versions).coarse


class JobSpec(Setting):
    """One job: what is trained, with whom, how, and until when."""

    name: Identifier = "job"
    protocol: AnyProtocol = Field(default=Synchronous(), discriminator="name")
    pacing: AnyPacing = Field(default=Fixed(), discriminator="name")
    rule: AnyRule = Field(default=FedAvg(), discriminator="name")
    selector: AnySelector = Field(default=SelectAll(), discriminator="name")
    termination: Termination = Termination(rounds=10)
    parameters: Parameters = Field(default={})
    """Handed to every learner with its task: epochs, learning rate, whatever the app reads."""
    buffers: Patterns = STATISTICS
    """Names, or patterns of them, of float tensors that are not trained: a rule that does more than average
    averages these all the same (``docs/rules.md``).
    """
    evaluate: bool = True
    """Learners evaluate the version they are given before they train from it, and the last one after the last
    round.
    """
    transfer: Transfer = Transfer()
    keep_versions: Positive = 3
    """How many of the newest model versions the store keeps."""

    @model_validator(mode="before")
    @classmethod
    def _synchronous_unless_named(cls, fields: Any) -> Any:
        """Rounds are what most jobs have: ``protocol`` without ``name`` is theirs."""
        if isinstance(fields, dict) and isinstance(protocol := fields.get("protocol"), dict):
            if (found := round_setting_without_rounds(protocol)) is not None:
                raise ValueError(found)
            return {**fields, "protocol": {"name": "synchronous", **protocol}}
        return fields

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> JobSpec:
        if (found := first_contradiction(self)) is not None:
            raise ValueError(found)
        return self

    @property
    def form(self) -> Form:
        """Of the updates that learners are asked for."""
        needed = self.transfer.needs_changes or self.rule_takes_changes
        return self.transfer.form or ("changes" if needed else "values")

    @property
    def rule_takes_changes(self) -> bool:
        """Whether the rule is given changes as they come, not models."""
        return isinstance(self.rule, PerUpdate) and self.rule.updates_are_changes

    @property
    def takes_groups(self) -> bool:
        """Whether members of groups can take part: the rule is a sum of values, of which groups send sums."""
        return isinstance(self.rule, Summable) and self.form == "values"

    @property
    def has_residuals(self) -> bool:
        """Whether learners keep what the encoding of their updates lost."""
        return encoding(self.transfer.encoding).coarse

    @property
    def task_parameters(self) -> dict[str, str | int | float | bool | None]:
        """``parameters``, and what the rule has to tell the learners."""
        if isinstance(self.rule, FedProx):
            return {**self.parameters, PROXIMAL_MU: self.rule.mu}
        return dict(self.parameters)

    def buffers_of(self, model: ModelSpec) -> frozenset[str]:
        """The float tensors of a model that ``buffers`` names."""
        return frozenset(
            tensor.name
            for tensor in model.tensors
            if tensor.dtype in FLOATS and any(fnmatchcase(tensor.name, one) for one in self.buffers)
        )

    @property
    def uses_records(self) -> bool:
        """Whether the job goes by what it has seen of each learner (``interfaces.Record``)."""
        return (
            isinstance(self.protocol, SemiSynchronous | Asynchronous)
            or self.pacing.name != "fixed"
            or self.selector.name not in ("all", "random")
            or getattr(self.selector, "exclude_after", None) is not None
        )
