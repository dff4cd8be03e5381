"""Answers that are too long for one frame."""

from __future__ import annotations

from broker_fl.interfaces import TaskContext, Update
from broker_fl.model import Arrays
from broker_fl.simulation import Federation
from broker_fl.wire.fields import Parameter
from broker_fl.wire.frames import MAX_BODY_BYTES
from broker_fl.wire.messages import Join

NUM_TALKATIVE = 700


class Idle:
    def train(self, model: Arrays, task: TaskContext) -> Update:
        return Update(model=model, num_examples=1)

    def evaluate(self, model: Arrays, task: TaskContext) -> dict[str, float]:
        return {}


def test_a_list_of_learners_that_is_longer_than_a_frame_arrives_whole() -> None:
    attributes: dict[str, Parameter] = {f"attribute-{number}": "x" * 900 for number in range(8)}
    with Federation({"quiet": Idle()}) as federation:
        topology = federation.driver.topology
        for number in range(NUM_TALKATIVE):
            join = Join(learner=f"talkative-{number}", session="s", attributes=attributes)
            federation.driver.transport.publish(topology.reports, [f"{join.learner}.join"], join.pack())
        # The one that joins last is waited for: reports are taken in order.
        last = Join(learner="last", session="s")
        federation.driver.transport.publish(topology.reports, ["last.join"], last.pack())
        found = federation.driver.learners()
        while all(one.learner != "last" for one in found):
            found = federation.driver.learners()
    learners = tuple(one.learner for one in found)
    assert learners == tuple(sorted(["quiet", "last", *(f"talkative-{n}" for n in range(NUM_TALKATIVE))]))
    assert sum(len(one.model_dump_json()) for one in found) > MAX_BODY_BYTES
