"""What one member of a group says, or fails at, and what is sent near a deadline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from broker_fl.interfaces import TaskContext, Update
from broker_fl.model import Arrays, Model
from broker_fl.record.history import History
from broker_fl.roles.learner.group_task import GroupTask
from broker_fl.roles.learner.incoming import IncomingModel
from broker_fl.roles.runtime import THREADS, Runtime, Threads
from broker_fl.wire import events as e
from broker_fl.wire import messages as m
from broker_fl.wire.chunks import cut
from tests.unit.roles.groups.learners import Diverges, Fails, mean_of, named, of
from tests.unit.roles.stage import Adds, Stage, done


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


def test_a_member_for_whose_update_there_is_no_memory_is_not_in_the_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = group_task(learners=("a", "b"))
    first = whole.take(set())
    assert first is not None

    def no_room(_: object) -> Model:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Model, "blank", no_room)  # what the sum's room is made with
        assert not whole.work(first, lambda: Adds(7.0))
    assert whole.worked(0.1) is None
    second = whole.take(set())
    assert second is not None
    assert whole.work(second, lambda: Adds(1.0))
    share = whole.worked(0.1)
    assert share is not None
    (page,) = share.pages
    assert (page.learners, page.failed) == ((second.learner,), (first.learner,))
    assert share.total is not None
    np.testing.assert_array_equal(share.total.view(np.float32), [1.0, 1.0])


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
    job = stage.submit(rounds=1, min_learners=4, quorum=0.5, deadline_s=6.0, evaluate=False)
    assert done(job).version == 1
    np.testing.assert_allclose(job.model()["w"], mean_of(*named("a", 3).values()), rtol=1e-6)
    (missed,) = of(job, e.GroupMissed)
    assert isinstance(missed, e.GroupMissed)
    assert (missed.outcome, missed.learners) == ("late", ("a-9",))


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
