"""Whatever goes wrong while a password is changed, a join file is there that opens the account.

The management interface is the broker's own, behind a relay that loses a request or an answer.
"""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest

from broker_fl.errors import AccessDenied
from tests.servers.enrolling import Operator

Fate = Literal["", "lost", "unanswered"]
"""Of a request: answered, never forwarded, or carried out without anybody being told."""


class Relay(ThreadingHTTPServer):
    """To the management interface."""

    def __init__(self, place: str, fate: Callable[[str, str], Fate]) -> None:
        super().__init__(("127.0.0.1", 0), Relayed)
        self.place = urlsplit(place).netloc
        self.fate = fate


class Relayed(BaseHTTPRequestHandler):
    server: Relay

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fate = self.server.fate(self.command, self.path)
        if fate == "lost":
            return
        onward = http.client.HTTPConnection(self.server.place, timeout=30)
        onward.request(self.command, self.path, body, {"Authorization": self.headers["Authorization"]})
        answer = onward.getresponse()
        said = answer.read()
        onward.close()
        if fate == "unanswered":
            return
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def relayed(operator: Operator, fate: Callable[[str, str], Fate]) -> Iterator[list[str]]:
    """Options for a command to go through the relay."""
    with Relay(operator.api.place, fate) as relay:
        thread = threading.Thread(target=relay.serve_forever)
        thread.start()
        user = urlsplit(operator.url).username
        try:
            yield ["--management", f"http://{user}@127.0.0.1:{relay.server_address[1]}"]
        finally:
            relay.shutdown()
            thread.join()


def of_password(fate: Fate, then: Fate = "") -> Callable[[str, str], Fate]:
    """What befalls the request that changes the password, and all that follow."""
    seen: list[str] = []

    def befall(method: str, path: str) -> Fate:
        if seen:
            return then
        if method == "PUT" and path.startswith("/api/users/"):
            seen.append(path)
            return fate
        return ""

    return befall


def in_the_way(path: Path) -> Callable[[str, str], Fate]:
    """Somebody makes a file of the new one's name while the password is changed."""

    def befall(method: str, asked: str) -> Fate:
        if method == "PUT" and asked.startswith("/api/users/"):
            path.write_text("another", encoding="utf-8")
        return ""

    return befall


def opens(operator: Operator, path: Path) -> bool:
    try:
        operator.connect(path)
    except AccessDenied:
        return False
    return True


def test_a_file_that_cannot_be_written_leaves_the_password_as_it_is(operator: Operator) -> None:
    old = operator.enroll("hospital-a")
    before = set(operator.folder.iterdir())
    name = "n" * 250  # which leaves no place for the rest of the temporary file's
    done = operator.run("rotate", "hospital-a", "--out", str(operator.folder / name), ok=False)
    assert "cannot be written" in done.output
    assert opens(operator, old)
    assert set(operator.folder.iterdir()) == before


def test_what_the_broker_never_heard_leaves_the_old_join_file_and_nothing_else(operator: Operator) -> None:
    old = operator.enroll("hospital-a")
    before, text = set(operator.folder.iterdir()), old.read_text(encoding="utf-8")
    with relayed(operator, of_password("lost")) as through:
        operator.run("rotate", "hospital-a", "--out", str(old), "--force", *through, ok=False)
    assert old.read_text(encoding="utf-8") == text
    assert opens(operator, old)
    assert set(operator.folder.iterdir()) == before


def test_an_answer_that_is_lost_loses_no_password(operator: Operator) -> None:
    path = operator.enroll("hospital-a")
    before = set(operator.folder.iterdir())
    with relayed(operator, of_password("unanswered")) as through:
        done = operator.run("rotate", "hospital-a", "--out", str(path), "--force", *through, ok=False)
    assert "once more" in done.output
    assert opens(operator, path)
    assert set(operator.folder.iterdir()) == before


@pytest.mark.parametrize("why", ["the interface is gone", "a file is in the way"])
def test_where_the_new_join_file_cannot_take_its_place_it_is_kept_and_named(
    operator: Operator, why: str
) -> None:
    old, new = operator.enroll("hospital-a"), operator.folder / "new.join"
    fate = of_password("unanswered", then="lost") if why == "the interface is gone" else in_the_way(new)
    with relayed(operator, fate) as through:
        done = operator.run("rotate", "hospital-a", "--out", str(new), *through, ok=False)
    (kept,) = [one for one in operator.folder.iterdir() if one.name.startswith(".new.join.")]
    assert str(kept) in re.sub(r"\s+", " ", done.output)
    assert kept.stat().st_mode & 0o777 == 0o600
    assert opens(operator, kept)
    assert not opens(operator, old)
