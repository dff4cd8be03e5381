"""Who takes part in a round."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from broker_fl.interfaces import Member, Record, Selector
from broker_fl.wire.selectors import SelectAll, SelectRandom


class All:
    """Everybody who is there."""

    def select(self, members: Sequence[Member], round: int, history: Mapping[str, Record]) -> list[str]:
        """All ids."""
        return [member.learner for member in members]


class Random:
    """A seeded draw, anew each round; never empty while anybody is there."""

    def __init__(self, settings: SelectRandom) -> None:
        self._settings = settings

    def select(self, members: Sequence[Member], round: int, history: Mapping[str, Record]) -> list[str]:
        """``count`` ids, or the share ``fraction`` of them, rounded up; fewer where fewer are there."""
        settings = self._settings
        count = settings.count
        if count is None:
            count = math.ceil((settings.fraction or 1.0) * len(members) - 1e-9)
        draw = random.Random(f"{settings.seed}/{round}")  # noqa: S311 - reproducible choice, not a secret
        return sorted(draw.sample([member.learner for member in members], min(count, len(members))))


def make_selector(settings: SelectAll | SelectRandom) -> Selector:
    """The selector that a job's ``selector`` settings name."""
    return Random(settings) if isinstance(settings, SelectRandom) else All()
