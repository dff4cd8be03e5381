"""``/metrics``, ``/healthz`` and ``/readyz`` of one daemon, for who scrapes it at the same site."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from broker_fl.errors import SettingError

log = logging.getLogger(__name__)
REQUEST_TIMEOUT_S = 10.0
TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Page:
    """An answer."""

    status: HTTPStatus
    body: bytes
    content_type: str = TEXT

    @classmethod
    def of(cls, problems: list[str]) -> Page:
        """``ok``, or 503 with a line for each problem."""
        if problems:
            return cls(HTTPStatus.SERVICE_UNAVAILABLE, "".join(f"{one}\n" for one in problems).encode())
        return cls(HTTPStatus.OK, b"ok\n")


class StatusServer:
    """Serves pages by their path on a thread of its own; nothing can be changed through it."""

    def __init__(self, address: str, port: int, pages: dict[str, Callable[[], Page]]) -> None:
        """``port`` 0 takes a free one.

        Raises:
            SettingError: nobody may listen there.
        """
        try:
            self._server = _Server((address, port), pages)
        except (OSError, OverflowError) as error:
            raise SettingError(
                f"metrics cannot be served at {address}:{port} ({error}): give another --metrics-port, or an "
                "address of this machine as --metrics-addr"
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", kwargs={"poll_interval": 0.1}, daemon=True
        )

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._server.server_address[:2]
        name = host.decode() if isinstance(host, bytes | bytearray) else host
        return f"http://{f'[{name}]' if ':' in name else name}:{port}"

    def __enter__(self) -> Self:
        self._thread.start()
        log.info("metrics, /healthz and /readyz are at %s", self.url)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(2.0)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], pages: dict[str, Callable[[], Page]]) -> None:
        self.pages = pages
        if ":" in address[0]:
            import socket

            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that went away is nothing to print a traceback for."""
        log.debug("a request from %s failed: %s", client_address, sys.exc_info()[1])


class _Handler(BaseHTTPRequestHandler):
    timeout = REQUEST_TIMEOUT_S
    server_version = "broker_fl"
    sys_version = ""
    server: _Server

    def do_GET(self) -> None:
        """Answer with a page."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """The same without the body."""
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        make = self.server.pages.get(self.path.partition("?")[0])
        if make is None:
            known = " ".join(self.server.pages)
            page = Page(HTTPStatus.NOT_FOUND, f"there are: {known}\n".encode())
        else:
            page = make()
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(page.body)))
        self.end_headers()
        if with_body:
            self.wfile.write(page.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        log.debug("%s: %s", self.address_string(), format % args)
