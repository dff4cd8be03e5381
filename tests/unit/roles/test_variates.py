"""What a learner keeps of its variates, whatever becomes of its updates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_fl.model import Model
from broker_fl.roles.learner.variates import MAX_JOBS, Variates
from broker_fl.wire import control
from broker_fl.wire.encodings import encoding
from broker_fl.wire.messages import TaskRef

SERVER = {"w": np.array([1.0, 2.0], np.float32)}


def task(round: int, job: str = "job") -> TaskRef:
    return TaskRef(job=job, round=round)


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.sampled_from(["raw", "float16", "bfloat16"]))
def test_what_the_learner_keeps_is_the_sum_of_what_counted(counted: list[bool], name: str) -> None:
    """To the last bit, with rounding encodings too: or its variate and the server's would part."""
    variates, model, rng = Variates(), Model.of({"w": np.zeros(2, np.float32)}), np.random.default_rng(0)
    total, last, num_kept = np.zeros(2, np.float32), -1, 0
    for round, counts in enumerate(counted):
        held = variates.begin(task(round), last, SERVER)
        assert held.own is not None
        np.testing.assert_array_equal(held.own["w"], total)
        np.testing.assert_array_equal(held.correction()["w"], SERVER["w"] - total)
        used = encoding(name)
        whole = control.joined(model, held.change({"w": rng.normal(size=2).astype(np.float32)}))
        sent = control.parted(used.decode(used.encode(whole), whole.spec))[1]
        held.keep(sent)
        num_kept = max(num_kept, len(held.kept))
        if counts:
            total, last = total + sent["w"], round
    assert num_kept <= 2


def test_a_lost_variate_corrects_nothing_changes_nothing_and_says_so() -> None:
    held = Variates().begin(task(5), 3, SERVER)
    assert held.manifest == "lost"
    assert held.correction()["w"].tolist() == [0, 0]
    assert held.change({"w": np.ones(2)})["w"].tolist() == [0, 0]


def test_a_task_that_comes_late_loses_nothing_newer() -> None:
    variates = Variates()
    variates.begin(task(4), -1, SERVER).keep(SERVER)
    variates.begin(task(5), 4, SERVER).keep(SERVER)
    assert variates.begin(task(4), -1, SERVER).manifest == "change"
    assert variates.begin(task(6), 5, SERVER).own is not None


def test_jobs_have_each_their_own_and_those_not_used_are_forgotten() -> None:
    variates = Variates()
    for index in range(MAX_JOBS + 1):
        variates.begin(task(0, f"job-{index}"), -1, SERVER).keep(SERVER)
    assert variates.begin(task(1, "job-0"), 0, SERVER).manifest == "lost"
    assert variates.begin(task(1, f"job-{MAX_JOBS}"), 0, SERVER).own is not None


@pytest.mark.parametrize(
    ("given_back", "told"),
    [
        (None, "needs control variates"),
        ({"v": np.zeros(2)}, "'v', which is not a float tensor"),
        ({"w": np.zeros(3)}, r"shape \(3,\) instead of \(2,\)"),
    ],
)
def test_what_train_gave_is_looked_at(given_back: dict[str, np.ndarray] | None, told: str) -> None:
    with pytest.raises((TypeError, ValueError), match=told):
        Variates().begin(task(0), -1, SERVER).change(given_back)
