"""Some of the faults of docs/faults-table.md, on real servers; the whole table is ``python -m tests.faults``.

All cells are played on one running federation, one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker_fl.workers.servers import RabbitMQNode
from tests.faults import cells, standby
from tests.faults.bench import bench_for
from tests.faults.cells import Bench, Fault, Phase, Target
from tests.faults.federation import BUSY_MACHINE


@pytest.fixture(scope="module")
def bench(_restartable_rabbitmq: RabbitMQNode, server_root: Path) -> Iterator[Bench]:
    with bench_for("faults", _restartable_rabbitmq, server_root, BUSY_MACHINE) as bench:
        yield bench


@pytest.mark.parametrize(
    ("target", "fault", "phase"),
    [
        ("controller", "kill -9, restart", "folding"),
        ("controller", "kill -9, restart", "committing"),
        ("controller", "reset", "uploading"),
        ("learner", "kill -9, restart", "task sent"),
        ("learner", "kill -9, restart", "uploading"),
        ("learner", "cut silently", "uploading"),
        ("broker", "kill -9, restart", "uploading"),
        ("broker", "reset", "task sent"),
        ("Redis", "kill -9, restart", "committing"),
        ("Redis", "reset", "committing"),
    ],
    ids=str,
)
def test_no_update_is_lost_or_counted_twice(bench: Bench, target: Target, fault: Fault, phase: Phase) -> None:
    played = cells.play(target, fault, phase, bench)
    assert played.is_good, (played, bench.federation.logs())
    is_lost = (target, fault) == ("learner", "kill -9, restart") and phase in ("training", "uploading")
    assert played.trained_again == (1 if is_lost else 0), "who has trained keeps what came of it"


@pytest.mark.parametrize("fault", standby.FAULTS)
def test_a_standby_goes_on_with_the_same_round(bench: Bench, fault: standby.StandbyFault) -> None:
    """The one that was frozen wakes up, is fenced, and ends."""
    played = standby.play(fault, "folding", bench)
    assert played.is_good, (played, bench.federation.logs())
    assert played.trained_again == 0


def test_who_is_cut_off_from_redis_alone_leaves_learners_and_drivers_to_the_standby(bench: Bench) -> None:
    played = standby.play_parted("folding", bench)
    assert played.is_good, (played, bench.federation.logs())
    assert played.trained_again == 0


@pytest.mark.parametrize("target", standby.SERVERS)
def test_a_server_that_is_frozen_in_a_commit_leaves_one_controller_in_charge(
    bench: Bench, target: str
) -> None:
    played = standby.play_server(target, "committing", bench)
    assert played.is_good, (played, bench.federation.logs())
    assert played.trained_again == 0
