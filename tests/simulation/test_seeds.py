"""A thousand worlds of faults, and whether the simulation would notice what it looks for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable
from itertools import count, islice
from typing import Any

import pytest

from broker_fl.aggregation import krum
from broker_fl.aggregation.fedavg import FedAvgRound
from broker_fl.aggregation.fedrec import NewestUpdates
from broker_fl.aggregation.scaffold import ScaffoldRound
from broker_fl.aggregation.sums import WeightedSum
from broker_fl.coordination.job import Job
from broker_fl.coordination.life import Life
from broker_fl.interfaces import Contribution
from broker_fl.model import Model
from broker_fl.roles.controller.job.runner import JobRunner
from broker_fl.roles.controller.leadership import Leadership
from broker_fl.roles.controller.requests.submissions import Submissions
from broker_fl.wire import rules
from broker_fl.wire.messages import VersionRef
from tests.simulation.__main__ import RECORD
from tests.simulation.kernel import Violation
from tests.simulation.many import play_many
from tests.simulation.playing import play, replay
from tests.simulation.scenario import PART, Scenario, scenario
from tests.simulation.storage import MemoryStore

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
    90: "a job that the clock had ended kept the controller busy until the store took its last events",
    389: "whoever followed a job that the store forgot, but not its events, was told to ask again, for ever",
    954: "updates that a store forgot before their version was committed were not written again",
    201727: "the check took a version that the store forgot while it was fetched for no version at all",
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
    assert len(history) > 500
    assert replay(707)[0] == history
    told = []
    for hash_seed in ("1", "2"):  # sets of texts have another order in each
        command = [
            sys.executable,
            "-c",
            "from tests.simulation.playing import play; print(play(707).kernel.trace)",
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


def _reads_on(hand_back: Callable[..., None]) -> Callable[..., None]:
    return lambda leadership: None


def _sum_twice(fold_sum: Callable[..., None]) -> Callable[..., None]:
    def twice(round: FedAvgRound, total: Any, weight: float) -> None:
        for _ in range(2):
            fold_sum(round, total, weight)

    return twice


def _variate_twice(fold: Callable[..., float]) -> Callable[..., float]:
    def twice(round: ScaffoldRound, contribution: Contribution) -> float:
        weight = fold(round, contribution)
        for name, array in (contribution.control or {}).items():
            round._total[name] += array
        return weight

    return twice


def _the_last_one_stays(replace: Callable[..., Model]) -> Callable[..., Model]:
    def add(newest: NewestUpdates, update: Contribution, weight: int, stored: Any) -> Model:
        newest._weights.pop(update.learner, None)
        return replace(newest, update, weight, stored)

    return add


def _the_newest(begin: Callable[..., None]) -> Callable[..., None]:
    return lambda requests, submit, parent, user: begin(requests, submit, VersionRef(job=parent.job), user)


def _at_once(_: Callable[..., Any]) -> Callable[..., Any]:
    return lambda life, now: "0 s have passed" if life._wall_clock_due() is not None else None


def _the_farthest(scores: Callable[..., Any]) -> Callable[..., Any]:
    return lambda squared, max_attackers: -scores(squared, max_attackers)


def _any(_: Scenario) -> bool:
    return True


def _has(*kinds: type) -> Callable[[Scenario], bool]:
    return lambda drawn: any(isinstance(job.rule, kinds) for job in drawn.jobs)


def _has_groups(drawn: Scenario) -> bool:
    return any(drawn.groups)


def _goes_on(drawn: Scenario) -> bool:
    return any(drawn.continues)


def _is_parted(drawn: Scenario) -> bool:
    return PART in drawn.befalls and drawn.num_controllers > 1


def _is_timed(drawn: Scenario) -> bool:
    return any(job.termination.wall_clock_s is not None for job in drawn.jobs)


MUTANTS: dict[str, tuple[Any, str, Callable[..., Any], Callable[[Scenario], bool]]] = {
    "no fencing": (MemoryStore, "_fence", lambda _: _no_fence, _any),
    "an update is folded twice": (WeightedSum, "add", _fold_twice, _any),
    "nobody is reminded": (Job, "_remind", _never_again, _any),
    "the end is not saved": (JobRunner, "_save", _forgets_to_save, _any),
    "a group's sum is folded twice": (FedAvgRound, "fold_sum", _sum_twice, _has_groups),
    "a variate is added twice": (ScaffoldRound, "fold", _variate_twice, _has(rules.Scaffold)),
    "a learner's last update stays": (NewestUpdates, "replace", _the_last_one_stays, _has(rules.FedRec)),
    "another version is begun from": (Submissions, "_begin_from", _the_newest, _goes_on),
    "a job ends before its time": (Life, "time_is_up", _at_once, _is_timed),
    "who has no store goes on reading": (Leadership, "hand_back", _reads_on, _is_parted),
    "Krum takes the farthest": (krum, "scores", _the_farthest, _has(rules.Krum)),
}
MOST_SEEDS = 120
"""Within which a mutant is noticed, of those that it can do harm in."""


@pytest.mark.parametrize("name", MUTANTS)
def test_the_simulation_notices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, method, mutate, concerns = MUTANTS[name]
    seeds = (seed for seed in count(1) if concerns(scenario(seed)))
    monkeypatch.setattr(owner, method, mutate(getattr(owner, method)))
    with pytest.raises(Violation):
        deque(map(play, islice(seeds, MOST_SEEDS)), maxlen=0)


def test_the_docs_have_what_is_on_record() -> None:
    assert RECORD.is_written(), "python -m tests.simulation --record writes both"
