"""A task that comes in several messages: each is held against the site's policy, bytes are counted once."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker_fl.interfaces import Delivery
from broker_fl.model import Model, ModelSpec, TensorSpec
from broker_fl.roles.learner.policy import Guard
from broker_fl.wire import messages as m
from broker_fl.wire.chunks import cut
from broker_fl.wire.frames import pack_chunk
from tests.unit.roles.stage import WAIT_S, Adds, Stage
from tests.unit.roles.test_policy import TERMS, guard, task

MODEL = Model.of({"w": np.zeros(100, np.float32)})
MEMBERS = ("g-0", "g-1", "g-2")
DONE = "done"


def order(*learners: str, **given: Any) -> m.Task:
    """A message of the task for some members of a group; what is no field of it is a parameter."""
    fields = {name: given.pop(name) for name in list(given) if name in m.Task.model_fields}
    return task(**given).model_copy(update={"learners": learners, **fields})


class Site:
    """Learners with a policy, and a test that speaks as a job's controller to them."""

    def __init__(self, stage: Stage, site: Guard | None, *members: str, group: str | None = "g") -> None:
        self.learners = {name: Adds(1.0) for name in members}
        self._transport, self._names = stage.transport, stage.topology
        self._key = self._names.learner_key(group or members[0])
        stage.controller()
        assert stage.host(self.learners, group=group, guard=site).wait_welcomed(WAIT_S)
        self.pages: list[m.GroupResult] = []
        """Of results, as they came."""
        self._arrived: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        self._transport.declare(self._names.for_inbox("c"))
        self._transport.consume(self._names.inbox("c"), self._arrived.put, prefetch=100)

    def ask(self, *messages: m.Message) -> None:
        """Send the messages, and then the model."""
        (chunk,) = cut(MODEL.buffer, 1 << 20)
        head = m.ModelChunk(job="j", version=0, index=0, count=1, checksum=chunk.checksum)
        model = pack_chunk(head.KIND, head.model_dump(), chunk.payload)
        for body in (*(message.pack() for message in messages), model):
            self._transport.publish(self._names.tasks, [self._key], body)

    def outcomes(self, num: int) -> dict[str, str]:
        """What became of so many learners: ``DONE``, or why not."""
        found: dict[str, str] = {}
        while len(found) < num:
            delivery = self._arrived.get(timeout=WAIT_S)
            match m.decode(delivery.body)[0]:
                case m.GroupResult() as page:
                    self.pages.append(page)
                    said = [
                        *dict.fromkeys(page.learners, DONE).items(),
                        *zip(page.failed, page.reasons, strict=True),
                    ]
                    assert found.keys().isdisjoint(name for name, _ in said)
                    found.update(said)
                case m.Result(learner=learner):
                    found[learner] = DONE
            delivery.ack()
        return found

    def trained(self) -> set[str]:
        """Learners that have trained, each once."""
        assert all(one.num_trained <= 1 for one in self.learners.values())
        return {name for name, one in self.learners.items() if one.num_trained}


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path, heartbeat_s=60.0) as made:  # whose controller knows no job "j", and would say so
        yield made


def counted(tmp_path: Path) -> int:
    """Bytes of the day."""
    return int(json.loads((tmp_path / "site.toml.usage").read_text())["bytes"])


@pytest.mark.parametrize("is_first", [True, False])
def test_each_message_of_a_task_is_held_against_the_policy(
    stage: Stage, tmp_path: Path, is_first: bool
) -> None:
    """Whichever comes first: those that shall do too much do nothing, and the others go on."""
    site = Site(stage, guard(tmp_path, "limits.max_steps = 10"), *MEMBERS)
    allowed, refused = order("g-0", "g-1", steps=10), order("g-2", steps=11)
    site.ask(*((allowed, refused) if is_first else (refused, allowed)))
    found = site.outcomes(3)
    assert "11 steps are asked for; limits.max_steps is 10" in found.pop("g-2")
    assert found == {"g-0": DONE, "g-1": DONE}
    assert site.trained() == {"g-0", "g-1"}


def test_the_refused_are_refused_again_and_the_others_told_of_again(stage: Stage, tmp_path: Path) -> None:
    """A controller asks once more for what got lost; nobody is worked on twice."""
    site = Site(stage, guard(tmp_path, "limits.max_steps = 10"), *MEMBERS)
    messages = order("g-0", steps=10), order("g-1", steps=11)
    site.ask(*messages)
    first = site.outcomes(2)
    site.ask(*messages)
    assert site.outcomes(2) == first
    assert site.trained() == {"g-0"}


OTHER = m.ModelManifest.of(
    ModelSpec((TensorSpec("w", "float32", (1 << 28,)),)),
    version=0,
    digest=MODEL.digest,
    encoding="raw",
    chunk_bytes=1 << 20,
)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", OTHER),
        ("train", False),
        ("encoding", "float16"),
        ("weighting", "equal"),
        ("terms", TERMS.model_copy(update={"rule": "median"})),
        ("terms", None),
    ],
)
def test_a_message_that_says_the_task_otherwise_is_refused(stage: Stage, name: str, value: object) -> None:
    """Also where there is no policy; and the model is received that the first one announced."""
    site = Site(stage, None, *MEMBERS)
    site.ask(order("g-0"), order("g-1", **{name: value}), order("g-2"))
    found = site.outcomes(3)
    assert found.pop("g-1").startswith(f"{name}: not as in the message")
    assert found == {"g-0": DONE, "g-2": DONE}
    assert site.trained() == {"g-0", "g-2"}


def test_a_message_to_members_that_came_since_says_how_many_they_are_now(stage: Stage) -> None:
    site = Site(stage, None, *MEMBERS)
    site.ask(order("g-0"), order("g-1", terms=TERMS.model_copy(update={"cohort": 10})))
    assert site.outcomes(2) == {"g-0": DONE, "g-1": DONE}


def test_a_message_that_is_otherwise_does_not_change_what_is_sent_of_those_that_have_the_task(
    stage: Stage,
) -> None:
    """Who trained is in a sum, and not only evaluated."""
    site = Site(stage, None, *MEMBERS)
    site.ask(order("g-0", upload="on_request"), order("g-0", train=False, upload="on_request"))
    assert site.outcomes(1) == {"g-0": DONE}
    assert site.pages[0].update is not None


def test_bytes_are_counted_once_for_all_messages_of_a_task(stage: Stage, tmp_path: Path) -> None:
    """One model comes and one sum goes, whoever of the group was refused before."""
    text = "limits = { max_steps = 10, max_bytes_per_day = 1_000 }"
    site = Site(stage, guard(tmp_path, text), *MEMBERS)
    site.ask(order("g-0", steps=11), order("g-1", steps=1), order("g-2", steps=2))
    found = site.outcomes(3)
    assert "limits.max_steps" in found.pop("g-0")
    assert found == {"g-1": DONE, "g-2": DONE}
    assert counted(tmp_path) == 800


def test_an_update_is_not_kept_from_the_count_by_a_first_message_that_wants_none(
    stage: Stage, tmp_path: Path
) -> None:
    site = Site(stage, guard(tmp_path, "limits.max_bytes_per_day = 1_000"), *MEMBERS)
    site.ask(order("g-0", train=False), order("g-1", train=True))
    found = site.outcomes(2)
    assert found["g-0"] == DONE
    assert "train: not as in" in found["g-1"]
    assert site.trained() == set()
    assert counted(tmp_path) == 400


@pytest.mark.parametrize("group", [None, "g"])
def test_a_model_that_is_too_large_for_the_process_is_not_counted(
    stage: Stage, tmp_path: Path, group: str | None
) -> None:
    """Whoever announces one and never sends it would use up the day."""
    site = Site(stage, guard(tmp_path, "limits.max_bytes_per_day = 100_000_000_000"), "g-0", group=group)
    learners = ("g-0",) if group else ()
    spec = ModelSpec((TensorSpec("w", "float32", (3 << 30,)),))
    huge = m.ModelManifest.of(spec, version=0, digest=MODEL.digest, encoding="raw", chunk_bytes=1 << 20)
    other = order(*learners, task=m.TaskRef(job="k", round=0), model=huge, train=False)
    site.ask(other, order(*learners))
    if group:
        assert "at most 8589934592 are taken here" in site.outcomes(1)["g-0"]
    assert site.outcomes(1) == {"g-0": DONE}
    assert counted(tmp_path) == 800
