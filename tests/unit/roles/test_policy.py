"""A site's policy: what it refuses, what the job's operator hears of it, and that jobs go on."""

from __future__ import annotations

import json
import queue
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker_fl.errors import SettingError, TaskDeclined
from broker_fl.interfaces import Delivery, TaskContext, Update
from broker_fl.model import Arrays, Model
from broker_fl.roles.learner.policy import Guard, read_policy
from broker_fl.wire import events as e
from broker_fl.wire import messages as m
from broker_fl.wire.chunks import cut
from broker_fl.wire.frames import pack_chunk
from broker_fl.wire.messages import ModelManifest, Task, TaskRef, Terms
from tests.unit.roles.stage import WAIT_S, Adds, Stage, done, eventually, model_of, same

NOON = 1_800_014_400.0
TERMS = Terms(name="mri-brain", driver="anna", rule="fedavg", protocol="synchronous", cohort=9, min_cohort=3)


def guard(tmp_path: Path, text: str) -> Guard:
    path = tmp_path / "site.toml"
    path.write_text(text)
    return Guard.read(path)


def task(terms: Terms | None = TERMS, *, train: bool = True, **parameters: Any) -> Task:
    model = Model.of({"w": np.zeros(100, np.float32)})
    manifest = ModelManifest.of(
        model.spec, version=0, digest=model.digest, encoding="raw", chunk_bytes=1 << 20
    )
    return Task(
        task=TaskRef(job="j", round=0),
        model=manifest,
        train=train,
        inbox="c",
        parameters=parameters,
        terms=terms,
    )


ALLOWED = [
    ("", task(None)),
    ('jobs.names = ["mri-*"]', task()),
    ('jobs = { drivers = ["anna", "bert"], rules = ["fed*"], protocols = ["synchronous"] }', task()),
    ("privacy.min_cohort = 3", task()),
    ("limits = { max_epochs = 2.5, max_steps = 10 }", task(epochs=2, steps=10)),
    ("limits = { max_epochs = 2, max_steps = 10 }", task()),
    ("limits = { max_model_bytes = 400, max_bytes_per_day = 800 }", task()),
    ("limits.max_bytes_per_day = 400", task(train=False)),
    ('privacy.aggregation = "none"', task(None)),
]
REFUSED = [
    ('jobs.names = ["mri-*"]', task(TERMS.model_copy(update={"name": "ct"})), "name 'ct'.*jobs.names"),
    ('jobs.names = ["*"]', task(None), "does not say the job's name"),
    ("jobs.names = []", task(), "jobs.names"),
    ('jobs.drivers = ["bert"]', task(), "driver 'anna'"),
    ('jobs.drivers = ["*"]', task(TERMS.model_copy(update={"driver": ""})), "does not say the job's driver"),
    ('jobs.rules = ["median"]', task(), "rule 'fedavg'"),
    ('jobs.protocols = ["asynchronous"]', task(), "protocol 'synchronous'"),
    ("privacy.min_cohort = 4", task(), "of 3 learners' updates.*'quorum'.*; privacy.min_cohort is 4"),
    ("privacy.min_cohort = 2", task(Terms(cohort=9)), "does not say of how few"),
    ("privacy.min_cohort = 2", task(None), "does not say of how few"),
    ('privacy.aggregation = "secure_sum"', task(), "'none'; privacy.aggregation is 'secure_sum'"),
    ('privacy.aggregation = "secure_sum"', task(None), "privacy.aggregation"),
    ("limits.max_epochs = 2", task(epochs=3), "3 epochs.*max_epochs is 2"),
    ("limits.max_epochs = 2", task(epochs="all"), "'all' epochs"),
    ("limits.max_epochs = 2", task(epochs=-1), "-1 epochs"),
    ("limits.max_steps = 2", task(epochs=1, steps=3), "3 steps"),
    ("limits.max_model_bytes = 399", task(), "400 bytes; limits.max_model_bytes is 399"),
    ("limits.max_bytes_per_day = 799", task(), "800 bytes more than the 0 of 2027-01-15"),
]


@pytest.mark.parametrize(("text", "given"), ALLOWED)
def test_what_the_policy_allows_is_taken(tmp_path: Path, text: str, given: Task) -> None:
    guard(tmp_path, text).admit(given, NOON)


@pytest.mark.parametrize(("text", "given", "reason"), REFUSED)
def test_what_it_does_not_allow_is_refused_with_the_setting(
    tmp_path: Path, text: str, given: Task, reason: str
) -> None:
    with pytest.raises(TaskDeclined, match=f"declined by the site's policy: .*{reason}"):
        guard(tmp_path, text).admit(given, NOON)


def test_an_aggregation_that_nobody_does_is_warned_of_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    guard(tmp_path, 'privacy.aggregation = "none"')
    assert not caplog.messages
    guard(tmp_path, 'privacy.aggregation = "secure"')
    assert "'secure'" in caplog.text
    assert "every task will be refused" in caplog.text


@pytest.mark.parametrize(
    ("value", "words"), [('"five"', "a number$"), ("-5", "above 0$"), ("true", "a number$")]
)
def test_epochs_are_a_number_and_no_share(tmp_path: Path, value: str, words: str) -> None:
    with pytest.raises(SettingError, match=rf"limits.max_epochs = .* must be {words}"):
        guard(tmp_path, f"limits.max_epochs = {value}")


def take(site: Guard, given: Task, now: float) -> None:
    site.count(site.admit(given, now), now)


def test_bytes_of_a_day_are_counted_through_restarts_until_midnight(tmp_path: Path) -> None:
    text = "limits.max_bytes_per_day = 2_000"
    take(guard(tmp_path, text), task(), NOON)
    again = guard(tmp_path, text)
    take(again, task(), NOON + 60)
    with pytest.raises(TaskDeclined, match="800 bytes more than the 1600 of 2027-01-15"):
        guard(tmp_path, text).admit(task(), NOON + 3_600)
    again.count(400, NOON + 3_601)  # sent once more: counted, and never refused
    with pytest.raises(TaskDeclined, match="than the 2000 of 2027-01-15"):
        again.admit(task(train=False), NOON + 3_602)
    take(again, task(), NOON + 86_400)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("limits.max_epoch = 2", "did you mean 'max_epochs'"),
        ("limits.max_epochs = 0", "max_epochs = 0"),
        ('privacy.aggregation = ""', "privacy.aggregation"),
        ("nonsense", "not valid TOML"),
        (None, "cannot be read"),
    ],
)
def test_a_policy_that_is_wrong_keeps_the_learner_from_starting(
    tmp_path: Path, text: str | None, words: str
) -> None:
    path = tmp_path / "site.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingError, match=words):
        read_policy(path)


def test_bytes_are_counted_where_the_site_says(tmp_path: Path) -> None:
    policy, usage = tmp_path / "site.toml", tmp_path / "state" / "counted"
    policy.write_text("limits.max_bytes_per_day = 1_000")
    with pytest.raises(SettingError, match=r"counted.*--policy-usage"):
        Guard.read(policy, usage)
    usage.parent.mkdir()
    take(Guard.read(policy, usage), task(), NOON)
    with pytest.raises(TaskDeclined, match="the 800 of"):
        Guard.read(policy, usage).admit(task(), NOON)
    assert [one.name for one in tmp_path.iterdir() if one.is_file()] == ["site.toml"]


def test_a_clock_that_is_set_back_gives_no_new_day(tmp_path: Path) -> None:
    text = "limits.max_bytes_per_day = 1_000"
    take(guard(tmp_path, text), task(), NOON)
    late = guard(tmp_path, text)
    with pytest.raises(TaskDeclined, match="the 800 of 2027-01-15 would be above"):
        late.admit(task(), NOON - 86_400)
    late.count(100, NOON - 86_400)
    with pytest.raises(TaskDeclined, match="the 900 of 2027-01-15 would be above"):
        guard(tmp_path, text).admit(task(), NOON)


@pytest.mark.parametrize(
    "kept",
    ["{}", '{"day": "tomorrow", "bytes": 0}', '{"day": 20270115, "bytes": 0}', '{"day": "", "bytes": "?"}'],
)
def test_a_count_that_cannot_be_kept_is_said_at_the_start(tmp_path: Path, kept: str) -> None:
    (tmp_path / "site.toml.usage").write_text(kept)
    with pytest.raises(SettingError, match=r"site\.toml\.usage.*delete it"):
        guard(tmp_path, "limits.max_bytes_per_day = 1")


# ---------------------------------------------------------------- in a job


class Eager(Adds):
    """Trains more than it says it may."""

    def train(self, model: Arrays, task: TaskContext) -> Update:
        update = super().train(model, task)
        return Update(model=update.model, num_examples=1, num_epochs=7.0)


@pytest.fixture
def stage(tmp_path: Path):  # type: ignore[no-untyped-def]
    with Stage(tmp_path, heartbeat_s=60.0) as made:  # whose controller knows no job "j", and would say so
        yield made


def declined(
    stage: Stage, text: str, learner: Adds, tmp_path: Path, *, quorum: float = 2
) -> list[e.TaskFailed]:
    """What the driver sees of a job in which one of three learners has a policy."""
    stage.controller()
    stage.host({"a": Adds(1.0), "c": Adds(1.0)})
    stage.host({"b": learner}, guard=guard(tmp_path, text))
    job = stage.submit(min_learners=3, rounds=2, quorum=quorum)
    done(job)
    same(job.model(), model_of(2.0))
    return [event for event in job.events(follow=False) if isinstance(event, e.TaskFailed)]


def test_a_refusal_is_heard_of_by_the_driver_and_the_others_go_on(stage: Stage, tmp_path: Path) -> None:
    learner = Adds(9.0)
    failures = declined(stage, "privacy.min_cohort = 3", learner, tmp_path)
    assert [one.learner for one in failures] == ["b"] * 3  # two rounds, and the last evaluation
    assert "of 2 learners' updates (see 'quorum'); privacy.min_cohort is 3" in failures[0].reason
    assert learner.num_trained == 0


def test_training_that_did_more_than_allowed_sends_nothing(stage: Stage, tmp_path: Path) -> None:
    failures = declined(stage, "limits.max_epochs = 5", Eager(9.0), tmp_path)
    assert "training did 7.0 epochs; limits.max_epochs is 5" in failures[0].reason


def test_an_allowed_job_is_done_with_all(stage: Stage, tmp_path: Path) -> None:
    text = 'jobs = { rules = ["fedavg"], protocols = ["synchronous"] }\nprivacy.min_cohort = 3'
    assert declined(stage, text, Adds(1.0), tmp_path, quorum=3) == []


def test_a_site_is_not_the_only_one_in_a_version_because_the_others_were_lost(
    stage: Stage, tmp_path: Path
) -> None:
    """All take part, and all are wanted; but a share is of those that live, and may be of one."""
    learner = Adds(9.0)
    failures = declined(stage, "privacy.min_cohort = 2", learner, tmp_path, quorum=0.6)
    assert "of 1 learners' updates" in failures[0].reason
    assert learner.num_trained == 0


def test_a_job_that_cannot_do_without_the_site_fails_with_its_reason(stage: Stage, tmp_path: Path) -> None:
    stage.controller()
    stage.host({"a": Adds(1.0)})
    stage.host({"b": Adds(1.0)}, guard=guard(tmp_path, 'jobs.names = ["nothing"]'))
    job = stage.submit(min_learners=2, rounds=1, quorum=1.0)
    (end,) = [event for event in job.events() if isinstance(event, e.JobFinished)]
    assert end.state == "failed"
    assert "declined by the site's policy" in end.reason


def test_a_group_goes_by_its_policy_as_a_whole(stage: Stage, tmp_path: Path) -> None:
    stage.controller()
    stage.host({"a": Adds(1.0)})
    members = {"g-0": Adds(9.0), "g-1": Adds(9.0)}
    stage.host(members, group="g", guard=guard(tmp_path, 'jobs.drivers = ["nobody"]'))
    job = stage.submit(min_learners=3, rounds=1, quorum=1)
    done(job)
    same(job.model(), model_of(1.0))
    missed = [one for one in job.events(follow=False) if isinstance(one, e.GroupMissed)]
    assert set(missed[0].learners) == {"g-0", "g-1"}
    assert "is not among jobs.drivers" in str(missed[0])
    assert not any(member.num_trained for member in members.values())


@pytest.mark.parametrize("group", [None, "g"])
@pytest.mark.parametrize(("upload", "num_sent"), [("at_once", 5), ("on_request", 2)])
def test_updates_that_are_asked_for_again_are_counted_however_that_is_done(
    stage: Stage, tmp_path: Path, group: str | None, upload: str, num_sent: int
) -> None:
    """By the task, which comes once more, or by a request, in turns."""
    site, names, name = guard(tmp_path, "limits.max_bytes_per_day = 9_999"), stage.topology, group or "b"
    stage.controller()
    member = f"{name}-0" if group else name
    host = stage.host({member: Adds(1.0)}, group=group, guard=site)
    assert host.wait_welcomed(WAIT_S)
    arrived: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
    stage.transport.declare(names.for_inbox("c"))
    stage.transport.consume(names.inbox("c"), arrived.put, prefetch=100)

    def ask(*bodies: bytes) -> None:
        for body in bodies:
            stage.transport.publish(names.tasks, [names.learner_key(name)], body)

    def payloads(num: int) -> list[int]:
        """Bytes of the next updates."""
        found: list[int] = []
        while len(found) < num:
            delivery = arrived.get(timeout=WAIT_S)
            message, payload = m.decode(delivery.body)
            delivery.ack()
            if isinstance(message, m.UpdateChunk) and payload is not None:
                found.append(len(payload))
        return found

    whole = Model.of({"w": np.zeros(100, np.float32)})
    (chunk,) = cut(whole.buffer, 1 << 20)
    order = task().model_copy(update={"upload": upload, "learners": (member,) if group else ()})
    request = m.UploadRequest(task=order.task, inbox="c").pack()
    head = m.ModelChunk(job="j", version=0, index=0, count=1, checksum=chunk.checksum)
    ask(order.pack(), pack_chunk(head.KIND, head.model_dump(), chunk.payload))
    result = arrived.get(timeout=WAIT_S)
    result.ack()
    first = payloads(1) if upload == "at_once" else []
    ask(order.pack(), request, order.pack(), request)
    sizes = first + payloads(num_sent - len(first))
    eventually(
        lambda: json.loads((tmp_path / "site.toml.usage").read_text())["bytes"] == 800 + sum(sizes[1:]),
        f"800 bytes and those of {num_sent - 1} repetitions being counted",
    )
