"""A job that is paused, and one that is stepped."""

from __future__ import annotations

from broker_fl.coordination import signals as s
from broker_fl.coordination.state import Phase
from broker_fl.wire import events as e
from broker_fl.wire.job import Termination
from tests.unit.coordination.bench import Bench, spec


def test_a_paused_job_finishes_its_round_and_begins_no_other() -> None:
    bench = Bench(spec(), "a")
    bench.step(s.PauseWanted("maintenance"))
    assert bench.all(e.JobPaused)[0].reason == "maintenance"
    bench.play("a")
    assert (bench.asked(), bench.phase, bench.job.state.version) == (set(), Phase.IDLE, 1)
    assert bench.job.state.summary().state == "paused"
    bench.wait(1e6)
    assert bench.asked() == set()
    bench.step(s.ResumeWanted())
    assert bench.asked() == {"a"}
    assert bench.job.state.summary().state == "running"


def test_a_job_is_stepped_a_round_at_a_time() -> None:
    bench = Bench(spec(rounds=3), "a")
    bench.step(s.PauseWanted(""))
    bench.play("a")
    for version in (2, 3):
        bench.step(s.ResumeWanted(versions=1))
        assert bench.asked() == {"a"}
        bench.play("a")
        assert (bench.asked(), bench.job.state.version) == (set(), version)
    bench.step(s.ResumeWanted(versions=1))
    assert bench.phase == Phase.EVALUATING


def test_a_pause_does_not_count_as_time_and_survives_the_controller() -> None:
    bench = Bench(spec(termination=Termination(wall_clock_s=100.0)), "a")
    bench.wait(40.0)
    bench.step(s.PauseWanted(""))
    bench.play("a")
    assert bench.job.next_timer() is None
    bench.wait(1_000.0)
    heir = bench.restarted()
    assert (heir.asked(), heir.job.state.is_paused) == (set(), True)
    heir.up("a")
    heir.step(s.ResumeWanted())
    assert heir.asked() == {"a"}
    assert heir.job.next_timer() == heir.now + 60.0


def test_a_paused_job_can_be_stopped() -> None:
    bench = Bench(spec(), "a")
    bench.step(s.PauseWanted(""))
    bench.play("a")
    bench.step(s.StopWanted("enough"))
    assert [event.state for event in bench.all(e.JobFinished)] == ["stopped"]
