"""Whether a job's target is reached without any one party: a learner, or a group with all of its members.

A target is held against the mean of what learners report, and one that reports a huge value, or a huge number
of examples, has any mean it likes. So the mean has to reach the target also without the reports of whichever
party does most for it. With ``e = weight * (value - target)``, the excess of a report, the mean without a
party reaches the target if the sum of the others' excesses is at least 0, so that of all parties the one with
the largest excess decides. Where all report the same it makes no difference; where one is ahead of the others
by ``d``, the target is reached when the mean is above it by about ``d`` divided by their number.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

from broker_fl.coordination.cohort import Cohort
from broker_fl.wire.job import MetricTarget

Report = tuple[str, float, float]
"""Party, value of the target's metric, weight."""


def reports_of(cohort: Cohort, metric: str) -> Iterable[Report]:
    """What the cohort's members report of one metric; of a group's as the group's. Weights are examples."""
    for learner, part in cohort.items():
        if (result := part.result) is not None and metric in result.evaluation:
            yield f"learner {learner}", result.evaluation[metric], result.evaluation_examples or 1
    for share in cohort.shares.values():
        if (column := share.metrics("evaluation").get(metric)) is not None:
            examples = share.column("evaluation_examples")
            for value, weight in zip(column.tolist(), examples.tolist(), strict=True):
                yield f"group {share.group}", value, max(1.0, weight)


def is_reached_without_any_one(target: MetricTarget, reports: Iterable[Report]) -> bool:
    """Whether the mean of the reports that are finite reaches the target whichever party is left out. One
    party alone decides: nobody else has something to say.
    """
    sign = 1.0 if target.mode == "max" else -1.0
    excesses: defaultdict[str, float] = defaultdict(float)
    for party, value, weight in reports:
        if math.isfinite(value):
            excesses[party] += sign * weight * (value - target.value)
    if len(excesses) < 2:
        return True
    most = max(excesses, key=excesses.__getitem__)
    return sum(excess for party, excess in excesses.items() if party != most) >= 0.0
