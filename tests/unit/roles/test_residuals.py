"""Error feedback: what is sent and what is kept are what was changed, whatever becomes of an update."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_fl.model import Array, Model
from broker_fl.roles.learner.residuals import MAX_JOBS, Residuals
from broker_fl.wire.encodings import encoding
from broker_fl.wire.messages import TaskRef

SIZE = 700
CODED = ("int8", "topk/10", "topk/100")


def task(round: int, attempt: int = 0, job: str = "job") -> TaskRef:
    return TaskRef(job=job, round=round, attempt=attempt)


def model(values: Array) -> Model:
    return Model.of({"n": np.array([3], np.int8), "w": values.astype(np.float32), "d": values[:9]})


def sent_by(residuals: Residuals, values: Array, at: TaskRef, counted: int, name: str) -> Array:
    """Send a change; what arrives of ``w`` comes back."""
    change = model(values)
    arrived = encoding(name).decode(residuals.encode(change, encoding(name), at, counted), change.spec)
    assert arrived["n"] == 3
    return arrived["w"].astype(np.float64)


def kept_of(residuals: Residuals, counted: int) -> Array:
    """The residual, by what a round of no change would send of it; of two float32, one with its place is no
    shorter, so that all are sent.
    """
    return sent_by(residuals, np.zeros(SIZE), task(10**6), counted, "topk/2")


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.sampled_from(CODED))
def test_what_counted_and_what_is_kept_are_the_changes_that_counted(counts: list[bool], name: str) -> None:
    residuals, rng = Residuals(), np.random.default_rng(0)
    changed, arrived, last = np.zeros(SIZE), np.zeros(SIZE), -1
    for round, does in enumerate(counts):
        values = rng.normal(size=SIZE).astype(np.float32).astype(np.float64)
        sent = sent_by(residuals, values, task(round), last, name)
        if does:
            changed, arrived, last = changed + values, arrived + sent, round
    residual = kept_of(residuals, last)
    np.testing.assert_allclose(arrived + residual, changed, atol=1e-4)


@pytest.mark.parametrize("name", CODED)
def test_what_is_sent_catches_up_with_what_is_changed(name: str) -> None:
    """The distance does not grow with the rounds: the mean of what is sent comes to that of the changes.

    Karimireddy et al. 2019, lemma 3: with a share δ of the squared norm sent each time, the residual is at
    most 2/δ √(1−δ) of the norm of a change.
    """
    residuals, change = Residuals(), np.random.default_rng(1).normal(size=SIZE)
    share = 0.99 if name == "int8" else 1 / int(name.split("/")[1])
    total = np.zeros(SIZE)
    for round in range(400):
        total += sent_by(residuals, change, task(round), round - 1, name)
        bound = 2 / share * np.sqrt(1 - share) * np.linalg.norm(change)
        assert np.linalg.norm(total - (round + 1) * change) <= bound
    # of topk/100, which has sent each element four times by now
    assert np.abs(total / 400 - change).max() <= (0.001 if name == "int8" else 0.5)


@pytest.mark.parametrize("name", CODED)
def test_a_task_that_is_done_again_adds_the_residual_once(name: str) -> None:
    residuals, rng = Residuals(), np.random.default_rng(2)
    first = rng.normal(size=SIZE)
    kept = first - sent_by(residuals, first, task(0), -1, name)
    second = rng.normal(size=SIZE)
    once = sent_by(residuals, second, task(1), 0, name)
    again = sent_by(residuals, second, task(1, attempt=1), 0, name)
    np.testing.assert_array_equal(once, again)
    alone = sent_by(Residuals(), second + kept, task(1), -1, name)
    np.testing.assert_allclose(again, alone, atol=1e-5)


def test_who_is_started_anew_begins_with_none() -> None:
    change = np.random.default_rng(3).normal(size=SIZE)
    sent = sent_by(Residuals(), change, task(5), 3, "topk/10")
    np.testing.assert_array_equal(sent, sent_by(Residuals(), change, task(0), -1, "topk/10"))


def test_jobs_have_each_their_own_and_those_not_used_are_forgotten() -> None:
    residuals, change = Residuals(), np.random.default_rng(4).normal(size=SIZE)
    fresh = sent_by(Residuals(), change, task(0), -1, "topk/10")
    for index in range(MAX_JOBS + 1):
        first = sent_by(residuals, change, task(0, job=f"job-{index}"), -1, "topk/10")
        np.testing.assert_array_equal(first, fresh)
    forgotten = sent_by(residuals, change, task(1, job="job-0"), 0, "topk/10")
    np.testing.assert_array_equal(forgotten, fresh)
    known = sent_by(residuals, change, task(1, job=f"job-{MAX_JOBS}"), 0, "topk/10")
    assert not np.array_equal(known, fresh)


def test_a_change_that_is_not_finite_is_refused_and_spoils_nothing() -> None:
    residuals, change = Residuals(), np.random.default_rng(5).normal(size=SIZE)
    sent_by(residuals, change, task(0), -1, "int8")
    before = kept_of(residuals, 0)
    with pytest.raises(ValueError, match="values of float32 that are NaN"):
        residuals.encode(model(np.full(SIZE, np.nan)), encoding("int8"), task(1), 0)
    np.testing.assert_array_equal(kept_of(residuals, 0), before)


def test_a_change_that_the_encoding_cannot_hold_is_refused_by_name_and_spoils_nothing() -> None:
    residuals, largest = Residuals(), np.finfo(np.float32).max
    sent_by(residuals, np.ones(SIZE), task(0), -1, "int8")
    before = kept_of(residuals, 0)
    change = Model.of({"fits": np.ones(SIZE, np.float32), "does not": np.full(SIZE, largest, np.float32)})
    with pytest.raises(ValueError, match=r"the change of tensor 'does not', .* too large for"):
        residuals.encode(change, encoding("int8"), task(1), -1)
    np.testing.assert_array_equal(kept_of(residuals, 0), before)


def test_what_a_narrow_type_loses_is_kept_too() -> None:
    """1 and 1/4096 are not in one float16, but 4096 times 1/4096 is 1."""
    residuals, used, total = Residuals(), encoding("int8"), 0.0
    for round in range(4096):
        change = Model.of({"h": np.full(16, 2.0**-12 if round else 1.0, np.float16)})
        sent = used.decode(residuals.encode(change, used, task(round), round - 1), change.spec)
        total += float(sent["h"][0])
    assert total == pytest.approx(1 + 4095 * 2.0**-12, abs=1e-3)
