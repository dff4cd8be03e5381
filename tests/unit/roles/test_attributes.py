"""What learners tell of themselves, and jobs that choose by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker_fl.errors import AppError
from broker_fl.interfaces import Parameters
from broker_fl.roles.attributes import attributes_of
from broker_fl.roles.learner import LearnerHost, LearnerSettings
from broker_fl.simulation import Federation
from broker_fl.transports.memory import MemoryBroker
from broker_fl.wire import events as e
from broker_fl.wire.selectors import SelectRotation
from tests.unit.roles.stage import Adds, model_of, spec


class Tells(Adds):
    """Adds 1, and has attributes."""

    def __init__(self, attributes: Any) -> None:
        super().__init__(1.0)
        self.attributes = attributes


def test_a_job_asks_only_learners_that_told_what_it_wants(tmp_path: Path) -> None:
    learners = {
        "a": Tells({"num_examples": 500, "region": "eu"}),
        "b": Tells({"num_examples": 50, "region": "eu"}),
        "c": Tells({"num_examples": 500}),
        "d": Tells({"num_examples": 800, "region": "eu"}),
        "e": Adds(1.0),
    }
    selector = SelectRotation.model_validate(
        {"count": 1, "where": {"region": "eu", "num_examples": {"min": 100}, "software": {"min": "0.1"}}}
    )
    with Federation(learners, folder=tmp_path) as federation:
        assert federation.learners.wait_welcomed(30.0)
        job = federation.submit(spec(rounds=4, min_learners=2, selector=selector), model_of())
        assert job.wait().state == "done"
        cohorts = [event.cohort for event in job.events(follow=False) if isinstance(event, e.RoundStarted)]
        told = {one.learner: one.attributes for one in federation.driver.learners()}
    assert cohorts == [("a",), ("d",), ("a",), ("d",), ("a",)]  # the last of them to evaluate
    assert told["a"] == {"num_examples": 500, "region": "eu"}
    assert told["e"] == {}


def test_who_runs_a_learner_has_the_last_word() -> None:
    given: Parameters = {"region": "uk", "gpu": True}
    assert attributes_of("a", Tells({"region": "eu", "num_examples": 7}), given) == {
        "region": "uk",
        "gpu": True,
        "num_examples": 7,
    }
    assert attributes_of("a", Adds(1.0), given) == given


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        (
            ["eu"],
            r"the attributes of learner a \(Tells.attributes\) are a list; it is a dict of",
        ),
        ({"labels": [1, 2]}, r"cannot be told: labels: .*a list is neither a text, a number, a boolean"),
        ({"num_examples": np.int64(3)}, r"num_examples: .*neither a text, a number"),
        ({1: "eu"}, r"learner a .*valid string"),
        ({"speed": float("nan")}, r"speed: .*nan is not a finite number"),
        ({f"a{i}": "x" * 1_000 for i in range(9)}, r"take 9\d+ bytes; at most 8192"),
    ],
    ids=str,
)
def test_attributes_that_cannot_travel_are_refused_when_the_host_is_made(attributes: Any, words: str) -> None:
    transport = MemoryBroker().connect("learner")
    with pytest.raises(AppError, match=words):
        LearnerHost(transport, {"a": Tells(attributes)}, LearnerSettings())
    transport.close()
