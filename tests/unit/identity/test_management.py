"""What is made of the answers of a management interface that no real one gives when it is asked to."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator

import pytest

from broker_fl.errors import BrokerUnavailable
from broker_fl.identity import management
from broker_fl.identity.management import ManagementApi


class Answers(http.server.BaseHTTPRequestHandler):
    """Every request to close a connection fails, as one does for which RabbitMQ finds its process gone."""

    gone_after: int
    asked: int

    def do_GET(self) -> None:
        rows = [{"name": "a -> b"}] if self.asked < self.gone_after else []
        self._answer(200, json.dumps(rows).encode())

    def do_DELETE(self) -> None:
        type(self).asked += 1
        self._answer(500, b"")

    def _answer(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def api() -> Iterator[ManagementApi]:
    Answers.asked = 0
    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield ManagementApi(f"http://127.0.0.1:{server.server_port}", user="a", password="b")
        server.shutdown()
        thread.join()


def test_a_connection_that_is_gone_is_closed_whatever_was_answered(api: ManagementApi) -> None:
    Answers.gone_after = 2
    api.close_connections("a")
    assert Answers.asked == 2


def test_a_connection_that_stays_is_said_not_to_be_closed(
    api: ManagementApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(management, "_CLOSING_S", 0.2)
    Answers.gone_after = 1_000_000
    with pytest.raises(BrokerUnavailable, match="500"):
        api.close_connections("a")
    assert Answers.asked > 1
