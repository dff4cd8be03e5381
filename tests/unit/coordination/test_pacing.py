"""How much work learners are given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_fl.coordination import signals as s
from broker_fl.coordination.pacing import AimdPacer, SemiSynchronousPacer
from broker_fl.coordination.records import Records
from broker_fl.interfaces import Record
from broker_fl.wire import events as e
from broker_fl.wire.messages import Timings
from broker_fl.wire.pacing import Aimd
from broker_fl.wire.protocols import SemiSynchronous
from broker_fl.wire.selectors import SelectRandom
from tests.unit.coordination.bench import Bench, spec

EPOCHS = st.integers(1, 40)


@given(EPOCHS, EPOCHS, st.floats(0.01, 0.99), st.integers(1, 5), st.lists(st.booleans(), max_size=60))
def test_aimd_follows_its_definition_and_never_leaves_its_bounds(
    low: int, high: int, decrease: float, increase: int, in_time: list[bool]
) -> None:
    low, high = sorted((low, high))
    settings = Aimd(min_epochs=low, max_epochs=high, increase=increase, decrease=decrease)
    pacer = AimdPacer(settings, Records({}), first_epochs=3, target_s=10.0)
    expected = min(max(3, low), high)
    for fine in in_time:
        assert pacer.workloads(["a"]) == {"a": {"epochs": expected}}
        pacer.delivered("a", 10.0 if fine else 10.1)
        expected = min(max(expected + increase if fine else int(expected * decrease), low), high)


@given(
    st.lists(st.tuples(st.floats(1e-4, 10.0), st.integers(1, 500)), min_size=1, max_size=8),
    st.floats(0.1, 10.0),
)
def test_semi_synchronous_learners_train_for_about_the_same_time(
    speeds: list[tuple[float, int]], lam: float
) -> None:
    records = {
        f"l{index}": Record(step_s=step_s, epoch_s=step_s * steps)
        for index, (step_s, steps) in enumerate(speeds)
    }
    found = SemiSynchronousPacer(SemiSynchronous(lam=lam), Records(records)).workloads(records)
    time_s = lam * max(step_s * steps for step_s, steps in speeds)
    for name, record in records.items():
        steps = found[name]["steps"]
        assert steps >= 1
        assert abs(steps * record.step_s - time_s) <= max(0.5 * record.step_s * 1.001, record.step_s - time_s)


def test_steps_are_clamped_and_the_unmeasured_do_what_the_job_says() -> None:
    records = {
        "slow": Record(step_s=1.0, epoch_s=100.0),
        "fast": Record(step_s=0.01, epoch_s=1.0),
        "new": Record(),
    }
    settings = SemiSynchronous(lam=1.0, min_steps=150, max_steps=500)
    found = SemiSynchronousPacer(settings, Records(records)).workloads(records)
    assert found == {"slow": {"steps": 150}, "fast": {"steps": 500}}


def timed(bench: Bench, learner: str, *, steps: int, epochs: float, train_s: float) -> None:
    bench.deliver(learner, num_steps=steps, num_epochs=epochs, timings=Timings(train_s=train_s))


def asked(bench: Bench) -> dict[str, dict[str, int]]:
    return {name: dict(a.workload) for a in bench.of(s.SendTasks) for name in a.learners}


def semi(**settings: float) -> Bench:
    job = spec(rounds=9, evaluate=False).model_copy(update={"protocol": SemiSynchronous(**settings)})  # type: ignore[arg-type]
    return Bench(job, "fast", "slow")


def test_timings_are_taken_anew_each_round() -> None:
    """MetisFL keeps those of the first round for ever, which here are wrong by a factor of ten."""
    bench = semi(lam=1.0, smoothing=0.0)
    assert asked(bench) == {"fast": {}, "slow": {}}
    timed(bench, "fast", steps=100, epochs=1.0, train_s=10.0)
    timed(bench, "slow", steps=100, epochs=1.0, train_s=100.0)
    bench.stored()
    assert asked(bench) == {"fast": {"steps": 1000}, "slow": {"steps": 100}}
    timed(bench, "fast", steps=1000, epochs=10.0, train_s=100.0)
    timed(bench, "slow", steps=100, epochs=1.0, train_s=10.0)
    bench.stored()
    assert asked(bench) == {"fast": {"steps": 100}, "slow": {"steps": 100}}


def test_one_slow_round_moves_a_smoothed_timing_only_half_of_the_way() -> None:
    bench = semi(lam=1.0, smoothing=0.5)
    work = {"fast": {"steps": 10}, "slow": {"steps": 10}}
    for train_s in (10.0, 30.0):
        timed(bench, "fast", steps=work["fast"]["steps"], epochs=1.0, train_s=1.0)
        timed(bench, "slow", steps=work["slow"]["steps"], epochs=1.0, train_s=train_s)
        bench.stored()
        work = asked(bench)
    assert bench.job.state.records["slow"].epoch_s == pytest.approx(20.0)


def test_who_is_always_late_gets_less_until_it_delivers_and_is_measured() -> None:
    job = spec(rounds=9, evaluate=False).model_copy(
        update={"protocol": SemiSynchronous(quorum=0.5, deadline_s=10.0)}
    )
    bench = Bench(job, "fast", "slow")
    timed(bench, "fast", steps=10, epochs=1.0, train_s=1.0)
    bench.wait(10.0)
    bench.stored()
    assert asked(bench)["slow"] == {"steps": 1}
    timed(bench, "fast", steps=10, epochs=1.0, train_s=1.0)
    timed(bench, "slow", steps=1, epochs=0.1, train_s=5.0)
    bench.stored()
    assert asked(bench) == {"fast": {"steps": 500}, "slow": {"steps": 10}}
    bench.now += 1.0
    timed(bench, "fast", steps=500, epochs=50.0, train_s=50.0)
    bench.wait(99.0)
    assert bench.job.state.records["slow"].step_s == pytest.approx(7.5)
    assert bench.job.state.records["slow"].num_failures == 1


def test_a_retry_is_paced_as_its_whole_cohort() -> None:
    bench = semi(lam=1.0)
    timed(bench, "fast", steps=10, epochs=1.0, train_s=1.0)
    timed(bench, "slow", steps=10, epochs=1.0, train_s=10.0)
    bench.stored()
    assert asked(bench) == {"fast": {"steps": 100}, "slow": {"steps": 10}}
    bench.fail("fast")
    timed(bench, "slow", steps=10, epochs=1.0, train_s=10.0)
    assert asked(bench) == {"fast": {"steps": 100}}


def test_those_who_were_asked_beyond_need_keep_their_work() -> None:
    selector = SelectRandom(count=1)
    pacing = Aimd(target_s=60.0)
    settings = spec(over_selection=1, selector=selector, pacing=pacing, parameters={"epochs": 4})
    bench = Bench(settings, "a", "b")
    for epochs in (4, 5):
        assert asked(bench)["a"] == {"epochs": epochs}
        assert asked(bench)["b"] == {"epochs": 4}
        bench.play("a")


def test_timings_survive_the_controller() -> None:
    bench = semi(lam=2.0)
    timed(bench, "fast", steps=10, epochs=1.0, train_s=1.0)
    timed(bench, "slow", steps=10, epochs=1.0, train_s=4.0)
    bench.stored()
    before = asked(bench)
    heir = bench.restarted()
    for learner in ("fast", "slow"):
        heir.up(learner)
    timed(heir, "fast", steps=before["fast"]["steps"], epochs=8.0, train_s=8.0)
    timed(heir, "slow", steps=before["slow"]["steps"], epochs=2.0, train_s=8.0)
    heir.stored()
    assert asked(heir) == before == {"fast": {"steps": 80}, "slow": {"steps": 20}}


def test_another_number_of_steps_than_was_asked_for_is_refused_and_the_round_goes_on() -> None:
    bench = Bench(spec(parameters={"steps": 20}, quorum=0.5, max_retries=0), "a", "b")
    bench.result("a", num_steps=19)
    (refused,) = bench.all(e.UpdateRefused)
    assert refused.reason == "its task asked for 20 optimiser steps, it reports 19"
    bench.play("b", num_steps=20)
    assert bench.all(e.VersionCommitted)[0].contributors == ("b",)


def test_a_training_that_diverged_is_refused_and_the_round_goes_on() -> None:
    bench = Bench(spec(quorum=0.5, max_retries=0), "a", "b")
    bench.result("a", metrics={"loss": float("nan")})
    assert "training metric 'loss' is nan" in bench.all(e.UpdateRefused)[0].reason
    bench.play("b", metrics={"loss": 0.5})
    assert bench.all(e.VersionCommitted)[0].metrics == {"loss": 0.5}
