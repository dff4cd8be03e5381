"""Power-of-choice: of some candidates those with the highest loss.

Yae Jee Cho, Jianyu Wang, Gauri Joshi (2022): "Towards Understanding Biased Client Selection in Federated
Learning", AISTATS (arXiv:2010.01243, 2020), the variant ``π_rpow-d``, which asks nobody for a loss::

    A   = d learners, drawn without replacement, learner k with probability p_k, its share of all examples
    S_t = the m of A with the highest loss that is known of them; infinite for one that never took part

The paper's loss is the mean over the mini-batches of the last training; ours is that of the version that the
learner was last given, on the data that it evaluates on: the paper's ``F_k(w)`` at an earlier ``w``. A loss
that is not a number counts as infinite. Both numbers are the learners' own word: one that claims a high loss
and many examples is chosen often.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator, Mapping, Sequence

from broker_fl.interfaces import Member, Record
from broker_fl.wire.selectors import SelectPowerOfChoice

LOSS = "loss"
NUM_EXAMPLES = "num_examples"


class PowerOfChoice:
    """The highest losses among ``num_candidates`` that are drawn anew each round."""

    def __init__(self, settings: SelectPowerOfChoice) -> None:
        self._settings = settings

    def select(self, members: Sequence[Member], round: int, history: Mapping[str, Record]) -> list[str]:
        size = self._settings.cohort_size(len(members))
        candidates = self._draw(members, max(size, self._settings.num_candidates), round, history)
        # The order in which they were drawn decides between equal losses: sorting keeps it.
        candidates.sort(key=lambda learner: _loss(history.get(learner)), reverse=True)
        return sorted(candidates[:size])

    def _draw(
        self, members: Sequence[Member], size: int, round: int, history: Mapping[str, Record]
    ) -> list[str]:
        """By exponential clocks: the first to ring are a draw without replacement by their rates (Efraimidis
        and Spirakis 2006, "Weighted random sampling with a reservoir").
        """
        draw = random.Random(f"{self._settings.seed}/{round}")  # noqa: S311 - reproducible choice, not a secret
        rings = ((draw.expovariate(rate), learner) for learner, rate in _examples(members, history))
        return [learner for _, learner in heapq.nsmallest(size, rings)]


def _examples(members: Sequence[Member], history: Mapping[str, Record]) -> Iterator[tuple[str, float]]:
    """How many each has: what it told when it joined, else what it last trained on, else the others' mean."""
    known = [_told(member) or _trained(history.get(member.learner)) for member in members]
    positive = [number for number in known if number]
    mean = math.fsum(positive) / len(positive) if positive else 1.0
    for member, number in zip(members, known, strict=True):
        yield member.learner, float(number or mean)


def _told(member: Member) -> float:
    told = member.attributes.get(NUM_EXAMPLES)
    return max(0.0, told) if isinstance(told, int | float) else 0.0


def _trained(record: Record | None) -> float:
    return float(record.num_examples) if record is not None else 0.0


def _loss(record: Record | None) -> float:
    loss = record.evaluation.get(LOSS, math.nan) if record is not None else math.nan
    return math.inf if math.isnan(loss) else loss
