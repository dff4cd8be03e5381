"""Dead letters that a controller has heard again: none is lost, and who had that done is written down."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker_fl.errors import RequestRefused
from broker_fl.model import Model
from broker_fl.roles.controller.auditing import stored_lines
from broker_fl.roles.controller.limits import DEAD_LETTERS
from broker_fl.roles.driver import Driver
from broker_fl.security.audit import read
from broker_fl.wire import messages as m
from broker_fl.wire.frames import pack, pack_chunk
from tests.unit.roles.stage import WAIT_S, Adds, eventually, model_of, spec
from tests.unit.roles.test_floods import Federation

CONTROLLER = "F.controller.main"


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    made = Federation(tmp_path)
    yield made
    made.stop()


def letter(source: str, key: str, user: str, body: bytes) -> bytes:
    note = m.DeadLetter(source=source, routing_key=key, reason="r", time_s=1.0, user=user)
    return pack_chunk(note.KIND, note.model_dump(), memoryview(body))


def replay(federation: Federation, *letters: bytes) -> None:
    by = federation.connect(CONTROLLER)
    for one in letters:
        by.publish(federation.topology.reports, ["replay"], one)


def entries(federation: Federation, actor: str) -> list[dict[str, Any]]:
    """Of the audit log."""
    return [one for line in stored_lines(federation.store) if (one := read(line))["actor"] == actor]


def test_letters_that_are_refused_again_are_all_there_again(federation: Federation) -> None:
    names = federation.topology
    kept = federation.heard(names.dead)
    num = 2 * int(DEAD_LETTERS.burst)
    refused = [letter(names.reports, f"mallory.{i}", "F.learner.mallory", b"x") for i in range(num)]
    large = letter(names.reports, "mallory.large", "F.learner.mallory", bytes(3_900_000))
    replay(federation, *refused, *[large] * 20)
    eventually(lambda: len(kept) + federation.counts.refused_from["over_limit"] == num + 20, "all")
    assert not federation.counts.refused_from["over_limit"]
    assert {one.user for one in kept if isinstance(one, m.DeadLetter)} == {"F.learner.mallory"}


def test_what_a_controller_sends_and_is_no_letter_is_dropped_and_a_letter_never(
    federation: Federation,
) -> None:
    """Whether it can be read or not: what was sent on is nowhere else any more."""
    names, by = federation.topology, federation.connect(CONTROLLER)
    kept = federation.heard(names.dead)
    stop = m.StopJob(driver="ana-000000000000", request="1", job="no-job").pack()
    for body in (stop, b"no frame", pack(m.DeadLetter.KIND, {})):
        by.publish(names.control, [names.CONTROL], body)
    eventually(lambda: kept, "a letter that cannot be read")
    eventually(lambda: federation.counts.refused_from["bounced"] == 2, "what is none")
    assert federation.driver.learners() == ()
    assert len(kept) == 1


def test_a_letter_of_a_queue_that_nobody_reads_is_refused_by_name(federation: Federation) -> None:
    kept = federation.heard(federation.topology.dead)
    replay(federation, letter("another.queue", "good.join", "F.learner.good", b"x"))
    eventually(lambda: kept, "a refusal")
    (again,) = kept
    assert isinstance(again, m.DeadLetter)
    assert "no controller reads a queue 'another.queue'" in again.reason
    assert (again.source, again.user) == ("another.queue", "F.learner.good")


def test_the_audit_log_says_who_had_it_heard_again(federation: Federation) -> None:
    names = federation.topology
    join = m.Join(learner="site", session="s").pack()
    stop = m.StopJob(driver="ana-000000000000", request="1", job="no-job").pack()
    replay(
        federation,
        letter(names.reports, "site.join", "F.learner.site", join),
        letter(names.control, names.CONTROL, "F.driver.ana", stop),
    )
    federation.learner("another", Adds(1.0))
    assert federation.driver.learners(), "what came before is handled, too"
    eventually(lambda: entries(federation, "F.learner.another"), "joins being written down in moments")
    for actor, action in (("F.learner.site", "joined"), ("F.driver.ana", "stop_job")):
        (entry,) = entries(federation, actor)
        assert (entry["action"], entry["details"].get("replayed_by")) == (action, CONTROLLER)
    (entry,) = entries(federation, "F.learner.another")
    assert "replayed_by" not in entry["details"]


def test_a_submission_is_taken_over_by_no_other_account(federation: Federation) -> None:
    """Whoever knows its id and its model: neither while it waits for the model, nor when it has begun."""
    model = Model.of(model_of())
    manifest = m.ModelManifest.of(
        model.spec, version=0, digest=model.digest, encoding="raw", chunk_bytes=1 << 20
    )
    ana = federation.driver
    eve = Driver(federation.connect("F.driver.eve"), "F", timeout_s=WAIT_S)

    def submit(by: Driver, job: str) -> m.Submit:
        return m.Submit(driver=by.id, request="1", job=job, spec=spec(), model=manifest)

    ana.ask(submit(ana, "j"), m.Submitted)
    with pytest.raises(RequestRefused, match="of another account"):
        eve.ask(submit(eve, "j"), m.Submitted)
    begun = ana.submit(spec(), model)
    with pytest.raises(RequestRefused, match="another driver submitted it"):
        eve.ask(submit(eve, begun.id), m.Done)
    ana.ask(submit(ana, begun.id), m.Done)
    eve.close()
