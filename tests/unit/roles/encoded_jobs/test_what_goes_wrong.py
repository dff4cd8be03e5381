"""Updates that do not count, learners and controllers that begin anew, trainings that diverge."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np

from broker_fl.interfaces import TaskContext, Update
from broker_fl.model import Arrays
from broker_fl.roles.driver import Job
from broker_fl.wire import events as e
from broker_fl.wire.job import Transfer
from broker_fl.wire.messages import UpdateChunk, decode
from tests.unit.roles.encoded_jobs.replaying import ROUNDS, Waits, Wanders, check, initial, of, replay
from tests.unit.roles.stage import Stage, done, eventually


def test_an_update_that_did_not_count_changes_nothing_in_what_is_sent_next(stage: Stage) -> None:
    learners = {"a": Wanders(2), "b": Wanders(), "c": Wanders(3, 4)}
    job = stage.run(
        learners, initial(), rounds=ROUNDS, quorum=0.3, max_retries=0, transfer=Transfer(encoding="topk/10")
    )
    done(job)
    refused = {(event.learner, event.round) for event in of(job, e.UpdateRefused)}
    assert refused == {("a", 2), ("c", 3), ("c", 4)}
    check(job, replay("topk/10", "abc", missing=refused))


def test_a_refused_update_that_is_asked_for_again_adds_its_residual_once(stage: Stage) -> None:
    """Its first attempt was not usable; the second is trained anew, and begins from the same residual."""
    spoiled: list[int] = []

    def spoil(exchange: str, body: bytes) -> Iterable[bytes]:
        if exchange == stage.topology.updates:
            message, _ = decode(body)
            if isinstance(message, UpdateChunk) and message.task.round == 2 and not message.task.attempt:
                spoiled.append(message.task.round)
                return [body[:-1] + bytes([body[-1] ^ 1])]
        return [body]

    stage.controller()
    learner = Wanders()
    stage.host({"a": learner}, tamper=spoil)
    job = stage.submit(initial(), rounds=ROUNDS, transfer=Transfer(encoding="topk/10"))
    done(job)
    assert spoiled == [2]
    assert learner.num_trained == ROUNDS + 1
    check(job, replay("topk/10", "a"))


def test_a_new_controller_is_sent_the_same_bytes_and_knows_what_counted(stage: Stage) -> None:
    """Killed after a delivery, in three rounds: what was folded is lost, and sent again."""
    controller, first, second = stage.controller(), Wanders(), Waits()
    stage.host({"a": first, "b": second})
    job = stage.submit(initial(), rounds=ROUNDS, min_learners=2, transfer=Transfer(encoding="topk/10"))
    for round in range(ROUNDS):
        eventually(partial(was_folded, job, "a", round), "a's update")
        if round % 2:
            stage.kill(controller)
            controller = stage.controller()
        second.turns.release()
    done(job)
    assert first.num_trained == ROUNDS
    check(job, (replay("topk/10", "a") + initial()["w"]) / 2)


def test_a_learner_that_is_started_anew_goes_on_without_its_residual(stage: Stage) -> None:
    stage.controller()
    host, second = stage.host({"a": Wanders()}), Waits()
    stage.host({"b": second})
    job = stage.submit(initial(), rounds=ROUNDS, min_learners=2, transfer=Transfer(encoding="topk/10"))
    for round in range(ROUNDS):
        eventually(partial(was_folded, job, "a", round), "a's update")
        if round == 2:
            host.stop(drain_s=0.0)
            host._transport.close()
            stage.host({"a": Wanders()})
            eventually(lambda: len(stage.driver.learners()) == 2, "its return")
        second.turns.release()
    done(job)
    expected = (replay("topk/10", "a", anew={"a": 3}) + initial()["w"]) / 2
    assert np.abs(expected - (replay("topk/10", "a") + initial()["w"]) / 2).max() > 0.01
    check(job, expected)


def was_folded(job: Job, learner: str, round: int) -> bool:
    return any((event.learner, event.round) == (learner, round) for event in of(job, e.UpdateFolded))


def test_a_training_that_diverged_fails_in_words_and_the_round_goes_on(stage: Stage) -> None:
    class Diverges(Wanders):
        def train(self, model: Arrays, task: TaskContext) -> Update:
            return Update(model={**model, "w": model["w"] * np.float32(np.nan)}, num_examples=1)

    job = stage.run(
        {"a": Wanders(), "b": Diverges()},
        initial(),
        rounds=ROUNDS,
        quorum=0.5,
        max_retries=0,
        transfer=Transfer(encoding="int8"),
    )
    done(job)
    reasons = {event.reason for event in of(job, e.TaskFailed)}
    assert all("values of float32 that are NaN or infinite" in reason for reason in reasons)
    assert reasons
    check(job, replay("int8", "a"))
