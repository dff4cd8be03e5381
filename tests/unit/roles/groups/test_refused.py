"""What groups are refused, and what is forgotten before it fills the memory."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Any

import numpy as np
import pytest

from broker_fl.coordination.membership import Membership
from broker_fl.errors import FrameRefused, RequestRefused, SettingError
from broker_fl.model import Model
from broker_fl.roles.controller.groups import MAX_PAGES_BYTES, Groups
from broker_fl.roles.controller.job.shares import MAX_PAGES_BYTES as MAX_SHARE_BYTES
from broker_fl.roles.controller.job.shares import ShareReceiver
from broker_fl.roles.learner import LazyLearners, LearnerHost, LearnerSettings
from broker_fl.wire import events as e
from broker_fl.wire import messages as m
from broker_fl.wire.job import Transfer
from broker_fl.wire.rules import FedAvgM, Median
from tests.unit.roles.groups.learners import named, of
from tests.unit.roles.stage import FEDERATION, Adds, Stage, done, eventually

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


# ---------------------------------------------------------------- what would fill the memory


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
