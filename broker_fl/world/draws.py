"""A number for each learner: given, or drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from broker_fl.errors import SettingError
from broker_fl.suggestion import expected_one_of
from broker_fl.wire.fields import Identifier
from broker_fl.wire.settings import Above0, Setting

Ids = Sequence[str]
AtLeast0 = Annotated[float, Field(ge=0)]


class Same(Setting):
    """One value for all. A plain number stands for it."""

    name: Literal["same"] = "same"
    value: AtLeast0

    def least_and_most(self) -> tuple[float, float]:
        """Between what all draws lie."""
        return self.value, self.value

    def draw(self, ids: Ids, rng: np.random.Generator) -> list[float]:
        """A value for each learner."""
        return [self.value] * len(ids)


class _Range(Setting):
    low: Above0
    high: Above0

    @model_validator(mode="after")
    def _is_in_order(self) -> _Range:
        if self.low > self.high:
            raise ValueError(f"'low' = {self.low:g} is above 'high' = {self.high:g}")
        return self

    def least_and_most(self) -> tuple[float, float]:
        """Between what all draws lie."""
        return self.low, self.high

    def _at(self, places: Any) -> list[float]:
        """Values whose logarithms lie at these places (0 to 1) between low and high."""
        values = self.low * (self.high / self.low) ** np.asarray(places, np.float64)
        return [float(value) for value in np.clip(values, self.low, self.high)]


class LogUniform(_Range):
    """Drawn at random from ``low`` to ``high``; as likely from 1 to 10 as from 10 to 100."""

    name: Literal["log_uniform"] = "log_uniform"

    def draw(self, ids: Ids, rng: np.random.Generator) -> list[float]:
        """A value for each learner."""
        return self._at(rng.random(len(ids)))


class Spread(_Range):
    """From ``low`` to ``high`` in equal ratios, both ends taken: only who has which value is random."""

    name: Literal["spread"] = "spread"

    def draw(self, ids: Ids, rng: np.random.Generator) -> list[float]:
        """A value for each learner; a single one has ``high``."""
        return self._at(rng.permutation(np.linspace(1.0, 0.0, len(ids))))


class Choices(Setting):
    """One of these values for each learner, at random."""

    name: Literal["choices"] = "choices"
    values: Annotated[Sequence[AtLeast0], Field(min_length=1)]
    weights: Sequence[Above0] | None = None
    """How likely each value is, relative to the others; None is all alike."""

    @model_validator(mode="after")
    def _has_as_many_weights(self) -> Choices:
        if self.weights is not None and len(self.weights) != len(self.values):
            raise ValueError(f"there are {len(self.values)} values, and {len(self.weights)} weights")
        return self

    def least_and_most(self) -> tuple[float, float]:
        """Between what all draws lie."""
        return min(self.values), max(self.values)

    def draw(self, ids: Ids, rng: np.random.Generator) -> list[float]:
        """A value for each learner."""
        weights = np.asarray(self.weights or [1.0] * len(self.values))
        return [float(value) for value in rng.choice(self.values, len(ids), p=weights / weights.sum())]


class Each(Setting):
    """A value for each learner by its id, or in the order of ids. A plain list stands for the latter."""

    name: Literal["each"] = "each"
    values: dict[Identifier, AtLeast0] | Sequence[AtLeast0]
    others: AtLeast0 | None = None
    """Of learners whose ids are not in ``values``; None refuses such learners."""

    @model_validator(mode="after")
    def _has_values(self) -> Each:
        if not self.values:
            raise ValueError("'values' is empty")
        return self

    def least_and_most(self) -> tuple[float, float]:
        """Between what all draws lie."""
        given = [*(self.values.values() if isinstance(self.values, dict) else self.values)]
        given += [] if self.others is None else [self.others]
        return min(given), max(given)

    def draw(self, ids: Ids, rng: np.random.Generator) -> list[float]:
        """A value for each learner.

        Raises:
            SettingError: an id is not known, or a learner has no value.
        """
        if not isinstance(self.values, dict):
            if len(self.values) != len(ids):
                raise SettingError(f"{len(self.values)} values were given for {len(ids)} learners")
            return list(self.values)
        check_known(self.values, ids)
        given: Mapping[str, float | None] = {
            learner: self.values.get(learner, self.others) for learner in ids
        }
        if lacking := [learner for learner, value in given.items() if value is None]:
            raise SettingError(f"learner {lacking[0]!r} has no value: name it in 'values', or give 'others'")
        return [value for value in given.values() if value is not None]


def _short(value: Any) -> Any:
    """A plain number, and a plain list, written out."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"name": "same", "value": value}
    return {"name": "each", "values": value} if isinstance(value, list | tuple) else value


def _above_0(draw: Any) -> Any:
    if draw is not None and draw.least_and_most()[0] <= 0:
        raise ValueError("every value must be above 0")
    return draw


Distribution = Same | LogUniform | Spread | Choices | Each

if TYPE_CHECKING:  # what may be given; what a setting holds is a distribution
    Draw = float | Sequence[float] | Distribution
    DrawAbove0 = Draw
else:
    Draw = Annotated[Distribution, Field(discriminator="name"), BeforeValidator(_short)]
    DrawAbove0 = Annotated[Draw, AfterValidator(_above_0)]


def distribution(draw: Draw) -> Distribution:
    """What a setting holds once it is checked."""
    return cast("Distribution", draw)


def check_known(names: Sequence[str] | Mapping[str, Any], ids: Ids, where: str = "") -> None:
    """Refuse names of learners that there are not.

    Raises:
        SettingError: with the nearest that there is.
    """
    for name in names:
        if name not in ids:
            prefix = f"{where}: " if where else ""
            raise SettingError(f"{prefix}there is no learner {name!r}: {expected_one_of(name, ids)}")
