"""Tasks say of how few learners' updates a version may be made: as few do make one, and no fewer."""

from __future__ import annotations

import pytest

from broker_fl.coordination import signals as s
from broker_fl.coordination.state import Phase
from broker_fl.wire.job import JobSpec
from broker_fl.wire.rules import FedBuff, FedRec, Krum, Median, MultiKrum
from broker_fl.wire.selectors import SelectRandom
from tests.unit.coordination.bench import Bench, asynchronous, spec

TWO, HALF = SelectRandom(count=2), SelectRandom(fraction=0.5)
CASES = {
    "a share of those that live": (spec(quorum=1.0, min_learners=4), 1),
    "a count": (spec(quorum=3), 3),
    "with spares": (spec(quorum=2, over_selection=2, selector=TWO), 2),
    "enough of those that were chosen": (spec(quorum=3, over_selection=2, selector=HALF), 2),
    "what the rule needs": (spec(rule=Median(max_attackers=1), min_learners=4), 3),
    "a buffer": (asynchronous(rule=FedBuff(buffer_size=3), min_learners=3), 3),
    "each update": (asynchronous(rule=FedRec()), 1),
}


def is_committed_with(num: int, settings: JobSpec) -> bool:
    """Whether a version comes of it when so many deliver and all others are lost."""
    bench = Bench(settings, *"abcd")
    asked = sorted(bench.asked())
    bench.deliver(*asked[:num])
    for learner in asked[num:]:
        bench.down(learner)
    return bench.phase == Phase.COMMITTING


@pytest.mark.parametrize(("settings", "fewest"), CASES.values(), ids=CASES)
def test_as_few_as_a_task_says_make_a_version_and_no_fewer(settings: JobSpec, fewest: int) -> None:
    (sent,) = Bench(settings, *"abcd").of(s.SendTasks)
    assert sent.min_cohort == fewest
    assert is_committed_with(fewest, settings)
    assert not is_committed_with(fewest - 1, settings)


@pytest.mark.parametrize(
    ("rule", "fewest"),
    [
        (Krum(max_attackers=0), 1),
        (MultiKrum(max_attackers=0, num_selected=2), 2),
        (MultiKrum(max_attackers=0), 2),
    ],
)
def test_what_a_rule_leaves_out_hides_nobody(rule: Krum | MultiKrum, fewest: int) -> None:
    """A version may be one site's update as it is, although others delivered too."""
    (sent,) = Bench(spec(rule=rule, quorum=4), *"abcdef").of(s.SendTasks)
    assert sent.min_cohort == fewest
