"""The machine's clock is set forwards or back while a job runs: nothing else is noticed of it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from broker_fl.roles.runtime import Threads
from broker_fl.wire import events as e
from tests.unit.roles.stage import WAIT_S, Adds, Stage, done, eventually, kinds, model_of, same

DAY_S = 86_400.0
TTL_S = 0.6
JUMPS = pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S], ids=["forwards", "back"])


class SetClock(Threads):
    """The machine, with a wall clock that can be set."""

    def __init__(self) -> None:
        self.set_by_s = 0.0

    def wall_s(self) -> float:
        return Threads.wall_s() + self.set_by_s


class Site:
    """A stage, and its clock."""

    def __init__(self, folder: Path) -> None:
        self.clock = SetClock()
        self.stage = Stage(folder, heartbeat_s=0.2, lease_ttl_s=TTL_S, runtime=self.clock)

    def jump(self, jump_s: float) -> None:
        """Set the clock, and wait until everybody has looked at it: timers, heartbeats, and the lease."""
        renewals = self.stage.num_renewals
        self.clock.set_by_s += jump_s
        eventually(lambda: self.stage.num_renewals >= renewals + 4, "four renewals of the lease")
        for _ in range(2):  # after each answer the controller has looked at its timers
            self.stage.driver.learners()


@pytest.fixture
def site(tmp_path: Path):  # type: ignore[no-untyped-def]
    site = Site(tmp_path)
    with site.stage:
        yield site


def in_order(events: list[e.Event]) -> bool:
    """Whether the times of events never go back, and lie on one scale."""
    return all(0 <= later.time_s - one.time_s < WAIT_S for one, later in pairwise(events))


@JUMPS
def test_nobody_is_lost_or_overdue_because_of_it(site: Site, jump_s: float) -> None:
    """One learner has delivered and one trains; by the wall clock the deadline would be over, or never."""
    stage, fast, slow = site.stage, Adds(1.0), Adds(3.0)
    controller = stage.controller()
    stage.host({"fast": fast, "slow": slow})
    slow.gate.clear()
    job = stage.submit(rounds=3, min_learners=2, quorum=1, deadline_s=WAIT_S)
    assert slow.at_work.wait(WAIT_S)
    eventually(lambda: "update_folded" in kinds(job), "the first delivery")
    site.jump(jump_s)
    slow.gate.set()
    done(job)
    same(job.model(), model_of(6.0))
    assert (fast.num_trained, slow.num_trained) == (3, 3)
    seen = list(job.events(follow=False))
    committed = [event for event in seen if isinstance(event, e.VersionCommitted)]
    assert [event.contributors for event in committed] == [("fast", "slow")] * 3
    assert not any(isinstance(event, e.LearnerLost) for event in seen)
    assert in_order(seen)
    assert (controller.error, controller.epoch) == (None, 1)


@JUMPS
def test_a_deadline_ends_a_round_all_the_same(site: Site, jump_s: float) -> None:
    stage, fast, hung = site.stage, Adds(1.0), Adds(3.0)
    stage.controller()
    stage.host({"fast": fast, "hung": hung})
    hung.gate.clear()
    job = stage.submit(rounds=1, min_learners=2, quorum=1, deadline_s=2.0)
    assert hung.at_work.wait(WAIT_S)
    site.clock.set_by_s += jump_s
    done(job)
    hung.gate.set()
    same(job.model(), model_of(1.0))
    (committed,) = [event for event in job.events(follow=False) if isinstance(event, e.VersionCommitted)]
    assert committed.contributors == ("fast",)
    assert 1.9 < committed.round_s < DAY_S / 2, "neither at once, nor by the clock that was set"


@JUMPS
def test_a_standby_goes_on_with_the_round_of_a_controller_that_died(site: Site, jump_s: float) -> None:
    """The dead one's lease is in the file, by a clock that has been set since."""
    stage, learner = site.stage, Adds(1.0)
    first = stage.controller()
    stage.host({"a": learner})
    learner.gate.clear()
    job = stage.submit(rounds=3)
    assert learner.at_work.wait(WAIT_S)
    stage.kill(first)
    site.clock.set_by_s += jump_s
    second = stage.controller()
    learner.gate.set()
    done(job)
    assert second.epoch == first.epoch + 1
    same(job.model(), model_of(3.0))
    assert learner.num_trained == 3
