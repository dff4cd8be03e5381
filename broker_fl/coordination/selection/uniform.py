"""Everybody, or a seeded random draw in which all are alike."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from broker_fl.interfaces import Member, Record
from broker_fl.wire.selectors import SelectRandom


class All:
    """Everybody who is there."""

    def select(self, members: Sequence[Member], round: int, history: Mapping[str, Record]) -> list[str]:
        """All ids."""
        return [member.learner for member in members]


class Random:
    """A draw without repetition, anew each round."""

    def __init__(self, settings: SelectRandom) -> None:
        self._settings = settings

    def select(self, members: Sequence[Member], round: int, history: Mapping[str, Record]) -> list[str]:
        size = self._settings.cohort_size(len(members))
        draw = random.Random(f"{self._settings.seed}/{round}")  # noqa: S311 - reproducible choice, not a secret
        return sorted(draw.sample([member.learner for member in members], size))
