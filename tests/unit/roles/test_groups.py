"""Hosts whose learners are one group: real roles on the memory transport and SQLite."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker_fl.coordination.membership import Membership
from broker_fl.errors import AppError, FrameRefused, RequestRefused, SettingError
from broker_fl.interfaces import LearnerContext, TaskContext, Update
from broker_fl.model import Arrays, Model
from broker_fl.record.history import History
from broker_fl.roles.controller.groups import MAX_PAGES_BYTES, Groups
from broker_fl.roles.controller.job.shares import MAX_PAGES_BYTES as MAX_SHARE_BYTES
from broker_fl.roles.controller.job.shares import ShareReceiver
from broker_fl.roles.driver import Job
from broker_fl.roles.learner import LazyLearners, LearnerHost, LearnerSettings
from broker_fl.roles.learner.group_task import GroupTask
from broker_fl.roles.learner.incoming import IncomingModel
from broker_fl.roles.runtime import THREADS, Runtime, Threads
from broker_fl.wire import events as e
from broker_fl.wire import messages as m
from broker_fl.wire.chunks import cut
from broker_fl.wire.job import JobSpec, Termination, Transfer
from broker_fl.wire.rules import FedAvg, FedAvgM, FedProx, Median
from broker_fl.wire.selectors import SelectRandom
from tests.unit.roles.stage import FEDERATION, WAIT_S, Adds, Stage, done, eventually, model_of


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path, heartbeat_s=0.2, lease_ttl_s=1.0) as made:
        yield made


class Draws:
    """Trains to values that no float32 sum of which is exact, and says how it went."""

    def __init__(self, seed: int) -> None:
        self.num_examples = 1 + seed % 7
        self.w = np.random.default_rng(seed).standard_normal(3).astype(np.float32)

    def train(self, model: Arrays, task: TaskContext) -> Update:
        after = {name: np.asarray(array, array.dtype) for name, array in model.items()}
        after["w"] = model["w"] * np.float32(0.9) + self.w
        return Update(
            model=after,
            num_examples=self.num_examples,
            num_steps=2,
            num_epochs=1.0,
            metrics={"loss": float(self.w[0])},
        )

    def evaluate(self, model: Arrays, task: TaskContext) -> Mapping[str, float]:
        return {"norm": float(np.linalg.norm(model["w"])), "num_examples": self.num_examples}


class Fails(Adds):
    """Cannot train."""

    def train(self, model: Arrays, task: TaskContext) -> Update:
        raise ValueError("no data here")


class Diverges(Adds):
    """Its values are not finite."""

    def train(self, model: Arrays, task: TaskContext) -> Update:
        return Update(model={name: array * np.nan for name, array in model.items()}, num_examples=1)


def named(group: str, count: int) -> dict[str, Adds]:
    return {f"{group}-{index}": Adds(float(index), num_examples=index + 1) for index in range(count)}


def of(job: Job, kind: type[e.Event]) -> list[e.Event]:
    return [event for event in job.events(follow=False) if isinstance(event, kind)]


def mean_of(*learners: Adds) -> float:
    total = sum(one.num_examples for one in learners)
    return sum(one.amount * one.num_examples for one in learners) / total


class SteppedClock(Threads):
    """Time passes when it is told to."""

    now = 0.0

    def steady_s(self) -> float:
        return self.now


def group_task(*, learners: tuple[str, ...], runtime: Runtime = THREADS, **given: Any) -> GroupTask:
    """A group's task that has its model, with all of the learners waiting."""
    model = Model.of({"w": np.zeros(2, np.float32)})
    manifest = m.ModelManifest.of(
        model.spec, version=0, digest=model.digest, encoding="raw", chunk_bytes=4096
    )
    task = m.Task(
        task=m.TaskRef(job="j", round=0, attempt=0), model=manifest, inbox="i", learners=learners, **given
    )
    incoming = IncomingModel(manifest, 1 << 20, runtime)
    (chunk,) = cut(model.buffer, 4096)
    header = m.ModelChunk(job="j", version=0, index=0, count=1, checksum=chunk.checksum)
    assert incoming.receive(header, memoryview(chunk.payload))
    whole = GroupTask("g", task, incoming, runtime)
    whole.add(task)
    return whole


# ---------------------------------------------------------------- the same as without


def test_one_group_makes_the_model_of_the_same_learners_alone_bit_for_bit(stage: Stage) -> None:
    stage.controller()
    stage.host({f"a-{index}": Draws(index) for index in range(8)}, num_workers=1, group="a")
    settings: dict[str, Any] = {"rounds": 3, "parameters": {"epochs": 1}}
    grouped = stage.submit(min_learners=8, **settings)
    assert done(grouped).version == 3
    stage.hosts[0].stop(drain_s=0.0)
    stage.host({f"a-{index}": Draws(index) for index in range(8)}, num_workers=1)
    alone = stage.submit(min_learners=8, **settings)
    assert done(alone).version == 3
    assert np.array_equal(grouped.model()["w"], alone.model()["w"])
    ours, theirs = (History.of(job.events(follow=False)) for job in (grouped, alone))
    assert ours.counts == theirs.counts
    for number in range(3):
        one, other = ours.rounds[number], theirs.rounds[number]
        for counted in (
            "sent",
            "finished",
            "folded",
            "failed",
            "late",
        ):  # word of acceptance may be overtaken
            assert one.counts[counted] == other.counts[counted] == (0 if counted in ("failed", "late") else 8)
        assert one.metrics == pytest.approx(dict(other.metrics), rel=1e-12)
        assert one.evaluation == pytest.approx(dict(other.evaluation), rel=1e-12)
        assert one.total_weight == other.total_weight
        assert [
            (row.learner, row.outcome, row.weight, row.num_steps, dict(row.metrics)) for row in one.tasks
        ] == [(row.learner, row.outcome, row.weight, row.num_steps, dict(row.metrics)) for row in other.tasks]


@pytest.mark.parametrize("weighting", ["examples", "steps", "equal"])
def test_groups_and_single_learners_make_one_mean(stage: Stage, weighting: str) -> None:
    """Against float64; a float32 sum of so few is within a few of its last digits."""
    stage.controller()
    learners = {
        f"{name}-{index}": Draws(10 * place + index) for place, name in enumerate("abc") for index in range(4)
    }
    for name in "ab":
        stage.host({key: one for key, one in learners.items() if key[0] == name}, group=name)
    stage.host({key: one for key, one in learners.items() if key[0] == "c"})
    job = stage.submit(rounds=1, min_learners=12, rule=FedProx(mu=0.1, weighting=weighting))  # type: ignore[arg-type]
    assert done(job).version == 1
    weighers: dict[str, Callable[[Any], float]] = {
        "examples": lambda one: one.num_examples,
        "steps": lambda _: 2,
        "equal": lambda _: 1,
    }
    weight = weighers[weighting]
    expected = np.average(
        [one.w.astype(np.float64) for one in learners.values()],
        axis=0,
        weights=[weight(one) for one in learners.values()],
    )
    np.testing.assert_allclose(job.model()["w"], expected, rtol=2e-6, atol=1e-6)
    (committed,) = of(job, e.VersionCommitted)
    assert isinstance(committed, e.VersionCommitted)
    assert committed.contributors == tuple(sorted(learners))
    assert committed.total_weight == sum(weight(one) for one in learners.values())
    assert len(of(job, e.GroupFolded)) == 2


def test_integers_booleans_and_narrow_floats_survive_a_group(stage: Stage) -> None:
    model: dict[str, Any] = {
        "h": np.ones(3, np.float16),
        "w": np.zeros(2, np.float32),
        "n": np.zeros(2, np.int64),
        "u": np.zeros(1, np.uint8),
        "d": np.zeros((), np.float64),
    }
    stage.controller()
    stage.host({f"a-{index}": Adds(1.0) for index in range(5)}, group="a")
    job = stage.submit(model, rounds=2, min_learners=5, transfer=Transfer(encoding="bfloat16"))
    assert done(job).version == 2
    after = job.model()
    assert {name: (array.dtype, array.tolist()) for name, array in after.items()} == {
        name: (array.dtype, (array + 2).tolist()) for name, array in model.items()
    }


def test_a_cohort_that_is_drawn_from_a_group_is_worked_on_and_nobody_else(stage: Stage) -> None:
    stage.controller()
    learners = named("a", 20)
    stage.host(learners, group="a")
    job = stage.submit(rounds=3, min_learners=20, selector=SelectRandom(count=4, seed=2), evaluate=False)
    assert done(job).version == 3
    expected = 0.0
    for event in of(job, e.VersionCommitted):
        assert isinstance(event, e.VersionCommitted)
        assert len(event.contributors) == 4
        expected += mean_of(*(learners[name] for name in event.contributors))
    np.testing.assert_allclose(job.model()["w"], expected, rtol=1e-6)
    trained = {name for event in of(job, e.GroupFinished) for name in event.learners}  # type: ignore[attr-defined]
    assert {name for name, one in learners.items() if one.num_trained} == trained


# ---------------------------------------------------------------- what goes wrong inside


def test_learners_that_fail_inside_a_group_are_asked_once_more_and_not_counted(stage: Stage) -> None:
    stage.controller()
    learners = named("a", 4) | {"a-8": Fails(1.0), "a-9": Diverges(1.0)}
    stage.host(learners, group="a")
    job = stage.submit(rounds=1, min_learners=6, quorum=0.5, evaluate=False)
    assert done(job).version == 1
    np.testing.assert_allclose(job.model()["w"], mean_of(*named("a", 4).values()), rtol=1e-6)
    (missed,) = of(job, e.GroupMissed)
    assert isinstance(missed, e.GroupMissed)
    assert missed.outcome == "failed"
    reasons = dict(zip(missed.learners, missed.reasons, strict=True))
    assert set(reasons) == {"a-8", "a-9"}
    assert "no data here" in reasons["a-8"]
    assert "NaN or infinite" in reasons["a-9"]
    history = History.of(job.events(follow=False))
    assert history.rounds[0].counts["failed"] == 2
    assert history.rounds[0].tasks["a-8"].outcome == "failed"


class Says(Adds):
    """Says of its training what it is told to say."""

    def __init__(self, **said: Any) -> None:
        super().__init__(1.0)
        self.said = {"num_examples": 1, **said}

    def train(self, model: Arrays, task: TaskContext) -> Update:
        self.num_trained += 1
        return Update(model=model, **self.said)


class Mute(Exception):
    """Cannot be put into words."""

    def __str__(self) -> str:
        raise RuntimeError("not in words")


class FailsMutely(Adds):
    """Fails, and its reason fails, too."""

    def train(self, model: Arrays, task: TaskContext) -> Update:
        raise Mute


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (Says(metrics={"x" * 129: 1.0}), "128 characters"),
        (Says(metrics={"": 1.0}), "at least 1 character"),
        (Says(metrics={"\ud800": 1.0}), "metrics"),
        (Says(metrics={f"m{number}": 1.0 for number in range(1_001)}), "1000 items"),
        (Says(num_examples=2**70), "num_examples"),
        (Says(num_steps=2**63), "num_steps"),
        (FailsMutely(1.0), "Mute"),
    ],
    ids=["long name", "no name", "no text", "many names", "examples", "steps", "mute"],
)
def test_what_one_member_says_costs_that_member_and_not_the_group(
    stage: Stage, bad: Adds, words: str
) -> None:
    """With one worker: a group whose worker is lost never works again."""
    stage.controller()
    learners = named("a", 2) | {"a-9": bad}
    stage.host(learners, group="a", num_workers=1)
    job = stage.submit(rounds=2, min_learners=3, quorum=2, evaluate=False)
    assert done(job).version == 2
    np.testing.assert_allclose(job.model()["w"], 2 * mean_of(*named("a", 2).values()), rtol=1e-6)
    missed = of(job, e.GroupMissed)
    assert len(missed) == 2
    for event in missed:
        assert isinstance(event, e.GroupMissed)
        assert (event.outcome, event.learners) == ("failed", ("a-9",))
        assert words in event.reasons[0]


def test_members_that_together_report_too_many_metrics_fail_one_by_one(stage: Stage) -> None:
    """Each alone may report as many."""
    learners = {
        f"a-{member}": Says(metrics={f"m{member}-{number}": 1.0 for number in range(400)})
        for member in range(3)
    }
    stage.controller()
    stage.host(learners, group="a", num_workers=1)
    job = stage.submit(rounds=1, min_learners=3, quorum=2, evaluate=False)
    assert done(job).version == 1
    (missed,) = of(job, e.GroupMissed)
    assert isinstance(missed, e.GroupMissed)
    assert missed.num_learners == 1
    assert "1200 different metrics; at most 1000" in missed.reasons[0]


def test_a_share_that_cannot_be_made_fails_its_learners_and_the_group_works_on() -> None:
    """An encoding that there is not, as a stand-in for what nobody thought of."""
    whole = group_task(learners=("a", "b"), encoding="zip")
    shares = []
    for _ in range(2):
        held = whole.take(set())
        assert held is not None
        assert whole.work(held, lambda: Adds(1.0))
        shares.append(whole.worked(0.1))
    _, share = shares
    assert share is not None
    assert (share.learners, share.total) == (("a", "b"), None)
    (page,) = share.pages
    assert (page.learners, page.failed) == ((), ("a", "b"))
    assert "'zip' is not one of" in page.reasons[0]
    assert whole.is_idle


def test_a_share_that_is_due_and_cannot_be_made_does_not_end_the_loop() -> None:
    clock = SteppedClock()
    whole = group_task(learners=("a", "b"), encoding="zip", deadline_s=10.0, runtime=clock)
    held = whole.take(set())
    assert held is not None
    assert whole.work(held, lambda: Adds(1.0))
    assert whole.worked(0.1) is None
    clock.now += 9.0
    share = whole.share_if_due()
    assert share is not None
    assert share.pages[0].failed == ("a",)


def test_a_quorum_that_is_missed_asks_the_failed_again_in_a_task_of_their_own(stage: Stage) -> None:
    class FailsOnce(Adds):
        def train(self, model: Arrays, task: TaskContext) -> Update:
            if not self.num_trained:
                self.num_trained += 1
                raise ValueError("not yet")
            return super().train(model, task)

    stage.controller()
    learners = named("a", 3) | {"a-9": FailsOnce(5.0, num_examples=2)}
    stage.host(learners, group="a")
    job = stage.submit(rounds=1, min_learners=4, quorum=1.0, evaluate=False)
    assert done(job).version == 1
    np.testing.assert_allclose(job.model()["w"], mean_of(*learners.values()), rtol=1e-6)
    assert [learners[name].num_trained for name in sorted(learners)] == [1, 1, 1, 2]
    assert [event.num_learners for event in of(job, e.GroupFolded)] == [3, 1]  # type: ignore[attr-defined]


def test_near_a_deadline_a_group_sends_what_is_done(stage: Stage) -> None:
    stage.controller()
    learners = named("a", 3) | {"a-9": Adds(1.0)}
    learners["a-9"].gate.clear()
    stage.host(learners, group="a")
    job = stage.submit(rounds=1, min_learners=4, quorum=0.5, deadline_s=1.0, evaluate=False)
    assert done(job).version == 1
    np.testing.assert_allclose(job.model()["w"], mean_of(*named("a", 3).values()), rtol=1e-6)
    (missed,) = of(job, e.GroupMissed)
    assert isinstance(missed, e.GroupMissed)
    assert (missed.outcome, missed.learners) == ("late", ("a-9",))


# ---------------------------------------------------------------- what is lost


def test_a_host_that_is_killed_and_comes_back_counts_each_of_its_learners_once(stage: Stage) -> None:
    stage.controller()
    solo, first = {"solo": Adds(100.0)}, named("a", 6)
    first["a-5"].gate.clear()
    stage.host(solo)
    host = stage.host(first, group="a", num_workers=1)
    job = stage.submit(rounds=1, min_learners=7, evaluate=False)
    assert first["a-5"].at_work.wait(WAIT_S)
    stage.kill_host(host)
    again = named("a", 6)
    stage.host(again, group="a")
    assert done(job).version == 1
    np.testing.assert_allclose(job.model()["w"], mean_of(*again.values(), *solo.values()), rtol=1e-6)
    (committed,) = of(job, e.VersionCommitted)
    assert committed.num_learners == 7  # type: ignore[attr-defined]


def test_a_host_that_stays_away_is_lost_with_all_of_its_learners(stage: Stage) -> None:
    stage.controller()
    solo, gone = {"solo": Adds(3.0)}, named("a", 4)
    gone["a-0"].gate.clear()
    stage.host(solo)
    host = stage.host(gone, group="a", num_workers=1)
    job = stage.submit(rounds=1, min_learners=5, evaluate=False)
    assert gone["a-0"].at_work.wait(WAIT_S)
    stage.kill_host(host)
    assert done(job).version == 1
    assert np.array_equal(job.model()["w"], np.full(3, 3.0, np.float32))
    (lost,) = of(job, e.GroupLost)
    assert lost.num_learners == 4  # type: ignore[attr-defined]
    assert [one.learner for one in stage.driver.learners()] == ["solo"]
    history = History.of(job.events(follow=False))
    assert {history.learners[name].presence for name in gone} == {"lost"}


def test_a_host_that_leaves_says_so_for_all(stage: Stage) -> None:
    stage.controller()
    host = stage.host(named("a", 4), group="a")
    assert len(stage.driver.learners()) == 4
    host.stop(drain_s=0.0)
    eventually(lambda: not stage.driver.learners(), "all to be gone")


def test_a_controller_that_dies_in_a_round_gets_the_sum_again_from_its_successor(stage: Stage) -> None:
    controller = stage.controller()
    solo, learners = Adds(2.0), named("a", 5)
    solo.gate.clear()
    stage.host({"solo": solo})
    stage.host(learners, group="a")
    job = stage.submit(rounds=2, min_learners=6, evaluate=False)
    eventually(lambda: of(job, e.GroupFolded), "the group's sum to be folded")
    stage.kill(controller)
    stage.controller(wait=False)
    solo.gate.set()
    assert done(job).version == 2
    np.testing.assert_allclose(job.model()["w"], 2 * mean_of(solo, *learners.values()), rtol=1e-6)
    assert {one.num_trained for one in learners.values()} == {2}


def test_results_that_come_twice_and_lost_ones_count_once(stage: Stage) -> None:
    lost = set[str]()

    def tamper(exchange: str, body: bytes) -> list[bytes]:
        if not exchange.endswith("updates"):
            return [body]
        message, _ = m.decode(body)
        if message.KIND not in lost:
            lost.add(message.KIND)
            return []
        return [body, body]

    stage.controller()
    learners = named("a", 5)
    stage.host(learners, group="a", tamper=tamper)
    job = stage.submit(rounds=3, min_learners=5)
    assert done(job).version == 3
    assert lost == {"group_result", "update_chunk"}
    np.testing.assert_allclose(job.model()["w"], 3 * mean_of(*learners.values()), rtol=1e-6)
    assert {one.num_trained for one in learners.values()} == {3}


def test_a_sum_that_is_damaged_on_its_way_is_refused_and_the_learners_asked_once_more(stage: Stage) -> None:
    damaged = threading.Event()

    def tamper(exchange: str, body: bytes) -> list[bytes]:
        is_chunk = exchange.endswith("updates") and b"update_chunk" in body
        if not is_chunk or damaged.is_set():
            return [body]
        damaged.set()
        return [body[:-1] + bytes([body[-1] ^ 1])]

    stage.controller()
    learners = named("a", 5)
    stage.host(learners, group="a", tamper=tamper)
    job = stage.submit(rounds=1, min_learners=5, evaluate=False)
    assert done(job).version == 1
    np.testing.assert_allclose(job.model()["w"], mean_of(*learners.values()), rtol=1e-6)
    (missed,) = of(job, e.GroupMissed)
    assert isinstance(missed, e.GroupMissed)
    assert missed.outcome == "refused"
    assert "corrupt in transit" in missed.reasons[0]


def test_sums_that_do_not_fit_the_budget_are_asked_for_in_turn(stage: Stage) -> None:
    stage.controller()
    groups = {name: named(name, 3) for name in "abcd"}
    for name, learners in groups.items():
        stage.host(learners, group=name)
    transfer = Transfer(upload_budget_bytes=30)
    job = stage.submit(rounds=2, min_learners=12, transfer=transfer)
    assert done(job).version == 2
    expected = 2 * mean_of(*(one for learners in groups.values() for one in learners.values()))
    np.testing.assert_allclose(job.model()["w"], expected, rtol=1e-6)


def test_two_jobs_share_a_group_and_no_learner_does_two_things_at_once(stage: Stage) -> None:
    class Alone(Adds):
        def __init__(self, amount: float) -> None:
            super().__init__(amount)
            self.lock = threading.Lock()

        def train(self, model: Arrays, task: TaskContext) -> Update:
            assert self.lock.acquire(blocking=False), "it is at work already"
            try:
                return super().train(model, task)
            finally:
                self.lock.release()

    stage.controller()
    learners = {f"a-{index}": Alone(1.0) for index in range(6)}
    stage.host(learners, group="a")
    jobs = [stage.submit(rounds=3, min_learners=6, quorum=1.0, evaluate=False) for _ in range(2)]
    for job in jobs:
        assert done(job).version == 3
        assert not of(job, e.GroupMissed)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "settings",
    [{"rule": Median()}, {"rule": FedAvgM()}, {"transfer": Transfer(encoding="int8")}],
    ids=["median", "fedavgm", "int8"],
)
def test_what_is_no_sum_of_values_is_refused_while_groups_are_there(
    stage: Stage, settings: dict[str, Any]
) -> None:
    stage.controller()
    stage.host(named("a", 4), group="a")
    stage.host(named("solo", 3))
    eventually(lambda: len(stage.driver.learners()) == 7, "seven learners")
    with pytest.raises(RequestRefused, match="4 of the learners are in groups, which send sums"):
        stage.submit(rounds=1, min_learners=3, quorum=3, **settings)


def test_by_where_or_before_a_group_comes_such_a_job_runs_with_the_others_alone(stage: Stage) -> None:
    stage.controller()
    stage.host(named("solo", 3))
    stage.host({"late": Adds(1.0)}, group="a")
    settings: dict[str, Any] = {"rounds": 1, "min_learners": 3, "quorum": 3, "rule": Median()}
    where = {"learner": ["solo-0", "solo-1", "solo-2"]}
    job = stage.submit(**settings, selector={"name": "all", "where": where})
    assert done(job).version == 1
    stage.hosts[1].stop(drain_s=0.0)
    stage.transports[stage.hosts[1]].close()
    eventually(lambda: len(stage.driver.learners()) == 3, "the group to be gone")
    waiting = stage.submit(**{**settings, "min_learners": 4})
    stage.host({"late": Adds(1.0)}, group="a")
    eventually(lambda: of(waiting, e.GroupJoined), "the group to join")
    stage.host({"solo-9": Adds(1.0)})
    assert done(waiting).version == 1
    (committed,) = of(waiting, e.VersionCommitted)
    assert committed.contributors == ("solo-0", "solo-1", "solo-2", "solo-9")  # type: ignore[attr-defined]


def test_a_group_that_names_a_learner_who_is_there_is_refused_as_a_whole(stage: Stage) -> None:
    stage.controller()
    stage.host({"a-1": Adds(1.0)})
    eventually(lambda: len(stage.driver.learners()) == 1, "the learner")
    transport = stage.broker.connect("group")
    host = LearnerHost(transport, named("a", 3), LearnerSettings(federation=FEDERATION, group="a"))
    host.start()
    (reason, _), *_ = stage.dead_letters(1)
    assert "learner 'a-1' of group 'a' is there already, with a mailbox of its own" in reason
    assert [one.learner for one in stage.driver.learners()] == ["a-1"]
    transport.close()
    host.abandon()


def test_a_group_of_nobody_or_of_too_many_is_refused(stage: Stage) -> None:
    transport, settings = stage.transport, LearnerSettings(federation=FEDERATION, group="a")
    many = LazyLearners((f"a-{index}" for index in range(50_001)), lambda _: Adds(1.0))
    for learners, num in (({}, 0), (many, 50_001)):
        with pytest.raises(SettingError, match=f"has {num} learners; it may have 1 to 50000"):
            LearnerHost(transport, learners, settings)


# ---------------------------------------------------------------- learners that are made when needed


def test_learners_are_made_when_they_are_worked_on_and_few_are_kept(stage: Stage) -> None:
    alive, most = set[int](), [0]

    class Counted(Adds):
        def __init__(self, context: LearnerContext) -> None:
            super().__init__(float(context.index))
            assert context.count == 40
            alive.add(id(self))
            most[0] = max(most[0], len(alive))

        def __del__(self) -> None:
            alive.discard(id(self))

    stage.controller()
    learners = LazyLearners([f"a-{index:02}" for index in range(40)], Counted, num_cached=4)
    stage.host(learners, group="a", num_workers=2)
    job = stage.submit(rounds=2, min_learners=40, evaluate=False)
    assert done(job).version == 2
    np.testing.assert_allclose(job.model()["w"], 2 * 19.5, rtol=1e-6)
    assert most[0] <= 7


def test_a_factory_that_raises_for_one_learner_costs_that_one(stage: Stage) -> None:
    def make(context: LearnerContext) -> Adds:
        if context.index == 1:
            raise AppError("its file is not there")
        return Adds(1.0)

    stage.controller()
    stage.host(LazyLearners(["a-0", "a-1", "a-2"], make), group="a")
    job = stage.submit(rounds=1, min_learners=3, quorum=2, evaluate=False)
    assert done(job).version == 1
    (missed,) = of(job, e.GroupMissed)
    assert isinstance(missed, e.GroupMissed)
    assert missed.learners == ("a-1",)
    assert "its file is not there" in missed.reasons[0]


def test_attributes_of_members_reach_the_selector(stage: Stage) -> None:
    class Told(Adds):
        def __init__(self, index: int) -> None:
            super().__init__(1.0)
            if index % 2:
                self.attributes = {"region": "eu", "place": index}

    stage.controller()
    stage.host({f"a-{index}": Told(index) for index in range(6)}, group="a")
    selector: Any = {"name": "all", "where": {"region": "eu", "place": {"min": 2}}}
    job = stage.driver.submit(
        JobSpec(termination=Termination(rounds=1), selector=selector, rule=FedAvg()), model_of()
    )
    assert done(job).version == 1
    (committed,) = of(job, e.VersionCommitted)
    assert committed.contributors == ("a-3", "a-5")  # type: ignore[attr-defined]


def test_a_group_that_never_ends_joining_is_forgotten_before_it_fills_the_memory() -> None:
    groups = Groups(Membership(5.0, 0.0))
    columns: dict[str, tuple[Any, ...]] = {f"c{i}": ("x" * 4_000,) * 10 for i in range(10)}

    def send(page: int) -> None:
        members = tuple(f"g-{page * 10 + place}" for place in range(10))
        given = m.GroupJoin(
            group="g", session="s", members=members, columns=columns, page=page, num_pages=1_000
        )
        assert groups.page(given, 0.0) is None

    num_fit = MAX_PAGES_BYTES // 402_000
    for page in range(num_fit - 1):
        send(page)
    with pytest.raises(FrameRefused, match="take more than"):
        deque(map(send, range(num_fit, num_fit + 4)), maxlen=0)


def test_pages_of_a_result_that_never_ends_are_forgotten_before_they_fill_the_memory() -> None:
    receiver = ShareReceiver(Model.of({"w": np.zeros(2)}).spec, Transfer())
    task = m.TaskRef(job="job", round=0, attempt=0)
    learners = tuple(f"g-{place}" for place in range(1_000))
    metrics = {f"m{number}": (0.5,) * len(learners) for number in range(300)}

    def send(number: int, page: int) -> None:
        given = m.GroupResult.model_construct(
            group="g", share=f"s{number}", task=task, page=page, num_pages=100, learners=learners,
            metrics=metrics,
        )  # fmt: skip
        assert receiver.page(given) is None

    num_fit = MAX_SHARE_BYTES // 2_710_000
    for number in range(4):  # also of shares that were begun before
        for page in range(num_fit):
            send(number, page)
            send(number, page)
    with pytest.raises(FrameRefused, match="take more than"):
        deque(map(partial(send, 3), range(num_fit, num_fit + 2)), maxlen=0)


def test_a_group_of_which_nobody_is_done_when_the_deadline_is_near_waits_for_the_first() -> None:
    whole = group_task(learners=("a", "b"), deadline_s=1e-9)
    assert whole.take(set()) is not None
    assert whole.take(set()) is not None
    assert whole.due_s() is None, "whoever goes by it would go round and round"
    assert whole.share_if_due() is None
    whole.fail("a", "out of luck")
    share = whole.worked(0.1)
    assert share is not None
    assert share.learners == ("a",)
    whole.fail("b", "out of luck")
    last = whole.worked(0.1)
    assert last is not None
    assert last.learners == ("b",)
