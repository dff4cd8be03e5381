"""A thousand worlds of faults, and whether the simulation would notice what it looks for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from broker_fl.aggregation.sums import WeightedSum
from broker_fl.coordination.job import Job
from broker_fl.roles.controller.job.runner import JobRunner
from tests.simulation.kernel import Violation
from tests.simulation.many import play_many
from tests.simulation.storage import MemoryStore
from tests.simulation.world import play, replay

NUM_SEEDS = 1_000
FOUND = {
    0: "the record of a FedAsync version had another weight than its update",
    19: "chunks of an initial model that were lost were never sent again: submit never returned",
    17: "a store that was away for a moment ended a driver's watch",
    274: "the upload of a learner that was gone was kept until the next version",
    777: "a store that forgot its last second left the controller asking for ever",
    707: "chunks of two trainings for one task were put together",
    12837: "the last event of a job was given up when the store refused it once",
    2981: "a version that the store had lost was looked for again and again",
    21852: "numbers of events that a store forgot were given again: a driver never heard of the end",
    195: "whoever followed a job whose versions the store had lost was told to ask again, for ever",
    150: "a learner whose mailbox was deleted as it started gave up",
    753: "a controller that thawed, and could not ask the store, said that a newer one's job did not exist",
    22515: "a controller that had given the store up saved an older state over a newer one",
}
"""Seeds that found something, and what. What a seed stands for has changed since; tests of what was found are
in ``tests/unit/roles/test_lost.py``.
"""


@pytest.mark.timeout(600)
def test_a_thousand_worlds_of_faults() -> None:
    ends = Counter[str]()
    for played in play_many(range(NUM_SEEDS)):
        assert not played.violation, f"{played.violation}; python -m tests.simulation --seed {played.seed}"
        ends.update(outcome.partition(":")[0] for outcome in played.outcomes)
    assert ends["done"] > 0.9 * ends.total(), "few jobs get through: the faults are too many to learn from"
    assert ends["failed"], "no job fails: the faults are too few to learn from"


@pytest.mark.parametrize("seed", FOUND)
def test_what_was_found_once_stays_mended(seed: int) -> None:
    play(seed)


def test_a_seed_replays_exactly_in_any_process() -> None:
    history, violation = replay(707)
    assert violation is None
    assert len(history) > 1_000
    assert replay(707)[0] == history
    told = []
    for hash_seed in ("1", "2"):  # sets of texts have another order in each
        command = [
            sys.executable,
            "-c",
            "from tests.simulation.world import play; print(play(707).kernel.trace)",
        ]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        told.append(
            subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        )
    assert told == [f"{play(707).kernel.trace}\n"] * 2


def _no_fence(_: MemoryStore, epoch: int) -> None:
    """Let a controller write whose time is over."""


def _fold_twice(fold: Callable[..., None]) -> Callable[..., None]:
    def add(total: WeightedSum, model: Any, weight: float, **how: Any) -> None:
        fold(total, model, weight, **how)
        if weight == 3.0:
            fold(total, model, weight, **how)

    return add


def _never_again(remind: Callable[..., Any]) -> Callable[..., Any]:
    return lambda job, learner, part, tasks, now: []


def _forgets_to_save(save: Callable[..., None]) -> Callable[..., None]:
    return lambda runner: None


MUTANTS: dict[str, tuple[type, str, Callable[..., Any], range]] = {
    "no fencing": (MemoryStore, "_fence", lambda _: _no_fence, range(1, 120)),
    "an update is folded twice": (WeightedSum, "add", _fold_twice, range(10)),
    "nobody is reminded": (Job, "_remind", _never_again, range(60)),
    "the end is not saved": (JobRunner, "_save", _forgets_to_save, range(60)),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_simulation_notices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, method, mutate, seeds = MUTANTS[name]
    monkeypatch.setattr(owner, method, mutate(getattr(owner, method)))
    with pytest.raises(Violation):
        _play_all(seeds)


def _play_all(seeds: range) -> None:
    for seed in seeds:
        play(seed)
