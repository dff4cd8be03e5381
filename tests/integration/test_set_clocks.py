"""The wall clock of Redis, by which leases expire, and of controllers is set while a job runs.

Learners keep theirs: under libfaketime ``time.sleep`` of Python fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker_fl.wire import events as e
from broker_fl.workers.servers import RabbitMQNode, RedisNode
from tests.faults.bench import bench_on
from tests.faults.cells import Bench, bring_to, go_on, outcome
from tests.faults.federation import FENCED, NOBODY_IS_LOST
from tests.faults.standby import epoch
from tests.servers.clocks import WallClock

DAY_S = 86_400


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> WallClock:
    return WallClock(tmp_path_factory.mktemp("clock"))


@pytest.fixture(scope="module")
def bench(
    clock: WallClock,
    _restartable_rabbitmq: RabbitMQNode,
    server_root: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Bench]:
    """Redis has this clock, and controllers that are started by ``Federation.environments``."""
    if _restartable_rabbitmq.pid is None:
        _restartable_rabbitmq.start()
    node, folder = (
        RedisNode(server_root / "redis-of-clocks", password=True),
        tmp_path_factory.mktemp("clocks"),
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in clock.environment.items():
            patch.setenv(name, value)
        node.start()
    controllers = dict.fromkeys(("controller", "controller-2"), clock.environment)
    try:
        with bench_on(
            _restartable_rabbitmq, node, folder, environments=controllers, patience=NOBODY_IS_LOST
        ) as bench:
            yield bench
    finally:
        node.kill()
        node.stop()


def set_right(clock: WallClock, bench: Bench) -> None:
    """A lease that was given yesterday is over by today's clock: until it is renewed, another may take it."""
    clock.set(0)
    epoch(bench)


@pytest.mark.parametrize("ahead_s", [DAY_S, -DAY_S], ids=["forwards", "back"])
def test_the_clocks_of_the_servers_are_set_and_nobody_minds(
    bench: Bench, clock: WallClock, ahead_s: int
) -> None:
    watched = bring_to("folding", bench)
    clock.set(ahead_s)
    go_on(bench, watched)
    played = outcome("machine", "clock", "folding", bench, watched, over_at=0.0)
    set_right(clock, bench)
    assert played.is_good, (played, bench.federation.logs())
    assert played.trained_again == 0
    assert not watched.has(e.LearnerLost)
    assert not watched.has(e.JobResumed)


def test_a_controller_whose_lease_runs_out_early_is_fenced_and_nothing_counts_twice(
    bench: Bench, clock: WallClock
) -> None:
    """It is alive, and has two updates in its sum; only its next renewal is late."""
    federation = bench.federation
    active = federation.processes["controller"]
    standby = federation.start("controller-2")
    federation.wait(lambda: "standing by" in standby.log.read_text(), "a controller on standby")
    watched = bring_to("folding", bench)
    federation.to_store["controller"].hold("up")
    clock.set(DAY_S)
    federation.wait(lambda: " is active, epoch" in standby.log.read_text(), "that the standby takes over")
    go_on(bench, watched)
    played = outcome("controller", "clock", "folding", bench, watched, over_at=0.0)
    assert played.is_good, (played, federation.logs())
    assert played.trained_again == 0
    federation.wait(lambda: active.exit_code is not None, "the end of the first")
    assert active.exit_code == FENCED
    clock.set(0)
    standby.stop()
    federation.start("controller")


def test_the_lease_of_a_dead_controller_runs_out_though_the_clock_was_set_back(
    bench: Bench, clock: WallClock
) -> None:
    federation = bench.federation
    watched = bring_to("folding", bench)
    federation.kill("controller")
    clock.set(-DAY_S)
    federation.start("controller")
    go_on(bench, watched)
    played = outcome("controller", "clock", "folding", bench, watched, over_at=0.0)
    set_right(clock, bench)
    assert played.is_good, (played, federation.logs())
    assert played.trained_again == 0
