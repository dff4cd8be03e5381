"""The audit log: what is in it, what a chain shows, and that it goes on with the next controller."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from broker_fl.cli.main import commands
from broker_fl.errors import AuditBroken, RequestRefused, SettingError
from broker_fl.identity.joinfile import JoinFile
from broker_fl.roles.controller.auditing import AuditLog
from broker_fl.roles.runtime import Clock
from broker_fl.security.audit import LOG_NAME, Deed, FileLog, Head, chained, read, verify
from broker_fl.stores.redis import RedisStore
from broker_fl.wire.messages import VersionRef
from tests.unit.roles.stage import FEDERATION, Adds, Stage, done, kinds, model_of, spec

F = "hospitals"


def chain(count: int) -> list[bytes]:
    head, lines = Head.of_empty(F), []
    for number in range(count):
        line, head = chained(
            Deed(actor="anna", action="stop_job", subject=f"job {number}"), head, 1e9 + number
        )
        lines.append(line)
    return lines


def changed(line: bytes, **fields: Any) -> bytes:
    return json.dumps({**json.loads(line), **fields}, sort_keys=True, separators=(",", ":")).encode()


def forged(lines: list[bytes]) -> list[bytes]:
    """A chain that is whole in itself, with another third entry."""
    head = verify(lines[:2], F)
    third, head = chained(Deed(actor="anna", action="stop_job", subject="job of eve"), head, 1e9)
    return [*lines[:2], third, chained(Deed(actor="", action="joined", subject="x"), head, 1e9)[0]]


def test_a_whole_chain_is_whole_and_has_a_head() -> None:
    lines = chain(4)
    head = verify(lines, F)
    assert head.sequence == 4
    assert head == Head.parse(str(head))
    assert verify(lines, F, [verify(lines[:2], F), head, Head.of_empty(F)]) == head
    assert verify([], F) == Head.of_empty(F)


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (lambda c: [c[0], changed(c[1], actor="eve"), *c[2:]], "entry 2 was changed"),
        (lambda c: [c[0], changed(c[1], time_s=1.0), *c[2:]], "entry 2 was changed"),
        (lambda c: [c[0], c[1].replace(b'","', b'", "', 1), *c[2:]], "entry 2 was changed"),
        (lambda c: [c[0], *c[2:]], "entry 3 stands where 2 should: one is missing"),
        (lambda c: c[1:], "entry 2 stands where 1 should"),
        (lambda c: [c[0], c[2], c[1], c[3]], "entry 3 stands where 2 should"),
        (lambda c: [c[0], c[0], *c[1:]], "entry 1 stands where 2 should: one comes once more"),
        (lambda c: [c[0], b"nothing", *c[1:]], "no entry"),
        (lambda c: [c[0], changed(c[1], more=1), *c[2:]], "other fields"),
        (lambda c: [*c[:3], forged(c)[3]], "entry 4 does not follow"),
    ],
)
def test_tampering_is_found_and_the_entry_named(
    tamper: Callable[[list[bytes]], list[bytes]], words: str
) -> None:
    with pytest.raises(AuditBroken, match=words):
        verify(tamper(chain(4)), F)


def test_what_a_chain_cannot_show_by_itself_a_remembered_head_shows() -> None:
    lines = chain(4)
    head = verify(lines, F)
    assert verify(lines[:2], F).sequence == 2  # cut off: whole in itself
    with pytest.raises(AuditBroken, match="ends with entry 2; entry 4 is remembered: it was cut off"):
        verify(lines[:2], F, [head])
    verify(forged(lines), F)
    with pytest.raises(AuditBroken, match="entry 4 is another than is remembered"):
        verify(forged(lines), F, [head])
    with pytest.raises(AuditBroken, match="does not follow"):
        verify(lines, "another-federation")


@pytest.mark.parametrize("text", ["", "1", "1:abc", "x:" + "0" * 64, "1:" + "g" * 64])
def test_a_head_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="no head"):
        Head.parse(text)


# ---------------------------------------------------------------- the controller's


@pytest.fixture
def stage(tmp_path: Path):  # type: ignore[no-untyped-def]
    with Stage(tmp_path, heartbeat_s=0.3, lease_ttl_s=1.0) as made:
        yield made


def test_a_jobs_life_is_written_down_and_goes_on_with_the_next_controller(stage: Stage) -> None:
    first = stage.controller()
    learner = Adds(1.0)
    learner.gate.clear()
    stage.host({"a": learner})
    job = stage.submit(rounds=3)
    assert learner.at_work.wait(30)
    job.pause("lunch")
    before = verify(stage.audit_log(), FEDERATION)
    stage.kill(first)
    stage.controller()
    job.resume()
    learner.gate.set()
    done(job)
    job.model(version=1)
    entries = [read(line) for line in stage.audit_log()]
    after = verify(stage.audit_log(), FEDERATION, [before])
    assert after.sequence == len(entries) > before.sequence
    deeds = [(one["action"], one["subject"]) for one in entries]
    its = f"job {job.id}"
    for deed in (
        ("took_over", "epoch 1"),
        ("joined", "learner a"),
        ("submit", its),
        ("pause_job", its),
        ("took_over", "epoch 2"),
        ("resume_job", its),
        ("read_model", its),
    ):
        assert deed in deeds
    submitted = next(one for one in entries if one["action"] == "submit")
    assert submitted["details"]["rule"] == "fedavg"
    paused = next(one for one in entries if one["action"] == "pause_job")
    assert paused["details"]["reason"] == "lunch"
    assert {one["actor"] for one in entries} == {stage.transport.user}
    assert "job_finished" in kinds(job)  # the log is not among the events


def test_a_refused_request_is_written_down_too(stage: Stage) -> None:
    stage.controller()
    stage.host({"a": Adds(1.0)})
    job = stage.submit(rounds=1)
    done(job)
    with pytest.raises(Exception, match="has ended"):
        job.pause()
    (refused,) = (
        one
        for one in map(read, stage.audit_log())
        if one["action"] == "pause_job" and "refused" in one["details"]
    )
    assert "has ended" in refused["details"]["refused"]


def test_a_submit_is_written_down_with_the_model_it_copies_or_why_it_was_refused(stage: Stage) -> None:
    """Also where the refusal comes when the initial model is there."""
    stage.controller()
    stage.host({"a": Adds(1.0)})
    job = stage.submit(rounds=1)
    done(job)
    done(stage.driver.submit(spec(rounds=1), VersionRef(job=job.id, version=1)))
    with pytest.raises(RequestRefused, match="NaN"):
        stage.submit(model_of(float("nan")))
    submits = [one["details"] for one in map(read, stage.audit_log()) if one["action"] == "submit"]
    assert [one.get("parent") for one in submits] == [None, f"{job.id}@1", None]
    assert [("refused" in one) for one in submits] == [False, False, True]
    assert "NaN" in submits[2]["refused"]


# ---------------------------------------------------------------- files and the command


def test_a_file_is_a_chain_too_and_its_owners_only(tmp_path: Path) -> None:
    path = tmp_path / "state" / "audit.jsonl"
    for number in range(3):
        FileLog(path, F).append(Deed(actor="root", action="enroll", subject=f"learner {number}"))
    assert verify(FileLog(path, F).lines(), F).sequence == 3
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_bytes(path.read_bytes().replace(b"learner 1", b"learner 9"))
    told = CliRunner().invoke(commands, ["audit", "verify", "--file", str(path), "--federation", F])
    assert told.exit_code == 1
    assert "entry 2 was changed" in told.stderr


@pytest.mark.parametrize("kept", [-1, -40])
def test_a_last_line_that_was_torn_keeps_nobody_from_being_revoked(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "audit.jsonl"
    log = FileLog(path, F)
    for number in range(2):
        log.append(Deed(actor="root", action="enroll", subject=f"learner {number}"))
    path.write_bytes(path.read_bytes()[:kept])
    log.append(Deed(actor="root", action="revoke", subject="learner 0"))
    lines = list(log.lines())
    assert [read(lines[number])["action"] for number in (0, -1)] == ["enroll", "revoke"]
    assert read(lines[-1])["sequence"] == 3
    if kept == -1:  # only the line's end is missing
        assert verify(lines, F).sequence == 3
    else:
        with pytest.raises(AuditBroken, match="no entry"):
            verify(lines, F)


def test_the_command_reads_redis_and_remembers_a_head(
    redis_url: str, federation: str, tmp_path: Path
) -> None:
    store = RedisStore(redis_url, federation=federation)
    epoch = store.acquire_lease("me", 30)
    assert epoch is not None
    log = AuditLog(store, federation, epoch, Clock())
    for number in range(4):
        log.add(Deed(actor="anna", action="stop_job", subject=f"job {number}"))
    log.write()
    memory = tmp_path / "head"
    where = ["--store", redis_url, "--federation", federation]

    def run(*words: str) -> Any:
        return CliRunner().invoke(commands, ["audit", *words, *where])

    assert "4 entries, and all fit" in run("verify", "--remember", str(memory)).output
    assert Head.parse(memory.read_text()) == log.head
    assert "stop_job" in run("show", "--last", "2").output
    with store._client as client:
        client.xdel(f"bfl:{{{federation}}}:events:{LOG_NAME}", "4-0")
    told = run("verify", "--remember", str(memory))
    assert told.exit_code == 1
    assert "it was cut off" in told.stderr
    assert Head.parse(memory.read_text()) == log.head, "what is remembered is not forgotten for it"


def test_an_audit_of_a_federation_that_has_no_log_says_so(
    redis_url: str, federation: str, tmp_path: Path
) -> None:
    """With the federation of a join file; and what is remembered and gone stays an alarm."""
    joined, memory = tmp_path / "a.join", tmp_path / "head"
    JoinFile(
        federation=federation, role="learner", name="a", broker="amqp://127.0.0.1/fl", password="s"
    ).write(joined)
    memory.write_text(f"4:{'0' * 64}", encoding="utf-8")
    where = ["--store", redis_url, "--join", str(joined)]

    def run(*words: str) -> Any:
        return CliRunner().invoke(commands, ["audit", *words, *where])

    for command, code in (("show", 0), ("verify", 2)):
        told = run(command)
        assert told.exit_code == code
        assert f"no controller of federation '{federation}' has ever" in told.stderr
    told = run("verify", "--remember", str(memory))
    assert told.exit_code == 1
    assert f"federation '{federation}': audit log: it ends with entry 0" in told.stderr
    assert "leave out --federation" in run("show", "--federation", "other").stderr
