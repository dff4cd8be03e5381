"""The robust rules in whole jobs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from broker_fl.roles.learner import LearnerHost, LearnerSettings
from broker_fl.simulation import Federation
from broker_fl.wire.job import JobSpec
from tests.unit.aggregation.robust.references import (
    about_the_median,
    bulyan_selection,
    krum_scores,
    squared_distances,
)
from tests.unit.roles.stage import FEDERATION, WAIT_S, Adds, model_of, same

AMOUNTS = np.array([1.0, 1.5, 2.25, 3.0, 3.5, 4.25, 100.0])
"""What each of seven learners adds to every element of the model in each round; the last one attacks."""
LINE = squared_distances(AMOUNTS[:, None])


@pytest.mark.parametrize(
    ("rule", "added"),
    [
        ({"name": "median"}, 3.0),
        ({"name": "trimmed_mean"}, AMOUNTS[1:-1].mean()),
        ({"name": "krum"}, AMOUNTS[np.argmin(krum_scores(LINE, 1))]),
        ({"name": "multi_krum"}, AMOUNTS[np.argsort(krum_scores(LINE, 1))[:4]].mean()),
        ({"name": "bulyan"}, about_the_median(AMOUNTS[bulyan_selection(LINE, 1)], 3)),
        ({"name": "geometric_median"}, np.median(AMOUNTS)),
        ({"name": "norm_clipping", "max_norm": 4.0}, np.minimum(AMOUNTS, 2.0).mean()),
    ],
    ids=lambda given: given["name"] if isinstance(given, dict) else "",
)
def test_a_job_with_the_rule_makes_the_model_computed_by_hand(rule: dict[str, Any], added: float) -> None:
    learners = {f"l{i}": Adds(amount, num_examples=i + 1) for i, amount in enumerate(AMOUNTS)}
    settings = {"rule": rule, "protocol": {"min_learners": 7}, "termination": {"rounds": 3}}
    with Federation(learners) as federation:
        job = federation.submit(JobSpec.model_validate(settings), model_of())
        assert job.wait().state == "done"
        for array in job.model().values():
            np.testing.assert_allclose(array, 3 * added, rtol=1e-5)
        newest = job.history().versions[3]
        assert len(newest.contributors) == 7
        if rule["name"] == "krum":
            assert newest.used == {
                name: float(f"l{np.argmin(krum_scores(LINE, 1))}" == name) for name in learners
            }


def test_a_round_that_loses_too_many_learners_waits_for_enough_and_combines_no_fewer() -> None:
    """Enough are there when it begins; then one leaves, and comes back."""
    leaver = Adds(1.0)
    leaver.gate.clear()
    spec = {"rule": {"name": "median"}, "protocol": {"min_learners": 3}, "termination": {"rounds": 2}}
    with Federation({"a": Adds(1.0), "b": Adds(1.0)}, name=FEDERATION) as federation:
        transports = [federation.broker.connect(name) for name in ("leaver", "back")]
        hosts = [
            LearnerHost(transport, {"c": leaver}, LearnerSettings(federation=FEDERATION))
            for transport in transports
        ]
        hosts[0].start()
        job = federation.driver.submit(JobSpec.model_validate(spec), model_of())
        assert leaver.at_work.wait(WAIT_S)
        hosts[0].stop(drain_s=0.0, reason="it has had enough")
        transports[0].close()
        leaver.gate.set()
        hosts[1].start()
        assert job.wait().state == "done"
        hosts[1].stop(drain_s=0.0)
        transports[1].close()
        same(job.model(), model_of(2.0))
        assert all(len(version.contributors) == 3 for version in list(job.history().versions.values())[1:])
