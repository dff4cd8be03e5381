"""What others send cannot make a line of the log that looks like one of ours."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from broker_fl.roles import about
from broker_fl.workers import logs
from broker_fl.workers.logs import configure_logging

FORGED = "gone\n2026-01-01T00:00:00.000Z ERROR   broker_fl: the disk is full\r\x1b[2J\u2028\u202egnp"
log = logging.getLogger("broker_fl.test")


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    yield
    logging.basicConfig(force=True)


def fail(words: str = FORGED) -> None:
    raise ValueError(words)


def told(log_format: str, verbosity: int = 0) -> str:
    """What is written of a message and of an error that hold foreign text."""
    stream = io.StringIO()
    configure_logging("INFO", verbosity, log_format=log_format, stream=stream)  # type: ignore[arg-type]
    log.warning("learner a left: %s", FORGED)
    try:
        fail()
    except ValueError:
        log.exception("of b: %s", FORGED)
    return stream.getvalue()


def test_a_text_log_has_one_line_for_a_message_whatever_is_in_it() -> None:
    lines = told("text").split("\n")
    assert [line.split()[1] for line in lines if line[:1].isdigit()] == ["WARNING", "ERROR"]
    assert len(lines) == 4, "two messages, the error behind one, and the end"
    assert all(line.isprintable() for line in lines)
    assert r"gone\n2026-01-01T00:00:00.000Z ERROR" in lines[0], "it can still be read"


def test_lines_of_a_traceback_are_indented() -> None:
    lines = told("text", verbosity=2).split("\n")
    assert [line.split()[1] for line in lines if line[:1].isdigit()] == ["WARNING", "ERROR"]
    assert any("in fail" in line for line in lines)
    assert all(line.isprintable() for line in lines)


def test_a_json_log_keeps_the_text_in_one_object() -> None:
    first, second = map(json.loads, told("json").rstrip("\n").split("\n"))
    assert first["message"] == f"learner a left: {FORGED}"
    assert second["error"]["message"] == FORGED


def test_what_is_true_of_the_whole_process_is_in_each_json_line_and_in_no_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(about, "_EVERYWHERE", {})
    about.everywhere(federation="f", learner="site-1")
    assert all(json.loads(line)["learner"] == "site-1" for line in told("json").rstrip("\n").split("\n"))
    assert "site-1" not in told("text")


SECRETS = ['q"uote-\\-back', "ends-with-\\", "tab\t-and-\x1b-esc", "ümläut-\u202e-turn", "plain-secret"]


@pytest.mark.parametrize("verbosity", [0, 2])
@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_not_written_however_its_characters_are_escaped(
    monkeypatch: pytest.MonkeyPatch, secret: str, log_format: str, verbosity: int
) -> None:
    monkeypatch.setattr(logs, "_secrets", set[str]())
    logs.hide(secret)
    stream = io.StringIO()
    configure_logging("INFO", verbosity, log_format=log_format, stream=stream)  # type: ignore[arg-type]
    log.warning("login with %s, that is %r, refused", secret, secret)
    try:
        fail(secret)
    except ValueError:
        log.exception("of %s", [secret])
    told = stream.getvalue()
    for shown in (
        secret,
        repr(secret)[1:-1],
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
    ):
        assert shown not in told
    assert told.count("***") >= 4
    if log_format == "json":
        first, second = map(json.loads, told.rstrip("\n").split("\n"))
        assert first["message"] == "login with ***, that is '***', refused"
        assert second["error"]["message"] == "***"
